"""Which arrays hold what is to be restored into them already: the checksums in the index say so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ckptstore.bundle.read.batch import ReadBatch
from ckptstore.bundle.read.box_plan import WantedBox
from ckptstore.bundle.read.indexing import view_of
from ckptstore.bundle.read.reader import StoredTensor
from ckptstore.storage.scope import Scope, current_scope
from ckptstore.transfer.pool import run_tasks
from ckptstore.types import DType

__all__ = [
    "Question",
    "StoredChecksum",
    "answers",
    "box_is_unchanged",
    "tensor_is_unchanged",
    "unchanged_rows",
]

Question: TypeAlias = tuple[int, Callable[[], bool]]
"""How many bytes have to be looked at, and whether an array holds what it is to hold."""

StoredChecksum: TypeAlias = Callable[[npt.NDArray[Any], DType], int]
"""Returns the masked checksum of what a data file would hold of an array."""

# Smaller ones travel with their neighbours anyway, and a checksum of 32 bits is wrong once in four thousand
# million times that it is asked: few questions are better than many.
_SMALLEST_BYTES = 64 * 1024

# One thread looks at this much in a millisecond, ten times as long as it takes to wake it.
_TASK_BYTES = 8 * 1024 * 1024


def tensor_is_unchanged(tensor: StoredTensor, array: npt.NDArray[Any], checksum: StoredChecksum) -> bool:
    """Return whether `array` holds all bytes of a tensor."""
    if tensor.dtype.dtype.hasobject or array.nbytes < _SMALLEST_BYTES:
        return False
    boxes = [tuple(slice(start, start + size) for start, size in one.extents) for one in tensor.slices]
    pieces = [view_of(array, box) for box in boxes] or [array]
    # With a hole the slices are too few, which reading them reports.
    return sum(entry.size_bytes for entry in tensor.entries) == array.nbytes and all(
        _is_held(piece, tensor.dtype, entry.size_bytes, entry.masked_crc32c, checksum)
        for piece, entry in zip(pieces, tensor.entries, strict=True)
    )


def unchanged_rows(batch: ReadBatch, checksum: StoredChecksum, parallel: int) -> set[int]:
    """Return the rows of `batch` whose target holds their bytes."""
    rows: list[int] = []
    questions: list[Question] = []
    for row, (size_bytes, target) in enumerate(zip(batch.sizes_bytes, batch.targets, strict=True)):
        if target is not None and size_bytes >= _SMALLEST_BYTES:
            rows.append(row)
            held = (target, batch.dtypes[row], size_bytes, batch.masked_crc32cs[row], checksum)
            questions.append((size_bytes, partial(_is_held, *held)))
    are_held = answers(questions, parallel)
    return {row for row, is_held in zip(rows, are_held, strict=True) if is_held}


def answers(questions: Sequence[Question], parallel: int) -> list[bool]:
    """Return the answer to each, in order; by several threads if there is much to read."""
    groups: list[list[Callable[[], bool]]] = [[]]
    group_bytes = 0
    for size_bytes, ask in questions:
        if group_bytes >= _TASK_BYTES:
            groups.append([])
            group_bytes = 0
        groups[-1].append(ask)
        group_bytes += size_bytes
    if len(groups) == 1:
        return [ask() for ask in groups[0]]

    def ask_all(group: Sequence[Callable[[], bool]]) -> list[bool]:
        return [ask() for ask in group]

    found = run_tasks(current_scope() or Scope(), [partial(ask_all, group) for group in groups], parallel)
    return [answer for group in found for answer in group]


def box_is_unchanged(box: WantedBox, checksum: StoredChecksum) -> bool:
    """Return whether the target of `box` holds every stored piece of which it gets something.

    Those pieces have to lie in it as a whole: there is no checksum for less.
    """
    tensor, axes, target = box
    if (
        tensor.dtype.dtype.hasobject
        or target.nbytes < _SMALLEST_BYTES
        or any(axis.step != 1 for axis in axes)
    ):
        return False
    starts = np.array([axis.start for axis in axes], np.int64)
    stops = starts + np.array([axis.size for axis in axes], np.int64)
    ends = tensor.starts + tensor.lengths
    touched = np.flatnonzero(((tensor.starts < stops) & (ends > starts)).all(axis=1))
    if ((tensor.starts[touched] < starts) | (ends[touched] > stops)).any():
        return False
    sizes_bytes = tensor.sizes_bytes[touched].tolist()
    for row, size_bytes in zip(touched.tolist(), sizes_bytes, strict=True):
        first = (tensor.starts[row] - starts).tolist()
        lengths = tensor.lengths[row].tolist()
        place = tuple(slice(at, at + size) for at, size in zip(first, lengths, strict=True))
        piece = view_of(target, place)
        if not _is_held(piece, tensor.dtype, size_bytes, int(tensor.masked_crc32cs[row]), checksum):
            return False
    # Otherwise the pieces have a hole, which reading them reports.
    return bool(sum(sizes_bytes) == target.nbytes)


def _is_held(
    array: npt.NDArray[Any], dtype: DType, size_bytes: int, masked_crc32c: int, checksum: StoredChecksum
) -> bool:
    return array.nbytes == size_bytes and checksum(array, dtype) == masked_crc32c
