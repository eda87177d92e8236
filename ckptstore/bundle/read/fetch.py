"""Carry out reads: ranges of the data files into arrays, checked against the index.

Everything about the entries (type, size, place inside the file) was checked before a piece comes here, and
the memory that it goes to exists, but for new small arrays; what remains is reading, the checksum, and the
byte order.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import operator
import sys
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ckptstore.bundle.read.batch import NATIVE, DeviceTensor, ReadBatch, Taker
from ckptstore.bundle.read.chunks import Chunk, cut
from ckptstore.bundle.read.indexing import as_slices, view_of
from ckptstore.bundle.read.partial_reads import PartialRead, box_requests, reverse_bytes
from ckptstore.bundle.read.plan import DIRECT_SIZE_BYTES, ReadPlan, ReadRun, plan_reads
from ckptstore.bundle.read.shard_files import ShardFile, ShardFiles, WantedBytes
from ckptstore.errors import TruncatedFileError, UnsupportedError
from ckptstore.format import dtypes
from ckptstore.format.crc32c import combine, crc32c, crc32c_of_ranges, mask_many, unmask
from ckptstore.format.entry import element_count
from ckptstore.format.strings import decode_strings, decode_variants
from ckptstore.transfer.download import Download, Request, joined
from ckptstore.transfer.ranges import split
from ckptstore.transfer.transfer import Transfer
from ckptstore.types import ByteRange, DType

__all__ = ["PartSums", "byte_order_unit", "fetch"]

# The most work to find out whether strided targets overlap; beyond it they are assumed to.
_MOST_OVERLAPS = 16
_MOST_WORK = 1000

_OBJECT = np.dtype(object)
_IS_BIG_MACHINE = sys.byteorder == "big"


_Span: TypeAlias = tuple[int, int, int, npt.NDArray[Any]]
"""First address, end, row and array of a target."""


def byte_order_unit(dtype: DType, big_endian: bool, *, source: str, tensor: str) -> int:
    """Return the size of the unit whose bytes are to be reversed after reading; 1 if there is nothing to do.

    Raises
    ------
    UnsupportedError
        If the file has the other byte order and TensorFlow does not define the type for that.
    """
    if big_endian == _IS_BIG_MACHINE:
        return 1
    unit = dtypes.swap_unit_bytes(dtype)
    if unit is None:
        raise UnsupportedError(
            f"Byte-swapping not supported for tensors with dtype {dtype.as_datatype_enum} ({dtype.name})",
            url=source,
            tensor=tensor,
            hint="Read it on a machine of its writer's byte order.",
        )
    return unit


def fetch(
    batch: ReadBatch,
    shards: ShardFiles,
    *,
    partials: Sequence[PartialRead] = (),
    transfer: Transfer | None = None,
    memory_budget: int | None = None,
) -> None:
    """Read every piece, verify it, and put it into its target or a new array; several at the same time.

    The pieces are read in the order of the files, those near each other together, large ones in parts.

    Parameters
    ----------
    partials : sequence of PartialRead
        Parts of other pieces, which are read along with them and not verified.
    transfer : Transfer, optional
        What the reads belong to.
    memory_budget : int, optional
        Without `transfer`: bytes to hold beyond the targets; strings may take more.

    Raises
    ------
    ChecksumError, TruncatedFileError, IncompleteBundleError, FormatError
        At the first damaged piece; nothing is read after it. Small targets are filled only after
        their bytes were verified; large ones (`plan.DIRECT_SIZE_BYTES`) receive the bytes first, so the one
        that fails holds the damaged bytes.
    """
    if shards.is_cache:
        shards.fetch_ahead(_wanted(batch, partials), transfer, memory_budget)
    is_shared = _may_share_memory(batch)
    parallel = 1 if is_shared else shards.parallel_reads
    total_bytes = sum(batch.sizes_bytes) + sum([partial.taker.target.nbytes for partial in partials])
    download = Download(parallel, transfer, memory_budget, total_bytes)
    _Fetch(batch, partials, shards, download, transfer).run(is_shared=is_shared)


def _wanted(batch: ReadBatch, partials: Sequence[PartialRead]) -> list[WantedBytes]:
    whole = [
        WantedBytes(batch.entry(row), tensor, size)
        for row, (tensor, size) in enumerate(zip(batch.tensors, batch.sizes_bytes, strict=True))
    ]
    return whole + [WantedBytes(part.entry, part.tensor, part.taker.target.nbytes) for part in partials]


def _may_share_memory(batch: ReadBatch) -> bool:
    """Return whether a large target overlaps that of another tensor, as tied weights do: one must wait.

    Large ones are verified where they lie. Of small ones, which are verified elsewhere and filled at one go,
    only those count that are a part of a large one.
    """
    large = [
        (*np.lib.array_utils.byte_bounds(target), row, target)
        for row, size in enumerate(batch.sizes_bytes)
        if size >= DIRECT_SIZE_BYTES
        for target in batch.receivers(row)
        if not target.dtype.hasobject
    ]
    if not large:
        return False
    spans = sorted(large, key=lambda span: span[:3])
    open_spans: list[_Span] = []
    for span in spans:
        open_spans = [other for other in open_spans if other[1] > span[0]]
        if _overlaps_one(batch, span[2], span[3], open_spans):
            return True
        open_spans.append(span)
    starts = [span[0] for span in spans]
    reached = list(itertools.accumulate((span[1] for span in spans), max))
    for row, size in enumerate(batch.sizes_bytes):
        if size >= DIRECT_SIZE_BYTES:
            continue
        for target in batch.receivers(row):
            # An array that owns its memory cannot overlap.
            if target.base is None or not target.size or target.dtype.hasobject:
                continue
            low, high = np.lib.array_utils.byte_bounds(target)
            end = bisect.bisect_left(starts, high)
            first = bisect.bisect_right(reached, low, 0, end)
            if _overlaps_one(batch, row, target, [span for span in spans[first:end] if span[1] > low]):
                return True
    return False


def _overlaps_one(batch: ReadBatch, row: int, target: npt.NDArray[Any], others: Sequence[_Span]) -> bool:
    """Return whether a target of `row` may overlap one of `others`."""
    # Slices of one tensor do not overlap.
    others = [span for span in others if batch.tensors[span[2]] != batch.tensors[row]]
    if len(others) >= _MOST_OVERLAPS:
        return True
    for _, _, _, other in others:
        try:
            if np.shares_memory(target, other, max_work=_MOST_WORK):  # type: ignore[arg-type]
                return True
        except np.exceptions.TooHardError:
            return True
    return False


class PartSums:
    """The checksums of one piece that comes in parts, in any order.

    Threads
    -------
    Safe for concurrent use.
    """

    def __init__(self, count: int) -> None:
        self._crcs = [(0, 0)] * count
        self._missing = count
        self._lock = threading.Lock()

    def add(self, number: int, crc: int, size_bytes: int) -> bool:
        """Add one part; return whether it was the last one missing."""
        self._crcs[number] = (crc, size_bytes)
        with self._lock:
            self._missing -= 1
            return not self._missing

    def crc32c(self) -> int:
        """Return the checksum of the whole."""
        whole = 0
        for crc, size_bytes in self._crcs:
            whole = combine(whole, crc, size_bytes)
        return whole


class _Fetch:
    """The state of one call of `fetch`."""

    def __init__(
        self,
        batch: ReadBatch,
        partials: Sequence[PartialRead],
        shards: ShardFiles,
        download: Download,
        transfer: Transfer | None,
    ) -> None:
        self._batch = batch
        self._partials = sorted(partials, key=_place)
        self._shards = shards
        self._big_endian = shards.big_endian
        self._is_foreign = shards.big_endian != _IS_BIG_MACHINE
        self._download = download
        self._transfer = transfer

    def run(self, *, is_shared: bool) -> None:
        """Read all; `is_shared`: each piece has to be verified before the bytes of the next one come."""
        batch = self._batch
        stops = list(map(operator.add, batch.offsets, batch.sizes_bytes))
        plan = plan_reads(batch.shard_ids, batch.offsets, stops, stage_size_bytes=self._download.size_bytes)
        if not all(batch.sizes_bytes):
            for row, size in enumerate(batch.sizes_bytes):
                if not size:
                    self._place_bytes(row, b"", self._shards[batch.shard_ids[row]])
        size = self._download.size_bytes
        lent_bytes = plan.size_bytes + sum([partial.entry.size_bytes for partial in self._partials])
        requests = self._all_requests(plan)
        if not is_shared:
            requests = joined(requests, size)
        try:
            self._download.run(requests, lent_size_bytes=min(lent_bytes, size))
        except TruncatedFileError:
            # If the read was the first request for the file, the error names the tensor.
            rows = zip(batch.shard_ids, batch.offsets, batch.sizes_bytes, batch.tensors, strict=True)
            for shard_id, offset, size_bytes, tensor in rows:
                self._shards[shard_id].check_inside(offset, size_bytes, tensor)
            self._check_partials()
            raise
        self._check_partials()

    def _check_partials(self) -> None:
        """Raise if a file ends before a piece of which the part that was read is there."""
        for tensor, entry, _, _ in self._partials:
            self._shards[entry.shard_id].check_inside(entry.offset, entry.size_bytes, tensor)

    def _all_requests(self, plan: ReadPlan) -> Iterator[Request]:
        """Yield the requests for runs and partial reads in the order of the files."""
        in_order: Iterator[ReadRun | PartialRead] = heapq.merge(plan.runs, self._partials, key=_place)
        for each in in_order:
            if isinstance(each, ReadRun):
                yield from self._requests(each)
                continue
            shard = self._shards[each.entry.shard_id]
            unit = byte_order_unit(each.dtype, self._big_endian, source=shard.url, tensor=each.tensor)
            yield from box_requests(
                each,
                shard,
                self._download,
                unit=unit,
                is_far=self._shards.are_far,
                advance=self._advance,
            )

    def _requests(self, run: ReadRun) -> Iterator[Request]:
        shard = self._shards[run.shard]
        row = run.rows[0]
        if run.staged:
            take = partial(self._take_staged, run, shard)
            yield Request(shard, self._batch.tensors[row], [ByteRange(run.start, run.stop)], [None], take)
            return
        if NATIVE[self._batch.dtypes[row].as_datatype_enum] is _OBJECT:
            yield from self._strings_requests(row, run, shard)
            return
        takers, out = self._batch.takers.get(row), self._batch.on_devices.get(row)
        if takers is not None:
            yield from self._shared_requests(row, takers, run, shard)
            return
        if out is not None:
            yield from self._device_requests(row, out, run, shard)
            return
        target = self._batch.target(row)
        if target.flags.c_contiguous:
            yield from self._direct_requests(row, target, run, shard)
        else:
            yield from self._scattered_requests(row, target, run, shard)

    def _strings_requests(self, row: int, run: ReadRun, shard: ShardFile) -> Iterator[Request]:
        """Read the bytes of many or long strings into memory of their own."""
        tensor = self._batch.tensors[row]
        received = np.empty(run.stop - run.start, np.uint8)
        ranges = list(split(run.start, run.stop, self._download.size_bytes))
        parts = PartSums(len(ranges))

        def take(number: int, buffers: Sequence[memoryview]) -> None:
            if parts.add(number, 0, 0):
                self._place_bytes(row, received.data, shard)
            self._advance(len(buffers[0]))

        for number, (start, stop) in enumerate(ranges):
            buffer = received.data[start - run.start : stop - run.start]
            yield Request(shard, tensor, [ByteRange(start, stop)], [buffer], partial(take, number))

    def _direct_requests(
        self, row: int, target: npt.NDArray[Any], run: ReadRun, shard: ShardFile
    ) -> Iterator[Request]:
        """Read straight into the target."""
        tensor = self._batch.tensors[row]
        memory = dtypes.as_bytes_view(target)
        ranges = list(split(run.start, run.stop, self._download.size_bytes))
        parts = PartSums(len(ranges))
        unit = self._unit(row, shard, _is_big_endian(target.dtype))

        def take(number: int, buffers: Sequence[memoryview]) -> None:
            self._count(row, shard, parts, number, buffers[0])
            if unit > 1:
                reverse_bytes(buffers[0], unit)

        for number, (start, stop) in enumerate(ranges):
            buffer = memory.data[start - run.start : stop - run.start]
            yield Request(shard, tensor, [ByteRange(start, stop)], [buffer], partial(take, number))

    def _scattered_requests(
        self, row: int, target: npt.NDArray[Any], run: ReadRun, shard: ShardFile
    ) -> Iterator[Request]:
        """Read box by box into a block, and from there into a target of any strides."""
        tensor = self._batch.tensors[row]
        native = NATIVE[self._batch.dtypes[row].as_datatype_enum]
        chunks = list(cut(target.shape, native.itemsize, self._download.size_bytes))
        parts = PartSums(len(chunks))
        unit = self._unit(row, shard, _IS_BIG_MACHINE)

        def take(number: int, where: tuple[slice, ...], buffers: Sequence[memoryview]) -> None:
            self._count(row, shard, parts, number, buffers[0])
            if unit > 1:
                reverse_bytes(buffers[0], unit)
            place = view_of(target, where)
            place[...] = np.ndarray(place.shape, native, buffers[0])

        for number, (start, stop, where) in enumerate(chunks):
            wanted = ByteRange(run.start + start, run.start + stop)
            yield Request(shard, tensor, [wanted], [None], partial(take, number, where))

    def _device_requests(
        self, row: int, out: DeviceTensor, run: ReadRun, shard: ShardFile
    ) -> Iterator[Request]:
        """Read box by box into a block, from which a device copies on its own."""
        tensor, shape = self._batch.tensors[row], self._batch.shapes[row]
        native = NATIVE[self._batch.dtypes[row].as_datatype_enum]
        item = native.itemsize
        if len(shape) == 1:
            # As the object was sent.
            ranges = split(run.start, run.stop, self._download.size_bytes)
            places = [(start - run.start, stop - run.start) for start, stop in ranges]
            chunks = [Chunk(start, stop, (slice(start // item, stop // item),)) for start, stop in places]
        else:
            chunks = list(cut(shape, item, self._download.size_bytes))
        parts = PartSums(len(chunks))
        unit = self._unit(row, shard, _IS_BIG_MACHINE)

        def take(number: int, where: tuple[slice, ...], buffers: Sequence[memoryview]) -> None:
            self._count(row, shard, parts, number, buffers[0])
            reverse_bytes(buffers[0], unit)
            out.put(where, np.ndarray([part.stop - part.start for part in where], native, buffers[0]))

        for number, (start, stop, where) in enumerate(chunks):
            wanted = ByteRange(run.start + start, run.start + stop)
            yield Request(shard, tensor, [wanted], [None], partial(take, number, where))

    def _shared_requests(
        self, row: int, takers: Sequence[Taker], run: ReadRun, shard: ShardFile
    ) -> Iterator[Request]:
        """Read box by box into a block, and from there into whatever wants some of it."""
        tensor, shape = self._batch.tensors[row], self._batch.shapes[row]
        native = NATIVE[self._batch.dtypes[row].as_datatype_enum]
        chunks = list(cut(shape, native.itemsize, self._download.size_bytes))
        parts = PartSums(len(chunks))
        unit = self._unit(row, shard, _IS_BIG_MACHINE)

        def take(number: int, where: tuple[slice, ...], buffers: Sequence[memoryview]) -> None:
            self._count(row, shard, parts, number, buffers[0])
            reverse_bytes(buffers[0], unit)
            values = np.ndarray([part.stop - part.start for part in where], native, buffers[0])
            for axes, target in takers:
                clipped = [
                    axis.clipped(part.start, part.stop) for axis, part in zip(axes, where, strict=True)
                ]
                if all(axis.size for _, axis in clipped):
                    place = view_of(target, tuple([place for place, _ in clipped]))
                    place[...] = view_of(values, as_slices([axis for _, axis in clipped]))

        for number, (start, stop, where) in enumerate(chunks):
            wanted = ByteRange(run.start + start, run.start + stop)
            yield Request(shard, tensor, [wanted], [None], partial(take, number, where))

    def _unit(self, row: int, shard: ShardFile, to_big_endian: bool) -> int:
        """Return the size of the unit to reverse between file and memory."""
        dtype = self._batch.dtypes[row]
        unit = byte_order_unit(dtype, self._big_endian, source=shard.url, tensor=self._batch.tensors[row])
        if to_big_endian != _IS_BIG_MACHINE:
            unit = 1 if self._is_foreign else dtypes.swap_unit_bytes(dtype) or 1
        return unit

    def _count(self, row: int, shard: ShardFile, parts: PartSums, number: int, buffer: memoryview) -> None:
        """Add the checksum of one part; after the last one compare that of the whole."""
        if parts.add(number, crc32c(buffer), len(buffer)):
            shard.check_crc32c(self._batch.entry(row), parts.crc32c(), self._batch.tensors[row])
        self._advance(len(buffer))

    def _advance(self, size_bytes: int) -> None:
        if self._transfer is not None:
            self._transfer.advance(size_bytes)

    def _take_staged(self, run: ReadRun, shard: ShardFile, buffers: Sequence[memoryview]) -> None:
        """Verify and place the pieces of a run that was read into a block."""
        batch, rows, origin = self._batch, run.rows, run.start
        offsets, sizes = batch.offsets, batch.sizes_bytes
        # An array over the block makes views faster than a memoryview does.
        block = np.frombuffer(buffers[0], np.uint8)
        starts = [offsets[row] - origin for row in rows]
        sizes_bytes = [sizes[row] for row in rows]
        crcs = crc32c_of_ranges(block, starts, map(operator.add, starts, sizes_bytes))
        found = mask_many(crcs).tolist()
        types, shapes, targets, expected = batch.dtypes, batch.shapes, batch.targets, batch.masked_crc32cs
        is_foreign, native_of, make, takers = self._is_foreign, NATIVE, np.ndarray, batch.takers
        on_devices = batch.on_devices
        for row, start, masked in zip(rows, starts, found, strict=True):
            native = native_of[types[row].as_datatype_enum]
            if native is _OBJECT:
                self._place_bytes(row, bytes(block[start : start + sizes[row]]), shard)
                continue
            if masked != expected[row]:
                shard.check_crc32c(batch.entry(row), unmask(masked), batch.tensors[row])
            if row in takers:
                values = make(shapes[row], native, block, start)
                if is_foreign:
                    values = self._reversed(row, values, shard)
                for axes, place in takers[row]:
                    place[...] = view_of(values, as_slices(axes))
                continue
            if row in on_devices:
                values = make(shapes[row], native, block, start)
                values = self._reversed(row, values, shard) if is_foreign else values
                on_devices[row].put(tuple([slice(0, size) for size in shapes[row]]), values)
                continue
            target = targets[row]
            if target is None:
                targets[row] = make(shapes[row], native, block, start).copy()
                continue
            values = make(target.shape, native, block, start)
            target[...] = self._reversed(row, values, shard) if is_foreign else values
        self._advance(sum(sizes_bytes))

    def _reversed(self, row: int, values: npt.NDArray[Any], shard: ShardFile) -> npt.NDArray[Any]:
        """Return a copy in this machine's byte order."""
        batch = self._batch
        unit = byte_order_unit(
            batch.dtypes[row], self._big_endian, source=shard.url, tensor=batch.tensors[row]
        )
        copy = values.copy()
        reverse_bytes(dtypes.as_bytes_view(copy).data, unit)
        return copy

    def _place_bytes(self, row: int, raw: bytes | memoryview, shard: ShardFile) -> None:
        """Verify the bytes of one piece that are strings, or none at all; put the values into the target."""
        batch = self._batch
        tensor = batch.tensors[row]
        if NATIVE[batch.dtypes[row].as_datatype_enum] is not _OBJECT:
            shard.check_crc32c(batch.entry(row), crc32c(raw), tensor)
            return
        decode = decode_strings if batch.dtypes[row] == dtypes.STRING else decode_variants
        values = np.empty(element_count(batch.shapes[row]), object)
        values[:] = decode(
            raw,
            len(values),
            big_endian=self._big_endian,
            masked_crc32c=batch.masked_crc32cs[row],
            source=shard.url,
            tensor=tensor,
            offset=batch.offsets[row],
        )
        takers = batch.takers.get(row)
        if takers is None:
            target = batch.target(row)
            target[...] = values.reshape(target.shape)
            return
        for axes, place in takers:
            place[...] = view_of(values.reshape(batch.shapes[row]), as_slices(axes))


def _place(each: ReadRun | PartialRead) -> tuple[int, int]:
    """Return shard and offset of the first byte."""
    return (each.shard if isinstance(each, ReadRun) else each.entry.shard_id), each.start


def _is_big_endian(dtype: np.dtype[Any]) -> bool:
    return dtype.isnative == _IS_BIG_MACHINE
