"""What to read, as frozen and printable data; `fetch` carries it out.

A `ReadPlan` is complete before the first byte is read: every entry was checked, every destination exists, but
for new small arrays, which are made as their bytes arrive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ckptstore.transfer.ranges import GAP_SIZE_BYTES, REQUEST_SIZE_BYTES, coalesce

__all__ = ["DIRECT_SIZE_BYTES", "GAP_SIZE_BYTES", "STAGE_SIZE_BYTES", "ReadPlan", "ReadRun", "plan_reads"]

# A tensor of this size or more is received in its own memory; smaller ones travel together and are copied
# out. Copying 256 KiB takes about as long as one more request to a local file, and a request to a store
# takes longer.
DIRECT_SIZE_BYTES = 256 * 1024

# The longest range that is read into staging memory at once; also a good size for one request to an object
# store.
STAGE_SIZE_BYTES = REQUEST_SIZE_BYTES


class ReadRun(NamedTuple):
    """Bytes ``[start, stop)`` of a shard, read at once.

    `rows` are the pieces in it, ascending by where they begin. `staged` runs are read into staging memory and
    copied out; others hold one piece and go straight to it.
    """

    shard: int
    start: int
    stop: int
    staged: bool
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """Everything one call reads: runs ascending by shard and offset."""

    runs: tuple[ReadRun, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes that travel, gaps included."""
        return sum(run.stop - run.start for run in self.runs)


def plan_reads(
    shard_ids: Sequence[int],
    starts: Sequence[int],
    stops: Sequence[int],
    *,
    gap_size_bytes: int = GAP_SIZE_BYTES,
    direct_size_bytes: int = DIRECT_SIZE_BYTES,
    stage_size_bytes: int = STAGE_SIZE_BYTES,
) -> ReadPlan:
    """Order pieces by shard and offset and join what lies close together.

    Parameters
    ----------
    shard_ids, starts, stops : sequence of int
        Piece by piece: it is bytes ``[start, stop)`` of that shard. Empty ones take no part in the plan. The
        plan names a piece by its row: its position here.
    gap_size_bytes : int
        Unwanted bytes between two pieces that are read rather than sending two requests.
    direct_size_bytes : int
        Pieces of this size or more get a run of their own.
    stage_size_bytes : int
        No staged run is longer.
    """
    shards, begins, ends = (np.asarray(column, np.int64) for column in (shard_ids, starts, stops))
    order = np.lexsort((ends, begins, shards))
    order = order[begins[order] < ends[order]]
    if not len(order):
        return ReadPlan(())
    runs: list[ReadRun] = []
    for rows in np.split(order, np.flatnonzero(np.diff(shards[order])) + 1):
        shard = int(shards[rows[0]])
        is_small = ends[rows] - begins[rows] < direct_size_bytes
        runs += [
            ReadRun(shard, int(begins[row]), int(ends[row]), False, (row,))
            for row in rows[~is_small].tolist()
        ]
        small = rows[is_small]
        groups = coalesce(
            begins[small], ends[small], gap_size_bytes=gap_size_bytes, most_size_bytes=stage_size_bytes
        )
        for first, end in groups:
            of_run = small[first:end]
            start, stop = int(begins[of_run[0]]), int(ends[of_run].max())
            runs.append(ReadRun(shard, start, stop, True, tuple(of_run.tolist())))
    runs.sort(key=lambda run: run[:2])
    return ReadPlan(tuple(runs))
