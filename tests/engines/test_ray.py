"""Four actors of Ray, and the workers of Ray Train."""

from __future__ import annotations

import pytest

from tests.engines import scenarios
from tests.engines.job import Job

LAUNCHER = "ray"
pytestmark = pytest.mark.timeout(1000)


class TestPage(scenarios.PageLines):
    pass


def test_the_workers_of_ray_train_need_not_say_who_they_are(job: Job) -> None:
    assert not job.is_broken
    job.tell(0, "train")
    assert job.hear(0) == {"agreed": True}


class TestPreempted(scenarios.Preempted):
    pass


class TestContract(scenarios.Contract):
    pass
