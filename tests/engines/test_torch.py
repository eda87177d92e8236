"""Four processes of torch.distributed, without torchrun, which would end all when one is killed."""

from __future__ import annotations

from pathlib import Path

import pytest

import ckptstore as ck
from tests.engines import scenarios
from tests.engines.job import SIZE, Job

LAUNCHER = "torch"
pytestmark = pytest.mark.timeout(1000)
SAVES = 200


class TestFollows(scenarios.Follows):
    pass


class TestPreempted(scenarios.Preempted):
    pass


def test_saves_in_the_background_disturb_no_collective_and_use_none(job: Job, tmp_path: Path) -> None:
    url = str(tmp_path)
    found = job.ask("save_beside_collectives", url=url, saves=SAVES)
    for one in found:
        assert one["prefixes"] == [f"{url}/m-{step}" for step in range(SAVES)]
        assert one["new groups"] == 0
        assert one["collectives"] == one["computed"] == 3 * SAVES
    assert ck.latest_checkpoint(url) == f"{url}/m-{SAVES - 1}"
    with ck.open_checkpoint(f"{url}/m-{SAVES - 1}") as checkpoint:
        assert len(checkpoint) == 16 * SIZE
        assert {float(value) for name in checkpoint for value in checkpoint[name]} == {SAVES - 1}


class TestContract(scenarios.Contract):
    pass
