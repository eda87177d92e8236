"""`restore(only_changed=True)`: the same arrays as after a full restore, and fewer bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import ckptstore as ck
from ckptstore.storage.registry import use_wrapper
from ckptstore.testing import CountingStorage

CHANCE = np.random.default_rng(3)
KIB = 1024


def array(dtype: Any = "f4", size_bytes: int = 300 * KIB) -> np.ndarray[Any, Any]:
    """Return random numbers, two dimensions of them."""
    count = size_bytes // np.dtype(dtype).itemsize
    values = CHANCE.integers(0, 100, count).astype(dtype)
    return values.reshape(-1, 8)


@pytest.fixture
def prefix(tmp_path: Path) -> Callable[..., str]:
    def save(values: dict[str, Any]) -> str:
        saved = ck.Saver(run="job").save(values, f"{tmp_path}/model", 1)
        assert saved is not None
        return saved

    return save


@pytest.fixture
def read_bytes() -> Iterator[list[int]]:
    """Collect the bytes of every read of a data file."""
    sizes: list[int] = []

    class Counting(CountingStorage):
        def read_into(self, key, ranges, buffers, *, version=None):
            sizes.extend(len(buffer) for buffer in buffers)
            return super().read_into(key, ranges, buffers, version=version)

    with use_wrapper(Counting):
        yield sizes


@pytest.mark.parametrize("size_bytes", [64 * KIB, 100 * KIB, 300 * KIB, 20 * KIB * KIB])
def test_what_has_the_checksum_is_neither_read_nor_changed(
    prefix: Callable[..., str], read_bytes: list[int], size_bytes: int
) -> None:
    values = {"same": array(size_bytes=size_bytes), "other": array(size_bytes=size_bytes)}
    path = prefix(values)
    into = {"same": values["same"].copy(), "other": values["other"] + 1}
    held = into["same"]
    read_bytes.clear()
    report = ck.open_checkpoint(path).restore(into, only_changed=True)
    assert report.unchanged == ("same",)
    assert into["same"] is held
    assert set(report.restored) == {"same", "other"}
    assert (report.verified, report.unverified) == (1, 0)
    for name, expected in values.items():
        np.testing.assert_array_equal(into[name], expected)
    assert sum(read_bytes) < 1.1 * size_bytes


def test_without_it_everything_is_read(prefix: Callable[..., str]) -> None:
    values = {"same": array()}
    report = ck.open_checkpoint(prefix(values)).restore({"same": values["same"].copy()})
    assert report.unchanged == ()
    assert report.verified == 1


@pytest.mark.parametrize(
    "dtype", ["f4", "f8", "i1", "?", "c8", "u2", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]
)
def test_every_type_and_one_changed_bit(prefix: Callable[..., str], dtype: Any) -> None:
    values = {"w": array(dtype)}
    checkpoint = ck.open_checkpoint(prefix(values))
    into = {"w": values["w"].copy()}
    assert checkpoint.restore(into, only_changed=True).unchanged == ("w",)
    into["w"].view(np.uint8)[-1, -1] ^= 1
    assert checkpoint.restore(into, only_changed=True).unchanged == ()
    np.testing.assert_array_equal(into["w"], values["w"])


def test_arrays_of_other_strides_and_byte_order(prefix: Callable[..., str]) -> None:
    values = {name: array() for name in ("by columns", "swapped", "every second")}
    checkpoint = ck.open_checkpoint(prefix(values))
    wide = np.zeros((values["every second"].shape[0] * 2, 8), "f4")
    into = {
        "by columns": np.asfortranarray(values["by columns"]),
        "swapped": values["swapped"].astype(">f4"),
        "every second": wide[::2],
    }
    into["every second"][...] = values["every second"]
    unchanged = checkpoint.restore(into, only_changed=True).unchanged
    assert sorted(unchanged) == ["by columns", "every second"]
    for name, expected in values.items():
        np.testing.assert_array_equal(into[name], expected)


def test_small_ones_strings_and_new_ones_are_always_read(prefix: Callable[..., str]) -> None:
    values = {
        "small": array(size_bytes=8 * KIB),
        "text": np.array([b"x" * 100_000] * 2, object),
        "new": array(),
    }
    into = {"small": values["small"].copy(), "text": values["text"].copy()}
    report = ck.open_checkpoint(prefix(values)).restore(into, names=list(values), only_changed=True)
    assert report.unchanged == ()
    assert report.verified == 3


def pieces_of(whole: np.ndarray[Any, Any], cuts: list[int]) -> list[ck.Piece]:
    starts = [0, *cuts]
    stops = [*cuts, len(whole)]
    return [
        ck.Piece(whole[start:stop].copy(), whole.shape, (start, 0))
        for start, stop in zip(starts, stops, strict=True)
    ]


def test_partitioned_tensors_and_pieces(prefix: Callable[..., str], read_bytes: list[int]) -> None:
    whole = array(size_bytes=800 * KIB)
    rows = len(whole)
    checkpoint = ck.open_checkpoint(prefix({"w": pieces_of(whole, [rows // 4, rows // 2]), "v": array()}))
    into: dict[str, Any] = {"w": whole.copy()}
    assert checkpoint.restore(into, only_changed=True).unchanged == ("w",)
    assert not sum(read_bytes)
    into["w"][rows // 3] += 1
    assert checkpoint.restore(into, only_changed=True).unchanged == ()
    np.testing.assert_array_equal(into["w"], whole)
    # A piece that is made of whole stored ones can be compared, one that cuts them cannot.
    fitting = pieces_of(whole, [rows // 2])
    assert checkpoint.restore({"w": fitting}, only_changed=True).unchanged == ("w",)
    fitting[1].array[...] = 0
    assert checkpoint.restore({"w": fitting}, only_changed=True).unchanged == ()
    np.testing.assert_array_equal(np.concatenate([piece.array for piece in fitting]), whole)
    cutting = pieces_of(whole, [rows // 3])
    assert checkpoint.restore({"w": cutting}, only_changed=True).unchanged == ()
    np.testing.assert_array_equal(np.concatenate([piece.array for piece in cutting]), whole)


def test_what_does_not_fit_raises_before_anything_is_compared(prefix: Callable[..., str]) -> None:
    values = {"a": array(), "b": array()}
    path = prefix(values)
    into = {"a": values["a"].copy(), "b": values["b"][:-1].copy()}
    with pytest.raises(ck.UsageError):
        ck.open_checkpoint(path).restore(into, only_changed=True)


def test_a_saver_takes_it_too(prefix: Callable[..., str], read_bytes: list[int]) -> None:
    values = {"a": array(), "b": array()}
    path = prefix(values)
    into = {"a": values["a"].copy(), "b": values["b"] + 1}
    read_bytes.clear()
    ck.Saver().restore(into, path, only_changed=True)
    assert sum(read_bytes) == values["b"].nbytes
    for name, expected in values.items():
        np.testing.assert_array_equal(into[name], expected)


def test_random_changes_give_what_a_full_restore_gives(tmp_path: Path) -> None:
    saver = ck.Saver(run="job", max_to_keep=2)
    sizes = [32, 64 * KIB, 70 * KIB, 256 * KIB, 300 * KIB]
    values = {f"t{number}": array(size_bytes=size) for number, size in enumerate(sizes * 3)}
    into = {name: value.copy() for name, value in values.items()}
    for step in range(12):
        for name in CHANCE.choice(list(values), 4, replace=False):
            values[name].reshape(-1)[int(CHANCE.integers(values[name].size))] += 1
        prefix = saver.save(values, f"{tmp_path}/model", step)
        assert prefix is not None
        report = ck.open_checkpoint(prefix).restore(into, only_changed=True)
        assert report.unchanged
        for name, expected in values.items():
            np.testing.assert_array_equal(into[name], expected)
