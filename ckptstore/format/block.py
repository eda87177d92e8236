"""One block of a table, being read. `block_builder` wrote it.

Format
------
leveldb `doc/table_format.md` and `table/block.cc`.

    entry   shared: varint | unshared: varint | value length: varint | key[shared:] | value
    block   entries | restart offsets: u32 LE each | number of restarts: u32 LE
    stored  block | type: u8 | masked_crc32c: u32 LE
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ckptstore.errors import ChecksumError, FormatError, TruncatedFileError
from ckptstore.format import snappy
from ckptstore.format.coding import BytesLike, decode_fixed32, decode_varint
from ckptstore.format.crc32c import crc32c, unmask

__all__ = [
    "FOOTER_SIZE_BYTES",
    "TABLE_MAGIC",
    "TRAILER_SIZE_BYTES",
    "Block",
    "BlockHandle",
    "BlockRows",
    "decode_handle",
    "read_block",
    "rows_of",
]

TRAILER_SIZE_BYTES = 5
"""One type byte and a 32-bit CRC."""

FOOTER_SIZE_BYTES = 48
"""Two handles of at most 20 bytes each and the magic number."""

TABLE_MAGIC = 0xDB4775248B80FB57
"""The first 64 bits of the SHA-1 of leveldb's home page address."""

_NO_COMPRESSION = 0
_SNAPPY = 1

# Writers store a key in full at every 16th entry, so the keys of a block cannot decode to more than 16 times
# its size. A block that does is made to fill memory with one long key and thousands of tiny entries that
# repeat it.
_MAX_KEY_EXPANSION = 16


class BlockHandle(NamedTuple):
    """Where a block is.

    Attributes
    ----------
    offset : int, bytes from the start of the table
    size_bytes : int
        Without the trailer.
    """

    offset: int
    size_bytes: int


class BlockRows(NamedTuple):
    """All entries of a block, the values not yet cut out.

    Attributes
    ----------
    contents : bytes
        The block.
    keys : list of bytes
        Ascending.
    starts, stops : list of int
        Where the value of each key lies in `contents`. At least four bytes follow the last one.
    """

    contents: bytes
    keys: list[bytes]
    starts: list[int]
    stops: list[int]


def rows_of(items: Sequence[tuple[bytes, bytes]]) -> BlockRows:
    """Return items, ascending by key, as if a block held them."""
    stops = list(itertools.accumulate(len(value) for _, value in items))
    contents = b"".join([value for _, value in items]) + bytes(4)
    return BlockRows(contents, [key for key, _ in items], [0, *stops][:-1], stops)


def decode_handle(data: BytesLike, pos: int, *, source: str) -> tuple[BlockHandle, int]:
    """Return the handle at `pos` and the position after it; FormatError if it is cut off."""
    offset, pos = decode_varint(data, pos, source=source)
    size_bytes, pos = decode_varint(data, pos, source=source)
    return BlockHandle(offset, size_bytes), pos


def read_block(data: BytesLike, handle: BlockHandle, *, source: str, base_offset: int = 0) -> Block:
    """Return the block at `handle`, after checking its trailer.

    Parameters
    ----------
    data : bytes-like
        The whole table, or a window that covers the block and its 5-byte trailer.
    handle : BlockHandle
        Offset in the table and size in bytes; the size excludes the trailer.
    source : str
        URL for error messages.
    base_offset : int, bytes
        Where `data` begins in the table.

    Raises
    ------
    TruncatedFileError
        If `data` ends before the trailer does.
    ChecksumError
        If the masked CRC32C of contents + type byte differs.
    FormatError
        If the compression is unknown, or what comes out of it is not a block.

    Format
    ------
    stored  block | type: u8 | masked_crc32c: u32 LE
    """
    start = handle.offset - base_offset
    stop = start + handle.size_bytes
    if start < 0 or stop + TRAILER_SIZE_BYTES > len(data):
        raise TruncatedFileError(
            "the file ends inside a block",
            url=source,
            offset=handle.offset,
            expected=f"{handle.size_bytes + TRAILER_SIZE_BYTES} bytes",
            actual=max(0, len(data) - max(start, 0)),
        )
    view = memoryview(data)
    stored = unmask(decode_fixed32(data, stop + 1, source=source))
    actual = crc32c(view[start : stop + 1])
    if stored != actual:
        raise ChecksumError(
            "block checksum mismatch",
            url=source,
            offset=handle.offset,
            expected=f"{stored:#010x}",
            actual=f"{actual:#010x}",
            hint="The index is damaged; restore an older checkpoint or copy this one again.",
        )
    compression = data[stop]
    if compression == _NO_COMPRESSION:
        contents = bytes(view[start:stop])
    elif compression == _SNAPPY:
        contents = snappy.decompress(view[start:stop], source=source)
    else:
        raise FormatError(
            "a block has an unknown compression type",
            url=source,
            offset=handle.offset,
            expected="0 (none) or 1 (Snappy)",
            actual=compression,
        )
    return Block(contents, source=source, offset=handle.offset)


