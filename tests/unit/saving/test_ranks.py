"""One checkpoint of many ranks, played by threads."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.errors import CkptStoreError, RanksMissingError, UsageError
from ckptstore.testing import make_local_coordinators
from tests.unit.directory.helpers import names_in
from tests.unit.saving.ranks import Job, shorten_grace

SIZE = 4
ROWS = np.arange(48.0, dtype=np.float32).reshape(8, 6)
_fresh = itertools.count()


@pytest.fixture
def directory() -> str:
    return f"memory://ranks-{next(_fresh)}/run"


def values(rank: int, stamp: float = 0.0, size: int = SIZE) -> dict[str, Any]:
    rows = np.array_split(np.arange(len(ROWS)), size)[rank]
    return {
        "rows": ck.Piece(ROWS[rows[0] : rows[-1] + 1] + stamp, ROWS.shape, (rows[0], 0)),
        "bias": np.full(3, stamp),
        f"own/{rank}": np.array([rank, stamp]),
        "step": np.array(int(stamp)),
    }


def save_all(job: Job, directory: str, step: int) -> list[Any]:
    return job.each(lambda rank, saver: saver.save(values(rank, step), f"{directory}/m", step))


def check(prefix: str, stamp: float = 0.0) -> None:
    with ck.open_checkpoint(prefix) as checkpoint:
        np.testing.assert_array_equal(checkpoint["rows"], ROWS + stamp)
        np.testing.assert_array_equal(checkpoint["bias"], np.full(3, stamp))
        assert checkpoint["step"] == int(stamp)
        for rank in range(SIZE):
            np.testing.assert_array_equal(checkpoint[f"own/{rank}"], [rank, stamp])


def test_all_ranks_return_the_prefix_of_one_checkpoint(directory):
    job = Job(SIZE)
    for step in (1, 2, 3):
        found = save_all(job, directory, step)
        assert found == [f"{directory}/m-{step}"] * SIZE
        check(f"{directory}/m-{step}", step)
    assert ck.latest_checkpoint(directory) == f"{directory}/m-3"
    data = [name for name in names_in(directory) if name.startswith("m-3.data")]
    assert data == [f"m-3.data-0000{rank}-of-00004" for rank in range(SIZE)]
    assert "m-3.meta" in names_in(directory)


def test_in_the_background(directory):
    job = Job(SIZE)

    def run(rank: int, saver: ck.Saver) -> list[Any]:
        handles = []
        for step in range(1, 6):
            arrays = values(rank, step)
            handles.append(saver.save_async(arrays, f"{directory}/m", step))
            # Copied by now.
            arrays["bias"][:] = -1
            arrays["rows"].array[:] = -1
        return [handle.result() for handle in handles]

    for found in job.each(run):
        assert found == [f"{directory}/m-{step}" for step in range(1, 6)]
    for step in range(1, 6):
        check(f"{directory}/m-{step}", step)


def test_the_report_names_all_ranks(directory):
    job = Job(SIZE)
    reports = job.each(lambda rank, saver: saver.save_async(values(rank), f"{directory}/m").report())
    assert [each.rank for each in reports[0].ranks] == list(range(SIZE))
    assert reports[0].ranks[2].host_name == "host-2"
    assert reports[0] == reports[3]
    assert reports[0].bytes == ROWS.nbytes + 3 * 8 + SIZE * 2 * 8 + 8


def test_a_rank_with_another_step_is_named_on_all(directory):
    job = Job(SIZE)
    found = job.each(lambda rank, saver: saver.save(values(rank), f"{directory}/m", 7 if rank == 2 else 1))
    assert {type(error) for error in found} == {UsageError}
    assert all("rank 2 (host-2)" in str(error) for error in found)
    assert names_in(directory) == []
    assert (
        job.each(lambda rank, saver: saver.save(values(rank), f"{directory}/m", 8))
        == [f"{directory}/m-8"] * SIZE
    )


def test_a_hole_and_an_overlap_name_boxes_and_ranks(directory):
    job = Job(SIZE)

    def save(rank: int, saver: ck.Saver) -> Any:
        arrays = values(rank)
        if rank == 1:
            arrays["rows"] = ck.Piece(ROWS[3:4], ROWS.shape, (3, 0))
        return saver.save(arrays, f"{directory}/m")

    for error in job.each(save):
        assert isinstance(error, UsageError)
        assert "hole at [2:3, 0:6]" in str(error)
        assert "rank 1" in str(error)
    assert names_in(directory) == []


def test_what_a_rank_cannot_save_ends_the_save_on_all(directory):
    job = Job(SIZE)

    def save(rank: int, saver: ck.Saver) -> Any:
        arrays = values(rank)
        if rank == 3:
            arrays["odd"] = np.array(["2020-01-01"], "datetime64[D]")
        return saver.save(arrays, f"{directory}/m")

    found = job.each(save)
    assert {type(error) for error in found} == {UsageError}
    assert all("odd" in str(error) for error in found)
    assert "rank 3 (host-3)" in str(found[0])
    assert (
        job.each(lambda rank, saver: saver.save(values(rank), f"{directory}/m")) == [f"{directory}/m"] * SIZE
    )


def test_replicas_that_differ_are_found(directory):
    job = Job(SIZE)

    def save(rank: int, saver: ck.Saver) -> Any:
        arrays = values(rank)
        if rank == 2:
            arrays["bias"][1] = np.nextafter(0.0, 1.0)
        return saver.save(arrays, f"{directory}/m")

    for error in job.each(save):
        assert isinstance(error, UsageError)
        assert error.tensor == "bias"
        assert "0, 1, 3 and 2" in str(error)
    assert names_in(directory) == []


def test_a_rank_that_does_not_come_is_named_and_the_next_save_works(directory):
    job = Job(SIZE, deadline_s=1.0)
    found = job.each(lambda rank, saver: saver.save(values(rank), f"{directory}/m", 1), ranks=[0, 1, 3])
    for error in found:
        assert isinstance(error, RanksMissingError)
        assert error.ranks == (2,)
        assert error.host_names == ("host-2",)
    late = job.each(lambda rank, saver: saver.save(values(rank), f"{directory}/m", 1), ranks=[2])
    assert isinstance(late[0], RanksMissingError)
    assert names_in(directory) == []
    assert (
        job.each(lambda rank, saver: saver.save(values(rank), f"{directory}/m", 2))
        == [f"{directory}/m-2"] * SIZE
    )


def test_without_the_chief_the_others_name_it(directory, monkeypatch):
    shorten_grace(monkeypatch)
    job = Job(SIZE, deadline_s=0.5)
    found = job.each(lambda rank, saver: saver.save(values(rank), f"{directory}/m", 1), ranks=[1, 2, 3])
    for error in found:
        assert isinstance(error, RanksMissingError)
        assert error.ranks == (0,)


def test_a_large_replica_is_written_by_all_and_tensorflow_can_assemble_it(directory):
    job = Job(SIZE)
    large = np.arange(20 * 1024 * 1024, dtype=np.float32).reshape(1024, -1)
    found = job.each(lambda rank, saver: saver.save({"large": large}, f"{directory}/m"))
    assert found == [f"{directory}/m"] * SIZE
    with ck.open_checkpoint(f"{directory}/m") as checkpoint:
        np.testing.assert_array_equal(checkpoint["large"], large)
        assert checkpoint.specs()["large"].shards == (0, 1, 2, 3)


def test_a_changed_layout_is_dealt_anew(directory):
    job = Job(SIZE)
    for step in (1, 2):
        save_all(job, directory, step)

    def save(rank: int, saver: ck.Saver) -> Any:
        arrays = values(rank, 3)
        if rank == 2:
            arrays["more"] = np.ones(5)
        return saver.save_async(arrays, f"{directory}/m", 3).result()

    assert job.each(save) == [f"{directory}/m-3"] * SIZE
    check(f"{directory}/m-3", 3)
    with ck.open_checkpoint(f"{directory}/m-3") as checkpoint:
        np.testing.assert_array_equal(checkpoint["more"], np.ones(5))


def test_options_that_do_not_go_together():
    (only,) = Job(1).coordinators
    with pytest.raises(UsageError, match="queue='wait'"):
        ck.Saver(coordinator=only, queue="skip")
    with pytest.raises(CkptStoreError, match="reuse_unchanged"):
        ck.Saver(coordinator=only, reuse_unchanged=True)
    with pytest.raises(UsageError, match="check_replicas"):
        ck.Saver(coordinator=only, check_replicas="sometimes")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no coordinator"):
        ck.Saver(coordinator=3)  # type: ignore[arg-type]


def test_a_save_gives_up_before_the_engine_ends_the_job(directory, monkeypatch):
    chief, _ = make_local_coordinators(2)
    # Ten minutes otherwise.
    monkeypatch.setattr(chief, "longest_deadline_s", 0.3, raising=False)
    with ck.Saver(coordinator=chief) as saver, pytest.raises(RanksMissingError) as caught:
        saver.save({"w": np.zeros(3)}, f"{directory}/m", 1)
    assert caught.value.ranks == (1,)
