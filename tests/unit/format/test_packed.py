"""Repeated numbers of a proto field."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.errors import FormatError
from ckptstore.format import packed as packed_module
from ckptstore.format.coding import encode_bytes_field, encode_tag, encode_varint, encode_varint_field
from ckptstore.format.packed import repeated_bytes, repeated_fixed, repeated_varints

NUMBERS = st.integers(0, 63).flatmap(lambda bits: st.integers(0, 2 ** (bits + 1) - 1))


def varints(message: bytes, number: int = 7) -> list[int]:
    parts = list(repeated_varints(memoryview(message), number, source="s"))
    assert all(part.dtype == np.uint64 for part in parts)
    return [int(value) for part in parts for value in part]


def packed(numbers) -> bytes:
    return encode_bytes_field(7, b"".join(map(encode_varint, numbers)))


@given(st.lists(NUMBERS), st.lists(NUMBERS, max_size=5), st.lists(NUMBERS, max_size=5))
def test_packed_and_single_values_come_in_their_order(first, singles, last):
    message = (
        packed(first)
        + b"".join(encode_varint_field(7, n) for n in singles)
        + encode_varint_field(8, 1)
        + packed(last)
    )
    assert varints(message) == first + singles + last


@given(st.lists(NUMBERS, min_size=1, max_size=60), st.integers(10, 40))
def test_windows_end_between_values(numbers, window):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_module, "_WINDOW_BYTES", window)
        assert varints(packed(numbers)) == numbers
        assert varints(b"".join(encode_varint_field(7, n) for n in numbers)) == numbers


@pytest.mark.parametrize(
    "run",
    [
        b"\x80",
        b"\x01\x80",
        b"\xff" * 9 + b"\x02",
        b"\x80" * 10 + b"\x00",
        b"\x80" * 50,
        b"\x01" + b"\xff" * 30 + b"\x01",
    ],
)
def test_a_run_that_is_no_row_of_varints_is_refused(run):
    with pytest.raises(FormatError, match="varint of the tensor"):
        varints(encode_bytes_field(7, run))


def test_the_largest_number_is_accepted():
    assert varints(packed([2**64 - 1, 0, 2**64 - 1])) == [2**64 - 1, 0, 2**64 - 1]


def test_fixed_values_come_packed_or_single():
    message = (
        encode_bytes_field(5, struct.pack("<2f", 1, 2))
        + encode_tag(5, 5)
        + struct.pack("<f", 3)
        + encode_bytes_field(5, b"")
    )
    assert repeated_fixed(message, 5, np.dtype("<f4"), source="s").tolist() == [1, 2, 3]
    message = encode_tag(6, 1) + struct.pack("<d", 0.5)
    assert repeated_fixed(message, 6, np.dtype("<f8"), source="s").tolist() == [0.5]
    assert repeated_fixed(b"", 6, np.dtype("<f8"), source="s").tolist() == []


@pytest.mark.parametrize(
    "message", [encode_bytes_field(5, b"123"), encode_varint_field(5, 1), encode_tag(5, 1) + bytes(8)]
)
def test_fixed_values_of_another_width_are_refused(message):
    with pytest.raises(FormatError):
        repeated_fixed(message, 5, np.dtype("<f4"), source="s")


def test_wrong_wire_types_are_refused():
    with pytest.raises(FormatError):
        varints(encode_tag(7, 5) + bytes(4))
    with pytest.raises(FormatError):
        repeated_bytes(encode_varint_field(8, 1), 8, source="s")


def test_bytes_values():
    message = encode_bytes_field(8, b"a") + encode_bytes_field(9, b"no") + encode_bytes_field(8, b"")
    assert repeated_bytes(memoryview(message), 8, source="s") == [b"a", b""]
