"""The bytes of an index, from the entries of all shards."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from ckptstore.errors import UsageError
from ckptstore.format.entry import BundleEntry, BundleHeader, key_to_name
from ckptstore.format.entry_columns import encode_entries, encode_index

__all__ = ["IndexEntry", "build_index", "merge_slices", "renumbered"]

IndexEntry: TypeAlias = tuple[bytes, BundleEntry]
"""A key of the index and its entry."""

_KEY = operator.itemgetter(0)


def renumbered(entries: Iterable[IndexEntry], shard_id: int) -> list[IndexEntry]:
    """Return the entries of one shard under another shard number."""
    return [(key, entry._replace(shard_id=shard_id)) for key, entry in entries]


def merge_slices(entries: Sequence[BundleEntry], key: bytes) -> BundleEntry:
    """Return the entry of a partitioned tensor whose slices several shards or bundles list.

    The slices of each follow those of the one before. The shard number of the first stays, as in TensorFlow's
    merge.

    Raises
    ------
    UsageError
        If one of them is not a partitioned tensor, or type or shape differ.
    """
    first = entries[0]
    if not all(entry.slices for entry in entries):
        name = key_to_name(key)
        raise UsageError(
            f"Adding duplicate key: {name}", tensor=name, hint="Every tensor needs its own name."
        )
    for entry in entries:
        if first.dtype_enum != entry.dtype_enum or first.shape != entry.shape:
            raise UsageError(
                "the slices of one tensor do not agree on its type and full shape",
                tensor=key_to_name(key),
                expected=f"type {first.dtype_enum} {list(first.shape)}",
                actual=f"type {entry.dtype_enum} {list(entry.shape)}",
            )
    return first._replace(slices=tuple([box for entry in entries for box in entry.slices]))


def build_index(
    entries: Iterable[IndexEntry], num_shards: int, *, header: BundleHeader | None = None
) -> bytes:
    """Return the bytes of the ``.index`` file.

    Parameters
    ----------
    entries : iterable of (key, BundleEntry)
        Of all shards, in any order; those of one partitioned tensor in the order of the shards.
    num_shards : int
        The count in the names of the data files; TensorFlow does not require that so many exist.
    header : BundleHeader, optional
        Endianness and version of a bundle that is merged; `num_shards` replaces its own.

    Raises
    ------
    UsageError
        If a key comes twice and is not that of a partitioned tensor.

    Format
    ------
    Header under the empty key, then the entries ascending by key as unsigned bytes.
    """
    ordered = sorted(entries, key=_KEY)
    if header is None:
        header = BundleHeader(num_shards)
    else:
        header = BundleHeader(
            num_shards, header.big_endian, header.producer, header.min_consumer, header.bad_consumers
        )
    keys = [key for key, _ in ordered]
    values = [entry for _, entry in ordered]
    if not all(map(operator.lt, keys, itertools.islice(keys, 1, None))):
        same_key = [(key, [entry for _, entry in group]) for key, group in itertools.groupby(ordered, _KEY)]
        keys = [key for key, _ in same_key]
        values = [group[0] if len(group) == 1 else merge_slices(group, key) for key, group in same_key]
    return encode_index(header, keys, encode_entries(values))
