"""The bytes of an index, out of the entries of all shards."""

from __future__ import annotations

from collections.abc import Iterable
from operator import itemgetter
from typing import TypeAlias

from ckptstore.errors import UsageError
from ckptstore.format.entry import BundleEntry, BundleHeader, key_to_name
from ckptstore.format.entry_columns import encode_entries, encode_index

__all__ = ["IndexEntry", "build_index", "merge_slices", "renumbered"]

IndexEntry: TypeAlias = tuple[bytes, BundleEntry]
"""A key of the index and what it says."""


def renumbered(entries: Iterable[IndexEntry], shard_id: int) -> list[IndexEntry]:
    """Return the entries of one shard under another shard number."""
    return [(key, entry._replace(shard_id=shard_id)) for key, entry in entries]


def merge_slices(first: BundleEntry, second: BundleEntry, key: bytes) -> BundleEntry:
    """Return the entry of a partitioned tensor whose slices two shards or bundles list.

    The slices of `second` follow those of `first`, whose shard number stays, as in TensorFlow's merge.

    Raises
    ------
    UsageError
        If one of them is not a partitioned tensor, or type or shape differ.
    """
    if not first.slices or not second.slices:
        name = key_to_name(key)
        raise UsageError(
            f"Adding duplicate key: {name}", tensor=name, hint="Every tensor needs its own name."
        )
    if first.dtype_enum != second.dtype_enum or first.shape != second.shape:
        raise UsageError(
            "the slices of one tensor do not agree on its type and full shape",
            tensor=key_to_name(key),
            expected=f"type {first.dtype_enum} {list(first.shape)}",
            actual=f"type {second.dtype_enum} {list(second.shape)}",
        )
    return first._replace(slices=first.slices + second.slices)


def build_index(
    entries: Iterable[IndexEntry], num_shards: int, *, header: BundleHeader | None = None
) -> bytes:
    """Return the bytes of the ``.index`` file.

    Parameters
    ----------
    entries : iterable of (key, BundleEntry)
        Of all shards, in any order; those of one partitioned tensor in the order of the shards.
    num_shards : int
        The count in the names of the data files; TensorFlow does not ask that so many exist.
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
    ordered = sorted(entries, key=itemgetter(0))
    if header is None:
        header = BundleHeader(num_shards)
    else:
        header = BundleHeader(
            num_shards, header.big_endian, header.producer, header.min_consumer, header.bad_consumers
        )
    keys: list[bytes] = []
    merged: list[BundleEntry] = []
    for key, entry in ordered:
        if keys and key == keys[-1]:
            merged[-1] = merge_slices(merged[-1], entry, key)
            continue
        keys.append(key)
        merged.append(entry)
    return encode_index(header, keys, encode_entries(merged))