class Block:
    """The entries of one block, in ascending order of their keys.

    Parameters
    ----------
    contents : bytes
        Without trailer, decompressed.
    source : str
        URL for error messages.
    offset : int, bytes
        Place of the block in its table, for error messages.

    Raises
    ------
    FormatError
        If the restart array does not fit into the block.

    Threads
    -------
    Safe for concurrent use.
    """

    __slots__ = ("_contents", "_end", "_offset", "_restarts", "_source")

    def __init__(self, contents: bytes, *, source: str, offset: int = 0) -> None:
        self._contents = contents
        self._source = source
        self._offset = offset
        size = len(contents)
        count = int.from_bytes(contents[-4:], "little") if size >= 4 else 0
        if size < 4 or count > (size - 4) // 4:
            raise self._error("a block is too small for its restart array", f"{size} bytes, {count} restarts")
        self._end = size - 4 - 4 * count
        # A view: a list of Python integers would take ten times the block's size.
        self._restarts = np.frombuffer(contents, "<u4", count, self._end)
        if self._end and (not count or self._restarts[0] != 0 or int(self._restarts.max()) >= self._end):
            raise self._error("a block has a restart outside its entries", f"entries end at {self._end}")

    def _error(self, what: str, actual: object) -> FormatError:
        return FormatError(what, url=self._source, offset=self._offset, actual=actual)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield ``(key, value)`` from the first entry on.

        Raises
        ------
        FormatError
            If an entry does not fit into the block, or its key is not above the one before.
        """
        return self._items_at(0)

    def rows(self) -> BlockRows:
        """Return all entries at once; errors as for `items`."""
        data, end = self._contents, self._end
        budget = _MAX_KEY_EXPANSION * len(data)
        keys: list[bytes] = []
        starts: list[int] = []
        stops: list[int] = []
        key = b""
        pos = 0
        while pos < end:
            shared, unshared, value_size = data[pos], data[pos + 1], data[pos + 2]
            if (shared | unshared | value_size) < 128:
                pos += 3
            else:
                shared, pos = decode_varint(data, pos, source=self._source)
                unshared, pos = decode_varint(data, pos, source=self._source)
                value_size, pos = decode_varint(data, pos, source=self._source)
            start = pos + unshared
            stop = start + value_size
            budget -= shared + unshared
            if stop > end or shared > len(key) or budget < 0:
                break
            key = key[:shared] + data[pos:start]
            pos = stop
            keys.append(key)
            starts.append(start)
            stops.append(stop)
        else:
            if all(map(operator.lt, keys, itertools.islice(keys, 1, None))):
                return BlockRows(data, keys, starts, stops)
        # `items` raises the error.
        for _ in self.items():
            pass
        raise self._error("the entries of a block do not fit together", f"{pos} of {end} bytes")

    def get(self, key: bytes) -> bytes | None:
        """Return the value of `key`, or None."""
        for found, value in self._items_at(self._restart_before(key)):
            if found >= key:
                return value if found == key else None
        return None

    def _restart_before(self, key: bytes) -> int:
        """Return the offset of the last restart whose key is below `key`, or 0."""
        low, high = 0, len(self._restarts) - 1
        while low < high:
            middle = (low + high + 1) // 2
            if self._full_key_at(int(self._restarts[middle])) < key:
                low = middle
            else:
                high = middle - 1
        return int(self._restarts[low]) if len(self._restarts) else 0

    def _full_key_at(self, pos: int) -> bytes:
        for key, _ in self._items_at(pos):
            return key
        raise self._error("a block has no entry at a restart", pos)

    def _items_at(self, pos: int) -> Iterator[tuple[bytes, bytes]]:
        data, end, source = self._contents, self._end, self._source
        budget = _MAX_KEY_EXPANSION * len(data)
        key = b""
        first = True
        while pos < end:
            # At least four bytes of restart array follow the entries, so three one-byte lengths can always be
            # looked at.
            shared, unshared, value_size = data[pos], data[pos + 1], data[pos + 2]
            if (shared | unshared | value_size) < 128:
                pos += 3
            else:
                shared, pos = decode_varint(data, pos, source=source)
                unshared, pos = decode_varint(data, pos, source=source)
                value_size, pos = decode_varint(data, pos, source=source)
            value_start = pos + unshared
            stop = value_start + value_size
            if stop > end or shared > len(key):
                raise self._error(
                    "an entry does not fit into its block",
                    f"{shared} shared, {unshared} unshared, {value_size} value bytes at {pos} of {end}",
                )
            previous = key
            key = previous[:shared] + data[pos:value_start]
            if key <= previous and not first:
                raise self._error("the keys of a block do not ascend", repr(key[:64]))
            first = False
            budget -= shared + unshared
            if budget < 0:
                raise self._error(
                    "the keys of a block repeat each other beyond what a writer does", f"{end} bytes"
                )
            yield key, data[value_start:stop]
            pos = stop
