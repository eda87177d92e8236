from __future__ import annotations

import itertools
import threading
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ckptstore.bundle.read import mapped_tensors, parallel_checksums
from ckptstore.bundle.read.mapped_tensors import MappedTensors
from ckptstore.bundle.read.open_bundle import open_bundle
from ckptstore.errors import (
    ChecksumError,
    IncompleteBundleError,
    NotFoundError,
    TensorNotFoundError,
    TruncatedFileError,
)
from ckptstore.format.crc32c import crc32c, mask
from ckptstore.format.entry import BundleEntry, BundleHeader
from ckptstore.storage.registry import locate
from tests.unit.bundle.helpers import craft, data_file, put, save, take

W = np.random.default_rng(3).standard_normal((700, 1000)).astype("f4")


@pytest.fixture
def place(tmp_path):
    return locate(tmp_path / "model")


@pytest.fixture
def checked(monkeypatch):
    """The sizes of all buffers that were verified."""
    sizes: list[int] = []
    real = vars(parallel_checksums)["crc32c"]

    def counting(data, crc=0):
        sizes.append(data.nbytes)
        return real(data, crc)

    monkeypatch.setattr(parallel_checksums, "crc32c", counting)
    return sizes


def tensors_of(place) -> MappedTensors:
    return MappedTensors(open_bundle(place))


def mapped(tensors: MappedTensors, name: str, *arguments: Any) -> np.ndarray:
    """Return a tensor that can be mapped."""
    found = tensors.get(name, *arguments)
    assert found is not None
    return found


def flip(place, offset: int) -> None:
    raw = bytearray(take(data_file(place)))
    raw[offset] ^= 1
    put(data_file(place), bytes(raw))


@pytest.mark.parametrize(
    "array",
    [W, np.float64(2.5), np.arange(5, dtype="i2"), np.array([True, False]), W.astype(ml_dtypes.bfloat16)],
    ids=lambda array: f"{array.dtype}{list(array.shape)}",
)
def test_a_tensor_is_the_memory_of_the_file(place, array):
    save(place, {"w": array})
    found = mapped(tensors_of(place), "w")
    assert found.shape == array.shape
    assert found.dtype == array.dtype
    assert found.tobytes() == array.tobytes()
    assert not found.flags.owndata
    assert found.flags.aligned
    with pytest.raises(ValueError, match="read-only"):
        found[...] = 0
    with pytest.raises(ValueError, match="WRITEABLE"):
        found.flags.writeable = True


def test_two_arrays_of_one_file_lie_where_the_file_has_them(place):
    save(place, {"a": W, "b": W[:3]})
    tensors = tensors_of(place)
    a, b = mapped(tensors, "a"), mapped(tensors, "b")
    assert b.ctypes.data - a.ctypes.data == W.nbytes
    assert np.shares_memory(a, mapped(tensors, "a"))


def test_the_second_access_verifies_nothing(place, checked):
    save(place, {"w": W})
    tensors = tensors_of(place)
    first = mapped(tensors, "w")
    assert sum(checked) == W.nbytes
    first.shape = (-1,)
    assert mapped(tensors, "w").shape == W.shape
    assert sum(checked) == W.nbytes


def test_a_damaged_tensor_is_an_error_each_time_and_the_others_are_not(place):
    save(place, {"a": W, "b": W[::-1], "c": W})
    flip(place, W.nbytes + 12345)
    tensors = tensors_of(place)
    for _ in range(2):
        with pytest.raises(ChecksumError) as caught:
            tensors.get("b")
        assert (caught.value.tensor, caught.value.offset) == ("b", W.nbytes)
    np.testing.assert_array_equal(tensors.get("a"), W)
    np.testing.assert_array_equal(tensors.get("c"), W)


@pytest.mark.parametrize(
    "pieces",
    [
        {"w": ["a", "b"]},
        [
            {"name": "w", "array": W[:3], "shape": (5, 1000), "spec": "0,3:-"},
            {"name": "w", "array": W[:2], "shape": (5, 1000), "spec": "3,2:-"},
        ],
        {"a": np.int8(1), "w": W},
        {"w": np.zeros((0, 3))},
    ],
    ids=["strings", "partitioned", "not aligned", "empty"],
)
def test_what_cannot_be_mapped_is_left_to_a_copy(place, pieces):
    save(place, pieces)
    assert tensors_of(place).get("w") is None


