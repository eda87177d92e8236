"""Raw Snappy, decoding."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.errors import FormatError
from ckptstore.format.coding import encode_varint
from ckptstore.format.snappy import decompress


def literal(data: bytes) -> bytes:
    size = len(data) - 1
    if size < 60:
        return bytes((size << 2,)) + data
    width = (size.bit_length() + 7) // 8
    return bytes(((59 + width) << 2,)) + size.to_bytes(width, "little") + data


def copy(distance: int, length: int) -> bytes:
    if 4 <= length <= 11 and distance < 2048:
        return bytes(((distance >> 8) << 5 | (length - 4) << 2 | 1, distance & 255))
    if distance < 65536:
        return bytes(((length - 1) << 2 | 2,)) + distance.to_bytes(2, "little")
    return bytes(((length - 1) << 2 | 3,)) + distance.to_bytes(4, "little")


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"\x00", b""),
        (b"\x05" + literal(b"hello"), b"hello"),
        (b"\x0a" + literal(b"ab") + copy(2, 8), b"ababababab"),
        (b"\x06" + literal(b"x") + copy(1, 5), b"xxxxxx"),
        (b"\x44" + literal(b"wxyz") + b"\xfe\x04\x00", b"wxyz" * 17),
        (b"\x06" + literal(b"abc") + b"\x0b\x03\x00\x00\x00", b"abcabc"),
        (encode_varint(300) + literal(bytes(300)), bytes(300)),
        (encode_varint(70_000) + literal(b"q" * 70_000), b"q" * 70_000),
    ],
)
def test_known_streams(stream, expected):
    assert decompress(stream, source="s") == expected


@given(st.data())
def test_any_sequence_of_elements_is_followed(data):
    stream, expected = b"", bytearray()
    for _ in range(data.draw(st.integers(0, 8))):
        if not expected or data.draw(st.booleans()):
            piece = data.draw(st.binary(min_size=1, max_size=90))
            stream += literal(piece)
            expected += piece
        else:
            distance = data.draw(st.integers(1, len(expected)))
            length = data.draw(st.integers(1, 64))
            stream += copy(distance, length)
            for _ in range(length):
                expected.append(expected[-distance])
    assert decompress(encode_varint(len(expected)) + stream, source="s") == expected


@pytest.mark.parametrize(
    ("stream", "complaint"),
    [
        (b"", "past the end"),
        (b"\x05", "impossible"),
        (b"\x05" + literal(b"hell"), "shorter than it claims"),
        (b"\x03" + literal(b"hello"), "longer than it claims"),
        (b"\x05\x10hell", "literal is cut off"),
        (b"\x05\xf0", "literal is cut off"),
        (b"\x05\xfc\xff\xff\xff\xff", "literal is cut off"),
        (b"\x05" + literal(b"a") + b"\x01", "copy is cut off"),
        (b"\x05" + literal(b"a") + b"\x02\x01", "copy is cut off"),
        (b"\x05" + literal(b"a") + b"\x03\x01\x00\x00", "copy is cut off"),
        (b"\x05" + literal(b"a") + copy(2, 4), "before the beginning"),
        (b"\x05" + literal(b"a") + copy(0, 4), "before the beginning"),
    ],
)
def test_malformed_stream_is_a_format_error(stream, complaint):
    with pytest.raises(FormatError, match=complaint):
        decompress(stream, source="s")


def test_a_bomb_is_refused_before_anything_is_allocated():
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="impossible"):
            decompress(encode_varint(1 << 40) + bytes(100), source="s")
        with pytest.raises(FormatError, match="impossible"):
            decompress(
                encode_varint(100) + literal(b"a") + copy(1, 64) + copy(1, 35), source="s", max_size_bytes=99
            )
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_the_densest_possible_stream_is_still_accepted():
    stream = literal(b"a") + copy(1, 64) * 1000
    assert decompress(encode_varint(64_001) + stream, source="s") == b"a" * 64_001


@given(st.binary(max_size=80))
def test_any_bytes_end_in_a_result_or_a_format_error(data):
    try:
        result = decompress(data, source="s")
    except FormatError:
        return
    assert len(result) <= 22 * len(data)
