"""Small tensors by the ten thousand: looked up and checked as columns, and matched with a caller's arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ckptstore.bundle.read.batch import NATIVE, BulkTensors, ReadBatch
from ckptstore.bundle.read.index_check import IndexCheck
from ckptstore.bundle.read.plan import DIRECT_SIZE_BYTES
from ckptstore.bundle.read.reader import BundleReader

__all__ = ["BulkRestore", "find_bulk"]


def find_bulk(index: IndexCheck, names: Sequence[str]) -> BulkTensors:
    """Implement `BundleReader.find_bulk`; each name comes once."""
    columns = index.columns
    found = np.array(index.rows_of(names), np.int64)
    sizes_bytes = columns.sizes_bytes[found]
    # What the index does not have has the row of the header, which is not sound.
    is_small = index.is_sound[found] & (sizes_bytes > 0) & (sizes_bytes < DIRECT_SIZE_BYTES)
    numbers: Sequence[int] = range(len(names))
    if not is_small.all():
        numbers = np.flatnonzero(is_small).tolist()
        found, sizes_bytes = found[is_small], sizes_bytes[is_small]
        names = [names[number] for number in numbers]
    kinds = [columns.kinds[number] for number in columns.kind_ids[found].tolist()]
    batch = ReadBatch()
    batch.tensors = list(names)
    batch.dtypes = [kind.dtype for kind in kinds if kind.dtype is not None]
    batch.shapes = [kind.shape for kind in kinds]
    batch.shard_ids = columns.shard_ids[found].tolist()
    batch.offsets = columns.offsets[found].tolist()
    batch.sizes_bytes = sizes_bytes.tolist()
    batch.masked_crc32cs = columns.masked_crc32cs[found].tolist()
    batch.targets = [None] * len(found)
    return BulkTensors(numbers, batch)


class BulkRestore(NamedTuple):
    """What a restore reads in bulk.

    Attributes
    ----------
    targets : list of str
        Names in the mapping.
    batch : ReadBatch
        For each name a row, and its array as the target if it has one; rows of other tensors may follow.
    """

    targets: list[str]
    batch: ReadBatch

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return name → array, once all were read."""
        pairs = zip(self.targets, self.batch.targets, strict=False)
        return {target: array for target, array in pairs if array is not None}

    def new(self) -> list[str]:
        """Return the names of those without an array."""
        return [
            target for target, array in zip(self.targets, self.batch.targets, strict=False) if array is None
        ]

    @staticmethod
    def find(
        reader: BundleReader, values: Mapping[str, Any], wanted: Mapping[str, str]
    ) -> BulkRestore | None:
        """Return the small tensors for new arrays, and those for arrays that fit as they are."""
        found = reader.find_bulk(list(wanted.values()))
        if found is None:
            return None
        numbers, batch = found
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
                and existing.dtype is NATIVE[batch.dtypes[row].as_datatype_enum]
                and existing.shape == batch.shapes[row]
                and existing.flags.writeable
            ):
                batch.targets[row] = existing
            else:
                misfits.append(row)
        if misfits:
            left_out = set(misfits)
            batch = batch.without(left_out)
            targets = [target for row, target in enumerate(targets) if row not in left_out]
        return BulkRestore(targets, batch) if targets else None

    def others(self, wanted: Mapping[str, str]) -> Mapping[str, str]:
        """Return what else is wanted."""
        if len(self.targets) == len(wanted):
            return {}
        found = set(self.targets)
        return {target: source for target, source in wanted.items() if target not in found}
