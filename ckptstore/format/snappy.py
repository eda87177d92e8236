"""Raw (unframed) Snappy, decoding only: tables written by other tools may be compressed, ours never are.

Format
------
google/snappy `format_description.txt`.

    stream   uncompressed length: varint32 | element*
    element  tag: u8 | more; the low two bits of the tag:
             0 literal   1 copy, 11-bit offset   2 copy, 16-bit offset   3 copy, 32-bit offset
"""

from __future__ import annotations

from ckptstore.errors import FormatError
from ckptstore.format.coding import BytesLike, decode_varint

__all__ = ["decompress"]

# The densest element is a copy: 3 bytes for at most 64.
_MAX_EXPANSION = 64 / 3


def decompress(data: BytesLike, *, source: str, max_size_bytes: int | None = None) -> bytes:
    """Return the bytes behind a raw Snappy stream.

    Parameters
    ----------
    data : bytes-like
    source : str
        URL for error messages.
    max_size_bytes : int, optional
        Refuse a longer result. The length is bounded by what the input can express in any case, before
        anything is allocated.

    Raises
    ------
    FormatError
        If the stream is malformed or claims another length than it has.
    """
    data = bytes(data)
    size, pos = decode_varint(data, 0, source=source)
    end = len(data)
    limit = int((end - pos) * _MAX_EXPANSION) + 1
    if max_size_bytes is not None:
        limit = min(limit, max_size_bytes)
    if size > limit:
        raise _corrupted("the claimed length is impossible", source, f"at most {limit} bytes", size)
    out = bytearray()
    while pos < end:
        tag = data[pos]
        pos += 1
        kind = tag & 3
        if kind == 0:
            length = (tag >> 2) + 1
            if length > 60:
                width = length - 60
                if pos + width > end:
                    raise _corrupted("a literal is cut off", source)
                length = int.from_bytes(data[pos : pos + width], "little") + 1
                pos += width
            if length > end - pos:
                raise _corrupted("a literal is cut off", source)
            out += data[pos : pos + length]
            pos += length
        else:
            width = (1, 2, 4)[kind - 1]
            if pos + width > end:
                raise _corrupted("a copy is cut off", source)
            distance = int.from_bytes(data[pos : pos + width], "little")
            pos += width
            if kind == 1:
                length = (tag >> 2 & 7) + 4
                distance |= tag >> 5 << 8
            else:
                length = (tag >> 2) + 1
            start = len(out) - distance
            if not distance or start < 0:
                raise _corrupted("a copy reaches before the beginning", source)
            piece = out[start : start + length]
            if distance < length:
                # The copy reads what it writes: the last bytes repeat.
                piece = (piece * (length // distance + 1))[:length]
            out += piece
        if len(out) > size:
            raise _corrupted(
                "the stream is longer than it claims", source, f"{size} bytes", f"more than {size}"
            )
    if len(out) != size:
        raise _corrupted("the stream is shorter than it claims", source, f"{size} bytes", len(out))
    return bytes(out)


def _corrupted(why: str, source: str, expected: object = None, actual: object = None) -> FormatError:
    return FormatError(
        f"corrupted compressed block contents: {why}", url=source, expected=expected, actual=actual
    )
