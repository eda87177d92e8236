"""Carry out reads: ranges of the data files into arrays, checked against the index.

Everything about the entries (type, size, place inside the file) was checked before a piece comes here, and
the memory that it goes to exists, but for new small arrays; what remains is reading, the checksum, and the
byte order.
"""

from __future__ import annotations

import bisect
import itertools
import operator
import sys
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptstore.bundle.read.batch import NATIVE, ReadBatch
from ckptstore.bundle.read.chunks import cut
from ckptstore.bundle.read.indexing import view_of
from ckptstore.bundle.read.plan import DIRECT_SIZE_BYTES, ReadRun, plan_reads
from ckptstore.bundle.read.shard_files import ShardFile, ShardFiles
from ckptstore.errors import TruncatedFileError, UnsupportedError
from ckptstore.format import dtypes
from ckptstore.format.crc32c import combine, crc32c, crc32c_of_ranges, mask_many, unmask
from ckptstore.format.entry import element_count
from ckptstore.format.strings import decode_strings, decode_variants
from ckptstore.transfer.download import Download, Request, joined
from ckptstore.transfer.ranges import split
from ckptstore.transfer.transfer import Transfer
from ckptstore.types import ByteRange, DType

__all__ = ["PartSums", "byte_order_unit", "fetch", "reverse_bytes"]

# The most work to find out whether strided targets overlap; beyond it they are assumed to.
_MOST_OVERLAPS = 16
_MOST_WORK = 1000

_OBJECT = np.dtype(object)
_IS_BIG_MACHINE = sys.byteorder == "big"


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
    transfer: Transfer | None = None,
    memory_budget: int | None = None,
) -> None:
    """Read every piece, verify it, and put it into its target or a new array; several at the same time.

    The pieces are read in the order of the files, those near each other together, large ones in parts.

    Parameters
    ----------
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
    is_shared = _may_share_memory(batch)
    parallel = 1 if is_shared else shards.parallel_reads
    download = Download(parallel, transfer, memory_budget, sum(batch.sizes_bytes))
    _Fetch(batch, shards, download, transfer).run(is_shared=is_shared)


def _may_share_memory(batch: ReadBatch) -> bool:
    """Return whether a large target overlaps that of another tensor, as tied weights do: one must wait.

    Large ones are verified where they lie. Of small ones, which are verified elsewhere and filled at one go,
    only those count that are a part of a large one.
    """
    large = [row for row, size in enumerate(batch.sizes_bytes) if size >= DIRECT_SIZE_BYTES]
    spans = sorted(
        (*np.lib.array_utils.byte_bounds(batch.target(row)), row)
        for row in large
        if not batch.target(row).dtype.hasobject
    )
    if not spans:
        return False
    open_spans: list[tuple[int, int, int]] = []
    for span in spans:
        open_spans = [other for other in open_spans if other[1] > span[0]]
        if _overlaps_one(batch, span[2], [row for _, _, row in open_spans]):
            return True
        open_spans.append(span)
    starts = [start for start, _, _ in spans]
    reached = list(itertools.accumulate((end for _, end, _ in spans), max))
    for row, (target, size) in enumerate(zip(batch.targets, batch.sizes_bytes, strict=True)):
        # An array that owns its memory cannot overlap.
        if target is None or target.base is None or size >= DIRECT_SIZE_BYTES:
            continue
        if not target.size or target.dtype.hasobject:
            continue
        low, high = np.lib.array_utils.byte_bounds(target)
        end = bisect.bisect_left(starts, high)
        first = bisect.bisect_right(reached, low, 0, end)
        if _overlaps_one(batch, row, [other for _, stop, other in spans[first:end] if stop > low]):
            return True
    return False


def _overlaps_one(batch: ReadBatch, row: int, others: Sequence[int]) -> bool:
    """Return whether the target of `row` may overlap one of `others`."""
    if len(others) >= _MOST_OVERLAPS:
        return True
    target, tensor = batch.target(row), batch.tensors[row]
    for other in others:
        if tensor == batch.tensors[other]:
            continue  # slices, which do not overlap
        try:
            if np.shares_memory(target, batch.target(other), max_work=_MOST_WORK):  # type: ignore[arg-type]
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
        shards: ShardFiles,
        download: Download,
        transfer: Transfer | None,
    ) -> None:
        self._batch = batch
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
        requests: Iterator[Request] = (request for run in plan.runs for request in self._requests(run))
        if not is_shared:
            requests = joined(requests, size)
        try:
            self._download.run(requests, lent_size_bytes=min(plan.size_bytes, size))
        except TruncatedFileError:
            # If the read was the first request for the file, the error names the tensor.
            rows = zip(batch.shard_ids, batch.offsets, batch.sizes_bytes, batch.tensors, strict=True)
            for shard_id, offset, size_bytes, tensor in rows:
                self._shards[shard_id].check_inside(offset, size_bytes, tensor)
            raise

    def _requests(self, run: ReadRun) -> Iterator[Request]:
        shard = self._shards[run.shard]
        row = run.rows[0]
        if run.staged:
            take = partial(self._take_staged, run, shard)
            yield Request(shard, self._batch.tensors[row], [ByteRange(run.start, run.stop)], [None], take)
            return
        target = self._batch.target(row)
        if target.dtype.hasobject:
            yield from self._strings_requests(row, run, shard)
        elif target.flags.c_contiguous:
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
        is_foreign, native_of, make = self._is_foreign, NATIVE, np.ndarray
        for row, start, masked in zip(rows, starts, found, strict=True):
            native = native_of[types[row].as_datatype_enum]
            if native is _OBJECT:
                self._place_bytes(row, bytes(block[start : start + sizes[row]]), shard)
                continue
            if masked != expected[row]:
                shard.check_crc32c(batch.entry(row), unmask(masked), batch.tensors[row])
            target = targets[row]
            if target is None:
                targets[row] = make(shapes[row], native, block, start).copy()
                continue
            values = make(target.shape, native, block, start)
            if is_foreign:
                values = values.copy()
                unit = byte_order_unit(
                    types[row], self._big_endian, source=shard.url, tensor=batch.tensors[row]
                )
                reverse_bytes(dtypes.as_bytes_view(values).data, unit)
            target[...] = values
        self._advance(sum(sizes_bytes))

    def _place_bytes(self, row: int, raw: bytes | memoryview, shard: ShardFile) -> None:
        """Verify the bytes of one piece that are strings, or none at all; put the values into the target."""
        batch = self._batch
        tensor, target = batch.tensors[row], batch.target(row)
        if not target.dtype.hasobject:
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
        select = batch.selects.get(row)
        if select is None:
            target[...] = values.reshape(target.shape)
        else:
            target[...] = values.reshape(batch.shapes[row])[select]


def _is_big_endian(dtype: np.dtype[Any]) -> bool:
    return dtype.isnative == _IS_BIG_MACHINE


def reverse_bytes(memory: memoryview, unit: int) -> None:
    """Reverse the bytes of every unit, in place."""
    if unit > 1:
        np.frombuffer(memory, f"u{unit}").byteswap(inplace=True)
