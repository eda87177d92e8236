"""Four processes under torchrun, which hands a signal on to all of them."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.engines import scenarios
from tests.engines.job import SIZE, Job

LAUNCHER = "torchrun"
# `make preemptions` starts, and ends, twenty.
TORCHRUNS = int(os.environ.get("CKPTSTORE_TORCHRUNS", "1"))
pytestmark = pytest.mark.timeout(1000)


class TestPage(scenarios.PageLines):
    pass


class TestPreempted(scenarios.Preempted):
    pass


@pytest.mark.timeout(3600)
def test_a_signal_to_torchrun_makes_all_save_at_one_step(job: Job, tmp_path: Path) -> None:
    for number in range(TORCHRUNS):
        place = tmp_path / str(number)
        place.mkdir()
        # It is over then.
        with nullcontext(job) if number == 0 else Job("torchrun", place) as one:
            url = f"{place}/run"
            # What torchrun gives them is 30 s.
            one.begin("preempt", url=url, rounds=1, saves_all_the_time=number % 2 == 0, grace_s=25.0)
            assert one.answers() == [{"ready": True}] * SIZE
            (torchrun,) = one.processes
            torchrun.terminate()
            scenarios.check_preempted(one, url)
            assert one.answers() == [{}] * SIZE
