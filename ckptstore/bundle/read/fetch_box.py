"""Carry out reads of parts of tensors: the ranges of a box, and which of their bytes go where."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ckptstore.bundle.read.batch import NATIVE
from ckptstore.bundle.read.chunks import cut
from ckptstore.bundle.read.fetch import byte_order_unit, reverse_bytes
from ckptstore.bundle.read.indexing import Axis, BoxRead, split_box, view_of
from ckptstore.bundle.read.reader import StoredTensor
from ckptstore.bundle.read.shard_files import ShardFiles
from ckptstore.errors import TruncatedFileError
from ckptstore.format import dtypes
from ckptstore.transfer.download import Download, Request
from ckptstore.types import ByteRange

__all__ = ["fetch_box"]

# Ranges of a box may be four bytes each. If there are many, one thread asks for several at once: the first
# `_MOST_RANGES` are divided so that each thread gets `_GROUPS_EACH` groups of them.
_MOST_RANGES = 1024
_GROUPS_EACH = 4


def fetch_box(
    tensor: StoredTensor,
    piece: int,
    axes: Sequence[Axis],
    target: npt.NDArray[Any],
    shards: ShardFiles,
    *,
    memory_budget: int | None = None,
) -> None:
    """Read a part of one piece, and only the bytes near it.

    There is no checksum for a part: nothing is verified.

    Parameters
    ----------
    tensor : StoredTensor
        Of an element type with a fixed size.
    piece : int
        Which of its entries.
    axes : sequence of Axis
        What of each dimension of the piece.
    target : ndarray
        One dimension for each axis.
    memory_budget : int, optional
        Bytes to hold beyond the target.
    """
    name, entry = tensor.name, tensor.entries[piece]
    shard = shards[entry.shard_id]
    download = Download(shards.parallel_reads, memory_budget=memory_budget)
    unit = byte_order_unit(tensor.dtype, shards.big_endian, source=shard.url, tensor=name)
    native = NATIVE[tensor.dtype.as_datatype_enum]
    most = download.size_bytes

    def take(group: Sequence[_BoxPart], buffers: Sequence[memoryview]) -> None:
        for (_, _, place, is_direct, first, strides), buffer in zip(group, buffers, strict=True):
            if is_direct:
                reverse_bytes(buffer, unit)
                continue
            values = np.ndarray(place.shape, native, buffer, first, strides)
            if unit > 1:
                values = values.copy()
                reverse_bytes(dtypes.as_bytes_view(values).data, unit)
            place[...] = values

    def request(group: list[_BoxPart]) -> Request:
        return Request(
            shard,
            name,
            [ByteRange(entry.offset + part.start, entry.offset + part.stop) for part in group],
            [dtypes.as_bytes_view(part.place).data if part.is_direct else None for part in group],
            partial(take, group),
        )

    reads = split_box(axes, entry.shape, native.itemsize, stage_size_bytes=most)
    parts = (part for read in reads for part in _parts(read, native, view_of(target, read.where), most))
    groups = _groups(parts, download.parallel, most)
    try:
        download.run(map(request, groups), lent_size_bytes=min(entry.size_bytes, most))
    except TruncatedFileError:
        shard.check_inside(entry.offset, entry.size_bytes, name)
        raise
    shard.check_inside(entry.offset, entry.size_bytes, name)


class _BoxPart(NamedTuple):
    """Bytes ``[start, stop)`` of a tensor, and where elements in them go.

    With `is_direct` they go there as they are; else `first` and `strides` (None: C order) say, in bytes,
    which elements they are.
    """

    start: int
    stop: int
    place: npt.NDArray[Any]
    is_direct: bool
    first: int
    strides: tuple[int, ...] | None


def _parts(
    read: BoxRead, native: np.dtype[Any], place: npt.NDArray[Any], most_size_bytes: int
) -> Iterator[_BoxPart]:
    """Yield one range of a box; in several parts if it has no gaps, because it can have any length then."""
    start, stop = read.start, read.stop
    if not read.is_contiguous:
        yield _BoxPart(start, stop, place, False, read.first, read.strides)
        return
    is_native = place.dtype == native
    if stop - start <= most_size_bytes:
        yield _BoxPart(start, stop, place, is_native and place.flags.c_contiguous, 0, None)
        return
    for chunk in cut(place.shape, native.itemsize, most_size_bytes):
        part = view_of(place, chunk.where)
        is_direct = is_native and part.flags.c_contiguous
        yield _BoxPart(start + chunk.start, start + chunk.stop, part, is_direct, 0, None)


def _groups(parts: Iterator[_BoxPart], parallel: int, most_size_bytes: int) -> Iterator[list[_BoxPart]]:
    """Yield what one thread asks for at once: one part, or several short ones if there are many."""
    head = list(itertools.islice(parts, _MOST_RANGES))
    most_ranges = max(1, len(head) // (_GROUPS_EACH * parallel))
    group: list[_BoxPart] = []
    size = 0
    for part in itertools.chain(head, parts):
        part_size = part.stop - part.start
        if group and (len(group) == most_ranges or size + part_size > most_size_bytes):
            yield group
            group, size = [], 0
        group.append(part)
        size += part_size
    if group:
        yield group
