"""Four actors of Ray, and the workers of Ray Train."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engines import scenarios
from tests.engines.job import Job
from tests.engines.ray_training import STEPS

LAUNCHER = "ray"
pytestmark = pytest.mark.timeout(1000)


class TestPage(scenarios.PageLines):
    pass


def test_the_workers_of_ray_train_need_not_say_who_they_are(job: Job) -> None:
    assert not job.is_broken
    job.tell(0, "train")
    assert job.hear(0) == {"agreed": True}


def test_workers_of_ray_train_go_on_where_one_of_them_died(job: Job, tmp_path: Path) -> None:
    assert not job.is_broken
    job.tell(0, "resume", directory=str(tmp_path))
    found = job.hear(0)
    assert found is not None
    assert (tmp_path / "died").exists()
    newest = f"{tmp_path}/run/model-{STEPS}"
    assert found["newest"] == newest
    assert found["weight"] == 4.0 * STEPS
    # Steps 1 and 2 were saved by the first workers, and kept by the next.
    assert sorted(path.name for path in (tmp_path / "run").glob("*.index")) == [
        f"model-{step}.index" for step in range(1, STEPS + 1)
    ]


class TestPreempted(scenarios.Preempted):
    pass


class TestContract(scenarios.Contract):
    pass
