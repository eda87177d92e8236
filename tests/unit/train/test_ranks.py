"""What all ranks call alike beside a save: the latest checkpoint, the manager."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.distributed.agreement import Agreement
from ckptstore.errors import CorruptError, NotFoundError, RanksMissingError
from ckptstore.storage.registry import locate
from ckptstore.testing.local_coordinators import LocalCoordinator
from tests.unit.saving.ranks import Job

SIZE = 3
_fresh = itertools.count()


@pytest.fixture
def directory() -> str:
    return f"memory://train-ranks-{next(_fresh)}/run"


def on_each(call: Any) -> list[Any]:
    job = Job(SIZE)
    return job.each(lambda rank, saver: call(rank, job.coordinators[rank]))


def test_the_latest_checkpoint_is_that_of_the_chief(directory):
    ck.Saver().save({"w": np.ones(2)}, f"{directory}/m", 7)
    where = [directory, "memory://nowhere/a", "memory://nowhere/b"]
    found = on_each(lambda rank, each: ck.latest_checkpoint(where[rank], coordinator=each))
    assert found == [f"{directory}/m-7"] * SIZE
    assert (
        on_each(lambda rank, each: ck.latest_checkpoint("memory://nowhere", coordinator=each))
        == [None] * SIZE
    )


def test_an_error_of_the_chief_is_of_the_same_class_on_all(directory):
    ck.Saver().save({"w": np.ones(2)}, f"{directory}/m", 7)
    place = f"{directory}/m-7.index"
    storage = locate(place)
    storage.storage.delete_many([storage.key])
    found = on_each(lambda rank, each: ck.latest_checkpoint(directory, coordinator=each))
    assert {type(error) for error in found} == {CorruptError}


def test_a_manager_of_many_ranks(directory):
    def train(rank: int, each: LocalCoordinator) -> Any:
        tree = ck.Checkpoint(net={"w": np.full(2, 3.0)}, step=np.array(0))
        manager = ck.CheckpointManager(tree, directory, 2, coordinator=each, run="job")
        return [manager.save() for _ in range(3)]

    prefixes = [f"{directory}/ckpt-{number}" for number in (1, 2, 3)]
    assert on_each(train) == [prefixes] * SIZE

    def resume(rank: int, each: LocalCoordinator) -> Any:
        tree = ck.Checkpoint(net={"w": np.zeros(2)}, step=np.array(0))
        manager = ck.CheckpointManager(tree, directory, 2, coordinator=each, run="job-2")
        return manager.restore_or_initialize(), tree.net["w"].tolist()

    assert on_each(resume) == [(prefixes[-1], [3.0, 3.0])] * SIZE


def test_all_or_none_returns_all_answers_or_raises_on_all():
    def answer(rank: int, each: LocalCoordinator) -> Any:
        with Agreement(each, "test") as agreement:
            return agreement.all_or_none(lambda: {"x": rank})

    assert on_each(answer) == [[{"x": rank} for rank in range(SIZE)]] * SIZE

    def fail(rank: int, each: LocalCoordinator) -> None:
        def check() -> dict[str, int]:
            if rank == 1:
                raise NotFoundError("no such thing", url="memory://x")
            return {}

        with Agreement(each, "test") as agreement:
            agreement.all_or_none(check)

    assert {type(error) for error in on_each(fail)} == {NotFoundError}


def test_messages_of_finished_calls_are_forgotten():
    job = Job(SIZE)

    def call(rank: int, saver: ck.Saver) -> None:
        for _ in range(30):
            with Agreement(job.coordinators[rank], "test") as agreement:
                agreement.all_or_none(dict)

    job.each(call)
    assert job.coordinators[0].kept_messages() <= 8 * SIZE


def test_a_rank_that_does_not_come_is_named(monkeypatch):
    monkeypatch.setattr("ckptstore.distributed.agreement._AGREEMENT_S", 0.5)
    job = Job(SIZE)

    def call(rank: int, saver: ck.Saver) -> None:
        with Agreement(job.coordinators[rank], "test") as agreement:
            agreement.all_or_none(dict)

    for error in job.each(call, ranks=[0, 2]):
        assert isinstance(error, RanksMissingError)
        assert error.ranks == (1,)
