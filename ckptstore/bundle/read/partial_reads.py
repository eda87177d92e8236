"""Read parts of stored pieces: only the bytes near them, straight to their place where they lie together.

There is no checksum for a part: nothing is verified.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ckptstore.bundle.read.batch import NATIVE, Taker
from ckptstore.bundle.read.chunks import cut
from ckptstore.bundle.read.indexing import Axis, BoxLayout, BoxRead, view_of
from ckptstore.bundle.read.shard_files import ShardFile
from ckptstore.format import dtypes
from ckptstore.format.entry import BundleEntry
from ckptstore.transfer.download import Download, Request
from ckptstore.transfer.ranges import GAP_SIZE_BYTES
from ckptstore.types import ByteRange, DType

__all__ = ["FAR_GAP_SIZE_BYTES", "PartialRead", "box_layout", "box_requests", "reverse_bytes"]

# Ranges of a box may be four bytes each. If there are many, one thread asks for several at once: the first
# `_MOST_RANGES` are divided so that each thread gets `_GROUPS_EACH` groups of them.
_MOST_RANGES = 1024
_GROUPS_EACH = 4

FAR_GAP_SIZE_BYTES = 1024 * 1024
"""Of an object store, a gap between two runs of wanted bytes that takes about as long as one more request."""

# Inside a piece no gap is read that is longer than so many runs.
_FAR_GAP_RUNS = 7


class PartialRead(NamedTuple):
    """A part of a stored piece whose elements have a fixed size; no step is negative."""

    tensor: str
    entry: BundleEntry
    dtype: DType
    taker: Taker

    @property
    def start(self) -> int:
        """The first byte wanted, counted from the start of the data file."""
        return self._byte_of([axis.start for axis in self.taker.axes])

    @property
    def stop(self) -> int:
        """The end of the last element wanted, counted from the start of the data file."""
        last = [axis.start + (axis.size - 1) * axis.step for axis in self.taker.axes]
        return self._byte_of(last) + NATIVE[self.dtype.as_datatype_enum].itemsize

    def _byte_of(self, element: Sequence[int]) -> int:
        at = 0
        for index, size in zip(element, self.entry.shape, strict=True):
            at = at * size + index
        return self.entry.offset + at * NATIVE[self.dtype.as_datatype_enum].itemsize


def box_layout(
    axes: Sequence[Axis], entry: BundleEntry, dtype: DType, *, is_far: bool, stage_size_bytes: int
) -> BoxLayout:
    """Return in which ranges to read a part of a stored piece.

    Parameters
    ----------
    is_far : bool
        Whether each range costs a request.
    stage_size_bytes : int
        No range with gaps is longer.
    """
    item_size = NATIVE[dtype.as_datatype_enum].itemsize
    near = BoxLayout(axes, entry.shape, item_size, stage_size_bytes=stage_size_bytes)
    run = near.run_size_bytes
    if not is_far or run >= FAR_GAP_SIZE_BYTES:
        return near
    return BoxLayout(
        axes,
        entry.shape,
        item_size,
        gap_size_bytes=max(GAP_SIZE_BYTES, min(FAR_GAP_SIZE_BYTES, _FAR_GAP_RUNS * run)),
        direct_size_bytes=FAR_GAP_SIZE_BYTES,
        stage_size_bytes=stage_size_bytes,
    )


def box_requests(
    read: PartialRead,
    shard: ShardFile,
    download: Download,
    *,
    unit: int,
    is_far: bool,
    advance: Callable[[int], object],
) -> Iterator[Request]:
    """Yield the requests for a part, ascending.

    Parameters
    ----------
    download : Download
        What they are made by.
    unit : int
        What `byte_order_unit` returns.
    is_far : bool
        See `box_layout`.
    advance : callable
        Called with bytes that reached their place.
    """
    name, entry, dtype, (_, target) = read
    native = NATIVE[dtype.as_datatype_enum]
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
        advance(sum([part.place.nbytes for part in group]))

    layout = box_layout(read.taker.axes, entry, dtype, is_far=is_far, stage_size_bytes=most)
    parts = (
        part for each in layout.reads() for part in _parts(each, native, view_of(target, each.where), most)
    )
    for group in _groups(parts, download.parallel, most):
        yield Request(
            shard,
            name,
            [ByteRange(entry.offset + part.start, entry.offset + part.stop) for part in group],
            [dtypes.as_bytes_view(part.place).data if part.is_direct else None for part in group],
            partial(take, group),
        )


def reverse_bytes(memory: memoryview, unit: int) -> None:
    """Reverse the bytes of every unit, in place."""
    if unit > 1:
        np.frombuffer(memory, f"u{unit}").byteswap(inplace=True)


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
