"""The entries of an index by the ten thousand, encoded and decoded as columns of numbers.

`entry` defines what an entry is, and alone decides what is wrong with one. This module handles the form that
nearly all entries have; entries in another form are left to `entry`, one by one.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from ckptstore.errors import FormatError, UnsupportedError
from ckptstore.format import dtypes
from ckptstore.format.block import BlockRows
from ckptstore.format.coding import encode_varint
from ckptstore.format.entry import (
    HEADER_KEY,
    BundleEntry,
    BundleHeader,
    check_entry,
    decode_entry,
    decode_header,
    decode_usual_entry,
    element_count,
    encode_entry,
    encode_entry_head,
    encode_header,
)
from ckptstore.format.table import Table
from ckptstore.format.table_builder import TableBuilder
from ckptstore.types import DType

__all__ = [
    "EntryColumns",
    "EntryKind",
    "Integers",
    "RenumberedValues",
    "encode_columns",
    "encode_entries",
    "encode_index",
    "renumber_values",
    "shards_of",
    "usual_heads",
    "varint_field",
]

Integers: TypeAlias = npt.NDArray[np.int64]

# For fewer the overhead of numpy's calls outweighs what they save.
_MANY = 64

_INT32_MAX = (1 << 31) - 1

# As many varint bytes as surely fit into 63 bits. What is longer goes to `entry`.
_MAX_VARINT_BYTES = 9

# Kinds of tensor that are remembered; few models have so many. It also keeps a file in which every tensor has
# another shape from filling memory with them.
_MAX_KINDS = 4096

_UNUSUAL = -1


def encode_entries(entries: Sequence[BundleEntry]) -> list[bytes]:
    """Return what `encode_entry` returns for each entry, several times faster for many."""
    if len(entries) < _MANY:
        return [encode_entry(entry) for entry in entries]
    heads = [encode_entry_head(entry[0], entry[1]) for entry in entries]
    values = encode_columns(
        heads,
        [entry.shard_id for entry in entries],
        [entry.offset for entry in entries],
        [entry.size_bytes for entry in entries],
        [entry.masked_crc32c for entry in entries],
    )
    for row, entry in enumerate(entries):
        if entry.slices:
            values[row] = encode_entry(entry)
    return values


def encode_columns(
    heads: Sequence[bytes],
    shard_ids: Sequence[int],
    offsets: Sequence[int],
    sizes_bytes: Sequence[int],
    masked_crc32cs: Sequence[int] | npt.NDArray[np.uint32],
) -> list[bytes]:
    """Return the values of entries without slices.

    Parameters
    ----------
    heads : sequence of bytes
        What `ckptstore.format.entry.encode_entry_head` returns for type and shape.
    shard_ids, offsets, sizes_bytes, masked_crc32cs : sequence of int
        One number per entry each, below 2**31, 2**63, 2**63 and 2**32; arrays do as well.
    """
    count = len(heads)
    columns: list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]] = []
    for tag, numbers in ((0x18, shard_ids), (0x20, offsets), (0x28, sizes_bytes)):
        columns += _varint_columns(tag, np.asarray(numbers, np.int64))
    crcs = np.ascontiguousarray(masked_crc32cs, "<u4")
    is_there = crcs != 0
    columns.append((np.full(count, 0x35, np.uint8), is_there))
    columns += [(column, is_there) for column in crcs.view(np.uint8).reshape(count, 4).T]
    kept = np.stack([is_kept for _, is_kept in columns], axis=1)
    tails = np.stack([column for column, _ in columns], axis=1)[kept].tobytes()
    ends = kept.sum(axis=1).cumsum().tolist()
    return [head + tails[start:end] for head, start, end in zip(heads, [0, *ends], ends, strict=False)]


class RenumberedValues(NamedTuple):
    """The values of some entries under another shard number.

    Attributes
    ----------
    values : list of bytes
    heads_stop : list of int
        Where in each value type and shape end.
    slices_at : list of int
        Where in each value the slices of a partitioned tensor begin; 0 for all others.
    """

    values: list[bytes]
    heads_stop: list[int]
    slices_at: list[int]


def renumber_values(rows: BlockRows, shard_id: int, *, source: str) -> RenumberedValues:
    """Return the values of a block with `shard_id` in the place of the number that they have.

    Whatever else they hold stays as it is; reading the index checks it.

    Raises
    ------
    FormatError
        If an entry in an unusual form is malformed.
    """
    number = b"\x18" + encode_varint(shard_id) if shard_id else b""
    contents, data, starts, stops = _columns_of(rows)
    is_usual, heads = usual_heads(data, starts, stops)
    heads = np.where(is_usual, heads, starts)
    _, rests = varint_field(0x18, data, heads, stops)
    is_usual &= rests <= stops
    lists = is_usual & (rests < stops) & (data[np.minimum(rests, stops)] == 0x3A)
    spans = zip(rows.starts, heads.tolist(), rests.tolist(), rows.stops, strict=True)
    values = [contents[start:head] + number + contents[rest:stop] for start, head, rest, stop in spans]
    heads_stop = heads - starts
    slices_at = np.where(lists, heads_stop + len(number), 0)
    for row in np.flatnonzero(~is_usual).tolist():
        value = contents[rows.starts[row] : rows.stops[row]]
        entry = decode_entry(value, source=source, tensor=rows.keys[row].decode(errors="replace"))
        values[row] = encode_entry(entry._replace(shard_id=shard_id))
        heads_stop[row] = len(encode_entry_head(entry.dtype_enum, entry.shape))
        if entry.slices:
            values[row] = encode_entry(
                BundleEntry(entry.dtype_enum, entry.shape, shard_id, slices=entry.slices)
            )
            slices_at[row] = heads_stop[row] + len(number)
    return RenumberedValues(values, heads_stop.tolist(), slices_at.tolist())


def encode_index(header: BundleHeader, keys: Sequence[bytes], values: Sequence[bytes]) -> bytes:
    """Return the bytes of an ``.index``.

    Parameters
    ----------
    header : BundleHeader
    keys, values : sequence of bytes
        Of all entries, in any order.

    Raises
    ------
    UsageError
        If a key comes twice, or is the header's.
    """
    if not all(map(operator.lt, keys, itertools.islice(keys, 1, None))):
        order = sorted(range(len(keys)), key=keys.__getitem__)
        keys, values = [keys[row] for row in order], [values[row] for row in order]
    builder = TableBuilder()
    builder.add(HEADER_KEY, encode_header(header))
    builder.extend(keys, values)
    return builder.finish()


def _varint_columns(tag: int, numbers: Integers) -> list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]]:
    """Return the bytes of a varint field as columns, and where each of them is there; zeros are left out."""
    is_there = numbers != 0
    if not is_there.any():
        return []
    columns = [(np.full(len(numbers), tag, np.uint8), is_there)]
    while is_there.any():
        more = numbers > 127
        columns.append(((numbers & 127 | more * 128).astype(np.uint8), is_there))
        numbers, is_there = numbers >> 7, more
    return columns


class EntryKind(NamedTuple):
    """What many entries have in common.

    Attributes
    ----------
    dtype : DType or None
        None: `check_entry` decides about each such entry.
    size_bytes : int
        What an entry of this kind must claim; -1 without `dtype`.
    """

    dtype_enum: int
    shape: tuple[int, ...]
    dtype: DType | None
    size_bytes: int


class EntryColumns(NamedTuple):
    """The decoded entries of an index, one row each.

    Attributes
    ----------
    kind_ids : ndarray of int64
        For each row the number of its kind; -1 for one that only `ckptstore.format.entry.decode_entry` can
        decode, or raise an error for. Its other numbers mean nothing.
    shard_ids, offsets, sizes_bytes, masked_crc32cs : ndarray of int64
        As in `BundleEntry`.
    slices_at : ndarray of int64
        Where in the value the slices of a partitioned tensor begin, not decoded yet; 0 for all others.

    Threads
    -------
    Safe for concurrent use.
    """

    kinds: list[EntryKind]
    kind_ids: Integers
    shard_ids: Integers
    offsets: Integers
    sizes_bytes: Integers
    masked_crc32cs: Integers
    slices_at: Integers

    @classmethod
    def decode(cls, blocks: Iterable[BlockRows]) -> EntryColumns:
        """Decode the entries of blocks that have the usual form."""
        number_of = _KindNumbers()
        decoded = [_decode_block(rows, number_of) for rows in blocks]
        columns = zip(*decoded, strict=True) if decoded else [[np.zeros(0, np.int64)]] * 6
        return cls(number_of.kinds, *map(np.concatenate, columns))

    def has_fixed_size(self) -> npt.NDArray[np.bool_]:
        """Return for each row whether `check_entry` would find type, shape and size to agree, in one piece.

        For rows where this is False, it may or may not raise an error.
        """
        sizes_bytes = np.array([*(kind.size_bytes for kind in self.kinds), -1], np.int64)
        agrees: npt.NDArray[np.bool_] = sizes_bytes[self.kind_ids] == self.sizes_bytes
        agrees &= self.slices_at == 0
        return agrees

    def entry(self, row: int) -> BundleEntry | None:
        """Return the entry of a row; None where `ckptstore.format.entry.decode_entry` has to decode it."""
        number = self.kind_ids.item(row)
        if number == _UNUSUAL or self.slices_at.item(row):
            return None
        kind = self.kinds[number]
        return BundleEntry(
            kind.dtype_enum,
            kind.shape,
            self.shard_ids.item(row),
            self.offsets.item(row),
            self.sizes_bytes.item(row),
            self.masked_crc32cs.item(row),
        )


def _decode_block(rows: BlockRows, number_of: _KindNumbers) -> tuple[Integers, ...]:
    """Return the columns of one block, `EntryColumns.kind_ids` first."""
    contents, data, starts, stops = _columns_of(rows)
    is_usual, heads = usual_heads(data, starts, stops)
    at = np.where(is_usual, heads, stops)
    shard_ids, at = varint_field(0x18, data, at, stops)
    offsets, at = varint_field(0x20, data, at, stops)
    sizes_bytes, at = varint_field(0x28, data, at, stops)
    has_crc = (at + 5 <= stops) & (data[np.minimum(at, stops)] == 0x35)
    crcs = np.zeros(len(starts), np.int64)
    for place in range(4):
        crcs |= data[np.where(has_crc, at + 1 + place, 0)].astype(np.int64) << 8 * place
    at = np.where(has_crc, at + 5, at)
    has_slices = (at < stops) & (data[np.minimum(at, stops)] == 0x3A)
    is_usual &= has_slices | (at == stops)
    # A sum beyond 63 bits turns negative.
    is_usual &= (shard_ids <= _INT32_MAX) & (offsets + sizes_bytes >= 0)
    heads = np.where(is_usual, heads, starts)
    kind_ids = np.fromiter(
        [number_of[contents[start:end]] for start, end in zip(rows.starts, heads.tolist(), strict=True)],
        np.int64,
        len(starts),
    )
    has_slices &= kind_ids != _UNUSUAL
    slices_at = np.where(has_slices, at - starts, 0)
    return kind_ids, shard_ids, offsets, sizes_bytes, np.where(has_crc, crcs, 0), slices_at


def _columns_of(rows: BlockRows) -> tuple[bytes, npt.NDArray[np.uint8], Integers, Integers]:
    """Return the contents of a block, also as numbers, and where its values begin and end."""
    # A varint or a checksum may be read behind the last entry.
    data = np.frombuffer(rows.contents + bytes(16), np.uint8)
    return rows.contents, data, np.array(rows.starts, np.int64), np.array(rows.stops, np.int64)


def usual_heads(
    data: npt.NDArray[np.uint8], starts: Integers, stops: Integers
) -> tuple[npt.NDArray[np.bool_], Integers]:
    """Return which values begin with a type and a shape in the usual form, and where those end."""
    is_usual = (
        (stops - starts >= 4)
        & (data[starts] == 0x08)
        & (data[starts + 1] < 128)
        & (data[starts + 2] == 0x12)
        & (data[starts + 3] < 128)
    )
    heads = starts + 4 + data[starts + 3]
    return is_usual & (heads <= stops), heads


def varint_field(
    tag: int, data: npt.NDArray[np.uint8], at: Integers, stops: Integers
) -> tuple[Integers, Integers]:
    """Return the numbers that stand behind `tag`, and the positions after them; 0 where `tag` is not next.

    A number that is too long, or cut off, leaves a position beyond the end of its entry.
    """
    has_field = (at < stops) & (data[np.minimum(at, stops)] == tag)
    numbers = np.zeros(len(at), np.int64)
    if not has_field.any():
        return numbers, at
    rows = np.flatnonzero(has_field)
    at = at.copy()
    at[rows] += 1
    for place in range(_MAX_VARINT_BYTES + 1):
        if place == _MAX_VARINT_BYTES:
            at[rows] = stops[rows] + 1
            break
        octets = data[at[rows]]
        numbers[rows] |= (octets & 127).astype(np.int64) << 7 * place
        at[rows] += 1
        rows = rows[octets > 127]
        if not len(rows):
            break
    return numbers, at


class _KindNumbers(dict[bytes, int]):
    """Encoded type and shape → number of the kind."""

    def __init__(self) -> None:
        super().__init__({b"": _UNUSUAL})
        self.kinds: list[EntryKind] = []

    def __missing__(self, head: bytes) -> int:
        if len(self.kinds) >= _MAX_KINDS:
            return _UNUSUAL
        try:
            entry = decode_usual_entry(head)
        except FormatError:
            return _UNUSUAL
        assert entry is not None
        self.kinds.append(_kind(entry.dtype_enum, entry.shape))
        self[head] = len(self.kinds) - 1
        return self[head]


def _kind(dtype_enum: int, shape: tuple[int, ...]) -> EntryKind:
    try:
        dtype = dtypes.by_enum(dtype_enum, source="")
        item_size = dtypes.item_size_bytes(dtype)
        if item_size:
            size_bytes = element_count(shape) * item_size
            check_entry(BundleEntry(dtype_enum, shape, size_bytes=size_bytes), source="", tensor="")
            return EntryKind(dtype_enum, shape, dtype, size_bytes)
    except (FormatError, UnsupportedError):
        pass
    return EntryKind(dtype_enum, shape, None, -1)


def shards_of(table: Table, *, source: str) -> tuple[int, list[int]]:
    """Return the number of shards that the header of an index states, and those that its entries name.

    Parameters
    ----------
    table : Table
        An ``.index``; without a header the number is 0.
    source : str
        URL for error messages.

    Raises
    ------
    TruncatedFileError, ChecksumError, FormatError
        If a block or an entry is damaged.
    """
    value = table.get(HEADER_KEY)
    num_shards = 0 if value is None else decode_header(value, source=source).num_shards
    blocks = list(table.rows())
    columns = EntryColumns.decode(blocks)
    is_usual = columns.kind_ids != _UNUSUAL
    shard_ids = set(np.unique(columns.shard_ids[is_usual & (columns.slices_at == 0)]).tolist())
    first = 0
    for rows in blocks:
        for at in np.flatnonzero(~is_usual[first : first + len(rows.keys)]).tolist():
            if rows.keys[at] != HEADER_KEY:
                value = rows.contents[rows.starts[at] : rows.stops[at]]
                entry = decode_entry(value, source=source, tensor=rows.keys[at].decode(errors="replace"))
                if not entry.slices:
                    shard_ids.add(entry.shard_id)
        first += len(rows.keys)
    return num_shards, sorted(shard_ids)
