"""One index from the partial ones that the writers of the data files made, without an object per slice.

A million slices of a thousand ranks pass through here: keys and values are moved as bytes, and only the shard
number in each is changed.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from ckptstore.errors import UsageError
from ckptstore.format.block import BlockRows
from ckptstore.format.entry import (
    HEADER_KEY,
    BundleHeader,
    decode_entry,
    decode_header,
    encode_header,
    key_to_name,
)
from ckptstore.format.entry_columns import renumber_values
from ckptstore.format.slices import shown_name
from ckptstore.format.table import Table
from ckptstore.format.table_builder import TableBuilder

__all__ = ["merge_partial_indexes"]

_ENTRIES_AT_ONCE = 16_384


def merge_partial_indexes(parts: Iterable[tuple[int, bytes]], num_shards: int) -> bytes:
    """Merge the indexes of single data files.

    Parameters
    ----------
    parts : iterable of (int, bytes)
        The number of a data file, and an index of its entries as `build_index` makes it; the shard numbers in
        it are replaced. In the order in which TensorFlow would merge them: the slices of a tensor follow each
        other in this order, under the number of the first. Each is needed only until the next one is asked
        for.
    num_shards : int
        The count in the names of the data files.

    Returns
    -------
    bytes
        The ``.index``: what TensorFlow's merge of the same parts writes.

    Raises
    ------
    UsageError
        If a tensor or a slice comes twice, if the parts of a tensor do not agree on its type and shape, or if
        byte order or version of two parts differ.
    TruncatedFileError, ChecksumError, FormatError
        If a part is damaged; the error names its data file.
    """
    keys: list[bytes] = []
    values: list[bytes] = []
    # Of each partitioned tensor type and shape, and the pieces of its value.
    partitioned: dict[bytes, tuple[bytes, list[bytes]]] = {}
    header: BundleHeader | None = None
    for shard_id, data in parts:
        source = f"<index of data file {shard_id}>"
        for block in Table.from_bytes(data, source=source).rows():
            rows = block
            if rows.keys[0] == HEADER_KEY:
                own = decode_header(rows.contents[rows.starts[0] : rows.stops[0]], source=source)
                header = _same_kind(header or own, own, source)
                rows = BlockRows(rows.contents, rows.keys[1:], rows.starts[1:], rows.stops[1:])
            renumbered = renumber_values(rows, shard_id, source=source)
            has_bytes = [not at for at in renumbered.slices_at]
            keys += itertools.compress(rows.keys, has_bytes)
            values += itertools.compress(renumbered.values, has_bytes)
            lists = zip(rows.keys, *renumbered, strict=True)
            for key, value, stop, at in itertools.compress(lists, renumbered.slices_at):
                first = partitioned.get(key)
                if first is None:
                    partitioned[key] = value[:stop], [value]
                elif first[0] == value[:stop]:
                    first[1].append(value[at:])
                else:
                    raise _disagreement(key, first[1][0], value, source)
    keys += partitioned
    values += [b"".join(pieces) for _, pieces in partitioned.values()]
    partitioned.clear()
    # A run of ascending keys for each part: that is fast to sort.
    order = np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)
    builder = TableBuilder()
    builder.add(HEADER_KEY, encode_header(replace(header or BundleHeader(num_shards), num_shards=num_shards)))
    last = HEADER_KEY
    for start in range(0, len(order), _ENTRIES_AT_ONCE):
        rows = order[start : start + _ENTRIES_AT_ONCE].tolist()
        some = [keys[row] for row in rows]
        if not all(map(operator.lt, [last, *some], some)):
            twice = next(key for key, following in itertools.pairwise([last, *some]) if key == following)
            name = shown_name(twice)
            raise UsageError(
                f"Adding duplicate key: {name}", tensor=name, hint="Every tensor needs its own name."
            )
        last = some[-1]
        builder.extend(some, [values[row] for row in rows])
        # The table grows as keys and values go.
        for row in rows:
            keys[row] = values[row] = b""
    return builder.finish()


def _same_kind(first: BundleHeader, other: BundleHeader, source: str) -> BundleHeader:
    if replace(other, num_shards=first.num_shards) != first:
        raise UsageError(
            "indexes of different byte order or version cannot be merged",
            url=source,
            expected=f"{'big' if first.big_endian else 'little'}-endian, version {first.producer}",
            actual=f"{'big' if other.big_endian else 'little'}-endian, version {other.producer}",
        )
    return first


def _disagreement(key: bytes, first: bytes, other: bytes, source: str) -> UsageError:
    name = key_to_name(key)
    one, two = (decode_entry(value, source=source, tensor=name) for value in (first, other))
    return UsageError(
        "the slices of one tensor do not agree on its type and full shape",
        url=source,
        tensor=name,
        expected=f"type {one.dtype_enum} {list(one.shape)}",
        actual=f"type {two.dtype_enum} {list(two.shape)}",
    )
