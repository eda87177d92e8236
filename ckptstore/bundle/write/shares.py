"""Who writes what, when the ranks of a job hold one checkpoint together: a pure function of what they hold.

A box that one rank holds is written by it. A box that several hold, such as a tensor that is the same on all,
is written once: by the one with the fewest bytes so far, or by several, if it is large and TensorFlow can put
its parts together again.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ckptstore.bundle.write.coverage import BoxColumns, check_coverage
from ckptstore.bundle.write.held_boxes import HeldBoxes, Holders
from ckptstore.bundle.write.manifest import Holding, Manifest
from ckptstore.bundle.write.plan import WriteItem
from ckptstore.errors import UsageError
from ckptstore.format.entry_columns import Integers
from ckptstore.types import Slice

__all__ = ["Deal", "Replica", "Share", "deal", "item_of", "whole_shares"]

# TensorFlow puts a tensor of these types together from its slices, and of no other.
_CAN_BE_CUT: Final = frozenset(
    (
        *("float32", "float64", "bfloat16", "complex64", "complex128", "bool"),
        *("int8", "int16", "int32", "int64", "uint8", "qint8", "quint8", "qint32"),
    )
)

# A smaller part is not worth a request of its own.
_SMALLEST_PART_BYTES: Final = 16 * 1024 * 1024

# What all ranks have is cut from this size on, or from half the mean share of a rank.
_WHOLE_UP_TO_BYTES: Final = 64 * 1024 * 1024

# Smaller ones go to the chief if it has them: one file fewer to read.
_SMALL_BYTES: Final = 16 * 1024

_MOST_RANKS_SHOWN: Final = 8


class Share(NamedTuple):
    """A part of a checkpoint that one rank writes.

    Attributes
    ----------
    item : int
        Its number in the rank's manifest.
    rows : (int, int) or None
        First and last (exclusive) along the first axis of the item; None: all of it.
    """

    item: int
    rows: tuple[int, int] | None = None


def whole_shares(count: int) -> tuple[Share, ...]:
    """Return a share of each of the first `count` items, all of it: the same objects for every rank."""
    return _every_share(max(0, count - 1).bit_length())[:count]


@functools.cache
def _every_share(bits: int) -> tuple[Share, ...]:
    return tuple([Share(item) for item in range(1 << bits)])


class Replica(NamedTuple):
    """A box, or some rows of it, that several ranks hold.

    Attributes
    ----------
    holders : tuple of (int, int)
        Rank, and number of the item in its manifest; ascending.
    """

    name: str
    rows: tuple[int, int] | None
    holders: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Deal:
    """Who writes what.

    Attributes
    ----------
    shares : tuple of tuple of Share
        By rank, ascending by item.
    replicas : tuple of Replica
        What several ranks hold, in the parts in which it is written.
    """

    shares: tuple[tuple[Share, ...], ...]
    replicas: tuple[Replica, ...]

    @property
    def numbers(self) -> tuple[int | None, ...]:
        """The shard number of each rank; None for one that writes nothing."""
        numbers, following = [], 0
        for shares in self.shares:
            numbers.append(following if shares else None)
            following += bool(shares)
        return tuple(numbers)

    @property
    def shard_count(self) -> int:
        """How many ranks write a data file."""
        return sum(bool(shares) for shares in self.shares)


def item_of(items: Sequence[WriteItem], share: Share) -> WriteItem:
    """Return what a rank that holds `items` writes for `share`."""
    item = items[share.item]
    if share.rows is None:
        return item
    start, stop = share.rows
    array = item.array[start:stop]
    (first, *begins), (_, *lengths) = (
        ([0] * len(item.full_shape), item.full_shape)
        if item.slice is None
        else zip(*item.slice.resolve(item.full_shape), strict=True)
    )
    box = Slice(((first + start, stop - start), *zip(begins, lengths, strict=True)))
    size_bytes = item.size_bytes // item.shape[0] * (stop - start)
    return item._replace(shape=array.shape, slice=box, size_bytes=size_bytes, array=array)


def deal(manifests: Sequence[Manifest], fixed: Mapping[int, Sequence[Share]] | None = None) -> Deal:
    """Decide which rank writes what.

    Parameters
    ----------
    manifests : sequence of Manifest
        By rank; rank 0 is the chief.
    fixed : mapping of int to sequence of Share, optional
        What some ranks write in any case; the others share the rest.

    Returns
    -------
    Deal
        The same for the same arguments, whoever asks.

    Raises
    ------
    UsageError
        If two ranks do not agree on the type or shape of a tensor, if the boxes of a tensor overlap or leave
        a hole, or if nobody is left who holds what the `fixed` ones do not write. It names tensor, boxes and
        ranks.
    """
    boxes = HeldBoxes.of(manifests)
    _check_coverage(boxes)
    fixed = fixed or {}
    loads = [0] * len(manifests)
    shares: list[list[Share]] = [[] for _ in manifests]
    is_fixed = _hand_out_fixed(boxes, fixed, loads, shares)
    _hand_out_alone(boxes, fixed, is_fixed, loads, shares)
    replicas: list[Replica] = []
    total_bytes = int(boxes.sizes_bytes[boxes.firsts].sum())
    limit_bytes = max(_WHOLE_UP_TO_BYTES, total_bytes // (2 * len(manifests)))
    several = [
        (boxes.holding(int(boxes.firsts[group])), group, found) for group, found in boxes.held_by_several()
    ]
    several.sort(key=lambda one: (-one[0].size_bytes, one[0].name, one[0].start, one[0].shape))
    for holding, group, found in several:
        if is_fixed[group]:
            replicas.append(Replica(holding.name, None, tuple(found)))
            continue
        free = _check_may_write(holding.name, found, fixed)
        cuts = _cuts(holding, len(free), limit_bytes)
        if len(cuts) == 2:
            small = holding.size_bytes <= _SMALL_BYTES or holding.dtype in ("string", "variant")
            rank, item = free[0] if small else min(free, key=lambda one: (loads[one[0]], one[0]))
            shares[rank].append(Share(item))
            loads[rank] += holding.size_bytes
            replicas.append(Replica(holding.name, None, tuple(found)))
            continue
        writers = sorted(free, key=lambda one: (loads[one[0]], one[0]))[: len(cuts) - 1]
        row_bytes = holding.size_bytes // holding.shape[0]
        for (rank, item), start, stop in zip(sorted(writers), cuts[:-1], cuts[1:], strict=True):
            shares[rank].append(Share(item, (start, stop)))
            loads[rank] += (stop - start) * row_bytes
            replicas.append(Replica(holding.name, (start, stop), tuple(found)))
    return Deal(tuple(tuple(sorted(each)) for each in shares), tuple(replicas))


def _hand_out_fixed(
    boxes: HeldBoxes, fixed: Mapping[int, Sequence[Share]], loads: list[int], shares: list[list[Share]]
) -> npt.NDArray[np.bool_]:
    """Hand out what is fixed, and return for each group whether it is."""
    wholes = np.zeros(len(boxes.firsts), np.int64)
    parts: dict[int, list[tuple[int, int]]] = {}
    for rank, own in fixed.items():
        rows = boxes.begins[rank] + np.array([share.item for share in own], np.int64)
        if len(rows) and rows.max() >= boxes.begins[rank + 1]:
            raise _changed(None, f"rank {rank} has copied what it does not hold any more")
        sizes_bytes = boxes.sizes_bytes[rows]
        is_whole = np.array([share.rows is None for share in own], np.bool_)
        np.add.at(wholes, boxes.groups[rows[is_whole]], 1)
        loads[rank] += int(sizes_bytes[is_whole].sum())
        for at in np.flatnonzero(~is_whole).tolist():
            start, stop = own[at].rows or (0, 0)
            parts.setdefault(int(boxes.groups[rows[at]]), []).append((start, stop))
            loads[rank] += (
                int(sizes_bytes[at]) * (stop - start) // max(boxes.holding(int(rows[at])).shape[0], 1)
            )
        shares[rank] += own
    for group in sorted({*parts, *np.flatnonzero(wholes > 1).tolist()}):
        holding = boxes.holding(int(boxes.firsts[group]))
        end = holding.shape[0] if holding.shape else 1
        ranges = sorted([*parts.get(group, ()), *[(0, end)] * int(wholes[group])])
        ends = [stop for _, stop in ranges]
        if ranges[0][0] != 0 or ends[-1] != end or [start for start, _ in ranges[1:]] != ends[:-1]:
            raise _changed(holding.name, "some of them write only a part of what they hold together")
        wholes[group] += 1
    return wholes > 0


def _hand_out_alone(
    boxes: HeldBoxes,
    fixed: Mapping[int, object],
    is_fixed: npt.NDArray[np.bool_],
    loads: list[int],
    shares: list[list[Share]],
) -> None:
    """Hand out what one rank alone holds."""
    rows = boxes.firsts[(boxes.counts == 1) & ~is_fixed]
    # By rank, as rows are.
    ends = np.searchsorted(boxes.ranks[rows], np.arange(len(loads) + 1))
    for rank, (start, end) in enumerate(itertools.pairwise(ends.tolist())):
        if start == end:
            continue
        if rank in fixed:
            _check_may_write(boxes.holding(int(rows[start])).name, [(rank, 0)], fixed)
        own = rows[start:end]
        loads[rank] += int(boxes.sizes_bytes[own].sum())
        every = whole_shares(int(boxes.begins[rank + 1] - boxes.begins[rank]))
        shares[rank] += every if len(own) == len(every) else [every[at] for at in boxes.items[own].tolist()]


def _check_may_write(name: str, holders: Holders, fixed: Mapping[int, object]) -> Holders:
    """Return the holders whose share is not fixed."""
    free = [one for one in holders if one[0] not in fixed]
    if not free:
        holding = _ranks(rank for rank, _ in holders)
        raise _changed(name, f"nobody but {holding} holds it, where it was not copied")
    return free


def _changed(name: str | None, actual: str) -> UsageError:
    return UsageError(
        "what some ranks hold has changed, and the others have copied their part already",
        tensor=name,
        actual=actual,
        hint="Save with `save` once when the tensors of a rank change, then with `save_async` again.",
    )


def _cuts(holding: Holding, holders: int, limit_bytes: int) -> list[int]:
    """Return where a box is cut along its first axis, its ends included."""
    if (
        holding.size_bytes <= limit_bytes
        or holding.dtype not in _CAN_BE_CUT
        or not holding.shape
        or holders == 1
    ):
        return [0, holding.shape[0] if holding.shape else 1]
    rows = holding.shape[0]
    parts = max(1, min(holders, holding.size_bytes // _SMALLEST_PART_BYTES, rows))
    return [rows * part // parts for part in range(parts + 1)]


def _check_coverage(boxes: HeldBoxes) -> None:
    is_first = np.zeros(len(boxes.ranks), np.bool_)
    is_first[boxes.firsts] = True
    for ndim, (all_rows, all_boxes) in boxes.by_ndim.items():
        rows, places = all_rows[is_first[all_rows]], all_boxes[is_first[all_rows]]
        starts, lengths = places[:, :ndim], places[:, ndim:]
        tensors = boxes.tensors[rows]
        given, numbers = np.unique(tensors, return_inverse=True)
        shapes = np.array([boxes.shapes[tensor] for tensor in given.tolist()], np.int64)
        shapes = shapes.reshape(len(given), ndim)
        # A tensor that is held whole, and in no other box, is covered.
        is_cut = np.zeros(len(given), np.bool_)
        is_cut[numbers[(lengths != shapes[numbers]).any(axis=1)]] = True
        kept = np.flatnonzero(is_cut[numbers] & (lengths > 0).all(axis=1))
        kept = kept[np.argsort(numbers[kept], kind="stable")]
        if not len(kept):
            continue
        given, numbers = np.unique(tensors[kept], return_inverse=True)
        shapes = np.array([boxes.shapes[tensor] for tensor in given.tolist()], np.int64)
        columns = BoxColumns(
            [boxes.names[tensor] for tensor in given.tolist()],
            shapes.reshape(len(given), ndim),
            numbers,
            starts[kept],
            starts[kept] + lengths[kept],
        )
        check_coverage(columns, _label(boxes, rows[kept]))


def _label(boxes: HeldBoxes, rows: Integers) -> Callable[[int], str]:
    return lambda at: _ranks(boxes.ranks_of(int(rows[at])))


def _ranks(ranks: Iterable[int]) -> str:
    found = list(ranks)
    shown = ", ".join(map(str, found[:_MOST_RANKS_SHOWN]))
    more = f" and {len(found) - _MOST_RANKS_SHOWN} more" if len(found) > _MOST_RANKS_SHOWN else ""
    return f"rank{'s' if len(found) > 1 else ''} {shown}{more}"
