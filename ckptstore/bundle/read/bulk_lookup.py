"""Small tensors by the ten thousand: looked up and checked as columns, and matched with a caller's arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ckptstore.bundle.read.batch import NATIVE, Jobs, SmallTensors
from ckptstore.bundle.read.index_file import IndexRows
from ckptstore.bundle.read.plan import DIRECT_SIZE_BYTES
from ckptstore.bundle.read.reader import BundleReader, StoredTensor, key_of
from ckptstore.bundle.read.shard_files import ShardFiles
from ckptstore.errors import IncompleteBundleError, NotFoundError
from ckptstore.format import dtypes
from ckptstore.format.entry_columns import EntryKind

__all__ = ["SmallRestore", "find_small", "have_small"]


def find_small(rows: IndexRows, names: Sequence[str]) -> SmallTensors:
    """Do what `BundleReader.find_small` says; each name comes once."""
    columns, row_of = rows.columns, rows.row_of
    kind_ids, sizes_bytes = columns.kind_ids, columns.sizes_bytes
    # What is found nowhere has the row of the header. The last kind is that of number -1.
    found = [row_of.get(key_of(name), 0) for name in names]
    kinds = [*columns.kinds, EntryKind(0, (), None, -1)]
    fitting = [kind.size_bytes if 0 < kind.size_bytes < DIRECT_SIZE_BYTES else -1 for kind in kinds]
    numbers: Sequence[int] = range(len(names))
    if 0 in found or [fitting[kind_ids[row]] for row in found] != [sizes_bytes[row] for row in found]:
        numbers = [
            number for number, row in enumerate(found) if row and fitting[kind_ids[row]] == sizes_bytes[row]
        ]
        found = [found[number] for number in numbers]
        names = [names[number] for number in numbers]
    types = [kind.dtype or dtypes.STRING for kind in kinds]
    shapes = [kind.shape for kind in kinds]
    jobs = Jobs()
    jobs.tensors = list(names)
    jobs.dtypes = [types[kind_ids[row]] for row in found]
    jobs.shapes = [shapes[kind_ids[row]] for row in found]
    jobs.shard_ids = [columns.shard_ids[row] for row in found]
    jobs.offsets = [columns.offsets[row] for row in found]
    jobs.sizes_bytes = [sizes_bytes[row] for row in found]
    jobs.masked_crc32cs = [columns.masked_crc32cs[row] for row in found]
    jobs.targets = [None] * len(found)
    return SmallTensors(numbers, jobs)


def have_small(shards: ShardFiles, small: Jobs, others: Iterable[StoredTensor]) -> bool:
    """Do what `BundleReader.have_small` says."""
    claimed: dict[int, int] = {}
    for tensor in others:
        for entry in tensor.entries:
            if entry.size_bytes:
                claimed[entry.shard_id] = claimed.get(entry.shard_id, 0) + entry.size_bytes
    numbers, offsets, sizes = (
        np.array(column, np.int64) for column in (small.shard_ids, small.offsets, small.sizes_bytes)
    )
    order = np.argsort(numbers, kind="stable")
    firsts = np.flatnonzero(np.diff(numbers[order], prepend=-1))
    ends = np.maximum.reduceat((offsets + sizes)[order], firsts).tolist()
    totals = np.add.reduceat(sizes[order], firsts).tolist()
    names = {small.shard_ids[row]: small.tensors[row] for row in order[firsts].tolist()}
    try:
        shards.look_at(names.items())
        for (shard_id, name), end, total in zip(names.items(), ends, totals, strict=True):
            if max(end, total + claimed.get(shard_id, 0)) > shards[shard_id].size_bytes(name):
                return False
    except (IncompleteBundleError, NotFoundError):
        return False
    return True


class SmallRestore(NamedTuple):
    """What a restore reads in bulk.

    Attributes
    ----------
    targets : list of str
        Names in the mapping.
    jobs : Jobs
        For each name a row, and its array as the target if it has one; others may come behind them.
    """

    targets: list[str]
    jobs: Jobs

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return name → array, once all were read."""
        pairs = zip(self.targets, self.jobs.targets, strict=False)
        return {target: array for target, array in pairs if array is not None}

    def new(self) -> list[str]:
        """Return the names of those without an array."""
        return [
            target for target, array in zip(self.targets, self.jobs.targets, strict=False) if array is None
        ]

    @staticmethod
    def find(
        reader: BundleReader, values: Mapping[str, Any], wanted: Mapping[str, str]
    ) -> SmallRestore | None:
        """Return what needs no closer look: small tensors for new arrays, or such that fit as they are."""
        found = reader.find_small(list(wanted.values()))
        if found is None:
            return None
        numbers, jobs = found
        targets = list(wanted)
        if len(numbers) < len(targets):
            targets = [targets[number] for number in numbers]
        misfits: list[int] = []
        for row, target in enumerate(targets if values else ()):
            existing = values.get(target)
            if existing is None:
                continue
            if (
                type(existing) is np.ndarray
                and existing.dtype is NATIVE[jobs.dtypes[row].as_datatype_enum]
                and existing.shape == jobs.shapes[row]
                and existing.flags.writeable
            ):
                jobs.targets[row] = existing
            else:
                misfits.append(row)
        if misfits:
            left_out = set(misfits)
            jobs = jobs.without(left_out)
            targets = [target for row, target in enumerate(targets) if row not in left_out]
        return SmallRestore(targets, jobs) if targets else None

    def others(self, wanted: Mapping[str, str]) -> Mapping[str, str]:
        """Return what else is wanted."""
        if len(self.targets) == len(wanted):
            return {}
        found = set(self.targets)
        return {target: source for target, source in wanted.items() if target not in found}
