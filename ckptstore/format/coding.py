"""Varints, fixed-width integers and the protobuf wire format, by hand.

Every tensor of a checkpoint has one small proto in the index. Going through protobuf objects for 100 000 of
them costs more than all the rest of the index together, so these few primitives stand in for the library.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TypeAlias

from ckptstore.errors import FormatError

__all__ = [
    "MAX_VARINT_BYTES",
    "BytesLike",
    "as_int32",
    "as_int64",
    "decode_fixed32",
    "decode_fixed64",
    "decode_packed_varints",
    "decode_varint",
    "encode_bytes_field",
    "encode_fixed32",
    "encode_fixed64",
    "encode_tag",
    "encode_varint",
    "encode_varint_field",
    "iter_fields",
    "wire_type_error",
]

BytesLike: TypeAlias = bytes | bytearray | memoryview

MAX_VARINT_BYTES = 10
"""Seven bits per byte: ten bytes hold 64 bits."""

WIRE_VARINT = 0
WIRE_FIXED64 = 1
WIRE_BYTES = 2
WIRE_FIXED32 = 5

_MAX_FIELD_NUMBER = (1 << 29) - 1
_UINT64_END = 1 << 64

_ONE_BYTE = tuple(bytes((n,)) for n in range(128))
_FIXED32 = struct.Struct("<I")
_FIXED64 = struct.Struct("<Q")


def encode_varint(n: int) -> bytes:
    """Return `n` as a base-128 varint, least significant group first.

    Parameters
    ----------
    n : int
        From 0 to 2**64 - 1; proto writers pass a negative number modulo 2**64, see `encode_varint_field`.

    Format
    ------
    Mirrors leveldb `util/coding.cc`, PutVarint64.
    """
    if 0 <= n < 128:
        return _ONE_BYTE[n]
    if not 0 <= n < _UINT64_END:
        raise ValueError(f"a varint holds 64 bits without a sign, not {n}")
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    out.append(n)
    return bytes(out)


def decode_varint(data: BytesLike, pos: int, *, source: str) -> tuple[int, int]:
    """Return the varint at `pos` and the position after it.

    Parameters
    ----------
    data : bytes-like
    pos : int, bytes from the start of `data`
    source : str
        URL for error messages.

    Raises
    ------
    FormatError
        If `data` ends inside the varint, or it does not fit into 64 bits.
    """
    value = shift = 0
    end = min(len(data), pos + MAX_VARINT_BYTES)
    for at in range(pos, end):
        byte = data[at]
        value |= (byte & 127) << shift
        if byte < 128:
            if value >= _UINT64_END:
                break
            return value, at + 1
        shift += 7
    if end - pos < MAX_VARINT_BYTES:
        raise FormatError("a varint runs past the end of its data", url=source, offset=pos)
    raise FormatError("a varint does not fit into 64 bits", url=source, offset=pos)


def encode_fixed32(n: int) -> bytes:
    """Return `n` as an unsigned 32-bit little-endian integer."""
    return _FIXED32.pack(n)


def encode_fixed64(n: int) -> bytes:
    """Return `n` as an unsigned 64-bit little-endian integer."""
    return _FIXED64.pack(n)


def decode_fixed32(data: BytesLike, pos: int, *, source: str) -> int:
    """Return the unsigned 32-bit little-endian integer at `pos`; FormatError if `data` ends before."""
    if not 0 <= pos <= len(data) - 4:
        raise FormatError("a 32-bit number runs past the end of its data", url=source, offset=pos)
    return int(_FIXED32.unpack_from(data, pos)[0])


def decode_fixed64(data: BytesLike, pos: int, *, source: str) -> int:
    """Return the unsigned 64-bit little-endian integer at `pos`; FormatError if `data` ends before."""
    if not 0 <= pos <= len(data) - 8:
        raise FormatError("a 64-bit number runs past the end of its data", url=source, offset=pos)
    return int(_FIXED64.unpack_from(data, pos)[0])


def as_int64(unsigned: int) -> int:
    """Return a decoded varint as the int64 of a proto field."""
    return unsigned - _UINT64_END if unsigned >= 1 << 63 else unsigned


def as_int32(unsigned: int) -> int:
    """Return a decoded varint as the int32 or enum of a proto field: the low 32 bits, as protobuf does."""
    low = unsigned & 0xFFFFFFFF
    return low - (1 << 32) if low >= 1 << 31 else low


def encode_tag(field_number: int, wire_type: int) -> bytes:
    """Return the tag that stands before the value of a proto field."""
    return encode_varint(field_number << 3 | wire_type)


def encode_varint_field(field_number: int, value: int) -> bytes:
    """Return a varint field with its tag; negative numbers take ten bytes, as protobuf writes them."""
    return encode_tag(field_number, WIRE_VARINT) + encode_varint(value % _UINT64_END)


def encode_bytes_field(field_number: int, payload: bytes) -> bytes:
    """Return a length-delimited field (bytes, string, message, packed list), tag included."""
    return encode_tag(field_number, WIRE_BYTES) + encode_varint(len(payload)) + payload


def iter_fields(data: BytesLike, *, source: str) -> Iterator[tuple[int, int, int | bytes | memoryview]]:
    """Yield ``(field_number, wire_type, value)`` for each field of a serialized proto message.

    Parameters
    ----------
    data : bytes-like
        The whole message. Given a memoryview, length-delimited values are views into it, otherwise bytes.
    source : str
        URL for error messages.

    Yields
    ------
    field_number : int
    wire_type : int
        0 varint, 1 fixed64, 2 length-delimited, 5 fixed32.
    value : int or bytes-like
        Unsigned for 0, 1 and 5; bytes or memoryview for 2.

    Raises
    ------
    FormatError
        If a field runs past the end, its number is 0, or its wire type is a group (nothing in a checkpoint
        has groups).

    Format
    ------
    protobuf "Encoding"; nothing recurses, so depth is the caller's.
    """
    if isinstance(data, bytearray):
        data = bytes(data)
    pos, end = 0, len(data)
    value: int | bytes | memoryview
    while pos < end:
        tag = data[pos]
        start = pos
        if tag < 128:
            pos += 1
        else:
            tag, pos = decode_varint(data, pos, source=source)
        number, wire_type = tag >> 3, tag & 7
        if not 1 <= number <= _MAX_FIELD_NUMBER:
            raise FormatError(
                "a proto field has an impossible number", url=source, actual=number, offset=start
            )
        if wire_type == WIRE_VARINT:
            value, pos = decode_varint(data, pos, source=source)
        elif wire_type == WIRE_BYTES:
            size, pos = decode_varint(data, pos, source=source)
            if size > end - pos:
                raise FormatError(
                    f"proto field {number} runs past the end of its message",
                    url=source,
                    expected=f"at most {end - pos} bytes",
                    actual=size,
                    offset=start,
                )
            value = data[pos : pos + size]
            pos += size
        elif wire_type == WIRE_FIXED32:
            value = decode_fixed32(data, pos, source=source)
            pos += 4
        elif wire_type == WIRE_FIXED64:
            value = decode_fixed64(data, pos, source=source)
            pos += 8
        else:
            raise FormatError(
                f"proto field {number} has an unknown wire type", url=source, actual=wire_type, offset=start
            )
        yield number, wire_type, value


def decode_packed_varints(data: BytesLike, *, source: str) -> list[int]:
    """Return the unsigned varints of a packed repeated field."""
    values = []
    pos, end = 0, len(data)
    while pos < end:
        byte = data[pos]
        if byte < 128:
            pos += 1
            values.append(byte)
        else:
            value, pos = decode_varint(data, pos, source=source)
            values.append(value)
    return values


def wire_type_error(message: str, field_number: int, wire_type: int, *, source: str) -> FormatError:
    """Return the error for a known field that comes with another wire type than its own."""
    return FormatError(
        f"field {field_number} of {message} has the wrong wire type", url=source, actual=wire_type
    )
