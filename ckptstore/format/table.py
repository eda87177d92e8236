"""A sorted table (``.index``, V1 files), being read. `table_builder` wrote it.

`block` decodes keys and values. What the values of an index mean is in `entry`, in bulk in `entry_columns`.

Format
------
leveldb `doc/table_format.md` and `table/format.cc`, as used by TensorFlow's
`tensorflow/core/lib/io/table.cc`.

    table    data block* | metaindex block | index block | footer
    footer   metaindex handle | index handle | zeros up to 40 bytes | magic: u64 LE
    handle   offset: varint64 | size without trailer: varint64
"""

from __future__ import annotations

import bisect
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence

from ckptstore.errors import CkptStoreError, FormatError, TruncatedFileError
from ckptstore.format.block import (
    FOOTER_SIZE_BYTES,
    TABLE_MAGIC,
    TRAILER_SIZE_BYTES,
    Block,
    BlockHandle,
    BlockRows,
    decode_handle,
    read_block,
)
from ckptstore.format.coding import decode_fixed64, encode_varint
from ckptstore.format.file_kind import HEAD_SIZE_BYTES, FileKind, file_kind

__all__ = ["Table"]

# A block has 256 KiB. Four let a reader that walks names in order, or two that do, find theirs again.
_CACHED_BLOCKS = 4


