"""Ordered code: the bytes TensorFlow writes, order, hostile bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.errors import FormatError
from ckptstore.format.ordered_code import (
    decode_num,
    decode_signed,
    decode_string,
    encode_num,
    encode_signed,
    encode_signed_columns,
    encode_string,
)

SIGNED = {
    0: "80",
    1: "81",
    63: "bf",
    64: "c040",
    127: "c07f",
    128: "c080",
    8191: "dfff",
    8192: "e02000",
    1048575: "efffff",
    1048576: "f0100000",
    2**31: "f880000000",
    -1: "7f",
    -64: "40",
    -65: "3fbf",
    2**63 - 1: "ffc07fffffffffffffff",
    -(2**63): "003f8000000000000000",
}
INT64 = st.integers(-(2**63), 2**63 - 1) | st.builds(
    lambda sign, bits, off: sign * (1 << bits) + off,
    st.sampled_from([1, -1]),
    st.integers(0, 62),
    st.integers(-1, 1),
)


@pytest.mark.parametrize(("value", "hex_bytes"), SIGNED.items())
def test_signed_numbers_have_tensorflows_bytes(value, hex_bytes):
    assert encode_signed(value).hex() == hex_bytes
    assert decode_signed(bytes.fromhex(hex_bytes), 0, source="s") == (value, len(hex_bytes) // 2)


@given(st.lists(st.tuples(INT64, INT64, INT64), max_size=9))
def test_signed_numbers_in_rows_have_the_bytes_of_single_ones(rows):
    numbers = np.array(rows, np.int64).reshape(len(rows), 3)
    assert encode_signed_columns(numbers) == [b"".join(map(encode_signed, row)) for row in rows]


@pytest.mark.parametrize(
    ("value", "hex_bytes"),
    [(0, "00"), (1, "0101"), (2, "0102"), (256, "020100"), (2**64 - 1, "08" + "ff" * 8)],
)
def test_unsigned_numbers_have_tensorflows_bytes(value, hex_bytes):
    assert encode_num(value).hex() == hex_bytes
    assert decode_num(bytes.fromhex(hex_bytes), 0, source="s") == (value, len(hex_bytes) // 2)


@pytest.mark.parametrize(
    ("text", "hex_bytes"),
    [
        (b"", "0001"),
        (b"w", "770001"),
        (b"\x00", "00ff0001"),
        (b"\xff", "ff000001"),
        (b"\x00\xff\x00", "00ffff0000ff0001"),
    ],
)
def test_strings_have_tensorflows_bytes(text, hex_bytes):
    assert encode_string(text).hex() == hex_bytes
    assert decode_string(bytes.fromhex(hex_bytes), 0, source="s") == (text, len(hex_bytes) // 2)


@given(INT64, INT64)
def test_signed_numbers_round_trip_and_keep_their_order(a, b):
    code_a, code_b = encode_signed(a), encode_signed(b)
    assert decode_signed(b"--" + code_a + b"++", 2, source="s") == (a, 2 + len(code_a))
    assert (code_a < code_b) == (a < b)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_unsigned_numbers_round_trip_and_keep_their_order(a, b):
    code_a, code_b = encode_num(a), encode_num(b)
    assert decode_num(code_a, 0, source="s") == (a, len(code_a))
    assert (code_a < code_b) == (a < b)


@given(
    st.binary(max_size=20) | st.text("\x00\x01ÿ", max_size=8).map(lambda t: t.encode("latin-1")),
    st.binary(max_size=20),
    st.binary(max_size=5),
)
def test_strings_round_trip_and_keep_their_order(a, b, after):
    code_a, code_b = encode_string(a), encode_string(b)
    assert decode_string(code_a + after, 0, source="s") == (a, len(code_a))
    assert (code_a < code_b) == (a < b)


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1])
def test_numbers_beyond_64_bits_are_refused(value):
    with pytest.raises(ValueError, match="64-bit"):
        encode_signed(value)
    with pytest.raises(ValueError, match="64-bit"):
        encode_num(-1)


@pytest.mark.parametrize(
    "hex_bytes",
    [
        "",
        "c0",  # cut off
        "c001",  # 1 in two bytes
        "3fff",  # -1 in two bytes
        "ff",
        "ff80",
        "ffe0" + "00" * 9,  # eleven leading ones
        "ffff" + "ff" * 20,
        "0000" + "00" * 20,
        "00",
        "ffc0ffffffffffffffff",  # 2**64 - 1
    ],
)
def test_malformed_signed_numbers_are_refused(hex_bytes):
    with pytest.raises(FormatError, match="malformed signed number"):
        decode_signed(bytes.fromhex(hex_bytes), 0, source="s")


@pytest.mark.parametrize("hex_bytes", ["", "01", "0100", "09" + "11" * 9, "ff", "020001"])
def test_malformed_unsigned_numbers_are_refused(hex_bytes):
    with pytest.raises(FormatError, match="malformed number"):
        decode_num(bytes.fromhex(hex_bytes), 0, source="s")


@pytest.mark.parametrize("hex_bytes", ["", "77", "7700", "00", "770002", "ff01", "ff", "ff0077"])
def test_malformed_strings_are_refused(hex_bytes):
    with pytest.raises(FormatError, match="malformed string"):
        decode_string(bytes.fromhex(hex_bytes), 0, source="s")


@given(st.binary(max_size=24))
def test_any_bytes_decode_to_what_encodes_to_them_or_are_refused(data):
    pairs: list[tuple[Any, Any]] = [
        (decode_num, encode_num),
        (decode_signed, encode_signed),
        (decode_string, encode_string),
    ]
    for decode, encode in pairs:
        try:
            value, end = decode(data, 0, source="s")
        except FormatError:
            continue
        assert encode(value) == data[:end]
