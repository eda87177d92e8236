"""Who writes what, when the ranks of a job hold one checkpoint together: a pure function of what they hold.

A box that one rank holds is written by it. A box that several hold, such as a tensor that is the same on all,
is written once: by the one with the fewest bytes so far, or by several, if it is large and TensorFlow can put
its parts together again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

import numpy as np

from ckptstore.bundle.write.coverage import BoxColumns, check_coverage
from ckptstore.bundle.write.plan import WriteItem
from ckptstore.errors import UsageError
from ckptstore.types import Slice

__all__ = ["Deal", "Holding", "Manifest", "Replica", "Share", "deal", "item_of", "manifest_of"]

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


class Holding(NamedTuple):
    """A box of a tensor that a rank holds.

    Attributes
    ----------
    name : str
    dtype : str
        TensorFlow's name of the type.
    full_shape : tuple of int
        Of the tensor.
    start, shape : tuple of int
        Of the box; the whole tensor is a box too.
    size_bytes : int
        In a data file.
    """

    name: str
    dtype: str
    full_shape: tuple[int, ...]
    start: tuple[int, ...]
    shape: tuple[int, ...]
    size_bytes: int

    @property
    def is_whole(self) -> bool:
        """Whether the box is the tensor."""
        return self.shape == self.full_shape


Manifest: TypeAlias = Sequence[Holding]
"""What one rank holds, in the order of its items."""


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


def manifest_of(items: Iterable[WriteItem]) -> tuple[Holding, ...]:
    """Return what a rank holds."""
    holdings = []
    for item in items:
        start = (
            (0,) * len(item.full_shape)
            if item.slice is None
            else tuple([first for first, _ in item.slice.resolve(item.full_shape)])
        )
        holdings.append(
            Holding(item.name, item.dtype.name, item.full_shape, start, item.shape, item.size_bytes)
        )
    return tuple(holdings)


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


_Key: TypeAlias = tuple[str, tuple[int, ...], tuple[int, ...]]
_Holders: TypeAlias = list[tuple[int, int]]


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
    holders = _holders_by_key(manifests)
    _check_coverage(holders, manifests)
    loads = [0] * len(manifests)
    shares: list[list[Share]] = [[] for _ in manifests]
    replicas: list[Replica] = []
    several: list[tuple[_Key, _Holders]] = []
    total_bytes = 0
    is_fixed = _fixed_keys(manifests, fixed or {}, loads, shares)
    for key, found in holders.items():
        rank, item = found[0]
        size_bytes = manifests[rank][item].size_bytes
        total_bytes += size_bytes
        if len(found) > 1:
            several.append((key, found))
        elif key not in is_fixed:
            _check_may_write(key, found, fixed)
            shares[rank].append(Share(item))
            loads[rank] += size_bytes
    limit_bytes = max(_WHOLE_UP_TO_BYTES, total_bytes // (2 * len(manifests)))
    several.sort(key=lambda pair: (-manifests[pair[1][0][0]][pair[1][0][1]].size_bytes, pair[0]))
    for key, found in several:
        rank, item = found[0]
        holding = manifests[rank][item]
        if key in is_fixed:
            replicas.append(Replica(key[0], None, tuple(found)))
            continue
        free = _check_may_write(key, found, fixed)
        cuts = _cuts(holding, len(free), limit_bytes)
        if len(cuts) == 2:
            small = holding.size_bytes <= _SMALL_BYTES or holding.dtype in ("string", "variant")
            rank, item = free[0] if small else min(free, key=lambda one: (loads[one[0]], one[0]))
            shares[rank].append(Share(item))
            loads[rank] += holding.size_bytes
            replicas.append(Replica(key[0], None, tuple(found)))
            continue
        writers = sorted(free, key=lambda one: (loads[one[0]], one[0]))[: len(cuts) - 1]
        row_bytes = holding.size_bytes // holding.shape[0]
        for (rank, item), start, stop in zip(sorted(writers), cuts[:-1], cuts[1:], strict=True):
            shares[rank].append(Share(item, (start, stop)))
            loads[rank] += (stop - start) * row_bytes
            replicas.append(Replica(key[0], (start, stop), tuple(found)))
    return Deal(tuple(tuple(sorted(each)) for each in shares), tuple(replicas))


def _fixed_keys(
    manifests: Sequence[Manifest],
    fixed: Mapping[int, Sequence[Share]],
    loads: list[int],
    shares: list[list[Share]],
) -> set[_Key]:
    """Hand out what is fixed, and return the keys of it."""
    keys: dict[_Key, list[tuple[int, int] | None]] = {}
    for rank, own in fixed.items():
        for share in own:
            holding = manifests[rank][share.item]
            keys.setdefault((holding.name, holding.start, holding.shape), []).append(share.rows)
            rows = holding.shape[0] if holding.shape else 1
            start, stop = share.rows or (0, rows)
            loads[rank] += holding.size_bytes * (stop - start) // max(rows, 1)
            shares[rank].append(share)
    for (name, _, shape), parts in keys.items():
        whole = (0, shape[0] if shape else 1)
        ranges = sorted(part or whole for part in parts)
        ends = [stop for _, stop in ranges]
        if ranges[0][0] != 0 or ends[-1] != whole[1] or [start for start, _ in ranges[1:]] != ends[:-1]:
            raise _changed(name, "some of them write only a part of what they hold together")
    return set(keys)


def _check_may_write(key: _Key, holders: _Holders, fixed: Mapping[int, object] | None) -> _Holders:
    """Return the holders whose share is not fixed."""
    free = [one for one in holders if not fixed or one[0] not in fixed]
    if not free:
        holding = _ranks(rank for rank, _ in holders)
        raise _changed(key[0], f"nobody but {holding} holds it, where it was not copied")
    return free


def _changed(name: str, actual: str) -> UsageError:
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


def _holders_by_key(manifests: Sequence[Manifest]) -> dict[_Key, _Holders]:
    holders: dict[_Key, _Holders] = {}
    # Of each tensor, as the first rank that has it says.
    first: dict[str, tuple[str, tuple[int, ...], int]] = {}
    for rank, manifest in enumerate(manifests):
        for item, (name, dtype, full_shape, start, shape, _) in enumerate(manifest):
            known = first.get(name)
            if known is None:
                first[name] = (dtype, full_shape, rank)
            elif known[0] != dtype or known[1] != full_shape:
                raise UsageError(
                    "two ranks do not agree on the type or shape of a tensor",
                    tensor=name,
                    expected=f"{known[0]} {list(known[1])} as on rank {known[2]}",
                    actual=f"{dtype} {list(full_shape)} on rank {rank}",
                    hint="Every rank passes the shape of the whole tensor; give boxes of it as `Piece`.",
                )
            holders.setdefault((name, start, shape), []).append((rank, item))
    return holders


def _check_coverage(holders: Mapping[_Key, _Holders], manifests: Sequence[Manifest]) -> None:
    # By number of dimensions. A tensor that is held whole, and in no other box, is covered.
    partial = {
        name
        for (name, _, shape), ((rank, item), *_) in holders.items()
        if shape != manifests[rank][item].full_shape
    }
    by_ndim: dict[int, dict[str, list[_Key]]] = {}
    for key in holders:
        if key[0] in partial and all(key[2]):
            by_ndim.setdefault(len(key[1]), {}).setdefault(key[0], []).append(key)
    for ndim, tensors in by_ndim.items():
        keys = [key for boxes in tensors.values() for key in boxes]
        numbers = [number for number, boxes in enumerate(tensors.values()) for _ in boxes]
        starts = np.array([start for _, start, _ in keys], np.int64).reshape(len(keys), ndim)
        shapes = np.array([shape for _, _, shape in keys], np.int64).reshape(len(keys), ndim)
        fulls = []
        for boxes in tensors.values():
            rank, item = holders[boxes[0]][0]
            fulls.append(manifests[rank][item].full_shape)
        columns = BoxColumns(
            list(tensors),
            np.array(fulls, np.int64).reshape(len(fulls), ndim),
            np.array(numbers, np.int64),
            starts,
            starts + shapes,
        )
        check_coverage(columns, lambda row, keys=keys: _ranks(rank for rank, _ in holders[keys[row]]))  # type: ignore[misc]


def _ranks(ranks: Iterable[int]) -> str:
    found = list(ranks)
    shown = ", ".join(map(str, found[:_MOST_RANKS_SHOWN]))
    more = f" and {len(found) - _MOST_RANKS_SHOWN} more" if len(found) > _MOST_RANKS_SHOWN else ""
    return f"rank{'s' if len(found) > 1 else ''} {shown}{more}"
