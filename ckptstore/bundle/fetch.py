"""Carry out reads: ranges of the data files into arrays, checked against the index.

Everything about the entries (type, size, place inside the file) was checked before a job comes here, and
the memory that it goes to exists; what remains is reading, the checksum, and the byte order.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ckptstore.bundle.boxes import view_of
from ckptstore.bundle.chunks import cut
from ckptstore.bundle.plan import DIRECT_SIZE_BYTES, ReadItem, ReadRun, plan_reads
from ckptstore.bundle.shards import ShardFile, ShardFiles
from ckptstore.errors import TruncatedFileError, UnsupportedError
from ckptstore.format import dtypes
from ckptstore.format.crc32c import combine, crc32c, crc32c_of_ranges, mask_many
from ckptstore.format.entry import BundleEntry, element_count
from ckptstore.format.strings import decode_strings, decode_variants
from ckptstore.transfer.download import Download, Request
from ckptstore.transfer.ranges import split
from ckptstore.transfer.transfer import Transfer
from ckptstore.types import ByteRange, DType

__all__ = ["NATIVE", "Job", "PartSums", "byte_order_unit", "fetch", "reverse_bytes"]

NATIVE = {dtype.as_datatype_enum: dtype.dtype for dtype in dtypes.ALL}
"""TensorFlow's number of a type → the numpy dtype of its values."""

# How long to look whether strided targets overlap, before it is taken for granted.
_MOST_OVERLAPS = 16
_MOST_WORK = 1000

_OBJECT = np.dtype(object)
_IS_BIG_MACHINE = sys.byteorder == "big"


class Job(NamedTuple):
    """One stored piece (a tensor, or a slice of one) to be read whole and verified.

    Attributes
    ----------
    tensor : str
        Name for messages.
    entry : BundleEntry
        Without slices of its own.
    dtype : DType
    target : ndarray
        Receives the values; of the type's numpy dtype in any byte order, of any strides, and of any shape
        with as many elements, which are filled in C order.
    select : tuple of slice or None
        Strings only: what part of the piece `target` receives; None = all of it.
    """

    tensor: str
    entry: BundleEntry
    dtype: DType
    target: npt.NDArray[Any]
    select: tuple[slice, ...] | None = None


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
    jobs: Sequence[Job],
    shards: ShardFiles,
    *,
    big_endian: bool,
    transfer: Transfer | None = None,
    memory_budget: int | None = None,
) -> None:
    """Read every piece, verify it, and put it into its target; several at the same time.

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
        At a piece that is damaged, and nothing is read any more then. Small targets are filled only after
        their bytes were verified; large ones (`plan.DIRECT_SIZE_BYTES`) receive the bytes first, so the one
        that fails holds what failed.
    """
    parallel = 1 if _may_share_memory(jobs) else shards.parallel_reads
    _Fetch(jobs, shards, big_endian, Download(parallel, transfer, memory_budget), transfer).run()


