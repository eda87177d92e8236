"""Checksums of memory, by several threads where that takes less time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from ckptstore.format.crc32c import combine, crc32c
from ckptstore.storage.scope import Scope, current_scope
from ckptstore.transfer.pool import run_tasks
from ckptstore.transfer.ranges import split

__all__ = ["crc32c_of_many"]

# One thread verifies this much in 0.5 ms, five times as long as it takes to wake it.
_TASK_SIZE_BYTES = 8 * 1024 * 1024


def crc32c_of_many(memories: Sequence[npt.NDArray[np.uint8]], parallel: int) -> list[int]:
    """Return the CRC32C of each; large ones are divided among `parallel` threads, small ones put together."""
    parts = [
        (number, low, high) for number, memory in enumerate(memories) for low, high in _split(len(memory))
    ]
    found = [0] * len(parts)

    def check(first: int, end: int) -> None:
        for at in range(first, end):
            number, low, high = parts[at]
            found[at] = crc32c(memories[number][low:high])

    groups: list[tuple[int, int]] = []
    first = size = 0
    for at, (_, low, high) in enumerate(parts):
        size += high - low
        if size >= _TASK_SIZE_BYTES:
            groups.append((first, at + 1))
            first, size = at + 1, 0
    if first < len(parts):
        groups.append((first, len(parts)))
    if len(groups) == 1:
        check(*groups[0])
    else:
        tasks = [partial(check, *group) for group in groups]
        run_tasks(current_scope() or Scope(), tasks, parallel)
    crcs = [0] * len(memories)
    for (number, low, high), crc in zip(parts, found, strict=True):
        crcs[number] = combine(crcs[number], crc, high - low) if low else crc
    return crcs


def _split(size_bytes: int) -> Iterable[tuple[int, int]]:
    return ((0, size_bytes),) if size_bytes <= _TASK_SIZE_BYTES else split(0, size_bytes, _TASK_SIZE_BYTES)
