"""Carry out reads: ranges of the data files into arrays, checked against the index.

Everything about the entries (type, size, place inside the file) was checked before a job comes here, and
the memory that it goes to exists; what remains is reading, the checksum, and the byte order.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ckptstore.bundle.boxes import Axis, BoxRead, split_box, view_of
from ckptstore.bundle.plan import STAGE_SIZE_BYTES, ReadItem, ReadRun, plan_reads
from ckptstore.bundle.shards import ShardFile, ShardFiles
from ckptstore.errors import UnsupportedError
from ckptstore.format import dtypes
from ckptstore.format.crc32c import crc32c, mask
from ckptstore.format.entry import BundleEntry, element_count
from ckptstore.format.strings import decode_strings, decode_variants
from ckptstore.types import ByteRange, DType

__all__ = ["Job", "byte_order_unit", "fetch", "fetch_box"]

# Bytes asked for with one call of the storage: enough that it can fetch several ranges at a time, and few
# enough that some are still in the processor's cache when their checksum is calculated.
_BATCH_SIZE_BYTES = 4 * STAGE_SIZE_BYTES

# Ranges of a box asked for with one call: they may be four bytes each.
_BATCH_RANGES = 1024

_NATIVE = {dtype.as_datatype_enum: dtype.dtype for dtype in dtypes.ALL}


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
        Receives the values; of the type's numpy dtype in any byte order, of any strides.
    select : tuple of slice or None
        What part of the piece `target` receives; None = all of it.
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
    if big_endian == (sys.byteorder == "big"):
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


def fetch(jobs: Sequence[Job], shards: ShardFiles, *, big_endian: bool) -> None:
    """Read every piece, verify it, and put it into its target.

    The pieces are read in the order of the files, those near each other together.

    Raises
    ------
    ChecksumError, TruncatedFileError, IncompleteBundleError, FormatError
        At the first piece that is damaged. Small targets are filled only after their bytes were verified;
        large ones (`plan.DIRECT_SIZE_BYTES`) receive the bytes first, so the one that fails holds what
        failed.
    """
    _Fetch(jobs, shards, big_endian).run()


class _Part(NamedTuple):
    """Bytes ``[start, stop)`` of a run."""

    start: int
    stop: int
    run: ReadRun


def _batches(runs: Iterable[ReadRun]) -> Iterator[list[_Part]]:
    """Yield what is asked for with one call each, of one shard each; long runs come in several parts."""
    batch: list[_Part] = []
    size = 0
    for run in runs:
        for start in range(run.start, run.stop, STAGE_SIZE_BYTES):
            stop = min(run.stop, start + STAGE_SIZE_BYTES)
            if batch and (batch[0].run.shard != run.shard or size + stop - start > _BATCH_SIZE_BYTES):
                yield batch
                batch, size = [], 0
            batch.append(_Part(start, stop, run))
            size += stop - start
    if batch:
        yield batch


class _Fetch:
    """The state of one call of `fetch`."""

    def __init__(self, jobs: Sequence[Job], shards: ShardFiles, big_endian: bool) -> None:
        self._jobs = jobs
        self._shards = shards
        self._big_endian = big_endian
        self._is_foreign = big_endian != (sys.byteorder == "big")
        self._staging = np.empty(0, np.uint8)
        # Pieces of which some parts are still to come: the memory that receives them, and the checksum so
        # far.
        self._receivers: dict[int, npt.NDArray[np.uint8]] = {}
        self._crcs: dict[int, int] = {}

    def run(self) -> None:
        items = []
        for number, (tensor, entry, _, _, _) in enumerate(self._jobs):
            start, size = entry.offset, entry.size_bytes
            if size:
                items.append(ReadItem(entry.shard_id, start, start + size, tensor, number))
            else:
                self._place(self._jobs[number], b"", self._shards[entry.shard_id])
        for batch in _batches(plan_reads(items).runs):
            self._run_batch(batch)

    def _run_batch(self, parts: list[_Part]) -> None:
        staged_size = sum(part.stop - part.start for part in parts if part.run.staged)
        if len(self._staging) < staged_size:
            self._staging = np.empty(staged_size, np.uint8)
        buffers = []
        used = 0
        for part in parts:
            size = part.stop - part.start
            if part.run.staged:
                buffers.append(self._staging.data[used : used + size])
                used += size
            else:
                begin = part.start - part.run.start
                buffers.append(self._receiver(part.run).data[begin : begin + size])
        shard = self._shards[parts[0].run.shard]
        shard.read_into(
            [ByteRange(part.start, part.stop) for part in parts], buffers, parts[0].run.items[0].tensor
        )
        for part, buffer in zip(parts, buffers, strict=True):
            if part.run.staged:
                start = part.start
                for _, item_start, item_stop, _, request in part.run.items:
                    raw = bytes(buffer[item_start - start : item_stop - start])
                    self._place(self._jobs[request], raw, shard)
            else:
                self._advance(part, buffer, shard)

    def _receiver(self, run: ReadRun) -> npt.NDArray[np.uint8]:
        """Return the memory for a run that is not staged: the target's own where its layout allows."""
        request = run.items[0].request
        found = self._receivers.get(request)
        if found is None:
            job = self._jobs[request]
            if _is_direct(job):
                found = dtypes.as_bytes_view(job.target)
            else:
                found = np.empty(run.stop - run.start, np.uint8)
            self._receivers[request] = found
        return found

    def _advance(self, part: _Part, buffer: memoryview, shard: ShardFile) -> None:
        """Take in one part of a run that is not staged."""
        request = part.run.items[0].request
        job = self._jobs[request]
        if not job.target.dtype.hasobject:
            self._crcs[request] = crc32c(buffer, self._crcs.get(request, 0))
        if part.stop < part.run.stop:
            return
        received = self._receivers.pop(request)
        if job.target.dtype.hasobject:
            self._place(job, received, shard)
            return
        shard.check_crc32c(job.entry, self._crcs.pop(request), job.tensor)
        unit = byte_order_unit(job.dtype, self._big_endian, source=shard.url, tensor=job.tensor)
        if unit > 1:
            received.view(f"u{unit}").byteswap(inplace=True)
        if not _is_direct(job):
            _assign(job, received.view(_NATIVE[job.dtype.as_datatype_enum]))

    def _place(self, job: Job, raw: bytes | npt.NDArray[np.uint8], shard: ShardFile) -> None:
        """Verify the bytes of one piece, decode them, and put the values into its target."""
        entry = job.entry
        if job.target.dtype.hasobject:
            decode = decode_strings if job.dtype == dtypes.STRING else decode_variants
            values = np.empty(element_count(entry.shape), object)
            values[:] = decode(
                raw if isinstance(raw, bytes) else raw.data,
                len(values),
                big_endian=self._big_endian,
                masked_crc32c=entry.masked_crc32c,
                source=shard.url,
                tensor=job.tensor,
                offset=entry.offset,
            )
            _assign(job, values)
            return
        crc = crc32c(raw)
        if mask(crc) != entry.masked_crc32c:
            shard.check_crc32c(entry, crc, job.tensor)
        native = np.frombuffer(raw, _NATIVE[entry.dtype_enum])
        if self._is_foreign:
            unit = byte_order_unit(job.dtype, self._big_endian, source=shard.url, tensor=job.tensor)
            if unit > 1:
                native = native.view(f"u{unit}").byteswap().view(native.dtype)
        _assign(job, native)


