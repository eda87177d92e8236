"""Ranks that compare their trees before a save: the deadline of the Saver holds for that, too."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.distributed import agreement
from ckptstore.errors import RanksMissingError, UsageError
from ckptstore.saving.options import SaveOptions
from ckptstore.saving.rank_trees import one_document
from ckptstore.saving.ranks import Ranks
from ckptstore.tree.habit import Habit
from tests.unit.saving.ranks import Job

SIZE = 3
_fresh = itertools.count()


def ranks_of(saver: ck.Saver) -> Ranks:
    found = saver._ranks  # noqa: SLF001
    assert found is not None
    return found


def compare(rank: int, saver: ck.Saver) -> Any:
    return one_document(ranks_of(saver), lambda: {"step": 1}, Habit(), "save m")


@pytest.mark.parametrize("missing", [0, 1])
def test_a_rank_that_does_not_come_is_named_at_the_deadline_of_the_saver(monkeypatch, missing):
    # The word of a chief that does come may take its time. Job waits for a minute.
    monkeypatch.setattr(agreement, "grace_s", lambda deadline_s: 30.0 if missing else 0.1)
    job = Job(SIZE, deadline_s=0.5)
    others = [rank for rank in range(SIZE) if rank != missing]
    for error in job.each(compare, ranks=others):
        assert isinstance(error, RanksMissingError)
        assert error.ranks == (missing,)
        assert error.host_names == (f"host-{missing}",)


def test_a_rank_that_is_frozen_in_the_comparison_hears_of_it_and_saves_the_next_time(monkeypatch, tmp_path):
    monkeypatch.setattr(agreement, "grace_s", lambda deadline_s: 30.0)
    job = Job(SIZE, deadline_s=0.5)
    frozen = job.coordinators[2]

    def freeze() -> dict[str, int]:
        frozen.freeze()
        return {"step": 1}

    def call(rank: int, saver: ck.Saver) -> Any:
        if rank == 2:
            return one_document(ranks_of(saver), freeze, Habit(), "save m")
        try:
            return compare(rank, saver)
        finally:
            if rank == 0:
                frozen.thaw()

    for error in job.each(call):
        assert isinstance(error, RanksMissingError)
        assert error.ranks == (2,)
    for saver in job.savers:
        ranks_of(saver).deadline_s = 60.0

    def again(rank: int, saver: ck.Saver) -> Any:
        document = compare(rank, saver)
        values = {f"own/{rank}": np.ones(2)} | ({} if document is None else {"tree": document})
        return saver.save(values, tmp_path / "m", 2)

    assert job.each(again) == [str(tmp_path / "m-2")] * SIZE


def test_the_second_question_has_what_the_first_left(monkeypatch):
    """The trees differ: one rank says so, and is gone when the others want its tree."""
    monkeypatch.setattr(agreement, "grace_s", lambda deadline_s: 30.0)
    job = Job(SIZE, deadline_s=0.5)

    def call(rank: int, saver: ck.Saver) -> Any:
        if rank == 1:
            with agreement.Agreement(job.coordinators[rank], "save m") as mine:
                return mine.all_or_none(lambda: {"digest": "another"})
        return compare(rank, saver)

    found = job.each(call)
    for rank in (0, 2):
        assert isinstance(found[rank], RanksMissingError)
        assert found[rank].ranks == (1,)


def test_the_save_has_what_the_comparison_left():
    ranks = Ranks(Job(1).coordinators[0], "first", 1.0, SaveOptions(deadline_s=10.0))
    ranks.spent_s = 4.0
    assert ranks.take_limit_s() == 6.0
    assert ranks.take_limit_s() == 10.0
    ranks.spent_s = 11.0
    assert 0.0 < ranks.take_limit_s() < 0.1


def test_a_save_after_a_comparison_that_took_all_the_time_ends_at_once():
    job = Job(SIZE, deadline_s=1000.0)
    place = f"memory://rank-trees-{next(_fresh)}/m"

    def call(rank: int, saver: ck.Saver) -> Any:
        ranks_of(saver).spent_s = 1000.0
        return saver.save({"w": np.ones(2)}, place, 1)

    for error in job.each(call, ranks=[0, 2]):
        assert isinstance(error, RanksMissingError)
    assert ck.latest_checkpoint(place.rpartition("/")[0]) is None


def test_a_wrong_tree_is_no_save(tmp_path):
    """All ranks raise it, and the next save is the same one for all of them."""
    job = Job(SIZE, deadline_s=60.0)

    def call(rank: int, saver: ck.Saver) -> Any:
        def skeleton() -> Any:
            if rank == 1:
                raise UsageError("this cannot be saved")
            return {"step": 1}

        with pytest.raises(UsageError, match="cannot be saved"):
            one_document(ranks_of(saver), skeleton, Habit(), "save m")
        compare(rank, saver)
        return saver.save({"w": np.ones(2)}, tmp_path / "m", 1)

    assert job.each(call) == [str(tmp_path / "m-1")] * SIZE
