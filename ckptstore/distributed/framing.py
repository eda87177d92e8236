"""How a message becomes values of a mailbox: a head with size and checksum, and parts if it is large."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from ckptstore.checksums import crc32c
from ckptstore.distributed.coordinator import MAX_MESSAGE_BYTES
from ckptstore.errors import CorruptError

__all__ = ["Head", "join", "read_head", "split"]

_MAGIC: Final = b"ckM1"
_HEAD: Final = struct.Struct("<4sIQI")  # magic, number of parts, size of the message, its CRC32C

# A larger message travels in parts, so that looking whether it is there does not transfer it.
_MOST_INLINE_BYTES: Final = 128 << 10


class Head(NamedTuple):
    """What is known of a message before its parts are fetched."""

    size_bytes: int
    crc32c: int
    parts: int
    inline: bytes


def split(data: bytes, max_value_bytes: int) -> tuple[bytes, list[bytes]]:
    """Return the head of `data` and its parts, which have to be there before the head is."""
    if len(data) + _HEAD.size <= min(max_value_bytes, _MOST_INLINE_BYTES):
        return _HEAD.pack(_MAGIC, 0, len(data), crc32c(data)) + data, []
    parts = [data[at : at + max_value_bytes] for at in range(0, len(data), max_value_bytes)]
    return _HEAD.pack(_MAGIC, len(parts), len(data), crc32c(data)), parts


def read_head(value: bytes, what: str) -> Head:
    """Return what `value` says; `what` names the message in errors.

    Raises
    ------
    CorruptError
        If it is not the head of a message. Nothing is allocated for the size that it states.
    """
    if len(value) < _HEAD.size or value[:4] != _MAGIC:
        raise _mangled(what, "it does not begin as a message")
    _, parts, size_bytes, crc = _HEAD.unpack_from(value)
    inline = value[_HEAD.size :]
    if size_bytes > MAX_MESSAGE_BYTES:
        raise _mangled(what, f"it claims to have {size_bytes} bytes")
    # A part holds a byte at least.
    if parts > size_bytes or (parts and inline) or (not parts and len(inline) != size_bytes):
        raise _mangled(what, f"{len(inline)} bytes and {parts} parts for {size_bytes} bytes")
    return Head(size_bytes, crc, parts, inline)


def join(head: Head, parts: Sequence[bytes], what: str) -> bytes:
    """Return the message. Raises `CorruptError` unless it is the one that was sent."""
    if sum(map(len, parts)) + len(head.inline) != head.size_bytes:
        raise _mangled(what, f"its parts do not have the {head.size_bytes} bytes that it states")
    data = b"".join(parts) if head.parts else head.inline
    if crc32c(data) != head.crc32c:
        raise _mangled(what, "its checksum differs")
    return data


def _mangled(what: str, why: str) -> CorruptError:
    return CorruptError(
        f"{what} is not what a rank of this job sends: {why}",
        hint="Look whether another program, or another version of ckptstore, uses the same mailbox.",
    )
