"""A sorted table (``.index``, V1 files), being written. `table` reads it back.

Format
------
Mirrors leveldb `table/table_builder.cc` with the options and the one addition of TensorFlow
(`tensorflow/core/lib/io/table_builder.cc`), as measured on TensorFlow 2.21: blocks of 262 144 bytes, restart
interval 16 (1 in the index block), no compression; an entry of 524 288 bytes or more first closes the block
before it.

    table    data block* | metaindex block | index block | footer
    footer   metaindex handle | index handle | zeros up to 40 bytes | magic: u64 LE
    handle   offset: varint64 | size without trailer: varint64
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence

import numpy as np

from ckptstore.errors import UsageError
from ckptstore.format.block import FOOTER_SIZE_BYTES, TABLE_MAGIC, BlockHandle
from ckptstore.format.block_builder import (
    RESTART_INTERVAL,
    BlockBuilder,
    shared_prefix_length,
    shared_prefix_lengths,
    with_trailer,
)
from ckptstore.format.coding import encode_fixed64, encode_varint

__all__ = ["TableBuilder"]

_BLOCK_SIZE_BYTES = 262_144
_OVERSIZE_BYTES = 2 * _BLOCK_SIZE_BYTES
_INDEX_RESTART_INTERVAL = 1

# Entries laid out at a time, and the most bytes for which that is done: a chunk then ends few blocks, and the
# table of its keys stays small.
_CHUNK_ENTRIES = 4096
_CHUNK_SIZE_BYTES = 4 * _BLOCK_SIZE_BYTES
_CHUNK_KEYS_SIZE_BYTES = 2 * 1024 * 1024

# Fewer are added faster one by one.
_MANY = 32


class TableBuilder:
    """Builds a table in memory, from items in ascending order of their keys.

    Threads
    -------
    One thread only.

    Examples
    --------
    >>> from ckptstore.format.table import Table
    >>> builder = TableBuilder()
    >>> builder.add(b"v", b"value")
    >>> Table.from_bytes(builder.finish(), source="example").get(b"v")
    b'value'
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size_bytes = 0
        self._data = BlockBuilder(RESTART_INTERVAL)
        self._index = BlockBuilder(_INDEX_RESTART_INTERVAL)
        self._last_key: bytes | None = None
        self._closed_block: BlockHandle | None = None
        self._finished = False

    def add(self, key: bytes, value: bytes) -> None:
        """Append an item.

        Raises
        ------
        UsageError
            If `key` is not above the last one (as unsigned bytes), or the table is finished.
        """
        last_key = self._last_key
        if self._finished:
            raise UsageError("nothing can be added to a finished table")
        if last_key is not None:
            if key <= last_key:
                raise UsageError(
                    "the keys of a table must ascend", expected=f"a key above {last_key!r}", actual=repr(key)
                )
            if len(key) + len(value) >= _OVERSIZE_BYTES:
                self._close_block()
            if self._closed_block is not None:
                # Only now is the next key known, and with it the shortest key between the two blocks.
                self._add_index_entry(_shortest_separator(last_key, key))
        self._last_key = key
        self._data.add(key, value)
        if self._data.size_bytes >= _BLOCK_SIZE_BYTES:
            self._close_block()

    def extend(self, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        """Append many items: the bytes and the errors of as many calls of `add`, several times faster.

        Parameters
        ----------
        keys, values : sequence of bytes
            Of one length.
        """
        ascending = all(map(operator.lt, keys, itertools.islice(keys, 1, None)))
        for start in range(0, len(keys), _CHUNK_ENTRIES):
            some_keys, some_values = (
                keys[start : start + _CHUNK_ENTRIES],
                values[start : start + _CHUNK_ENTRIES],
            )
            if not ascending or len(some_keys) < _MANY or not self._extend(some_keys, some_values):
                for key, value in zip(some_keys, some_values, strict=True):
                    self.add(key, value)

    def _extend(self, keys: Sequence[bytes], values: Sequence[bytes]) -> bool:
        """Append ascending items; False if `add` has to do it: there is an error, or long items."""
        last_key = self._last_key
        key_sizes = np.fromiter(map(len, keys), np.int64, len(keys))
        value_sizes = np.fromiter(map(len, values), np.int64, len(keys))
        if (
            self._finished
            or last_key is None
            or keys[0] <= last_key
            or len(last_key) + int(key_sizes.sum() + value_sizes.sum()) > _CHUNK_SIZE_BYTES
            or max(len(last_key), int(key_sizes.max())) * len(keys) > _CHUNK_KEYS_SIZE_BYTES
            or int((key_sizes + value_sizes).max()) >= _OVERSIZE_BYTES
        ):
            return False
        shared = shared_prefix_lengths(last_key, keys)
        done = 0
        while done < len(keys):
            if self._closed_block is not None:
                self._add_index_entry(_shortest_separator(last_key, keys[done]))
            rest = slice(done, None)
            done += self._data.add_many(
                keys[rest],
                values[rest],
                shared[rest],
                (key_sizes[rest], value_sizes[rest]),
                _BLOCK_SIZE_BYTES,
            )
            last_key = self._last_key = keys[done - 1]
            if self._data.size_bytes >= _BLOCK_SIZE_BYTES:
                self._close_block()
        return True

    def finish(self) -> bytes:
        """Return the whole table."""
        if self._finished:
            raise UsageError("this table is finished already")
        self._finished = True
        self._close_block()
        metaindex = self._append(BlockBuilder(RESTART_INTERVAL).finish())
        if self._closed_block is not None and self._last_key is not None:
            self._add_index_entry(_short_successor(self._last_key))
        index = self._append(self._index.finish())
        handles = _encode_handle(metaindex) + _encode_handle(index)
        self._parts.append(handles.ljust(FOOTER_SIZE_BYTES - 8, b"\x00") + encode_fixed64(TABLE_MAGIC))
        table = b"".join(self._parts)
        self._parts.clear()
        return table

    def _close_block(self) -> None:
        if not self._data.empty:
            self._closed_block = self._append(self._data.finish())

    def _add_index_entry(self, key: bytes) -> None:
        assert self._closed_block is not None
        self._index.add(key, _encode_handle(self._closed_block))
        self._closed_block = None

    def _append(self, block: bytes) -> BlockHandle:
        handle = BlockHandle(self._size_bytes, len(block))
        stored = with_trailer(block)
        self._parts.append(stored)
        self._size_bytes += len(stored)
        return handle


def _encode_handle(handle: BlockHandle) -> bytes:
    return encode_varint(handle.offset) + encode_varint(handle.size_bytes)


def _shortest_separator(last: bytes, following: bytes) -> bytes:
    """Return a short key that is not below `last` and below `following`.

    Format
    ------
    leveldb `util/comparator.cc`, FindShortestSeparator: the first byte that differs, plus one, if that stays
    below.
    """
    shared = shared_prefix_length(last, following)
    if (
        shared < len(last)
        and shared < len(following)
        and last[shared] < 0xFF
        and last[shared] + 1 < following[shared]
    ):
        return last[:shared] + bytes((last[shared] + 1,))
    return last


def _short_successor(last: bytes) -> bytes:
    """Return a short key that is not below `last`.

    Format
    ------
    leveldb `util/comparator.cc`, FindShortSuccessor: up to the first byte that is not ff, plus one; only ff
    stays.
    """
    stripped = last.lstrip(b"\xff")
    if not stripped:
        return last
    return last[: len(last) - len(stripped)] + bytes((stripped[0] + 1,))