def _is_direct(job: Job) -> bool:
    target = job.target
    native = _NATIVE[job.entry.dtype_enum]
    return (
        job.select is None and target.flags.c_contiguous and not native.hasobject and target.dtype == native
    )


def _assign(job: Job, values: npt.NDArray[Any]) -> None:
    values = values.reshape(job.entry.shape)
    job.target[...] = values if job.select is None else values[job.select]


def fetch_box(
    tensor: str,
    entry: BundleEntry,
    dtype: DType,
    axes: Sequence[Axis],
    target: npt.NDArray[Any],
    shard: ShardFile,
    *,
    big_endian: bool,
) -> None:
    """Read a part of one piece, and only the bytes near it.

    There is no checksum for a part: nothing is verified.

    Parameters
    ----------
    axes : sequence of Axis
        What of each dimension; no element type of varying size.
    target : ndarray
        One dimension for each axis.
    """
    unit = byte_order_unit(dtype, big_endian, source=shard.url, tensor=tensor)
    native = _NATIVE[dtype.as_datatype_enum]

    def flush(reads: list[tuple[BoxRead, npt.NDArray[Any], npt.NDArray[np.uint8] | None]]) -> None:
        ranges, buffers = [], []
        for read, place, staging in reads:
            ranges.append(ByteRange(entry.offset + read.start, entry.offset + read.stop))
            buffers.append((dtypes.as_bytes_view(place) if staging is None else staging).data)
        shard.read_into(ranges, buffers, tensor)
        for read, place, staging in reads:
            if staging is not None:
                values = np.ndarray(place.shape, native, staging, read.first, read.strides)
                place[...] = _swapped(values.copy(), unit) if unit > 1 else values
            elif unit > 1:
                _swapped(place, unit)

    waiting: list[tuple[BoxRead, npt.NDArray[Any], npt.NDArray[np.uint8] | None]] = []
    staged_size = 0
    for read in split_box(axes, entry.shape, native.itemsize):
        size = read.stop - read.start
        place = view_of(target, read.where)
        direct = read.is_contiguous and place.flags.c_contiguous and place.dtype == native
        if waiting and (len(waiting) == _BATCH_RANGES or staged_size + size > _BATCH_SIZE_BYTES):
            flush(waiting)
            waiting, staged_size = [], 0
        waiting.append((read, place, None if direct else np.empty(size, np.uint8)))
        staged_size += 0 if direct else size
    if waiting:
        flush(waiting)


def _swapped(array: npt.NDArray[Any], unit: int) -> npt.NDArray[Any]:
    """Reverse the bytes of every unit of a C-contiguous array, in place."""
    array.reshape(-1).view(f"u{unit}").byteswap(inplace=True)
    return array
