"""Which stored pieces hold what of many boxes, and how to read them: whole and verified, or in part.

All boxes are compared with all pieces as columns of numbers; objects are made only for pieces that are read.
A piece from which nearly everything is wanted, or that is small, is read whole: that costs little more, and
only a whole piece has a checksum. So the columns of a tensor that was saved by rows come out of whole pieces,
each of which travels once, however many boxes want some of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ckptstore.bundle.read.batch import ReadBatch, Taker
from ckptstore.bundle.read.indexing import Axis, view_of
from ckptstore.bundle.read.partial_reads import FAR_GAP_SIZE_BYTES, PartialRead, box_layout
from ckptstore.bundle.read.plan import STAGE_SIZE_BYTES
from ckptstore.format import dtypes
from ckptstore.format.entry import BundleEntry
from ckptstore.format.entry_columns import Integers
from ckptstore.transfer.ranges import GAP_SIZE_BYTES
from ckptstore.types import DType

__all__ = ["BoxPlan", "PieceCounts", "TensorPieces", "WantedBox", "plan_boxes", "upright"]

# A piece of which at least so much is read anyway is read whole.
_WHOLE_SHARE = 0.75

# Pairs of a box and a piece that are compared at a time: intermediate columns take some ten MB.
_PAIRS_AT_ONCE = 1 << 17


class TensorPieces(NamedTuple):
    """A tensor of the bundle and its stored pieces, one row each; the pieces do not overlap.

    Attributes
    ----------
    starts, lengths : ndarray of int64, shape (pieces, rank)
        Where each lies in the tensor.
    shard_ids, offsets, sizes_bytes, masked_crc32cs : ndarray of int64
        As in `BundleEntry`.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    starts: Integers
    lengths: Integers
    shard_ids: Integers
    offsets: Integers
    sizes_bytes: Integers
    masked_crc32cs: Integers


class WantedBox(NamedTuple):
    """A part of a tensor, and the array that gets it.

    Attributes
    ----------
    axes : tuple of Axis
        One for each dimension of the tensor.
    target : ndarray
        One dimension for each axis; of the type's numpy dtype in any byte order, of any strides.
    """

    tensor: TensorPieces
    axes: tuple[Axis, ...]
    target: npt.NDArray[Any]

    @property
    def size_bytes(self) -> int:
        """Of what is wanted, in memory."""
        return int(self.target.nbytes)


@dataclass(slots=True)
class PieceCounts:
    """How many stored pieces were read.

    Attributes
    ----------
    verified : int
        Whole, and compared with their checksums.
    unverified : int
        In part; there is no checksum for less than all.
    """

    verified: int = 0
    unverified: int = 0


def upright(axes: Sequence[Axis], target: npt.NDArray[Any]) -> tuple[tuple[Axis, ...], npt.NDArray[Any]]:
    """Return the same elements without negative steps, and the view of the target that they fill."""
    if all(axis.step > 0 for axis in axes):
        return tuple(axes), target
    turned = tuple(
        axis if axis.step > 0 else Axis(axis.start + (axis.size - 1) * axis.step, -axis.step, axis.size)
        for axis in axes
    )
    return turned, view_of(target, tuple(slice(None, None, 1 if axis.step > 0 else -1) for axis in axes))


@dataclass(slots=True)
class BoxPlan:
    """What to read for many boxes.

    Attributes
    ----------
    batch : ReadBatch
        Pieces that are read whole.
    partials : list of PartialRead
    missing : list of (int, int)
        Boxes of which the pieces do not hold everything: number of the box, elements found.
    """

    batch: ReadBatch
    partials: list[PartialRead] = field(default_factory=list)
    missing: list[tuple[int, int]] = field(default_factory=list)

    @property
    def unverified(self) -> int:
        """How many pieces are read in part."""
        return len({(partial.entry.shard_id, partial.entry.offset) for partial in self.partials})


class _Hit(NamedTuple):
    """Elements of one piece that one box wants: `where` in the box, `axes` in the piece."""

    box: int
    where: tuple[slice, ...]
    axes: tuple[Axis, ...]


def plan_boxes(boxes: Sequence[WantedBox], batch: ReadBatch, *, is_far: bool) -> BoxPlan:
    """Decide how to read boxes.

    Parameters
    ----------
    boxes : sequence of WantedBox
        That are `upright`.
    batch : ReadBatch
        Gets the pieces that are read whole.
    is_far : bool
        Whether each range costs a request.
    """
    plan = BoxPlan(batch)
    before = len(batch)
    by_rank: dict[int, list[int]] = {}
    for number, box in enumerate(boxes):
        by_rank.setdefault(len(box.axes), []).append(number)
    for rank, numbers in by_rank.items():
        # The boxes of one tensor stay together, so that each of its pieces is read once.
        numbers.sort(key=lambda number: (boxes[number].tensor.name, number))
        first = pairs = 0
        for at, number in enumerate(numbers):
            count = len(boxes[number].tensor.starts)
            follows = at and boxes[number].tensor is boxes[numbers[at - 1]].tensor
            if pairs and pairs + count > _PAIRS_AT_ONCE and not follows:
                _plan_some(plan, boxes, numbers[first:at], rank, is_far)
                first, pairs = at, 0
            pairs += count
        _plan_some(plan, boxes, numbers[first:], rank, is_far)
    plan.missing.sort()
    if is_far and plan.partials:
        _read_near_ones_whole(plan, before)
    return plan


