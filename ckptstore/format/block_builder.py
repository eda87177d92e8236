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
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ckptstore.format.coding import encode_fixed32, encode_varint
from ckptstore.format.crc32c import crc32c, mask

__all__ = [
    "RESTART_INTERVAL",
    "BlockBuilder",
    "shared_prefix_length",
    "shared_prefix_lengths",
    "with_trailer",
]

_Integers: TypeAlias = npt.NDArray[np.int64]

RESTART_INTERVAL = 16
"""Of so many entries of a block one stores its key in full (in the blocks of data)."""

_NO_COMPRESSION = b"\x00"


def shared_prefix_length(a: bytes, b: bytes) -> int:
    """Return how many leading bytes `a` and `b` have in common."""
    size = min(len(a), len(b))
    # The highest bit in which two numbers differ: one C loop instead of one step of the interpreter per byte.
    difference = int.from_bytes(a[:size], "big") ^ int.from_bytes(b[:size], "big")
    return size - (difference.bit_length() + 7) // 8


def shared_prefix_lengths(last: bytes, keys: Sequence[bytes]) -> _Integers:
    """Return for each key how many leading bytes it has in common with the one before it.

    Parameters
    ----------
    last : bytes
        The key before the first one.
    keys : sequence of bytes
        Takes memory for as many keys of the longest one's size.

    Returns
    -------
    ndarray of int64, shape (len(keys),)
    """
    rows = [last, *keys]
    sizes = np.fromiter(map(len, rows), np.int64, len(rows))
    width = max(int(sizes.max()), 1)
    # Shorter keys end in zeros, which may equal zeros of the next one: hence the comparison with the sizes.
    table = np.array(rows, f"S{width}").view(np.uint8).reshape(len(rows), width)
    differs = table[1:] != table[:-1]
    first = differs.argmax(axis=1)
    first[~differs[np.arange(len(keys)), first]] = width
    shared: _Integers = np.minimum(first, np.minimum(sizes[1:], sizes[:-1]))
    return shared


def with_trailer(block: bytes) -> bytes:
    """Return an uncompressed block as it is stored, with type and checksum."""
    masked_crc32c = mask(crc32c(_NO_COMPRESSION, crc32c(block)))
    return block + _NO_COMPRESSION + encode_fixed32(masked_crc32c)


def _varint_sizes(numbers: npt.NDArray[Any]) -> _Integers:
    """Return how many bytes each number takes as a varint; for lengths of keys and values only."""
    sizes = np.ones(numbers.shape, np.int64)
    for shift in (7, 14, 21, 28):
        sizes += numbers >> shift > 0
    return sizes


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
        """Append an entry; the caller makes sure that keys ascend."""
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

    def add_many(
        self,
        keys: Sequence[bytes],
        values: Sequence[bytes],
        shared: _Integers,
        sizes: tuple[_Integers, _Integers],
        size_limit: int,
    ) -> int:
        """Append entries until the block has `size_limit` bytes or more; return how many it took.

        Parameters
        ----------
        keys, values : sequence of bytes
            At least one; the caller makes sure that keys ascend.
        shared : ndarray of int64
            What `shared_prefix_lengths` returns for the keys.
        sizes : tuple of two ndarrays of int64
            Bytes of each key and of each value.
        size_limit : int, bytes
            In terms of `size_bytes`.
        """
        key_sizes, value_sizes = sizes
        # How many entries stand since the last restart when an entry comes; none before the very first.
        since = np.arange(self._since_restart, self._since_restart + len(keys))
        is_restart = (since % self._restart_interval == 0) & (since > 0)
        kept = np.where(is_restart, 0, shared)
        if self._since_restart == 0:
            kept[0] = 0
        unshared = key_sizes - kept
        heads = np.stack((kept, unshared, value_sizes), axis=1)
        record_sizes = _varint_sizes(heads).sum(axis=1) + unshared + value_sizes
        ends = self._size_bytes + np.cumsum(record_sizes)
        totals = ends + 4 * (len(self._restarts) + np.cumsum(is_restart)) + 4
        count = min(int(np.searchsorted(totals, size_limit)) + 1, len(keys))
        heads, kept, is_restart = heads[:count], kept[:count], is_restart[:count]
        starts = ends[:count] - record_sizes[:count]
        self._restarts += starts[is_restart].tolist()
        if heads.max() < 128:
            packed = heads.astype(np.uint8).tobytes()
            encoded = [packed[at : at + 3] for at in range(0, 3 * count, 3)]
        else:
            encoded = [b"".join(map(encode_varint, head)) for head in heads.tolist()]
        parts = [b""] * (3 * count)
        parts[0::3] = encoded
        parts[1::3] = [key[size:] for key, size in zip(keys, kept.tolist(), strict=False)]
        parts[2::3] = values[:count]
        self._parts += parts
        self._size_bytes = int(ends[count - 1])
        self._since_restart = (int(since[count - 1]) % self._restart_interval) + 1
        self._last_key = keys[count - 1]
        return count

    def finish(self) -> bytes:
        """Return the block, without trailer, and start a new one."""
        restarts = self._restarts
        self._parts.append(struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts)))
        block = b"".join(self._parts)
        self._start()
        return block
