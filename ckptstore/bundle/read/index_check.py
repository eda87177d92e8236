"""The whole of an index, read once as columns: which entries are sound, and which slices make which tensor.

Lookups of many names, restores, verification and the search for the latest checkpoint all use it. Entries in
an unusual form are left to `ckptstore.format.entry` and `ckptstore.bundle.read.reader_v2`, which decode them
one at a time and alone raise errors.
"""

from __future__ import annotations

import bisect
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ckptstore.errors import FormatError, UsageError
from ckptstore.format.block import BlockRows
from ckptstore.format.entry import BundleEntry, decode_entry, key_to_name, name_to_key
from ckptstore.format.entry_columns import EntryColumns, EntryKind, Integers
from ckptstore.format.slice_columns import (
    MAX_RANK_IN_COLUMNS,
    SliceColumns,
    are_disjoint,
    decode_slice_columns,
    encode_slice_keys,
    slice_key_prefix,
    slice_starts,
)
from ckptstore.format.slices import decode_slice_key, encode_slice_key, shown_name
from ckptstore.types import Slice

__all__ = ["IndexCheck", "Partition", "key_of"]

_FULL_EXTENT = (0, -1)

# Checked at a time, so that intermediate columns take some ten MB, however many slices there are.
_SLICES_AT_ONCE = 16_384

_MOST_KNOWN_SLICES = 16_384


def key_of(name: object) -> bytes:
    """Return the key for `name`, or one that no index has, if it is not a possible name."""
    try:
        if isinstance(name, str):
            return name_to_key(name)
        return name if isinstance(name, bytes) else b""
    except UsageError:
        return b""


class Partition(NamedTuple):
    """A partitioned tensor whose slices agree with it and do not overlap.

    Attributes
    ----------
    kind : EntryKind
        Of the tensor.
    rows : ndarray of int64
        The row of each slice, in save order.
    starts, lengths : ndarray of int64, shape (slices, rank)
        Length -1 = the full extent.
    sizes : ndarray of int64, shape (slices, rank)
        The lengths with every -1 replaced.
    is_complete : bool
        Whether the slices hold all elements.
    """

    kind: EntryKind
    rows: Integers
    starts: Integers
    lengths: Integers
    sizes: Integers
    is_complete: bool


