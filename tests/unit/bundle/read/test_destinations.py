"""What may share memory when a checkpoint is restored: nothing that would lose values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided, sliding_window_view

import ckptstore as ck
from ckptstore.bundle.read.destinations import Destination, check_destinations
from ckptstore.storage.registry import use_wrapper
from ckptstore.testing import CountingStorage
from tests.unit.directory.helpers import fresh_memory

Arrays = dict[str, np.ndarray]


def windows(size: int) -> np.ndarray:
    return sliding_window_view(np.zeros(size), 3, writeable=True)


OVERLAPPING: dict[str, Callable[[], Any]] = {
    "one element many times": lambda: {"w": as_strided(np.zeros(1), (100,), (0,))},
    "a row many times": lambda: {"w": as_strided(np.zeros(50_000), (4, 50_000), (0, 8))},
    "sliding windows": lambda: {"w": windows(6)},
    "large sliding windows": lambda: {"w": windows(100_000)},
    "backwards": lambda: {"w": windows(6)[::-1]},
    "half an element apart": lambda: {"w": as_strided(np.zeros(9), (9,), (4,))},
    "one array": lambda: dict.fromkeys(("w", "v"), np.zeros(3)),
    "two views of one": lambda: (lambda a: {"w": a[:], "v": a[:]})(np.zeros(3)),
    "a part": lambda: (lambda a: {"w": a, "v": a[2:4]})(np.zeros(9)),
    "neighbours": lambda: (lambda a: {"w": a[:5], "v": a[4:]})(np.zeros(9)),
    "a row and a column": lambda: (lambda a: {"w": a[1], "v": a[:, 2]})(np.zeros((3, 4))),
    "another type": lambda: (lambda a: {"w": a, "v": a.view(np.float32)[1:]})(np.zeros(3)),
    "columns": lambda: (lambda a: {"w": a[:, :2], "v": a[:, 1:]})(np.zeros((9, 4))),
}


@pytest.mark.parametrize("name", OVERLAPPING)
def test_what_would_lose_values_is_refused_before_anything_is_read(name: str) -> None:
    into = OVERLAPPING[name]()
    url = fresh_memory()
    ck.Saver().save(
        {
            key: np.arange(array.size, dtype=array.dtype).reshape(array.shape) + (key == "w")
            for key, array in into.items()
        },
        f"{url}/m",
    )
    made: list[CountingStorage] = []

    def wrap(inner: Any) -> CountingStorage:
        made.append(CountingStorage(inner))
        return made[-1]

    with use_wrapper(wrap):
        for restore in (
            lambda: ck.Saver().restore(into, f"{url}/m"),
            lambda: ck.open_checkpoint(f"{url}/m").restore(into),
        ):
            with pytest.raises(ck.UsageError, match=r"share memory|the same memory") as caught:
                restore()
            assert caught.value.tensor in into
        assert made[0].counts["read_into"] == 0
    assert all(not array.any() for array in into.values())


def columns(width: int, step: int) -> Arrays:
    matrix = np.zeros((300, width), np.float32)
    return {f"w{start}": matrix[:, start : start + step] for start in range(0, width, step)}


def blocks() -> Arrays:
    matrix = np.zeros((40, 30))
    return {f"w{r}-{c}": matrix[r : r + 7, c : c + 4] for r in range(0, 40, 7) for c in range(0, 30, 4)}


SEPARATE: dict[str, Callable[[], Arrays]] = {
    "columns": lambda: columns(40, 1),
    "many columns": lambda: columns(3000, 1),
    "groups of columns": lambda: columns(40, 7),
    "rows in turn": lambda: (lambda a: {f"w{n}": a[n::3] for n in range(3)})(np.zeros((10, 4))),
    "backwards": lambda: (lambda a: {"w": a[::-2], "v": a[-2::-2]})(np.zeros(11)),
    "blocks": blocks,
    "the middle axis": lambda: (lambda a: {f"w{n}": a[:, n] for n in range(5)})(np.zeros((3, 5, 7))),
    "transposed": lambda: (lambda a: {"w": a[:2].T, "v": a[2:].T})(np.zeros((5, 7))),
    "odd strides": lambda: {"w": as_strided(np.zeros(12), (2, 2), (16, 24))},
    "parts of one buffer": lambda: (lambda a: {f"w{n}": a[9 * n :][:9] for n in range(9)})(np.zeros(81)),
    "empty": lambda: (lambda a: {"w": a[:0], "v": a[:0], "x": as_strided(a, (0, 5), (0, 0))})(np.zeros(3)),
}


@pytest.mark.parametrize("name", SEPARATE)
def test_what_only_lies_in_between_is_filled(name: str) -> None:
    into = SEPARATE[name]()
    saved = {
        key: np.arange(array.size, dtype=array.dtype).reshape(array.shape) + len(key) * 1000 + number
        for number, (key, array) in enumerate(into.items())
    }
    url = fresh_memory()
    ck.Saver().save(saved, f"{url}/m")
    ck.Saver().restore(into, f"{url}/m")
    for key, array in into.items():
        assert np.array_equal(array, saved[key]), key


@pytest.mark.parametrize("size", [10, 100_000])
def test_tied_arrays_that_hold_the_same_are_filled(size: int) -> None:
    tied = np.arange(float(size))
    url = fresh_memory()
    ck.Saver().save({"encoder": tied, "decoder": tied[:]}, f"{url}/m")
    into = np.zeros(size)
    ck.Saver().restore({"encoder": into, "decoder": into[:]}, f"{url}/m")
    assert np.array_equal(into, tied)
    # One tensor under two names is one tensor.
    into[:] = 0
    with ck.open_checkpoint(f"{url}/m") as checkpoint:
        checkpoint.restore({"encoder": into, "decoder": into})
    assert np.array_equal(into, tied)


def test_irregular_arrays_are_refused_rather_than_compared_for_ever() -> None:
    memory = np.zeros(1 << 16, np.uint8)
    rng = np.random.default_rng(1)
    irregular = [
        Destination(
            f"w{number}",
            as_strided(memory[int(rng.integers(64)) :], (7, 6, 5, 4), (4099, 611, 97, 13)),
            number,
        )
        for number in range(300)
    ]
    with pytest.raises(ck.UsageError):
        check_destinations(irregular)


@pytest.mark.parametrize("where", ["list", "array"])
def test_a_masked_array_is_neither_saved_nor_filled(where: str) -> None:
    masked = np.ma.MaskedArray(np.arange(3.0), [False, True, False])
    url = fresh_memory()
    with pytest.raises(ck.UsageError, match=r"mask.*filled"):
        ck.Saver().save({"w": [masked] if where == "list" else masked}, f"{url}/m")
    with pytest.raises(ck.UsageError, match=r"mask.*filled") as caught:
        ck.Checkpoint(net={"w": masked}).write(f"{url}/m")
    assert caught.value.tensor == "net/w"
    ck.Saver().save({"w": np.arange(3.0)}, f"{url}/m")
    with pytest.raises(ck.UsageError, match="masked array cannot be filled"):
        ck.Saver().restore({"w": masked}, f"{url}/m")
    assert masked.data.tolist() == [0, 1, 2]
