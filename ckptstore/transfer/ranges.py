"""Which bytes to ask for with one request: what lies close together is joined, what is long is cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["GAP_SIZE_BYTES", "REQUEST_SIZE_BYTES", "coalesce", "fair_size_bytes", "split"]

# Bytes between two wanted ranges that are read along with them. At 100 MB/s a gap of this size costs under a
# millisecond, one more request to an object store 10 ms or more; beyond it the wasted memory begins to count.
GAP_SIZE_BYTES = 64 * 1024

# One request, and what is fetched again at most when it fails in a way that cannot be resumed. An object
# store answers a longer one no faster, and with shorter ones its latency begins to show.
REQUEST_SIZE_BYTES = 8 * 1024 * 1024

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
    for first, end in zip([0, *cuts.tolist()], [*cuts.tolist(), len(begins)], strict=True):
        while first < end:
            limit = int(begins[first]) + most_size_bytes
            inside = first + int(np.searchsorted(reached[first:end], limit, "right"))
            middle = max(inside, first + 1)
            groups.append((first, middle))
            first = middle
    return groups


def split(start: int, stop: int, size_bytes: int = REQUEST_SIZE_BYTES) -> Iterator[tuple[int, int]]:
    """Yield ``[start, stop)`` in ranges of `size_bytes`, ascending; only the last one may be shorter."""
    for low in range(start, stop, size_bytes):
        yield low, min(low + size_bytes, stop)


def fair_size_bytes(budget_bytes: int | None, parallel: int) -> int:
    """Return the longest request of which `parallel` at a time fit into a budget; None is no budget.

    It is a multiple of 256 KiB, also where the budget is less, so that pieces of a tensor begin where an
    element does.
    """
    if budget_bytes is None:
        return REQUEST_SIZE_BYTES
    units = budget_bytes // parallel // _LEAST_SIZE_BYTES
    return min(max(units, 1) * _LEAST_SIZE_BYTES, REQUEST_SIZE_BYTES)
