"""Whether the boxes that are given of a tensor make up the tensor: no element twice, and none missing.

Boxes of many tensors are checked at once, as columns of numbers. Only an error looks at single boxes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ckptstore.errors import UsageError
from ckptstore.format.entry_columns import Integers
from ckptstore.format.slice_columns import are_disjoint
from ckptstore.format.slices import find_overlap
from ckptstore.types import Piece, Slice

__all__ = ["BoxColumns", "check_coverage", "check_pieces", "format_box"]

# Of the boxes of a tensor, in the error about a hole.
_MOST_SHOWN = 6


class BoxColumns(NamedTuple):
    """Boxes of tensors of one rank, one row each; those of one tensor follow each other.

    Attributes
    ----------
    names : sequence of str
        Of the tensors.
    shapes : ndarray of int64, shape (tensors, rank)
        Of the whole tensors; each has fewer than 2**63 elements.
    tensors : ndarray of int64, shape (boxes,)
        For each box the number of its tensor, ascending.
    starts, stops : ndarray of int64, shape (boxes, rank)
        Inside the shapes. Boxes without elements do not count.
    """

    names: Sequence[str]
    shapes: Integers
    tensors: Integers
    starts: Integers
    stops: Integers


def check_coverage(boxes: BoxColumns, label_of: Callable[[int], str]) -> None:
    """Check that the boxes of each tensor cover it, every element once.

    Parameters
    ----------
    boxes : BoxColumns
    label_of : callable
        Row → who gives the box, for the error.

    Raises
    ------
    UsageError
        At the first tensor with a hole or an overlap; it names the tensor, the boxes and who gives them.
    """
    totals = _element_counts(boxes.shapes)
    # A tensor without boxes is not in the groups of `are_disjoint`.
    given, groups = np.unique(boxes.tensors, return_inverse=True)
    for tensor in given[~are_disjoint(groups, boxes.starts, boxes.stops)].tolist():
        _check_overlap(boxes, tensor, label_of)
    covered = np.zeros(len(boxes.names), np.int64)
    np.add.at(covered, boxes.tensors, _element_counts(boxes.stops - boxes.starts))
    for tensor in np.flatnonzero(covered != totals).tolist():
        raise _hole(boxes, tensor, label_of)


def check_pieces(tensors: Iterable[tuple[str, Sequence[Piece]]]) -> None:
    """Check that the pieces of each tensor cover it; errors as `check_coverage`.

    Parameters
    ----------
    tensors : iterable of (str, sequence of Piece)
        Names, and at least one piece of each.

    Raises
    ------
    UsageError
        Also if the pieces of a tensor do not agree on its shape.
    """
    by_rank: dict[int, list[tuple[str, Sequence[Piece]]]] = {}
    for name, pieces in tensors:
        if len(pieces) == 1 and pieces[0].covers_whole:
            continue
        shape = pieces[0].shape
        for piece in pieces:
            if piece.shape != shape:
                raise UsageError(
                    "the pieces of one tensor do not agree on its shape",
                    tensor=name,
                    expected=list(shape),
                    actual=list(piece.shape),
                )
        by_rank.setdefault(len(shape), []).append((name, pieces))
    for rank, group in by_rank.items():
        counts = [len(pieces) for _, pieces in group]
        every = list(itertools.chain.from_iterable([pieces for _, pieces in group]))
        starts = _table([piece.start for piece in every], rank)
        sizes = _table([piece.array.shape for piece in every], rank)
        boxes = BoxColumns(
            [name for name, _ in group],
            _table([pieces[0].shape for _, pieces in group], rank),
            np.repeat(np.arange(len(group)), counts),
            starts,
            starts + sizes,
        )
        check_coverage(boxes, _position_labels(np.array(counts)))


def _table(rows: Sequence[tuple[int, ...]], rank: int) -> Integers:
    # Several times faster than np.array on tuples.
    numbers = itertools.chain.from_iterable(rows)
    return np.fromiter(numbers, np.int64, len(rows) * rank).reshape(len(rows), rank)


def _position_labels(counts: Integers) -> Callable[[int], str]:
    stops = np.cumsum(counts)

    def label(row: int) -> str:
        tensor = int(np.searchsorted(stops, row, side="right"))
        return f"piece {row - int(stops[tensor] - counts[tensor])}"

    return label


def format_box(start: Sequence[int], stop: Sequence[int]) -> str:
    """Return a box as numpy's index, e.g. ``[0:14, 3:6]``."""
    return f"[{', '.join(f'{a}:{b}' for a, b in zip(start, stop, strict=True))}]"