def _plan_some(
    plan: BoxPlan, boxes: Sequence[WantedBox], numbers: Sequence[int], rank: int, is_far: bool
) -> None:
    """Plan boxes of tensors of one rank; those of one tensor follow each other."""
    tensors = list({id(boxes[number].tensor): boxes[number].tensor for number in numbers}.values())
    place_of = {id(tensor): at for at, tensor in enumerate(tensors)}
    counts = np.fromiter((len(tensor.starts) for tensor in tensors), np.int64, len(tensors))
    firsts = np.cumsum(counts) - counts
    piece_starts = np.concatenate([tensor.starts for tensor in tensors])
    piece_stops = piece_starts + np.concatenate([tensor.lengths for tensor in tensors])
    # One row for each pair of a box and a piece of its tensor.
    of_box = np.fromiter((place_of[id(boxes[number].tensor)] for number in numbers), np.int64, len(numbers))
    pair_box = np.repeat(np.arange(len(numbers)), counts[of_box])
    begins = np.cumsum(counts[of_box]) - counts[of_box]
    pair_piece = np.arange(len(pair_box)) - begins[pair_box] + firsts[of_box][pair_box]
    # Many boxes have the same axes, also as objects: those are turned into numbers once.
    kinds = list({id(boxes[number].axes): boxes[number].axes for number in numbers}.values())
    kind_of = {id(kind): at for at, kind in enumerate(kinds)}
    axes = np.array(kinds, np.int64).reshape(len(kinds), rank, 3)
    axes = axes[[kind_of[id(boxes[number].axes)] for number in numbers]]
    starts, steps, sizes = (axes[pair_box, :, column] for column in range(3))
    lows, highs = piece_starts[pair_piece], piece_stops[pair_piece]
    # Which indexes of each axis lie in [low, high); no step is negative.
    here = np.maximum(0, -((starts - lows) // steps))
    ends = np.maximum(here, np.minimum(sizes, -((starts - highs) // steps)))
    found = ends - here
    elements = found.prod(axis=1, dtype=np.int64)
    held = np.zeros(len(numbers), np.int64)
    np.add.at(held, pair_box, elements)
    wanted = axes[:, :, 2].prod(axis=1, dtype=np.int64)
    plan.missing += [(numbers[at], int(held[at])) for at in np.flatnonzero(held != wanted).tolist()]
    hits = np.flatnonzero(elements)
    order = np.argsort(pair_piece[hits], kind="stable")
    hits = hits[order]
    pieces = pair_piece[hits]
    hit_box = pair_box[hits]
    here, ends, steps = here[hits], ends[hits], steps[hits]
    inner = starts[hits] + here * steps - lows[hits]
    found = found[hits]
    # All of the piece, in its order; and all of the box.
    is_whole = (found == (highs - lows)[hits]).all(axis=1)
    is_all = (found == sizes[hits]).all(axis=1)
    is_alone = np.ones(len(hits), np.bool_)
    is_alone[1:] = pieces[1:] != pieces[:-1]
    is_alone[:-1] &= pieces[1:] != pieces[:-1]
    # No list for each row: the garbage collector would visit tens of thousands of them.
    places = [map(slice, here[:, dim].tolist(), ends[:, dim].tolist()) for dim in range(rank)]
    wheres = zip(*places, strict=True) if rank else itertools.repeat((), len(hits))
    columns = zip(
        hit_box.tolist(),
        pieces.tolist(),
        (is_whole & is_alone).tolist(),
        is_all.tolist(),
        wheres,
        strict=True,
    )
    tensor_of = np.repeat(np.arange(len(tensors)), counts).tolist()
    first_of = firsts.tolist()
    shared: list[int] = []
    batch = plan.batch
    taken: list[int] = []
    for hit, (box, piece, is_simple, is_all_of_box, where) in enumerate(columns):
        if not is_simple:
            shared.append(hit)
            continue
        target = boxes[numbers[box]].target
        taken.append(piece)
        batch.targets.append(target if is_all_of_box else target[where])
    _add_rows(batch, taken, tensors, tensor_of, first_of)
    if not shared:
        return
    group: list[_Hit] = []
    for at, hit in enumerate(shared):
        piece = int(pieces[hit])
        where = tuple(map(slice, here[hit].tolist(), ends[hit].tolist()))
        inside = zip(inner[hit].tolist(), steps[hit].tolist(), found[hit].tolist(), strict=True)
        group.append(_Hit(numbers[int(hit_box[hit])], where, tuple([Axis(*numbers_) for numbers_ in inside])))
        if at + 1 == len(shared) or int(pieces[shared[at + 1]]) != piece:
            tensor = tensors[tensor_of[piece]]
            _plan_shared(plan, boxes, tensor, piece - first_of[tensor_of[piece]], group, is_far)
            group = []


def _add_rows(
    batch: ReadBatch,
    pieces: Sequence[int],
    tensors: Sequence[TensorPieces],
    tensor_of: Sequence[int],
    first_of: Sequence[int],
) -> None:
    """Append pieces whose targets were appended already."""
    if not pieces:
        return
    owners = [tensors[tensor_of[piece]] for piece in pieces]
    batch.tensors += [owner.name for owner in owners]
    batch.dtypes += [owner.dtype for owner in owners]
    rows = np.array(pieces, np.int64)
    shapes = np.concatenate([tensor.lengths for tensor in tensors])[rows]
    rank = shapes.shape[1]
    sizes = [shapes[:, dim].tolist() for dim in range(rank)]
    batch.shapes += zip(*sizes, strict=True) if rank else [()] * len(rows)
    for name in ("shard_ids", "offsets", "sizes_bytes", "masked_crc32cs"):
        column = np.concatenate([getattr(tensor, name) for tensor in tensors])[rows]
        getattr(batch, name).extend(column.tolist())


def _plan_shared(
    plan: BoxPlan,
    boxes: Sequence[WantedBox],
    tensor: TensorPieces,
    row: int,
    hits: Sequence[_Hit],
    is_far: bool,
) -> None:
    """Plan a piece that several boxes want, or of which one wants a part."""
    entry = BundleEntry(
        tensor.dtype.as_datatype_enum,
        tuple(tensor.lengths[row].tolist()),
        int(tensor.shard_ids[row]),
        int(tensor.offsets[row]),
        int(tensor.sizes_bytes[row]),
        int(tensor.masked_crc32cs[row]),
    )
    takers = [Taker(hit.axes, view_of(boxes[hit.box].target, hit.where)) for hit in hits]
    if _is_read_whole(entry, tensor.dtype, takers, is_far):
        plan.batch.add(tensor.name, entry, tensor.dtype, None, takers)
    else:
        plan.partials += [PartialRead(tensor.name, entry, tensor.dtype, taker) for taker in takers]


def _read_near_ones_whole(plan: BoxPlan, before: int) -> None:
    """Read pieces whole instead of in part where that joins them with what lies near, into one request."""
    partials, batch = plan.partials, plan.batch
    shards = np.array([*(part.entry.shard_id for part in partials), *batch.shard_ids[before:]], np.int64)
    starts = np.array([*(part.start for part in partials), *batch.offsets[before:]], np.int64)
    sizes = [*(part.stop - part.start for part in partials), *batch.sizes_bytes[before:]]
    order = np.lexsort((starts, shards))
    stops = (starts + np.array(sizes, np.int64))[order]
    is_near = (np.diff(shards[order]) == 0) & (starts[order][1:] - stops[:-1] <= FAR_GAP_SIZE_BYTES)
    has_near = np.zeros(len(order), np.bool_)
    has_near[order[1:]] = is_near
    has_near[order[:-1]] |= is_near
    joined = {
        part.entry
        for part, is_joined in zip(partials, has_near.tolist(), strict=False)
        if is_joined and part.entry.size_bytes <= FAR_GAP_SIZE_BYTES
    }
    plan.partials = [part for part in partials if part.entry not in joined]
    of_entry: dict[BundleEntry, list[PartialRead]] = {}
    for part in partials:
        if part.entry in joined:
            of_entry.setdefault(part.entry, []).append(part)
    for parts in of_entry.values():
        tensor, entry, dtype, _ = parts[0]
        batch.add(tensor, entry, dtype, None, [part.taker for part in parts])


def _is_read_whole(entry: BundleEntry, dtype: DType, takers: Sequence[Taker], is_far: bool) -> bool:
    # Strings lie behind their lengths, so a single one cannot be located.
    if entry.size_bytes <= GAP_SIZE_BYTES or not dtypes.item_size_bytes(dtype):
        return True
    layouts = [
        box_layout(taker.axes, entry, dtype, is_far=is_far, stage_size_bytes=STAGE_SIZE_BYTES)
        for taker in takers
    ]
    if len(takers) == 1 and layouts[0].is_contiguous:
        # Straight to its place, without a copy.
        return False
    return sum([layout.size_bytes for layout in layouts]) >= _WHOLE_SHARE * entry.size_bytes
