"""Four processes of JAX."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engines import scenarios
from tests.engines.job import SIZE, Job

LAUNCHER = "jax"
pytestmark = pytest.mark.timeout(1000)


class TestPage(scenarios.PageLines):
    pass


# JAX listens to SIGTERM until somebody else does, and tells of a notice once.
def test_at_the_sync_point_of_jax_all_save_one_checkpoint(job: Job, tmp_path: Path) -> None:
    url = str(tmp_path)
    job.begin("preempt_by_jax", url=url)
    assert job.answers() == [{"ready": True}] * SIZE
    job.terminate(1)
    found = job.answers()
    step = found[0]["step"]
    assert found == [{"step": step, "prefix": f"{url}/m-{step}"}] * SIZE
    scenarios.check_saved(url, step)


class TestPreempted(scenarios.Preempted):
    pass


class TestContract(scenarios.Contract):
    pass
