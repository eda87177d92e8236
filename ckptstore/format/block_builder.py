"""One block of a table, being written. `block` reads it back.

Format
------
Mirrors leveldb `table/block_builder.cc` and `doc/table_format.md`.

    entry   shared: varint | unshared: varint | value length: varint | key[shared:] | value
    block   entries | restart offsets: u32 LE each | number of restarts: u32 LE
    stored  block | type: u8 | masked_crc32c: u32 LE
"""

from __future__ import annotations

import struct

from ckptstore.format.coding import encode_fixed32, encode_varint
from ckptstore.format.crc32c import crc32c, mask

__all__ = ["BlockBuilder", "shared_prefix_length", "with_trailer"]

_NO_COMPRESSION = b"\x00"


def shared_prefix_length(a: bytes, b: bytes) -> int:
    """Return how many leading bytes `a` and `b` have in common."""
    size = min(len(a), len(b))
    # The highest bit in which two numbers differ: one C loop instead of one step of the interpreter a byte.
    difference = int.from_bytes(a[:size], "big") ^ int.from_bytes(b[:size], "big")
    return size - (difference.bit_length() + 7) // 8


def with_trailer(block: bytes) -> bytes:
    """Return an uncompressed block as it is stored, with type and checksum."""
    masked_crc32c = mask(crc32c(_NO_COMPRESSION, crc32c(block)))
    return block + _NO_COMPRESSION + encode_fixed32(masked_crc32c)


class BlockBuilder:
    """Collects the entries of one block.

    Parameters
    ----------
    restart_interval : int
        After so many entries one stores its key in full, so that readers can start there.

    Threads
    -------
    One thread only.
    """

    __slots__ = ("_last_key", "_parts", "_restart_interval", "_restarts", "_since_restart", "_size_bytes")

    def __init__(self, restart_interval: int) -> None:
        self._restart_interval = restart_interval
        self._start()

    def _start(self) -> None:
        self._parts: list[bytes] = []
        self._size_bytes = 0
        self._restarts = [0]
        self._since_restart = 0
        self._last_key = b""

    @property
    def empty(self) -> bool:
        """Whether no entry was added yet."""
        return not self._parts

    @property
    def size_bytes(self) -> int:
        """Size of the block if it were finished now, without trailer."""
        return self._size_bytes + 4 * len(self._restarts) + 4

    def add(self, key: bytes, value: bytes) -> None:
        """Append an entry; the caller sees to it that keys ascend."""
        if self._since_restart < self._restart_interval:
            shared = shared_prefix_length(self._last_key, key)
            self._since_restart += 1
        else:
            shared = 0
            self._restarts.append(self._size_bytes)
            self._since_restart = 1
        unshared = len(key) - shared
        value_size = len(value)
        if (shared | unshared | value_size) < 128:
            head = bytes((shared, unshared, value_size))
        else:
            head = encode_varint(shared) + encode_varint(unshared) + encode_varint(value_size)
        self._parts += (head, key[shared:], value)
        self._size_bytes += len(head) + unshared + value_size
        self._last_key = key

    def finish(self) -> bytes:
        """Return the block, without trailer, and start a new one."""
        restarts = self._restarts
        self._parts.append(struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts)))
        block = b"".join(self._parts)
        self._start()
        return block
