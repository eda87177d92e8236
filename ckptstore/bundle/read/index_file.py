"""The ``.index`` of one bundle: fetched whole if it is small, else block by block, always of one version."""

from __future__ import annotations

import contextlib
import itertools

from ckptstore.bundle.read.index_check import IndexCheck
from ckptstore.errors import CorruptError, FormatError, NotFoundError
from ckptstore.format.block import BlockRows, rows_of
from ckptstore.format.entry import HEADER_KEY, BundleEntry, BundleHeader, decode_entry, decode_header
from ckptstore.format.slice_columns import slice_key_prefix
from ckptstore.format.slices import shown_name
from ckptstore.format.table import Table
from ckptstore.storage.base import Location
from ckptstore.storage.fork_safe_locks import ForkSafeLocks
from ckptstore.storage.values import GetResult, SuffixRange
from ckptstore.types import ByteRange

__all__ = ["IndexFile", "TableFile"]

# Holds the whole index of some 4 000 tensors, and footer and index block of one with a million; on an
# object store it takes as long to ask for as for the 48 bytes of the footer.
_TAIL_SIZE_BYTES = 256 * 1024

# Finding one key takes about as long as decoding twenty in a row. After so many lookups most of the others
# usually follow.
_MANY_LOOKUPS = 64


class TableFile:
    """A sorted table in a storage.

    Parameters
    ----------
    location : Location
        The file itself.
    content : GetResult, optional
        All of it, from where it was kept: nothing is read.

    Attributes
    ----------
    url : str
        As the user named it, for messages.
    version : str
        The version that every read of this object belongs to.
    size_bytes : int
        Size of the file.
    table : Table

    Raises
    ------
    NotFoundError
        If the file is not there.
    TruncatedFileError, FormatError, ChecksumError
        If it is not a table, or a damaged one.

    Threads
    -------
    Safe for concurrent use.
    """

    def __init__(self, location: Location, content: GetResult | None = None) -> None:
        self.url = location.url
        self._location = location
        tail = content or location.storage.get(location.key, SuffixRange(_TAIL_SIZE_BYTES))
        self.version = tail.version
        self.size_bytes = tail.size_bytes
        self._tail = tail.data
        self.table = Table(self._read, tail.size_bytes, source=self.url)

    def is_current(self) -> bool:
        """Return whether the file in the storage is still the one that is being read; one request."""
        try:
            return self._location.storage.head(self._location.key).version == self.version
        except NotFoundError:
            return False

    def _read(self, offset: int, size: int) -> bytes:
        tail = self._tail
        start = self.size_bytes - len(tail)
        if offset >= start:
            return tail[offset - start : offset - start + size]
        if size == 0:
            return b""
        found = self._location.storage.get(
            self._location.key, ByteRange(offset, offset + size), version=self.version
        )
        return found.data


class IndexFile(TableFile):
    """The ``.index`` of a bundle.

    Attributes
    ----------
    header : BundleHeader
    """

    def __init__(self, location: Location, content: GetResult | None = None) -> None:
        super().__init__(location, content)
        self._locks = ForkSafeLocks()
        self._rows: IndexCheck | None = None
        self._entries: dict[bytes, BundleEntry] = {}
        self._lookups = 0
        value = self.table.get(HEADER_KEY)
        if value is None:
            raise FormatError(
                "the table has no header entry, so it is not the index of a checkpoint",
                url=self.url,
                hint="Pass the prefix of a checkpoint; if this is one, the index was damaged.",
            )
        self._header_value = value
        self.header: BundleHeader = decode_header(value, source=self.url)

    def rows(self) -> IndexCheck:
        """Return every key and entry; the first call reads what is missing of the file, and decodes it.

        Raises
        ------
        TruncatedFileError, FormatError, ChecksumError
            If any block is damaged.
        """
        with self._locks[0]:
            if self._rows is None:
                head_size = self.size_bytes - len(self._tail)
                # Blocks lie side by side. A file with a hole between them is read block by block: the hole
                # may have any size.
                if 0 < head_size <= 2 * self.table.blocks_size_bytes:
                    self._tail = self._read(0, head_size) + self._tail
                self._rows = IndexCheck(self.table.rows(), self.url)
                self._tail = b""
                self._entries.clear()
            return self._rows

    def rows_with_slices(self, key: bytes) -> IndexCheck:
        """Return rows with at least the entry `key`, which is there, and those of its slices.

        Raises
        ------
        TruncatedFileError, FormatError, ChecksumError
            If a block that is read is damaged.
        """
        if self._rows is not None:
            return self._rows
        slices = slice_key_prefix(key)
        blocks = self.table.rows_near([(slices, slices + b"\xff"), (key, key)])
        header = rows_of([(HEADER_KEY, self._header_value)])
        return IndexCheck(itertools.chain([header], map(_without_header, blocks)), self.url)

    def has(self, key: bytes) -> bool:
        """Return whether the index has an entry `key`; reads as much as `entry`."""
        if key == HEADER_KEY:
            return False
        rows = self._rows_after_many()
        return self.table.get(key) is not None if rows is None else rows.row(key) > 0

    def entry(self, key: bytes) -> BundleEntry | None:
        """Return the decoded entry of `key`, or None if the index has none.

        Reads at most one block, until many keys were looked up.

        Raises
        ------
        FormatError
            If it is malformed.
        """
        if key == HEADER_KEY:
            return None
        rows = self._rows_after_many()
        if rows is not None:
            row = rows.row(key)
            return rows.entry(row) if row else None
        found = self._entries.get(key)
        if found is None:
            value = self.table.get(key)
            if value is not None:
                found = decode_entry(value, source=self.url, tensor=shown_name(key))
                self._entries[key] = found
        return found

    def _rows_after_many(self) -> IndexCheck | None:
        """Return all rows if they were read, or this is one lookup of many."""
        if self._rows is None and self._lookups <= _MANY_LOOKUPS:
            self._lookups += 1
            if self._lookups > _MANY_LOOKUPS:
                # A block that is damaged somewhere else must not hide this key.
                with contextlib.suppress(CorruptError):
                    return self.rows()
        return self._rows


def _without_header(rows: BlockRows) -> BlockRows:
    if rows.keys[0] != HEADER_KEY:
        return rows
    return BlockRows(rows.contents, rows.keys[1:], rows.starts[1:], rows.stops[1:])
