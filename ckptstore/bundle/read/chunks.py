"""Cut an array into boxes that lie end to end in C order, none above a size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

__all__ = ["Chunk", "cut"]


class Chunk(NamedTuple):
    """One box of an array.

    Attributes
    ----------
    start, stop : int
        Its bytes ``[start, stop)`` in the C-order form of the array.
    where : tuple of slice
        One for each dimension.
    """

    start: int
    stop: int
    where: tuple[slice, ...]


def cut(shape: Sequence[int], item_size_bytes: int, most_size_bytes: int) -> Iterator[Chunk]:
    """Yield the boxes in C order; together they are the array, and each is at most `most_size_bytes`.

    Parameters
    ----------
    shape : sequence of int
        Without a 0 in it.
    most_size_bytes : int
        At least `item_size_bytes`.
    """
    # The outermost dimension of which one index is small enough; the ones before it are taken index by index.
    dim = 0
    while dim < len(shape) and math.prod(shape[dim + 1 :]) * item_size_bytes > most_size_bytes:
        dim += 1
    if dim == len(shape):  # no dimensions
        yield Chunk(0, item_size_bytes, ())
        return
    row = math.prod(shape[dim + 1 :]) * item_size_bytes
    rows = max(1, most_size_bytes // row)
    whole = tuple(slice(0, size) for size in shape[dim + 1 :])
    start = 0
    for outer in itertools.product(*(range(size) for size in shape[:dim])):
        fixed = tuple(slice(index, index + 1) for index in outer)
        for first in range(0, shape[dim], rows):
            end = min(first + rows, shape[dim])
            stop = start + (end - first) * row
            yield Chunk(start, stop, (*fixed, slice(first, end), *whole))
            start = stop
