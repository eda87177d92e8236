"""What some ranks saved is restored by others, in another layout, on all of them or on none."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.bundle.read.open_bundle import open_bundle
from ckptstore.errors import ConflictError, TensorNotFoundError, UsageError
from tests.unit.saving.ranks import Job

ROWS = np.arange(60.0, dtype=np.float32).reshape(10, 6)
_fresh = itertools.count()


@pytest.fixture
def prefix() -> str:
    """A checkpoint of four ranks: uneven rows, a replica, and something of each rank."""
    directory = f"memory://rank-restore-{next(_fresh)}/run"
    starts = [0, 1, 5, 8, 10]

    def save(rank: int, saver: ck.Saver) -> Any:
        begin, end = starts[rank : rank + 2]
        values = {
            "rows": ck.Piece(ROWS[begin:end], ROWS.shape, (begin, 0)),
            "same": np.arange(3),
            f"own/{rank}": np.array(rank),
        }
        return saver.save(values, f"{directory}/m", 1)

    (found,) = set(Job(4).each(save))
    return str(found)


def _boxes(layout: str, size: int) -> list[tuple[slice, slice]]:
    axis = 0 if layout == "rows" else 1
    edges = [round(ROWS.shape[axis] * rank / size) for rank in range(size + 1)]
    whole = slice(None)
    cuts = [slice(a, b) for a, b in itertools.pairwise(edges)]
    return [(cut, whole) if axis == 0 else (whole, cut) for cut in cuts]


@pytest.mark.parametrize("layout", ["rows", "columns"])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 6])
def test_into_another_layout(prefix, layout, size):
    boxes = _boxes(layout, size)

    def restore(rank: int, saver: ck.Saver) -> dict[str, Any]:
        box = boxes[rank]
        target = np.zeros_like(ROWS[box])
        start = [cut.start or 0 for cut in box]
        values = {"rows": ck.Piece(target, ROWS.shape, start), "same": np.zeros(3, int)}
        saver.restore(values, prefix)
        return values

    for rank, values in enumerate(Job(size).each(restore)):
        np.testing.assert_array_equal(values["rows"].array, ROWS[boxes[rank]])
        np.testing.assert_array_equal(values["same"], [0, 1, 2])
        assert list(values) == ["rows", "same"]


def test_an_empty_mapping_receives_everything(prefix):
    def restore(rank: int, saver: ck.Saver) -> dict[str, Any]:
        values: dict[str, Any] = {}
        saver.restore(values, prefix)
        return values

    for values in Job(2).each(restore):
        np.testing.assert_array_equal(values["rows"], ROWS)
        assert sorted(values) == ["own/0", "own/1", "own/2", "own/3", "rows", "same"]


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"same": np.zeros(4, int)}, UsageError),
        ({"same": np.zeros(3, np.float32)}, UsageError),
        ({"sane": np.zeros(3, int)}, TensorNotFoundError),
        ({"rows": ck.Piece(np.zeros((1, 6), np.float32), (11, 6), (0, 0))}, UsageError),
    ],
)
@pytest.mark.parametrize("odd", [0, 2])
def test_what_is_wrong_on_one_rank_is_raised_on_all_before_an_array_changes(prefix, wrong, error, odd):
    targets = [np.full(3, -1) for _ in range(3)]

    def restore(rank: int, saver: ck.Saver) -> Any:
        return saver.restore({"same": targets[rank]} | (wrong if rank == odd else {}), prefix)

    found = Job(3).each(restore)
    assert {type(each) for each in found} == {error}
    assert all((target == -1).all() for target in targets)
    if odd:
        assert f"rank {odd} (host-{odd})" in str(found[0])


def test_ranks_that_open_two_versions_open_it_again(prefix, monkeypatch):
    turn, replaced = threading.Lock(), threading.Event()

    def restore(rank: int, saver: ck.Saver) -> Any:
        values = {"same": np.zeros(3, int)}
        saver.restore(values, prefix)
        return values["same"].tolist()

    def open_and_replace(place: Any) -> Any:
        # The first one opens what was there before, the others what is there now.
        if turn.acquire(blocking=False):
            reader = open_bundle(place)
            with ck.BundleWriter(prefix) as writer:
                writer.add("same", np.array([7, 8, 9]))
            replaced.set()
            return reader
        assert replaced.wait(60.0)
        return open_bundle(place)

    monkeypatch.setattr("ckptstore.reading.rank_restore.open_bundle", open_and_replace)
    assert Job(3).each(restore) == [[7, 8, 9]] * 3


def test_a_checkpoint_that_is_replaced_again_and_again_is_an_error_on_all(prefix, monkeypatch):
    def differently(place: Any) -> Any:
        reader = open_bundle(place)
        reader.index_version = f"version {next(_fresh)}"
        return reader

    monkeypatch.setattr("ckptstore.reading.rank_restore.open_bundle", differently)
    target = np.full(3, -1)
    found = Job(2).each(lambda rank, saver: saver.restore({"same": target}, prefix))
    assert {type(each) for each in found} == {ConflictError}
    assert (target == -1).all()
