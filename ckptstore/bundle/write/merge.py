"""TensorFlow's merge of bundles, on decoded indexes only; moving the files is the caller's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ckptstore.bundle.write.index import IndexEntry, build_index, merge_slices
from ckptstore.errors import UsageError
from ckptstore.format.entry import HEADER_KEY, BundleEntry, BundleHeader, key_to_name

__all__ = ["MergeInput", "MergedIndex", "merge_indexes"]


@dataclass(frozen=True, slots=True)
class MergeInput:
    """One decoded index.

    Attributes
    ----------
    entries : iterable of (key, BundleEntry)
        Ascending by key, without the header.
    label : str
        Its prefix, for messages.
    """

    entries: Iterable[IndexEntry] = field(repr=False)
    header: BundleHeader
    label: str


@dataclass(frozen=True, slots=True)
class MergedIndex:
    """The merged bundle, and where its data files come from.

    Attributes
    ----------
    entries : tuple of (key, BundleEntry)
        With the new shard numbers, in the order of their first appearance.
    header : BundleHeader
        Of the merged bundle.
    shards : tuple of (int, int)
        New shard number → (number of the input, shard number there). May be shorter than ``num_shards``: a
        data file that no entry refers to is not part of the merged bundle.
    """

    entries: tuple[IndexEntry, ...] = field(repr=False)
    header: BundleHeader
    shards: tuple[tuple[int, int], ...]

    @property
    def num_shards(self) -> int:
        """The count in the names of the data files: the sum over the inputs."""
        return self.header.num_shards

    def index_bytes(self, num_shards: int | None = None) -> bytes:
        """Return the merged ``.index``; `num_shards` replaces the count in the names of the data files."""
        return build_index(
            self.entries, self.num_shards if num_shards is None else num_shards, header=self.header
        )


def merge_indexes(inputs: Sequence[MergeInput]) -> MergedIndex:
    """Merge bundles in the order given.

    Parameters
    ----------
    inputs : sequence of MergeInput
        At least one; each may have several shards.

    Raises
    ------
    UsageError
        If there is no input, if endianness or version differ, or if two inputs hold a tensor of the same
        name, unless both hold slices of it.

    Format
    ------
    ``MergeBundles`` of TensorFlow ``tensorflow/core/util/tensor_bundle/tensor_bundle.cc``, as measured on
    TensorFlow 2.21: endianness and version of the first input; new shard numbers in the order in which data
    files first appear while the entries are walked in key order; slices of one tensor follow each other in
    input order, under the shard number that the first mention got.
    """
    if not inputs:
        raise UsageError("there is nothing to merge", expected="at least one prefix")
    first = inputs[0]
    merged: dict[bytes, BundleEntry] = {}
    partitioned: dict[bytes, list[BundleEntry]] = {}
    shard_ids: dict[tuple[int, int], int] = {}
    for number, source in enumerate(inputs):
        _check_same_kind(first, source)
        for key, entry in source.entries:
            if key == HEADER_KEY:
                continue
            present = merged.get(key)
            if present is None:
                shard_id = shard_ids.setdefault((number, entry.shard_id), len(shard_ids))
                merged[key] = entry._replace(shard_id=shard_id)
                continue
            if not present.slices or not entry.slices:
                name = key_to_name(key)
                raise UsageError(
                    f"Duplicate tensor keyed by {name} encountered, when merging prefix: {source.label}",
                    url=source.label,
                    tensor=name,
                    hint="Only the slices of one tensor may come from several bundles.",
                )
            partitioned.setdefault(key, [present]).append(entry)
    merged |= {key: merge_slices(entries, key) for key, entries in partitioned.items()}
    header = BundleHeader(
        sum(source.header.num_shards for source in inputs),
        first.header.big_endian,
        first.header.producer,
        first.header.min_consumer,
        first.header.bad_consumers,
    )
    return MergedIndex(tuple(merged.items()), header, tuple(shard_ids))


def _check_same_kind(first: MergeInput, other: MergeInput) -> None:
    a, b = first.header, other.header
    if a.big_endian != b.big_endian:
        raise UsageError(
            f"Merging bundles with conflicting endianness: {first.label} and {other.label}", url=other.label
        )
    version_a = (a.producer, a.min_consumer, a.bad_consumers)
    version_b = (b.producer, b.min_consumer, b.bad_consumers)
    if version_a != version_b:
        raise UsageError(
            f"Merging bundles of different format versions: {first.label} and {other.label}",
            url=other.label,
            expected=f"producer {a.producer}, min_consumer {a.min_consumer}",
            actual=f"producer {b.producer}, min_consumer {b.min_consumer}",
        )
