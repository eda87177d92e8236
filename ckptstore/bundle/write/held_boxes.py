"""The boxes that all ranks of a job hold, as columns, and which of them are the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from ckptstore.bundle.write.manifest import Holding, Manifest
from ckptstore.errors import UsageError
from ckptstore.format.entry_columns import Integers

__all__ = ["HeldBoxes", "Holders"]

# Spreads bits upwards: 2**64 divided by the golden ratio.
_HASH_FACTOR: Final = np.uint64(0x9E3779B97F4A7C15)

Holders: TypeAlias = list[tuple[int, int]]
"""Ranks, and the number of an item in the manifest of each."""


@dataclass(frozen=True, slots=True)
class HeldBoxes:
    """The boxes of all ranks, one row each, by rank and item; those that are the same are a group.

    Attributes
    ----------
    begins : ndarray of int64
        For each rank its first row; and the end.
    ranks, items, tensors, sizes_bytes : ndarray of int64
        For each row.
    by_ndim : dict
        Number of dimensions → rows of as many, ascending, and their starts and lengths.
    firsts, counts : ndarray of int64
        For each group its first row, ascending, and how many it has.
    groups : ndarray of int64
        For each row its group.
    names, shapes
        For each tensor.
    """

    manifests: Sequence[Manifest]
    begins: Integers
    ranks: Integers
    items: Integers
    tensors: Integers
    sizes_bytes: Integers
    by_ndim: dict[int, tuple[Integers, Integers]]
    firsts: Integers
    counts: Integers
    groups: Integers
    names: list[str]
    shapes: list[tuple[int, ...]]

    @classmethod
    def of(cls, manifests: Sequence[Manifest]) -> HeldBoxes:
        """Return what ranks hold together.

        Raises
        ------
        UsageError
            If two ranks do not agree on the type or shape of a tensor.
        """
        lengths = np.array([len(manifest) for manifest in manifests], np.int64)
        begins = np.concatenate(([0], np.cumsum(lengths)))
        ranks = np.repeat(np.arange(len(manifests)), lengths)
        items = np.arange(len(ranks)) - begins[ranks]
        names, shapes, tensors = _number_tensors(manifests)
        by_ndim: dict[int, tuple[Integers, Integers]] = {}
        first_rows = np.empty(len(ranks), np.int64)
        for ndim in sorted({ndim for manifest in manifests for ndim in manifest.boxes}):
            some = [(begins[rank], each) for rank, each in enumerate(manifests) if ndim in each.boxes]
            rows = np.concatenate([begin + each.tensors.rows_by_ndim[ndim] for begin, each in some])
            boxes = np.concatenate([each.boxes[ndim] for _, each in some])
            by_ndim[ndim] = rows, boxes
            first_rows[rows] = rows[_first_alike([tensors[rows], *boxes.T])]
        is_first = first_rows == np.arange(len(ranks))
        groups = (np.cumsum(is_first) - 1)[first_rows]
        return cls(
            manifests,
            begins,
            ranks,
            items,
            tensors,
            np.concatenate([manifest.sizes_bytes for manifest in manifests]),
            by_ndim,
            np.flatnonzero(is_first),
            np.bincount(groups, minlength=0),
            groups,
            names,
            shapes,
        )

    def holding(self, row: int) -> Holding:
        """Return the box of a row."""
        return self.manifests[int(self.ranks[row])][int(self.items[row])]

    def held_by_several(self) -> list[tuple[int, Holders]]:
        """Return each group that several ranks hold, and rank and item of all that do, ascending."""
        groups = np.flatnonzero(self.counts > 1)
        rows = np.flatnonzero(self.counts[self.groups] > 1)
        rows = rows[np.argsort(self.groups[rows], kind="stable")]
        holders = list(zip(self.ranks[rows].tolist(), self.items[rows].tolist(), strict=True))
        stops = np.cumsum(self.counts[groups]).tolist()
        return [
            (group, holders[start:stop])
            for group, start, stop in zip(groups.tolist(), [0, *stops], stops, strict=False)
        ]

    def ranks_of(self, row: int) -> list[int]:
        """Return the ranks that hold the box of a row."""
        ranks: list[int] = self.ranks[self.groups == self.groups[row]].tolist()
        return ranks


def _number_tensors(manifests: Sequence[Manifest]) -> tuple[list[str], list[tuple[int, ...]], Integers]:
    """Return name and shape of each tensor, and for each row the number of its tensor."""
    numbers: dict[str, int] = {}
    # As the first rank that has it says.
    first: list[tuple[str, tuple[int, ...], int]] = []
    known: dict[int, Integers] = {}
    columns = []
    for rank, manifest in enumerate(manifests):
        tensors = manifest.tensors
        if id(tensors) not in known:
            for name, dtype, shape in zip(tensors.names, tensors.dtypes, tensors.shapes, strict=True):
                number = numbers.setdefault(name, len(first))
                if number == len(first):
                    first.append((dtype, shape, rank))
                elif first[number][:2] != (dtype, shape):
                    expected = first[number]
                    raise UsageError(
                        "two ranks do not agree on the type or shape of a tensor",
                        tensor=name,
                        expected=f"{expected[0]} {list(expected[1])} as on rank {expected[2]}",
                        actual=f"{dtype} {list(shape)} on rank {rank}",
                        hint="Every rank passes the shape of the whole tensor; give boxes of it as `Piece`.",
                    )
            known[id(tensors)] = np.fromiter(map(numbers.__getitem__, tensors.names), np.int64, len(manifest))
        columns.append(known[id(tensors)])
    return list(numbers), [shape for _, shape, _ in first], np.concatenate(columns)


def _first_alike(columns: Sequence[Integers]) -> Integers:
    """Return for each row of some columns the first row that is the same."""
    # One sort by a hash instead of one for each column.
    hashes = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        hashes = (hashes ^ column.astype(np.uint64)) * _HASH_FACTOR
        hashes ^= hashes >> np.uint64(29)
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    differs = _differ(columns, order)
    if (differs & (hashes[1:] == hashes[:-1])).any():
        order = np.lexsort(columns)
        differs = _differ(columns, order)
    heads = np.flatnonzero(np.concatenate(([True], differs)))
    first = np.empty(len(order), np.int64)
    first[order] = np.repeat(order[heads], np.diff(heads, append=len(order)))
    return first


def _differ(columns: Sequence[Integers], order: Integers) -> npt.NDArray[np.bool_]:
    """Return for each row but the first, in this order, whether it differs from the one before."""
    differs = np.zeros(max(len(order) - 1, 0), np.bool_)
    for column in columns:
        ordered = column[order]
        differs |= ordered[1:] != ordered[:-1]
    return differs