def _may_share_memory(jobs: Sequence[Job]) -> bool:
    """Tell whether targets of different tensors overlap, as tied weights do: one must wait for the other.

    Small ones are verified elsewhere and filled at one go, and do not count.
    """
    large = [number for number, job in enumerate(jobs) if job[1][4] >= DIRECT_SIZE_BYTES]
    spans = sorted(
        (*np.lib.array_utils.byte_bounds(jobs[number].target), number)
        for number in large
        if not jobs[number].target.dtype.hasobject
    )
    open_spans: list[tuple[int, int, int]] = []
    for span in spans:
        open_spans = [other for other in open_spans if other[1] > span[0]]
        if len(open_spans) >= _MOST_OVERLAPS:
            return True
        tensor, _, _, target, _ = jobs[span[2]]
        for _, _, number in open_spans:
            other = jobs[number]
            if tensor == other.tensor:
                continue  # slices, which do not overlap
            try:
                if np.shares_memory(target, other.target, max_work=_MOST_WORK):  # type: ignore[arg-type]
                    return True
            except np.exceptions.TooHardError:
                return True
        open_spans.append(span)
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
        """Take in one part; tell whether it is the last one that was missing."""
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
        jobs: Sequence[Job],
        shards: ShardFiles,
        big_endian: bool,
        download: Download,
        transfer: Transfer | None,
    ) -> None:
        self._jobs = jobs
        self._shards = shards
        self._big_endian = big_endian
        self._is_foreign = big_endian != _IS_BIG_MACHINE
        self._download = download
        self._transfer = transfer

    def run(self) -> None:
        items = []
        for number, (tensor, entry, _, _, _) in enumerate(self._jobs):
            _, _, shard_id, start, size, _, _ = entry
            if size:
                items.append(tuple.__new__(ReadItem, (shard_id, start, start + size, tensor, number)))
            else:
                self._place_bytes(self._jobs[number], b"", self._shards[shard_id])
        plan = plan_reads(items, stage_size_bytes=self._download.size_bytes)
        requests = (request for run in plan.runs for request in self._requests(run))
        # The gaps that are read along make no run longer than a request.
        longest = max([run.stop - run.start for run in plan.runs], default=0)
        try:
            self._download.run(requests, lent_size_bytes=min(longest, self._download.size_bytes))
        except TruncatedFileError:
            # Said in terms of the tensor, if it was the first look at the file.
            for tensor, entry, _, _, _ in self._jobs:
                self._shards[entry.shard_id].check_inside(entry, tensor)
            raise

    def _requests(self, run: ReadRun) -> Iterator[Request]:
        shard = self._shards[run.shard]
        job = self._jobs[run.items[0].request]
        if run.staged:
            take = partial(self._take_staged, run, shard)
            yield Request(shard, job.tensor, [ByteRange(run.start, run.stop)], [None], take)
        elif job.target.dtype.hasobject:
            yield from self._strings_requests(job, run, shard)
        elif job.target.flags.c_contiguous:
            yield from self._direct_requests(job, run, shard)
        else:
            yield from self._scattered_requests(job, run, shard)

    def _strings_requests(self, job: Job, run: ReadRun, shard: ShardFile) -> Iterator[Request]:
        """Read the bytes of many or long strings into memory of their own."""
        received = np.empty(run.stop - run.start, np.uint8)
        ranges = list(split(run.start, run.stop, self._download.size_bytes))
        parts = PartSums(len(ranges))

        def take(number: int, buffers: Sequence[memoryview]) -> None:
            if parts.add(number, 0, 0):
                self._place_bytes(job, received.data, shard)
            self._advance(len(buffers[0]))

        for number, (start, stop) in enumerate(ranges):
            buffer = received.data[start - run.start : stop - run.start]
            yield Request(shard, job.tensor, [ByteRange(start, stop)], [buffer], partial(take, number))

    def _direct_requests(self, job: Job, run: ReadRun, shard: ShardFile) -> Iterator[Request]:
        """Read straight into the target."""
        memory = dtypes.as_bytes_view(job.target)
        ranges = list(split(run.start, run.stop, self._download.size_bytes))
        parts = PartSums(len(ranges))
        unit = self._unit(job, shard, _is_big_endian(job.target.dtype))

        def take(number: int, buffers: Sequence[memoryview]) -> None:
            self._count(job, shard, parts, number, buffers[0])
            if unit > 1:
                reverse_bytes(buffers[0], unit)

        for number, (start, stop) in enumerate(ranges):
            buffer = memory.data[start - run.start : stop - run.start]
            yield Request(shard, job.tensor, [ByteRange(start, stop)], [buffer], partial(take, number))

    def _scattered_requests(self, job: Job, run: ReadRun, shard: ShardFile) -> Iterator[Request]:
        """Read box by box into a block, and from there into a target of any strides."""
        native = NATIVE[job.entry.dtype_enum]
        chunks = list(cut(job.target.shape, native.itemsize, self._download.size_bytes))
        parts = PartSums(len(chunks))
        unit = self._unit(job, shard, _IS_BIG_MACHINE)

        def take(number: int, where: tuple[slice, ...], buffers: Sequence[memoryview]) -> None:
            self._count(job, shard, parts, number, buffers[0])
            if unit > 1:
                reverse_bytes(buffers[0], unit)
            place = view_of(job.target, where)
            place[...] = np.ndarray(place.shape, native, buffers[0])

        for number, (start, stop, where) in enumerate(chunks):
            wanted = ByteRange(run.start + start, run.start + stop)
            yield Request(shard, job.tensor, [wanted], [None], partial(take, number, where))

    def _unit(self, job: Job, shard: ShardFile, to_big_endian: bool) -> int:
        """Return the size of the unit to reverse between file and memory."""
        unit = byte_order_unit(job.dtype, self._big_endian, source=shard.url, tensor=job.tensor)
        if to_big_endian != _IS_BIG_MACHINE:
            unit = 1 if self._is_foreign else dtypes.swap_unit_bytes(job.dtype) or 1
        return unit

    def _count(self, job: Job, shard: ShardFile, parts: PartSums, number: int, buffer: memoryview) -> None:
        """Take in the checksum of one part, and compare that of the whole when it is the last."""
        if parts.add(number, crc32c(buffer), len(buffer)):
            shard.check_crc32c(job.entry, parts.crc32c(), job.tensor)
        self._advance(len(buffer))

    def _advance(self, size_bytes: int) -> None:
        if self._transfer is not None:
            self._transfer.advance(size_bytes)

    def _take_staged(self, run: ReadRun, shard: ShardFile, buffers: Sequence[memoryview]) -> None:
        """Verify and place the pieces of a run that was read into a block."""
        block = buffers[0]
        origin = run.start
        starts = [item[1] - origin for item in run.items]
        stops = [item[2] - origin for item in run.items]
        crcs = crc32c_of_ranges(block, starts, stops)
        jobs, is_foreign, native_of, make = self._jobs, self._is_foreign, NATIVE, np.ndarray
        for item, start, crc, found in zip(run.items, starts, crcs, mask_many(crcs).tolist(), strict=True):
            job = jobs[item[4]]
            _, entry, _, target, _ = job
            native = native_of[entry[0]]
            if native is _OBJECT:
                self._place_bytes(job, bytes(block[start : start + entry[4]]), shard)
                continue
            if found != entry[5]:
                shard.check_crc32c(entry, crc, job.tensor)
            values = make(target.shape, native, block, start)
            if is_foreign:
                values = values.copy()
                unit = byte_order_unit(job.dtype, self._big_endian, source=shard.url, tensor=job.tensor)
                reverse_bytes(dtypes.as_bytes_view(values).data, unit)
            target[...] = values
        if self._transfer is not None:
            self._transfer.advance(sum(stops) - sum(starts))

    def _place_bytes(self, job: Job, raw: bytes | memoryview, shard: ShardFile) -> None:
        """Verify the bytes of one piece that are strings, or none at all; put the values into the target."""
        entry = job.entry
        if not job.target.dtype.hasobject:
            shard.check_crc32c(entry, crc32c(raw), job.tensor)
            return
        decode = decode_strings if job.dtype == dtypes.STRING else decode_variants
        values = np.empty(element_count(entry.shape), object)
        values[:] = decode(
            raw,
            len(values),
            big_endian=self._big_endian,
            masked_crc32c=entry.masked_crc32c,
            source=shard.url,
            tensor=job.tensor,
            offset=entry.offset,
        )
        if job.select is None:
            job.target[...] = values.reshape(job.target.shape)
        else:
            job.target[...] = values.reshape(entry.shape)[job.select]


def _is_big_endian(dtype: np.dtype[Any]) -> bool:
    return dtype.isnative == _IS_BIG_MACHINE


def reverse_bytes(memory: memoryview, unit: int) -> None:
    """Reverse the bytes of every unit, in place."""
    if unit > 1:
        np.frombuffer(memory, f"u{unit}").byteswap(inplace=True)
