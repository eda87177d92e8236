"""What a job does under each engine. Starting one takes long, so all of a module's tests share its ranks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.testing import CoordinatorContract
from ckptstore.testing.coordinator_contract import StartRanks
from tests.engines.job import SIZE, Job
from tests.engines.page import block

__all__ = ["GRACE_S", "Contract", "Follows", "PageLines", "Preempted", "check_preempted"]

# `make preemptions` sends twenty signals.
ROUNDS = int(os.environ.get("CKPTSTORE_PREEMPTIONS", "3"))
GRACE_S = 120.0


class PageLines:
    """The lines of docs/distributed.md; those of the engine have run when the job is there."""

    def test_the_lines_of_the_page_save_one_checkpoint(self, job: Job, tmp_path: Path) -> None:
        assert len(block("job").splitlines()) <= 6
        assert len(block(job.engine).splitlines()) <= 6
        begun, resumed = job.ask("page", directory=str(tmp_path)), job.ask("page", directory=str(tmp_path))
        prefix = f"{tmp_path}/model-7"
        assert begun == [{"newest": None, "step": 7, "rows": float(rank)} for rank in range(SIZE)]
        assert resumed == [{"newest": prefix, "step": 7, "rows": float(rank)} for rank in range(SIZE)]
        assert ck.latest_checkpoint(tmp_path) == prefix
        with ck.open_checkpoint(prefix) as checkpoint:
            expected = np.repeat(np.arange(SIZE, dtype=np.float32), 4)[:, None] * np.ones(8, np.float32)
            np.testing.assert_array_equal(checkpoint["w"], expected)
            assert checkpoint.specs()["w"].shards == tuple(range(SIZE))
            assert checkpoint["step"] == 7


class Follows:
    """Ranks that serve one model: one of them watches, all open the version that it saw."""

    def test_all_ranks_switch_to_the_version_that_rank_0_saw(self, job: Job, tmp_path: Path) -> None:
        url, steps = str(tmp_path), 3
        saver = ck.Saver(run="trainer")
        job.begin("follow", directory=url, steps=steps)
        for step in range(1, steps + 1):
            saver.save({"w": np.full(9, float(step))}, f"{url}/model", step)
            assert job.answers() == [{"prefix": f"{url}/model-{step}", "weight": float(step)}] * SIZE
        assert job.answers() == [{"looks": rank == 0} for rank in range(SIZE)]


class Preempted:
    """A signal to one rank of a job whose ranks wait for each other in every step."""

    @pytest.mark.parametrize("saves_all_the_time", [False, True], ids=["between saves", "while saving"])
    def test_a_signal_to_one_rank_makes_all_save_at_one_step_each_time(
        self, job: Job, tmp_path: Path, saves_all_the_time: bool
    ) -> None:
        url = str(tmp_path)
        job.begin("preempt", url=url, rounds=ROUNDS, saves_all_the_time=saves_all_the_time, grace_s=GRACE_S)
        for number in range(ROUNDS):
            assert job.answers() == [{"ready": True}] * SIZE
            # Not always in the same place.
            time.sleep(0.01 * number)
            job.terminate(number % SIZE)
            check_preempted(job, url)
        assert job.answers() == [{}] * SIZE


def check_preempted(job: Job, url: str) -> int:
    """Check that all ranks saved once, at one step, before the grace was over; return the step."""
    said = job.answers()
    steps = {one["step"] for one in said}
    assert len(steps) == 1, f"the ranks saved at {said}"
    (step,) = steps
    assert {one["prefix"] for one in said} == {f"{url}/m-{step}"}
    assert min(one["left_s"] for one in said) > 0
    check_saved(url, step)
    return step


def check_saved(url: str, step: int) -> None:
    """Check that the checkpoint of `step` is whole, of that step, and the newest."""
    assert ck.latest_checkpoint(url) == f"{url}/m-{step}"
    with ck.open_checkpoint(f"{url}/m-{step}") as checkpoint:
        assert set(checkpoint) == {"shared", *(f"own/{rank}" for rank in range(SIZE))}
        for name in checkpoint:
            assert set(np.unique(checkpoint[name])) == {step}, name


class Contract(CoordinatorContract):
    """The contract, of a job whose ranks its last test kills: it comes last in a module."""

    @pytest.fixture(scope="class")
    @classmethod
    def start_ranks(cls, job: Job) -> StartRanks:
        @contextmanager
        def serve(size: int, address: str) -> Iterator[None]:
            assert size == SIZE
            assert not job.is_broken
            job.is_broken = True
            job.begin("contract", address=address)
            yield

        return serve