def _element_counts(lengths: Integers) -> Integers:
    counts: Integers = np.multiply.reduce(lengths, axis=1, dtype=np.int64)
    return counts


def _rows(boxes: BoxColumns, tensor: int) -> tuple[int, Integers, Integers]:
    """Return the first row of a tensor, and the starts and stops of its boxes."""
    first, last = np.searchsorted(boxes.tensors, [tensor, tensor + 1]).tolist()
    return first, boxes.starts[first:last], boxes.stops[first:last]


def _check_overlap(boxes: BoxColumns, tensor: int, label_of: Callable[[int], str]) -> None:
    first, starts, stops = _rows(boxes, tensor)
    lengths = stops - starts
    slices = [
        Slice(tuple(zip(start, length, strict=True)))
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)
    ]
    pair = find_overlap(slices, boxes.shapes[tensor].tolist())
    if pair is None:
        return
    shown = [f"{format_box(starts[at].tolist(), stops[at].tolist())} ({label_of(first + at)})" for at in pair]
    raise UsageError(
        "two pieces of a tensor overlap",
        tensor=boxes.names[tensor],
        expected="each element once",
        actual=" and ".join(shown),
        hint="Give every element of a tensor in exactly one piece.",
    )


def _hole(boxes: BoxColumns, tensor: int, label_of: Callable[[int], str]) -> UsageError:
    first, starts, stops = _rows(boxes, tensor)
    shape = boxes.shapes[tensor].tolist()
    begin, end = _find_hole(starts, stops, shape)
    given = [
        f"{format_box(starts[at].tolist(), stops[at].tolist())} ({label_of(first + at)})"
        for at in range(min(len(starts), _MOST_SHOWN))
    ]
    more = [f"{len(starts) - _MOST_SHOWN} more"] if len(starts) > _MOST_SHOWN else []
    return UsageError(
        f"the pieces of a tensor leave a hole at {format_box(begin, end)}",
        tensor=boxes.names[tensor],
        expected=f"pieces that cover shape {shape}",
        actual=", ".join(given + more) or "no piece",
        hint="Give every element of a tensor in exactly one piece.",
    )


def _find_hole(
    starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64], shape: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Return a box that none of these disjoint boxes meets; there is one."""
    begin, end = [], []
    for dim, size in enumerate(shape):
        # How much of each layer is covered changes only where a box begins or ends.
        cross = np.multiply.reduce(stops[:, dim + 1 :] - starts[:, dim + 1 :], axis=1, dtype=np.int64)
        edges, where = np.unique(
            np.concatenate(([0, size], starts[:, dim], stops[:, dim])), return_inverse=True
        )
        change = np.zeros(len(edges), np.int64)
        np.add.at(change, where[2 : 2 + len(starts)], cross)
        np.subtract.at(change, where[2 + len(starts) :], cross)
        is_full = np.cumsum(change)[:-1] == math.prod(shape[dim + 1 :])
        layer = int(np.flatnonzero(~is_full)[0])
        begin.append(int(edges[layer]))
        end.append(int(edges[layer + 1]))
        meets = (starts[:, dim] <= edges[layer]) & (stops[:, dim] > edges[layer])
        starts, stops = starts[meets], stops[meets]
    return begin, end
