"""CRC32C: known values, buffers of every kind, masks, combination."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.errors import UsageError
from ckptstore.format.crc32c import combine, crc32c, crc32c_of_each, crc32c_of_ranges, mask, mask_many, unmask


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_known_values_of_rfc_3720(data, expected):
    assert crc32c(data) == expected


def test_mask_has_the_values_that_tensorflow_stores():
    assert mask(0) == 0xA282EAD8
    assert mask(crc32c(np.array([1, 2], "<f4"))) == 0x35E53C59


@given(st.integers(0, 2**32 - 1))
def test_unmask_undoes_mask(crc):
    assert unmask(mask(crc)) == crc
    assert 0 <= mask(crc) < 2**32


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview, lambda data: np.frombuffer(data, np.uint8)])
def test_every_contiguous_buffer_is_accepted(wrap):
    assert crc32c(wrap(b"123456789")) == 0xE3069283
    assert crc32c(wrap(b"6789"), crc32c(b"12345")) == 0xE3069283
    assert crc32c(memoryview(b"..123456789")[2:]) == 0xE3069283


@pytest.mark.parametrize("empty", [b"", bytearray(), memoryview(b""), np.zeros((2, 0), "f4")])
def test_an_empty_buffer_leaves_the_crc_as_it_is(empty):
    assert crc32c(empty, 12345) == 12345


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype="<f4").reshape(2, 3, 4),
        np.float64(1.5).reshape(()),
        np.array([1, 2, 3], ml_dtypes.bfloat16),
        np.array([1, 2, 3], ml_dtypes.int4),
        np.array([True, False]),
        np.array([1 + 2j]),
    ],
    ids=lambda array: str(array.dtype),
)
def test_arrays_of_any_dtype_and_shape_are_taken_as_their_bytes(array):
    assert crc32c(array) == crc32c(array.tobytes())


@pytest.mark.parametrize(
    "array",
    [np.zeros((3, 4)).T, np.zeros(8)[::2], np.array([b"a"], object)],
    ids=["F order", "strided", "object"],
)
def test_arrays_that_are_not_plain_contiguous_memory_are_refused(array):
    with pytest.raises(UsageError, match="C-contiguous"):
        crc32c(array)
    if not array.dtype.hasobject:
        with pytest.raises(UsageError, match="C-contiguous"):
            crc32c(memoryview(array))


@given(st.binary(max_size=300), st.binary(max_size=3000))
def test_combine_equals_the_crc_of_the_whole(a, b):
    assert combine(crc32c(a), crc32c(b), len(b)) == crc32c(a + b)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 127, 4096, 65_537, 1_000_003, (1 << 22) - 1])
def test_combine_is_right_at_every_power_of_two(size):
    tail = np.arange(size, dtype=np.uint8)
    assert combine(crc32c(b"head"), crc32c(tail), size) == crc32c(tail, crc32c(b"head"))


def test_combine_takes_lengths_beyond_any_memory():
    # Two halves of zeros, put together in another way: associativity holds far beyond what can be
    # calculated directly.
    crc, size = crc32c(bytes(1)), 1
    zeros = {1: crc}
    for _ in range(60):
        crc, size = combine(crc, crc, size), size * 2
        zeros[size] = crc
    left = combine(combine(zeros[2**60], zeros[2**41], 2**41), zeros[8], 8)
    right = combine(zeros[2**60], combine(zeros[2**41], zeros[8], 8), 2**41 + 8)
    assert left == right
    assert zeros[2**20] == crc32c(bytes(2**20))


def test_combine_refuses_a_negative_length():
    with pytest.raises(ValueError, match="negative"):
        combine(1, 2, -1)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda data: np.frombuffer(data, np.uint8)])
def test_ranges_of_one_buffer_each_have_their_own_checksum(kind):
    data = bytes(range(256)) * 4
    starts, stops = [0, 7, 1000, 5, 1024], [1024, 7, 1024, 300, 1024]
    expected = [crc32c(data[start:stop]) for start, stop in zip(starts, stops, strict=True)]
    assert crc32c_of_ranges(kind(data), starts, stops) == expected
    with pytest.raises(ValueError, match="zip"):
        crc32c_of_ranges(kind(data), starts, stops[1:])


def test_arrays_and_bytes_each_have_their_own_checksum():
    buffers: list[Any] = [np.arange(6.0).reshape(2, 3), np.array(True), np.empty((0, 3), "i2"), b"123456789"]
    assert crc32c_of_each(buffers) == [crc32c(np.asarray(buffer).tobytes()) for buffer in buffers[:3]] + [
        0xE3069283
    ]


def test_many_masks_are_the_single_ones():
    crcs = [0, 1, 0x7FFF, 0x8000, 0xE3069283, 0xFFFFFFFF]
    assert mask_many(crcs).tolist() == [mask(crc) for crc in crcs]
    assert mask_many([]).tolist() == []
