"""Varints, fixed numbers and the protobuf wire format."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.errors import FormatError
from ckptstore.format.coding import (
    as_int32,
    as_int64,
    decode_fixed32,
    decode_fixed64,
    decode_packed_varints,
    decode_varint,
    encode_bytes_field,
    encode_fixed32,
    encode_fixed64,
    encode_varint,
    encode_varint_field,
    iter_fields,
)

UINT64 = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize(
    ("number", "hex_bytes"),
    [(0, "00"), (1, "01"), (127, "7f"), (128, "8001"), (300, "ac02"), (2**64 - 1, "ffffffffffffffffff01")],
)
def test_varint_has_the_bytes_of_the_specification(number, hex_bytes):
    assert encode_varint(number).hex() == hex_bytes
    assert decode_varint(bytes.fromhex(hex_bytes), 0, source="s") == (number, len(hex_bytes) // 2)


@given(UINT64, st.binary(max_size=5), st.binary(max_size=5))
def test_varint_round_trips_between_other_bytes(number, before, after):
    data = before + encode_varint(number) + after
    assert decode_varint(data, len(before), source="s") == (number, len(data) - len(after))
    assert decode_varint(memoryview(data), len(before), source="s")[0] == number


@pytest.mark.parametrize("number", [-1, 2**64])
def test_varint_of_a_number_outside_64_bits_is_refused(number):
    with pytest.raises(ValueError, match="64 bits"):
        encode_varint(number)


@pytest.mark.parametrize(
    ("data", "pos", "message"),
    [
        (b"", 0, "past the end"),
        (b"\x80", 0, "past the end"),
        (b"\x01", 1, "past the end"),
        (b"\x01", 5, "past the end"),
        (b"\xff" * 9 + b"\x02", 0, "64 bits"),
        (b"\x80" * 10 + b"\x00", 0, "64 bits"),
        (b"\x80" * 1000, 0, "64 bits"),
    ],
)
def test_bad_varint_is_a_format_error_with_its_place(data, pos, message):
    with pytest.raises(FormatError, match=message) as caught:
        decode_varint(data, pos, source="here")
    assert caught.value.url == "here"
    assert caught.value.offset == pos


def test_fixed_numbers_are_little_endian_and_bounded():
    assert encode_fixed32(0x35E53C59).hex() == "593ce535"
    assert encode_fixed64(0xDB4775248B80FB57).hex() == "57fb808b247547db"
    assert decode_fixed32(b"\x00\x59\x3c\xe5\x35", 1, source="s") == 0x35E53C59
    assert decode_fixed64(bytes(8), 0, source="s") == 0
    with pytest.raises(FormatError):
        decode_fixed32(b"123", 0, source="s")
    with pytest.raises(FormatError):
        decode_fixed64(b"12345678", 1, source="s")


def test_signed_fields_are_twos_complement():
    assert encode_varint_field(7, -1).hex() == "38ffffffffffffffffff01"
    assert as_int64(2**64 - 1) == -1
    assert as_int64(2**63 - 1) == 2**63 - 1
    assert as_int32(2**64 - 5) == -5
    assert as_int32(2**32 + 3) == 3


def test_fields_of_every_wire_type_are_read():
    message = (
        encode_varint_field(1, 150)
        + b"\x11"
        + encode_fixed64(7)
        + encode_bytes_field(3, b"abc")
        + b"\x25"
        + encode_fixed32(9)
        + encode_varint_field(2**29 - 1, 1)
    )
    assert list(iter_fields(message, source="s")) == [
        (1, 0, 150),
        (2, 1, 7),
        (3, 2, b"abc"),
        (4, 5, 9),
        (2**29 - 1, 0, 1),
    ]
    value = next(value for number, _, value in iter_fields(memoryview(message), source="s") if number == 3)
    assert isinstance(value, memoryview)


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (b"\x0a\x05abcd", "past the end of its message"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "past the end of its message"),
        (b"\x0d\x01\x02", "past the end"),
        (b"\x09\x01\x02", "past the end"),
        (b"\x08", "past the end"),
        (b"\x08\x80", "past the end"),
        (b"\x00\x01", "impossible number"),
        (b"\x80\x80\x80\x80\x10\x00", "impossible number"),
        (b"\x0b\x0c", "unknown wire type"),
        (b"\x0e", "unknown wire type"),
    ],
)
def test_malformed_message_is_a_format_error(message, complaint):
    with pytest.raises(FormatError, match=complaint):
        list(iter_fields(message, source="s"))


@given(st.binary(max_size=60))
def test_any_bytes_as_message_end_in_fields_or_a_format_error(data):
    try:
        fields = list(iter_fields(data, source="s"))
    except FormatError:
        return
    assert sum(len(value) for _, _, value in fields if isinstance(value, bytes)) <= len(data)


@given(st.lists(UINT64))
def test_packed_varints_round_trip(numbers):
    assert decode_packed_varints(b"".join(map(encode_varint, numbers)), source="s") == numbers