class Table:
    """Finds and lists the items of a table without reading more of it than it must.

    Parameters
    ----------
    read : callable
        ``read(offset, size)`` returns `size` bytes of the table.
    size_bytes : int
        Size of the whole table.
    source : str
        URL for error messages.

    Raises
    ------
    TruncatedFileError
        If the file is too short for a footer, or `read` returns less than asked for.
    FormatError
        If it is not a table, or its index block leads nowhere.
    ChecksumError
        If the index block is damaged.

    Threads
    -------
    Safe for concurrent use if `read` is.

    Notes
    -----
    Opening reads the footer and the index block, `get` then at most one data block. Four blocks are kept.
    """

    def __init__(self, read: Callable[[int, int], bytes], size_bytes: int, *, source: str) -> None:
        self._read = read
        self._size_bytes = size_bytes
        self._source = source
        if size_bytes < FOOTER_SIZE_BYTES:
            kind = self._kind()
            raise TruncatedFileError(
                "file is too short to be an sstable" + _first_bytes(kind),
                url=source,
                expected=f"at least {FOOTER_SIZE_BYTES} bytes",
                actual=size_bytes,
                hint="It was not written completely, or is not an index." if kind is None else kind.advice,
            )
        self._metaindex, index = self._read_footer()
        self._index_keys: list[bytes] = []
        self._handles: list[BlockHandle] = []
        self._read_index(index)
        self._blocks: OrderedDict[int, Block] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def from_bytes(cls, data: bytes, *, source: str) -> Table:
        """Return a table over bytes in memory."""
        return cls(lambda offset, size: data[offset : offset + size], len(data), source=source)

    @property
    def blocks_size_bytes(self) -> int:
        """Size of all data blocks together, with their trailers."""
        return sum(handle.size_bytes + TRAILER_SIZE_BYTES for handle in self._handles)

    @property
    def data_blocks(self) -> Sequence[BlockHandle]:
        """Where the blocks are that hold the items, in their order."""
        return tuple(self._handles)

    def get(self, key: bytes) -> bytes | None:
        """Return the value of `key`, or None.

        Raises
        ------
        TruncatedFileError, ChecksumError, FormatError
            If the block that would hold it cannot be read.
        """
        number = bisect.bisect_left(self._index_keys, key)
        if number == len(self._handles):
            return None
        return self._block(number).get(key)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield every ``(key, value)``, ascending by key.

        Raises
        ------
        TruncatedFileError, ChecksumError, FormatError
            If a block cannot be read, or a key is not above the one before; the metaindex block is checked
            first.
        """
        # Nothing here needs the metaindex block, but damage in it is damage to the file.
        self._load(self._metaindex)
        last: bytes | None = None
        for handle, index_key in zip(self._handles, self._index_keys, strict=True):
            key = last
            # Inside a block the block itself checks the order.
            for key, value in self._load(handle).items():
                if last is not None and key <= last:
                    raise self._order_error(handle, key)
                last = None
                yield key, value
            last = key
            if last is not None and last > index_key:
                raise self._above_index_error(handle, last)

    def rows(self) -> Iterator[BlockRows]:
        """Yield all items block by block, the fast way to every item; errors as for `items`."""
        self._load(self._metaindex)
        return self._rows_of_blocks(
            range(len(self._handles)), lambda number: self._load(self._handles[number])
        )

    def rows_near(self, ranges: Sequence[tuple[bytes, bytes]]) -> Iterator[BlockRows]:
        """Yield the blocks that may hold keys from `low` to `high`, of several ranges; errors as for `items`.

        Parameters
        ----------
        ranges : sequence of (bytes, bytes)
            Ascending.
        """
        numbers: dict[int, None] = {}
        for low, high in ranges:
            first, last = (bisect.bisect_left(self._index_keys, key) for key in (low, high))
            numbers.update(dict.fromkeys(range(first, min(last + 1, len(self._handles)))))
        # One of them was probably looked into just before.
        return self._rows_of_blocks(numbers, self._block)

    def _rows_of_blocks(self, numbers: Iterable[int], load: Callable[[int], Block]) -> Iterator[BlockRows]:
        last: bytes | None = None
        for number in numbers:
            handle, index_key = self._handles[number], self._index_keys[number]
            rows = load(number).rows()
            if not rows.keys:
                continue
            if last is not None and rows.keys[0] <= last:
                raise self._order_error(handle, rows.keys[0])
            last = rows.keys[-1]
            if last > index_key:
                raise self._above_index_error(handle, last)
            yield rows

    def _block(self, number: int) -> Block:
        with self._lock:
            block = self._blocks.get(number)
            if block is not None:
                self._blocks.move_to_end(number)
                return block
        block = self._load(self._handles[number])
        with self._lock:
            self._blocks[number] = block
            while len(self._blocks) > _CACHED_BLOCKS:
                self._blocks.popitem(last=False)
        return block

    def _load(self, handle: BlockHandle) -> Block:
        data = self._read_exactly(handle.offset, handle.size_bytes + TRAILER_SIZE_BYTES)
        return read_block(data, handle, source=self._source, base_offset=handle.offset)

    def _read_footer(self) -> tuple[BlockHandle, BlockHandle]:
        start = self._size_bytes - FOOTER_SIZE_BYTES
        footer = self._read_exactly(start, FOOTER_SIZE_BYTES)
        magic = decode_fixed64(footer, FOOTER_SIZE_BYTES - 8, source=self._source)
        if magic != TABLE_MAGIC:
            kind = self._kind()
            raise FormatError(
                "not an sstable (bad magic number)" + _first_bytes(kind),
                url=self._source,
                offset=self._size_bytes - 8,
                expected=f"{TABLE_MAGIC:#018x}",
                actual=f"{magic:#018x}",
                hint="Pass the prefix, not a .data or .meta file; else the index is damaged or cut off."
                if kind is None
                else kind.advice,
            )
        handles = footer[: FOOTER_SIZE_BYTES - 8]
        metaindex, pos = decode_handle(handles, 0, source=self._source)
        index, pos = decode_handle(handles, pos, source=self._source)
        # No checksum covers the footer: a bit turned in a varint must at least not leave the same numbers in
        # a longer form.
        canonical = b"".join(encode_varint(n) for n in (*metaindex, *index))
        if handles[:pos] != canonical:
            raise self._error("the footer has a malformed handle", start, handles[:pos].hex())
        self._check_inside(metaindex)
        self._check_inside(index)
        return metaindex, index

    def _read_index(self, handle: BlockHandle) -> None:
        end = 0
        for key, value in self._load(handle).items():
            block, pos = decode_handle(value, 0, source=self._source)
            # Writers append block after block. Without this, one small index could name the same block a
            # million times.
            if pos != len(value) or block.offset < end:
                raise self._error("the index block has a malformed handle", handle.offset, value.hex())
            self._check_inside(block)
            end = block.offset + block.size_bytes + TRAILER_SIZE_BYTES
            self._index_keys.append(key)
            self._handles.append(block)

    def _check_inside(self, handle: BlockHandle) -> None:
        limit = self._size_bytes - FOOTER_SIZE_BYTES
        if handle.offset + handle.size_bytes + TRAILER_SIZE_BYTES > limit:
            raise FormatError(
                "a block handle leads outside the file",
                url=self._source,
                expected=f"an end at or before byte {limit}",
                actual=f"{handle.size_bytes} + {TRAILER_SIZE_BYTES} bytes from {handle.offset}",
            )

    def _kind(self) -> FileKind | None:
        """Return what the file is instead of a table, as far as its first bytes say."""
        if not self._size_bytes:
            return None
        try:
            return file_kind(self._read(0, min(self._size_bytes, HEAD_SIZE_BYTES)))
        except CkptStoreError:
            # That it is not a table is known; a second request that fails must not hide it.
            return None

    def _read_exactly(self, offset: int, size: int) -> bytes:
        data = self._read(offset, size)
        if len(data) != size:
            raise TruncatedFileError(
                "the file ended while it was read",
                url=self._source,
                offset=offset,
                expected=f"{size} bytes",
                actual=len(data),
            )
        return data

    def _error(self, what: str, offset: int, actual: object) -> FormatError:
        return FormatError(what, url=self._source, offset=offset, actual=actual)

    def _order_error(self, handle: BlockHandle, key: bytes) -> FormatError:
        return self._error("the keys of a table do not ascend", handle.offset, repr(key[:64]))

    def _above_index_error(self, handle: BlockHandle, key: bytes) -> FormatError:
        return self._error("a block holds keys above its index entry", handle.offset, repr(key[:64]))


def _first_bytes(kind: FileKind | None) -> str:
    return "" if kind is None else f": its first bytes are those of {kind.name}"
