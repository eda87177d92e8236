"""numpy's basic indexing as plain numbers, and which bytes of a C-order tensor it touches."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, NamedTuple, SupportsIndex, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from ckptstore.bundle.read.plan import DIRECT_SIZE_BYTES, GAP_SIZE_BYTES, STAGE_SIZE_BYTES
from ckptstore.errors import UsageError

__all__ = ["Axis", "BasicIndex", "Box", "BoxLayout", "BoxRead", "as_slices", "parse_index", "view_of"]

BasicIndex: TypeAlias = (
    SupportsIndex | slice | EllipsisType | tuple[SupportsIndex | slice | EllipsisType | None, ...] | None
)
"""What numpy calls a basic index; None is numpy's newaxis."""


class Axis(NamedTuple):
    """`size` indexes ``start, start + step, …`` of one dimension; step is not 0, and may be negative."""

    start: int
    step: int
    size: int

    def clipped(self, low: int, high: int) -> tuple[slice, Axis]:
        """Return which of the indexes lie in ``[low, high)``: their places here, and as seen from `low`."""
        start, step, size = self
        if step > 0:
            first = max(0, -((start - low) // step))
            end = min(size, -((start - high) // step))
        else:
            first = max(0, (start - high) // -step + 1)
            end = min(size, (start - low) // -step + 1)
        end = max(first, end)
        return slice(first, end), Axis(start + first * step - low, step, end - first)


@dataclass(frozen=True, slots=True)
class Box:
    """What a basic index selects.

    Attributes
    ----------
    axes : tuple of Axis
        One for each dimension of the tensor.
    shape : tuple of int
        Shape of the result as numpy gives it: integers drop their dimension, newaxis adds one.
    """

    axes: tuple[Axis, ...]
    shape: tuple[int, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """Elements along each dimension of the tensor; as many in total as `shape` holds."""
        return tuple(axis.size for axis in self.axes)


def parse_index(index: object, shape: Sequence[int], *, tensor: str) -> Box:
    """Resolve `index` against `shape`.

    Parameters
    ----------
    index : basic index
        Integers, slices with any step, Ellipsis, newaxis (None), or a tuple of them.
    shape : sequence of int
    tensor : str
        Name for messages.

    Raises
    ------
    IndexError
        Where numpy raises it: out of range, too many indexes, two Ellipses.
    UsageError
        For everything that is not a basic index: booleans, arrays, lists, a step of 0.
    """
    parts = index if isinstance(index, tuple) else (index,)
    ellipses = sum(part is Ellipsis for part in parts)
    if ellipses > 1:
        raise IndexError(f"an index can only have a single ellipsis ('...') [tensor {tensor!r}]")
    taken = len(parts) - ellipses - sum(part is None for part in parts)
    if taken > len(shape):
        raise IndexError(
            f"too many indices for tensor {tensor!r}: "
            f"it is {len(shape)}-dimensional, but {taken} were indexed"
        )
    fill = [slice(None)] * (len(shape) - taken)
    if not ellipses:
        parts = (*parts, *fill)
    axes: list[Axis] = []
    result: list[int] = []
    for part in parts:
        if part is None:
            result.append(1)
        elif part is Ellipsis:
            for _ in fill:
                size = shape[len(axes)]
                axes.append(Axis(0, 1, size))
                result.append(size)
        elif isinstance(part, slice):
            axis = _slice_axis(part, shape[len(axes)], tensor)
            axes.append(axis)
            result.append(axis.size)
        else:
            axes.append(_integer_axis(part, shape[len(axes)], len(axes), tensor))
    return Box(tuple(axes), tuple(result))


def _slice_axis(part: slice, size: int, tensor: str) -> Axis:
    try:
        start, stop, step = part.indices(size)
    except (TypeError, ValueError) as error:
        raise UsageError(f"this slice is not a basic index: {error}", tensor=tensor, actual=part) from error
    count = len(range(start, stop, step))
    return Axis(start, step, count) if count > 1 else Axis(start if count else 0, 1, count)


def _integer_axis(part: object, size: int, number: int, tensor: str) -> Axis:
    # A bool is an integer to Python and a mask to numpy; an array, even without dimensions, is a fancy index.
    if not isinstance(part, SupportsIndex) or isinstance(part, (bool, np.bool_, np.ndarray)):
        raise UsageError(
            "only integers, slices, Ellipsis and newaxis select a part of a stored tensor",
            tensor=tensor,
            actual=type(part).__name__,
            hint="Read the whole tensor and index it with numpy.",
        )
    try:
        index = operator.index(part)
    except TypeError as error:
        raise UsageError(
            f"this is not a basic index: {error}", tensor=tensor, actual=type(part).__name__
        ) from error
    if not -size <= index < size:
        raise IndexError(
            f"index {index} is out of bounds for axis {number} with size {size} [tensor {tensor!r}]"
        )
    return Axis(index % size, 1, 1)


def as_slices(axes: Sequence[Axis]) -> tuple[slice, ...]:
    """Return Python slices that pick the indexes of `axes` from an array."""
    slices = []
    for start, step, size in axes:
        stop = start + size * step
        slices.append(slice(start, stop if stop >= 0 else None, step) if size else slice(0, 0))
    return tuple(slices)


def view_of(array: npt.NDArray[Any], where: tuple[slice, ...]) -> npt.NDArray[Any]:
    """Return the part of `array` that `where` selects: a view, even of an array without dimensions."""
    # numpy's type stubs know no tuple that ends with an Ellipsis.
    index: Any = (*where, ...)
    return cast("npt.NDArray[Any]", array[index])


class BoxRead(NamedTuple):
    """One range of bytes, and what to take out of it.

    Attributes
    ----------
    start, stop : int
        Bytes ``[start, stop)`` counted from the first byte of the tensor.
    first : int
        Bytes from `start` to the element that goes to the first place.
    where : tuple of slice
        The part of the result (one dimension for each of the tensor's) that it fills.
    strides : tuple of int
        Bytes between the elements along each dimension.
    is_contiguous : bool
        Whether the range holds exactly these elements in their order.
    """

    start: int
    stop: int
    first: int
    where: tuple[slice, ...]
    strides: tuple[int, ...]
    is_contiguous: bool


class BoxLayout:
    """Where a box of a C-order tensor lies in the bytes of the tensor, and in which ranges to read it.

    Parameters
    ----------
    axes : sequence of Axis
    gap_size_bytes : int
        Wanted bytes that lie at most so far apart are read together.
    direct_size_bytes : int
        Runs without gaps of this size or more are not: they go straight to their place.
    stage_size_bytes : int
        No range with gaps is longer. Ranges without gaps, which need no staging, may be.

    Attributes
    ----------
    is_contiguous : bool
        Whether each range holds exactly the elements wanted, in their order.
    run_size_bytes : int
        Of wanted bytes without a gap.
    size_bytes : int
        Of all ranges together, gaps included.
    """

    def __init__(
        self,
        axes: Sequence[Axis],
        shape: Sequence[int],
        item_size_bytes: int,
        *,
        gap_size_bytes: int = GAP_SIZE_BYTES,
        direct_size_bytes: int = DIRECT_SIZE_BYTES,
        stage_size_bytes: int = STAGE_SIZE_BYTES,
    ) -> None:
        self._axes = axes
        self._item_size_bytes = item_size_bytes
        rank = len(axes)
        units = self._units = [item_size_bytes] * rank
        for dim in reversed(range(rank - 1)):
            units[dim] = units[dim + 1] * shape[dim + 1]
        # spans[d]: bytes from the first to the last wanted element of dimensions d and inner, both included.
        spans = [item_size_bytes] * (rank + 1)
        for dim in reversed(range(rank)):
            spans[dim] = spans[dim + 1] + (axes[dim].size - 1) * abs(axes[dim].step) * units[dim]

        def gap(dim: int) -> int:
            axis = axes[dim]
            return abs(axis.step) * units[dim] - spans[dim + 1] if axis.size > 1 else 0

        exact = rank
        while exact and gap(exact - 1) == 0 and (axes[exact - 1].size == 1 or axes[exact - 1].step > 0):
            exact -= 1
        near = exact
        while near and gap(near - 1) <= gap_size_bytes:
            near -= 1
        # Runs that are long by themselves go straight to their place; reading the gaps too would mean copying
        # all of it.
        self.is_contiguous = near == exact or spans[exact] >= direct_size_bytes
        split, rows_each = exact, 1
        if not self.is_contiguous:
            split = near
            while spans[split] > stage_size_bytes:
                split += 1
            if split > near:
                outer = axes[split - 1]
                rows_each += (stage_size_bytes - spans[split]) // (abs(outer.step) * units[split - 1])
        self._split, self._rows_each = split, rows_each
        self.run_size_bytes = spans[exact]
        self._is_empty = any(axis.size == 0 for axis in axes)
        self.size_bytes = (
            0 if self._is_empty else math.prod(axis.size for axis in axes[:split]) * spans[split]
        )

    def reads(self) -> Iterator[BoxRead]:
        """Yield the ranges, ascending where no step is negative."""
        if self._is_empty:
            return
        axes, units, split, rows_each = self._axes, self._units, self._split, self._rows_each
        strides = tuple(axis.step * unit for axis, unit in zip(axes, units, strict=True))
        grouped = split - 1 if rows_each > 1 else split
        for picks in itertools.product(
            *(_groups(axis.size, 1) for axis in axes[:grouped]),
            *(_groups(axis.size, rows_each) for axis in axes[grouped:split]),
            *(((0, axis.size),) for axis in axes[split:]),
        ):
            low = high = first = 0
            for (begin, end), axis, unit in zip(picks, axes, units, strict=True):
                at = axis.start + begin * axis.step
                last = axis.start + (end - 1) * axis.step
                first += at * unit
                low += min(at, last) * unit
                high += max(at, last) * unit
            where = tuple(itertools.starmap(slice, picks))
            yield BoxRead(low, high + self._item_size_bytes, first - low, where, strides, self.is_contiguous)


def _groups(count: int, size: int) -> list[tuple[int, int]]:
    return [(begin, min(begin + size, count)) for begin in range(0, count, size)]
