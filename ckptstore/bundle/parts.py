"""What travels in which part of an upload, as data to look at: how a plan is cut, no byte being read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ckptstore.bundle.plan import ShardPlan
from ckptstore.transfer.upload import part_sizes

__all__ = ["PlannedPart", "PlannedPiece", "plan_parts"]


class PlannedPiece(NamedTuple):
    """Bytes ``[start, stop)`` of what a tensor takes in the file."""

    tensor: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class PlannedPart:
    """One part: its bytes in the data file, and the pieces of tensors that they are, in order."""

    number: int
    start: int
    stop: int
    pieces: tuple[PlannedPiece, ...]


def plan_parts(shard: ShardPlan, part_size_bytes: int) -> list[PlannedPart]:
    """Return the parts in which a data file travels if they have this size.

    Tensors without bytes are in none of them. A data file without bytes is one empty part.
    """
    parts: list[PlannedPart] = []
    pieces: list[PlannedPiece] = []
    sizes = iter(part_sizes(shard.size_bytes, part_size_bytes))
    size_bytes = left_bytes = next(sizes)

    def close() -> None:
        start = parts[-1].stop if parts else 0
        parts.append(PlannedPart(len(parts), start, start + size_bytes, tuple(pieces)))
        pieces.clear()

    for item in shard.items:
        start = 0
        while start < item.size_bytes:
            if not left_bytes:
                close()
                size_bytes = left_bytes = next(sizes)
            stop = min(item.size_bytes, start + left_bytes)
            pieces.append(PlannedPiece(item.name, start, stop))
            left_bytes -= stop - start
            start = stop
    close()
    return parts
