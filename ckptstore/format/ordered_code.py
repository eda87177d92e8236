"""Numbers and strings as bytes whose order is the order of the values: the keys of slices.

Format
------
Mirrors TensorFlow `tensorflow/core/lib/strings/ordered_code.cc` (increasing order only).

    num     length: u8 | big-endian bytes without leading zeros
    string  bytes with 00 -> 00 ff and ff -> ff 00 | 00 01
    signed  n bytes of two's complement, the first two XORed with n leading one bits (n as small as possible)
"""

from __future__ import annotations

import functools
import re

import numpy as np
import numpy.typing as npt

from ckptstore.errors import FormatError

__all__ = [
    "decode_num",
    "decode_signed",
    "decode_string",
    "encode_num",
    "encode_signed",
    "encode_signed_columns",
    "encode_string",
]

_STRING_END = b"\x00\x01"
_ESCAPES = {b"\x00": b"\x00\xff", b"\xff": b"\xff\x00"}
_UNESCAPES = {escaped: plain for plain, escaped in _ESCAPES.items()}
_SPECIAL = re.compile(rb"[\x00\xff]")
_SPECIAL_PAIR = re.compile(rb"[\x00\xff].", re.DOTALL)

_MAX_SIGNED_BYTES = 10
# n leading one bits over the first two bytes of an n-byte number.
_HEADERS = tuple(0xFFFF << (16 - n) & 0xFFFF for n in range(_MAX_SIGNED_BYTES + 1))


@functools.lru_cache(maxsize=256)
def encode_num(n: int) -> bytes:
    """Return an unsigned number, 0 to 2**64 - 1."""
    if not 0 <= n < 1 << 64:
        raise ValueError(f"not an unsigned 64-bit number: {n}")
    size = (n.bit_length() + 7) // 8
    return bytes((size,)) + n.to_bytes(size, "big")


def decode_num(data: bytes, pos: int, *, source: str) -> tuple[int, int]:
    """Return the number at `pos` and the position after it.

    Raises
    ------
    FormatError
        If it is cut off, has more than 64 bits, or leading zeros (then it would not be in order).
    """
    if pos >= len(data):
        raise _malformed("number", data, pos, source)
    end = pos + 1 + data[pos]
    if data[pos] > 8 or end > len(data) or (data[pos] and data[pos + 1] == 0):
        raise _malformed("number", data, pos, source)
    return int.from_bytes(data[pos + 1 : end], "big"), end


def encode_string(text: bytes) -> bytes:
    """Return `text`, escaped and terminated."""
    if text.isascii() and b"\x00" not in text:
        return text + _STRING_END
    return _SPECIAL.sub(lambda found: _ESCAPES[found[0]], text) + _STRING_END


def decode_string(data: bytes, pos: int, *, source: str) -> tuple[bytes, int]:
    """Return the string at `pos` and the position after its end mark.

    Raises
    ------
    FormatError
        If it is cut off or wrongly escaped.
    """
    pieces = []
    start = pos
    for found in _SPECIAL_PAIR.finditer(data, pos):
        pieces.append(data[pos : found.start()])
        if found[0] == _STRING_END:
            return b"".join(pieces), found.end()
        plain = _UNESCAPES.get(found[0])
        if plain is None:
            break
        pieces.append(plain)
        pos = found.end()
    raise _malformed("string", data, start, source)


def encode_signed(value: int) -> bytes:
    """Return a signed number of 64 bits."""
    if not -(1 << 63) <= value < 1 << 63:
        raise ValueError(f"not a signed 64-bit number: {value}")
    # n bytes hold 7n - 1 bits and the sign.
    n = (value if value >= 0 else ~value).bit_length() // 7 + 1
    raw = bytearray(value.to_bytes(n, "big", signed=True))
    header = _HEADERS[n]
    raw[0] ^= header >> 8
    if n > 1:
        raw[1] ^= header & 255
    return bytes(raw)


def encode_signed_columns(numbers: npt.NDArray[np.int64]) -> list[bytes]:
    """Return for each row what `encode_signed` returns for its numbers, one after the other.

    Parameters
    ----------
    numbers : ndarray of int64, shape (rows, numbers of each row)
    """
    flat = numbers.ravel()
    magnitudes = np.where(flat < 0, ~flat, flat)
    sizes = np.ones(len(flat), np.int64)
    for n in range(1, _MAX_SIGNED_BYTES):
        sizes += magnitudes >> 7 * n - 1 > 0
    headers = np.array(_HEADERS)[sizes]
    columns, kept = [], []
    # From the most significant byte down to the least.
    for place in reversed(range(int(sizes.max(initial=1)))):
        octets = flat >> min(8 * place, 63)
        octets ^= np.where(sizes == place + 1, headers >> 8, np.where(sizes == place + 2, headers, 0))
        columns.append((octets & 255).astype(np.uint8))
        kept.append(sizes > place)
    encoded = np.stack(columns, axis=1)[np.stack(kept, axis=1)].tobytes()
    ends = np.cumsum(sizes.reshape(numbers.shape).sum(axis=1)).tolist()
    return [encoded[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def decode_signed(data: bytes, pos: int, *, source: str) -> tuple[int, int]:
    """Return the signed number at `pos` and the position after it.

    Raises
    ------
    FormatError
        If it is cut off, has more than 64 bits, or is longer than it needs to be (then it would not be in
        order).
    """
    if pos >= len(data):
        raise _malformed("signed number", data, pos, source)
    # A negative number is its complement with every bit turned, header included.
    flip = 0 if data[pos] & 0x80 else 0xFF
    first = int.from_bytes(data[pos : pos + 2].ljust(2, bytes((flip,))), "big") ^ (flip << 8 | flip)
    n = 1
    while n < _MAX_SIGNED_BYTES and first & _HEADERS[n + 1] == _HEADERS[n + 1]:
        n += 1
    end = pos + n
    if end > len(data):
        raise _malformed("signed number", data, pos, source)
    raw = bytearray(data[pos:end])
    raw[0] ^= _HEADERS[n] >> 8
    if n > 1:
        raw[1] ^= _HEADERS[n] & 255
    value = int.from_bytes(raw, "big", signed=True)
    if not -(1 << 63) <= value < 1 << 63 or encode_signed(value) != data[pos:end]:
        raise _malformed("signed number", data, pos, source)
    return value, end


def _malformed(what: str, data: bytes, pos: int, source: str) -> FormatError:
    # A hostile key may be as long as its file; an error message should not be.
    return FormatError(
        f"a slice key holds a malformed {what}", url=source, offset=pos, actual=data[:64].hex()
    )