class IndexCheck:
    """The whole of an index, one row per item, ascending by key; the first row is the header's.

    Attributes
    ----------
    keys : list of bytes
    columns : EntryColumns
    is_sound : ndarray of bool
        For each row whether it is a tensor in one piece, or a slice, whose type, shape and size agree. Where
        it is False `ckptstore.format.entry.check_entry` decides.

    Threads
    -------
    Safe for concurrent use.
    """

    def __init__(self, blocks: Iterable[BlockRows], url: str) -> None:
        self._url = url
        # Contents of each block, and where its values lie in them; the row of its first item.
        self._blocks: list[tuple[bytes, Integers, Integers]] = []
        self._firsts: list[int] = []
        # Filled on demand: entries in an unusual form; the partitioned tensors that were checked, None for
        # those that are not sound; boxes by their numbers.
        self._entries: dict[int, BundleEntry] = {}
        self._partitions: dict[int, Partition | None] = {}
        self._slices: dict[bytes, Slice] = {}
        self.keys: list[bytes] = []
        self.columns = EntryColumns.decode(self._kept(blocks))
        self.is_sound = self.columns.has_fixed_size()
        self.is_sound[:1] = False
        # All keys of slices begin with byte 0. They are found by their order: a dictionary of a million would
        # take as much memory as all the rest.
        self._first_name = bisect.bisect_left(self.keys, b"\x01")
        names = self.keys[self._first_name :]
        self._row_of = dict(zip(names, range(self._first_name, len(self.keys)), strict=True))

    def _kept(self, blocks: Iterable[BlockRows]) -> Iterator[BlockRows]:
        for rows in blocks:
            self._firsts.append(len(self.keys))
            starts, stops = np.array(rows.starts, np.int64), np.array(rows.stops, np.int64)
            self._blocks.append((rows.contents, starts, stops))
            self.keys += rows.keys
            yield rows

    def row(self, key: bytes) -> int:
        """Return the row of `key`; 0, which is the header's, if the index does not have it."""
        row = self._row_of.get(key, 0)
        if not row and key[:1] == b"\x00":
            at = bisect.bisect_left(self.keys, key, 0, self._first_name)
            row = at if at < self._first_name and self.keys[at] == key else 0
        return row

    def rows_of(self, names: Sequence[str]) -> list[int]:
        """Return for each name its row, or 0."""
        row_of = self._row_of
        try:
            found = [row_of.get(key, 0) for key in map(str.encode, names)]
        except (TypeError, UnicodeEncodeError):
            found = [0]
        # Something that is not text, bytes that are not UTF-8, or a name that begins like the key of a slice.
        return [self.row(key_of(name)) for name in names] if 0 in found else found

    def value(self, row: int) -> bytes:
        """Return the value of a row, not decoded."""
        number = bisect.bisect_right(self._firsts, row) - 1
        contents, starts, stops = self._blocks[number]
        at = row - self._firsts[number]
        return contents[starts[at] : stops[at]]

    def entry(self, row: int) -> BundleEntry:
        """Return the decoded entry of a row; `FormatError` if it is malformed."""
        found = self.columns.entry(row)
        if found is None:
            found = self._entries.get(row)
        if found is None:
            tensor = shown_name(self.keys[row])
            found = self._entries[row] = decode_entry(self.value(row), source=self._url, tensor=tensor)
        return found

    def names(self) -> list[str]:
        """Return the names of all tensors, ascending."""
        keys = [self.keys[row] for row in self.name_rows()]
        # Sorted once more: as text, bytes that are not UTF-8 have another place.
        try:
            return sorted(map(bytes.decode, keys))
        except UnicodeDecodeError:
            return sorted(map(key_to_name, keys))

    def name_rows(self) -> list[int]:
        """Return the rows of all tensors, ascending: what is neither the header nor a slice of a tensor.

        A tensor's own name may look like the key of a slice; only those that a tensor lists are slices.
        """
        is_name = np.ones(len(self.keys), np.bool_)
        is_name[:1] = False
        if self._first_name <= 1:
            return np.flatnonzero(is_name).tolist()
        wholes = np.flatnonzero(self.columns.slices_at).tolist()
        unusual = np.flatnonzero(self.columns.kind_ids[1:] < 0) + 1
        wholes += [row for row in unusual.tolist() if len(self._slice_range(self.keys[row]))]
        partitions = self.partitions(wholes)
        for row in wholes:
            partition = partitions.get(row)
            is_name[self._listed_rows(row) if partition is None else partition.rows] = False
        return np.flatnonzero(is_name).tolist()

    def partitioned_rows(self) -> set[int]:
        """Return the rows of all partitioned tensors, as far as their entries can be read."""
        wholes = np.flatnonzero(self.columns.slices_at).tolist()
        partitions = self.partitions(wholes)
        sound = {row for row in wholes if partitions[row] is not None}
        doubtful = [row for row in wholes if row not in sound]
        doubtful += (np.flatnonzero(self.columns.kind_ids[1:] < 0) + 1).tolist()
        return sound.union([row for row in doubtful if self._lists_slices(row)])

    def _lists_slices(self, row: int) -> bool:
        try:
            return bool(self.entry(row).slices)
        except FormatError:
            return False

    def _listed_rows(self, row: int) -> list[int]:
        """Return the rows of the slices that an entry lists, whether or not they agree with it."""
        name = key_to_name(self.keys[row])
        try:
            return [self.row(encode_slice_key(name, box)) for box in self.entry(row).slices]
        except FormatError:
            # Raised when the tensor is looked up; here it would hide all the others. Keys that look like
            # those of its slices are not taken for tensors.
            return [at for at in self._slice_range(self.keys[row]) if _is_slice_key(self.keys[at])]

    def _slice_range(self, key: bytes, rank: int | None = None) -> range:
        """Return the rows whose keys are those of slices of a tensor, all or those of one rank."""
        prefix = slice_key_prefix(key, rank)
        low = bisect.bisect_left(self.keys, prefix, 1, self._first_name)
        # The last byte is not 255: it is an end mark, or the rank.
        high = bisect.bisect_left(self.keys, prefix[:-1] + bytes((prefix[-1] + 1,)), low, self._first_name)
        return range(low, high)

    def partitions(self, rows: Iterable[int]) -> Mapping[int, Partition | None]:
        """Return row → partitioned tensor for those of `rows` that are sound and in the usual form.

        The others may be sound as well; `ckptstore.bundle.read.reader_v2` checks them one by one.
        """
        by_rank: dict[int, list[int]] = {}
        for row in rows:
            if self.columns.slices_at[row] and row not in self._partitions:
                kind = self.columns.kinds[self.columns.kind_ids[row]]
                # `check_entry` has to decide about a kind without a type, as about rank 0.
                by_rank.setdefault(0 if kind.dtype is None else len(kind.shape), []).append(row)
        for rank, wholes in by_rank.items():
            self._partitions.update(dict.fromkeys(wholes))
            if 0 < rank <= MAX_RANK_IN_COLUMNS:
                self._check_partitions(wholes, rank)
        return self._partitions

    def _check_partitions(self, wholes: Sequence[int], rank: int) -> None:
        listings: list[_Listing] = []
        count = 0
        for row in wholes:
            value = self.value(row)
            starts = slice_starts(value, int(self.columns.slices_at[row]))
            slice_range = self._slice_range(self.keys[row], rank)
            # Each slice has an entry of its own. A list without entries must not take memory.
            if not starts or len(starts) > len(slice_range):
                continue
            listings.append(_Listing(row, value, starts, slice_range))
            count += len(starts)
            if count >= _SLICES_AT_ONCE:
                self._check_listings(listings, rank)
                listings, count = [], 0
        if listings:
            self._check_listings(listings, rank)

    def _check_listings(self, listings: Sequence[_Listing], rank: int) -> None:
        """Compare slices with their tensors and with each other; remember the tensors that are sound."""
        columns = self.columns
        # Shapes of another rank equal none; the last row is that of kind -1.
        shape_of = np.full((len(columns.kinds) + 1, rank), -2, np.int64)
        of_rank = [number for number, kind in enumerate(columns.kinds) if len(kind.shape) == rank]
        shape_of[of_rank] = [columns.kinds[number].shape for number in of_rank]
        enum_of = np.array([*(kind.dtype_enum for kind in columns.kinds), -1])
        kind_ids = columns.kind_ids[[listing.row for listing in listings]]
        shapes = shape_of[kind_ids]
        slices = decode_slice_columns(
            [listing.value for listing in listings], [listing.starts for listing in listings], shapes
        )
        ends = np.cumsum([len(listing.starts) for listing in listings])
        firsts = np.concatenate(([0], ends[:-1]))
        rows = self._slice_rows(listings, slices, firsts.tolist())
        lengths = slices.resolved_lengths(shapes)
        agrees = slices.is_sound & (rows > 0) & self.is_sound[rows]
        agrees &= (shape_of[columns.kind_ids[rows]] == lengths).all(axis=1)
        agrees &= enum_of[columns.kind_ids[rows]] == enum_of[kind_ids[slices.tensors]]
        is_sound = np.logical_and.reduceat(agrees, firsts)
        is_sound &= are_disjoint(slices.tensors, slices.starts, slices.starts + lengths)
        is_complete = np.add.reduceat(lengths.prod(axis=1), firsts) == shapes.prod(axis=1)
        bounds = zip(firsts.tolist(), ends.tolist(), kind_ids.tolist(), strict=True)
        for number, (first, end, kind_id) in enumerate(bounds):
            if is_sound[number]:
                self._partitions[listings[number].row] = Partition(
                    columns.kinds[kind_id],
                    rows[first:end],
                    slices.starts[first:end],
                    slices.lengths[first:end],
                    lengths[first:end],
                    bool(is_complete[number]),
                )

    def _slice_rows(
        self, listings: Sequence[_Listing], slices: SliceColumns, firsts: Sequence[int]
    ) -> Integers:
        """Return the row of each listed slice, 0 for those without an entry."""
        rank = slices.starts.shape[1]
        prefixes = [slice_key_prefix(self.keys[listing.row], rank) for listing in listings]
        wanted = encode_slice_keys(prefixes, slices)
        rows = np.empty(len(wanted), np.int64)
        for listing, first in zip(listings, firsts, strict=True):
            end, low = first + len(listing.starts), listing.slice_range.start
            own = wanted[first:end]
            if self.keys[low : low + len(own)] == own:
                rows[first:end] = np.arange(low, low + len(own))
                continue
            present = {self.keys[row]: row for row in listing.slice_range}
            rows[first:end] = [present.get(key, 0) for key in own]
        return rows

    def slices(self, partition: Partition) -> tuple[Slice, ...]:
        """Return the boxes of a partitioned tensor, in save order."""
        count, rank = partition.starts.shape
        raw = np.stack((partition.starts, partition.lengths), axis=2).tobytes()
        size = 16 * rank
        # Many tensors of a model are cut alike.
        known = self._slices
        return tuple(
            [
                known.get(raw[at : at + size]) or self._new_slice(raw[at : at + size])
                for at in range(0, count * size, size)
            ]
        )

    def _new_slice(self, raw: bytes) -> Slice:
        numbers = struct.unpack(f"={len(raw) // 8}q", raw)
        pairs = zip(numbers[0::2], numbers[1::2], strict=True)
        found = Slice(tuple([_FULL_EXTENT if pair == _FULL_EXTENT else pair for pair in pairs]))
        if len(self._slices) < _MOST_KNOWN_SLICES:
            self._slices[raw] = found
        return found

    def slice_entries(self, partition: Partition) -> tuple[BundleEntry, ...]:
        """Return the entries of the slices, in save order."""
        kinds, new = self.columns.kinds, tuple.__new__
        return tuple(
            [
                new(BundleEntry, (*kinds[kind_id][:2], *place, ()))
                for kind_id, *place in self.places(partition.rows)
            ]
        )

    def places(self, rows: Integers) -> Iterator[tuple[int, int, int, int, int]]:
        """Yield for each row the number of its kind, then shard, offset, size and masked CRC32C."""
        columns = self.columns
        return zip(
            columns.kind_ids[rows].tolist(),
            columns.shard_ids[rows].tolist(),
            columns.offsets[rows].tolist(),
            columns.sizes_bytes[rows].tolist(),
            columns.masked_crc32cs[rows].tolist(),
            strict=True,
        )


class _Listing(NamedTuple):
    """A tensor that lists slices.

    Attributes
    ----------
    value : bytes
        Its entry.
    starts : list of int
        Where in `value` each slice begins.
    slice_range : range
        The rows with keys of its slices.
    """

    row: int
    value: bytes
    starts: list[int]
    slice_range: range


def _is_slice_key(key: bytes) -> bool:
    try:
        return bool(decode_slice_key(key)[0])
    except FormatError:
        return False