def test_numbers_of_the_other_byte_order_are_left_to_a_copy_and_bytes_are_not(place):
    raw = bytes(range(8))
    entries = {
        b"n": BundleEntry(1, (2,), 0, 0, 8, mask(crc32c(raw))),
        b"u": BundleEntry(4, (8,), 0, 0, 8, mask(crc32c(raw))),
    }
    craft(place, entries, raw, BundleHeader(1, True))
    tensors = tensors_of(place)
    assert tensors.get("n") is None
    assert mapped(tensors, "u").tolist() == list(raw)


def test_a_storage_that_cannot_map_is_not_asked(prefix):
    save(prefix, {"w": W})
    assert tensors_of(prefix).get("w") is None


def test_an_unknown_name_a_short_file_and_a_missing_one_are_told(place):
    save(place, {"a": W, "b": W})
    with pytest.raises(TensorNotFoundError):
        tensors_of(place).get("c")
    put(data_file(place), take(data_file(place))[:-1])
    tensors = tensors_of(place)
    np.testing.assert_array_equal(tensors.get("a"), W)
    with pytest.raises(TruncatedFileError) as caught:
        tensors.get("b")
    assert caught.value.tensor == "b"
    place.storage.delete_many([data_file(place).key])
    with pytest.raises(IncompleteBundleError):
        tensors_of(place).get("a")


def test_a_file_that_is_replaced_before_it_was_looked_at_fails_and_after_that_does_not_matter(place):
    save(place, {"a": W, "b": W})
    tensors = tensors_of(place)
    a = tensors.get("a")
    place.storage.delete_many([data_file(place).key])
    np.testing.assert_array_equal(tensors.get("b"), W)
    np.testing.assert_array_equal(a, W)
    save(place, {"a": W + 1, "b": W})
    fresh = tensors_of(place)
    fresh._reader.shards[0].size_bytes("a")  # type: ignore[attr-defined]
    save(place, {"a": W + 2, "b": W})
    with pytest.raises(NotFoundError):
        fresh.get("a")


def test_arrays_stay_when_everything_else_is_gone(place):
    save(place, {"w": W})
    tensors = tensors_of(place)
    found = tensors.get("w")
    tensors.clear()
    del tensors
    place.storage.delete_many([data_file(place).key])
    np.testing.assert_array_equal(found, W)


def test_large_tensors_are_verified_by_several_threads(place, checked, monkeypatch):
    save(place, {"w": np.zeros(5 << 20, "f4")})
    threads = set()
    real = vars(parallel_checksums)["crc32c"]
    monkeypatch.setattr(
        parallel_checksums, "crc32c", lambda data: (threads.add(threading.get_ident()), real(data))[1]
    )
    assert tensors_of(place).get("w") is not None
    assert threading.get_ident() not in threads
    assert sorted(checked) == [4 << 20, 8 << 20, 8 << 20]


def test_who_asks_for_one_after_the_other_gets_them_verified_in_ever_larger_lots(place, checked, monkeypatch):
    monkeypatch.setattr(mapped_tensors, "_FIRST_AHEAD_BYTES", 4000)
    monkeypatch.setattr(mapped_tensors, "_MOST_AHEAD_BYTES", 16000)
    names = [f"t{number:02d}" for number in range(40)]
    save(place, {name: np.full(250, number, "f4") for number, name in enumerate(names)})
    tensors = tensors_of(place)

    def following(name):
        return itertools.islice(names, names.index(name) + 1, None)

    lots = []
    for number, name in enumerate(names):
        before = len(checked)
        assert (mapped(tensors, name, following) == number).all()
        if len(checked) > before:
            lots.append(len(checked) - before)
    assert lots == [1, 4, 8, 16, 11]
    assert len(checked) == 40


def test_who_asks_here_and_there_gets_what_he_asks_for(place, checked):
    names = [f"t{number:02d}" for number in range(20)]
    save(place, {name: np.full(250, number, "f4") for number, name in enumerate(names)})
    tensors = tensors_of(place)
    for number in (5, 3, 9, 0, 15, 2):
        tensors.get(names[number], lambda name: iter(names[names.index(name) + 1 :]))
    assert len(checked) == 6


def test_damage_in_what_is_verified_ahead_is_told_when_it_is_asked_for(place):
    names = [f"t{number:02d}" for number in range(20)]
    save(place, {name: np.full(250, number, "f4") for number, name in enumerate(names)})
    flip(place, 7 * 1000 + 3)
    tensors = tensors_of(place)
    damaged = []
    for name in names:
        try:
            tensors.get(name, lambda name: iter(names[names.index(name) + 1 :]))
        except ChecksumError as error:
            damaged.append(error.tensor)
    assert damaged == ["t07"]
