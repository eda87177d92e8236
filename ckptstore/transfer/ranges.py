"""Which bytes to ask for with one request: what lies close together is joined, what is long is cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

__all__ = [
    "GAP_SIZE_BYTES",
    "LONG_REQUEST_SIZE_BYTES",
    "REQUEST_SIZE_BYTES",
    "cell_of",
    "coalesce",
    "fair_size_bytes",
    "split",
]

# Bytes between two wanted ranges that are read along with them. At 100 MB/s a gap of this size costs under a
# millisecond, one more request to an object store 10 ms or more; beyond it the wasted memory begins to count.
GAP_SIZE_BYTES = 64 * 1024

# One request, and what is fetched again at most when it fails in a way that cannot be resumed. With shorter
# ones the latency of an object store begins to show.
REQUEST_SIZE_BYTES = 8 * 1024 * 1024

# One of very many: as long as the parts in which a large object was sent. Stores keep these apart, and a
# request that crosses from one to the next, or takes a piece of one, costs them more.
LONG_REQUEST_SIZE_BYTES = 16 * 1024 * 1024
_VERY_MANY = 16

# Where a range may be cut, counted from its start: between two elements of any type.
_UNIT_BYTES = 16

# Below this a smaller budget would cost more time than it saves memory.
_LEAST_SIZE_BYTES = 256 * 1024


def coalesce(
    starts: Sequence[int] | npt.NDArray[np.int64],
    stops: Sequence[int] | npt.NDArray[np.int64],
    *,
    gap_size_bytes: int = GAP_SIZE_BYTES,
    most_size_bytes: int = REQUEST_SIZE_BYTES,
) -> list[tuple[int, int]]:
    """Return which ranges to read together.

    Parameters
    ----------
    starts, stops : sequence of int, bytes
        Ranges ``[start, stop)``, none empty, ascending by start; they may overlap.
    gap_size_bytes : int
        Unwanted bytes between two ranges that are read rather than asking twice.
    most_size_bytes : int
        No group is longer, from its first byte to its last, unless it is a single range.

    Returns
    -------
    list of (first, end)
        Ranges ``first`` to ``end - 1`` form a group. Every range is in exactly one.
    """
    begins = np.asarray(starts, np.int64)
    if not len(begins):
        return []
    # A range may end behind those that follow it.
    reached = np.maximum.accumulate(np.asarray(stops, np.int64))
    cuts = np.flatnonzero(begins[1:] - reached[:-1] > gap_size_bytes) + 1
    groups: list[tuple[int, int]] = []
    for begin, end in zip([0, *cuts.tolist()], [*cuts.tolist(), len(begins)], strict=True):
        first = begin
        while first < end:
            limit = int(begins[first]) + most_size_bytes
            inside = first + int(np.searchsorted(reached[first:end], limit, "right"))
            middle = max(inside, first + 1)
            groups.append((first, middle))
            first = middle
    return groups


def split(start: int, stop: int, size_bytes: int = REQUEST_SIZE_BYTES) -> Iterator[tuple[int, int]]:
    """Yield ``[start, stop)`` in ranges of at most `size_bytes`, ascending.

    Each but the first begins at a multiple of that, or as little before it as it takes to cut between two
    elements.

    Parameters
    ----------
    size_bytes : int
        A multiple of 16.
    """
    low = start
    while low < stop:
        high = cell_of(low, size_bytes) * size_bytes + size_bytes
        high = min(high - (high - start) % _UNIT_BYTES, stop)
        yield low, high
        low = high


def cell_of(start: int, size_bytes: int) -> int:
    """Return to which multiple of `size_bytes` a range that begins at `start` belongs, as `split` cuts."""
    return (start + _UNIT_BYTES - 1) // size_bytes


def fair_size_bytes(budget_bytes: int | None, parallel: int, total_bytes: int = 0) -> int:
    """Return the longest request of which `parallel` at a time fit into a budget; None: no limit.

    It is a multiple of 256 KiB, also where the budget is less.

    Parameters
    ----------
    total_bytes : int
        What there is to read; requests are longer if that is much.
    """
    is_much = total_bytes >= _VERY_MANY * LONG_REQUEST_SIZE_BYTES
    best = LONG_REQUEST_SIZE_BYTES if is_much else REQUEST_SIZE_BYTES
    if budget_bytes is None:
        return best
    units = budget_bytes // parallel // _LEAST_SIZE_BYTES
    return min(max(units, 1) * _LEAST_SIZE_BYTES, best)
