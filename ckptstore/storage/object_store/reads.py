"""Reading from an object store: exact ranges, resumed where the connection broke, of one version."""

from __future__ import annotations

import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from ckptstore.errors import CkptStoreError, NotFoundError, TruncatedFileError
from ckptstore.storage.checks import check_pin, resolve_range, resolve_reads, truncated
from ckptstore.storage.object_store.attempts import Attempts
from ckptstore.storage.object_store.errors import error_of
from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.object_store.service import ObjectService
from ckptstore.storage.object_store.transport import ObjectName, ResponseHead, Sink
from ckptstore.storage.values import GetResult, SuffixRange
from ckptstore.types import ByteRange

__all__ = ["ObjectReader"]

# A request costs 10 to 50 ms on a real service: as much as 64 KiB of a slow connection.
_GAP_SIZE_BYTES = 64 * 1024

# An attempt that received this much resets the count of failures: a proxy that cuts every body is outlasted.
_PROGRESS_BYTES = 64 * 1024

# Memory allocated at a time for an object whose size is known from its answer only.
_BLOCK_BYTES = 8 * 1024 * 1024

# Ranges smaller than this are received many at a time, and copied.
_SMALL_BYTES = 64 * 1024
_SCRATCH_BYTES = 256 * 1024

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(-?\d+)/(\d+)")


class ObjectReader:
    """The reads of one object, one request after the other in the caller's thread.

    Parameters
    ----------
    version : str or None
        The one that is wanted; None: the one of the first answer.
    """

    def __init__(self, service: ObjectService, object_name: ObjectName, version: str | None) -> None:
        self._service = service
        self._object_name = object_name
        self._version = version

    def get(self, byte_range: ByteRange | SuffixRange | None) -> GetResult:
        """Return bytes; see `Storage.get`."""
        if byte_range is not None:
            # An empty range is never sent.
            resolve_range(byte_range, sys.maxsize, self._service.url_of(self._object_name.key))
        memory = _NewMemory()
        read = self._read(byte_range, memory)
        return GetResult(b"".join(memory.blocks), read.version, read.size_bytes)

    def get_into(self, byte_range: ByteRange, buffer: memoryview) -> tuple[str, int]:
        """Fill a buffer; see `Storage.get_into`."""
        url = self._service.url_of(self._object_name.key)
        wanted = [_WantedRange(*read) for read in resolve_reads([byte_range], [buffer], sys.maxsize, url)]
        read = self._read(byte_range, _CallerBuffers(wanted), wanted)
        return read.version, read.size_bytes

    def get_unless(self, version: str, byte_range: ByteRange | SuffixRange | None) -> GetResult | None:
        """Return bytes, or None while `version` is there; see `Storage.get_unless`."""
        memory = _NewMemory()
        read = _RangeRead(self._service, self._object_name, None, byte_range, memory, unless_version=version)
        read.run()
        # A server that does not know the condition answers with the object.
        if read.is_unchanged or read.version == version:
            return None
        return GetResult(b"".join(memory.blocks), read.version, read.size_bytes)

    def read_into(self, ranges: Sequence[ByteRange], buffers: Sequence[memoryview]) -> None:
        """Fill buffers; see `Storage.read_into`."""
        url = self._service.url_of(self._object_name.key)
        wanted = [_WantedRange(*read) for read in resolve_reads(ranges, buffers, sys.maxsize, url)]
        for group in _neighbours(wanted):
            read = self._read(ByteRange(group[0].start, group[-1].stop), _CallerBuffers(group), group)
            # The first answer pins the version for all others.
            self._version = read.version

    def _read(
        self,
        byte_range: ByteRange | SuffixRange | None,
        destination: _Destination,
        wanted: Sequence[_WantedRange] = (),
    ) -> _RangeRead:
        read = _RangeRead(self._service, self._object_name, self._version, byte_range, destination, wanted)
        read.run()
        return read


class _WantedRange(NamedTuple):
    """Bytes ``[start, stop)`` of the object, and where they go."""

    start: int
    stop: int
    buffer: memoryview


def _neighbours(wanted: Sequence[_WantedRange]) -> list[list[_WantedRange]]:
    """Group ranges that are close together, of `wanted` ascending by start; an overlap begins a new group."""
    groups: list[list[_WantedRange]] = []
    for each in wanted:
        if groups and 0 <= each.start - groups[-1][-1].stop <= _GAP_SIZE_BYTES:
            groups[-1].append(each)
        else:
            groups.append([each])
    return groups


class _Destination(ABC):
    """Where the bytes of one range go, in order."""

    @abstractmethod
    def get_buffer(self, left_bytes: int) -> memoryview:
        """Return memory for the next of `left_bytes` bytes, at least one; may be longer."""

    @abstractmethod
    def buffer_updated(self, size_bytes: int) -> None:
        """Record that `size_bytes` bytes were written to the beginning of the buffer."""


class _NewMemory(_Destination):
    """New memory, which grows with what is received; `blocks` are full once the whole range came."""

    def __init__(self) -> None:
        self.blocks: list[bytearray] = []
        self._room = memoryview(b"")

    def get_buffer(self, left_bytes: int) -> memoryview:
        if not self._room:
            self.blocks.append(bytearray(min(left_bytes, _BLOCK_BYTES)))
            self._room = memoryview(self.blocks[-1])
        return self._room

    def buffer_updated(self, size_bytes: int) -> None:
        self._room = self._room[size_bytes:]


class _CallerBuffers(_Destination):
    """The buffers of neighbouring ranges; what lies between them is dropped."""

    def __init__(self, wanted: Sequence[_WantedRange]) -> None:
        self._wanted = wanted
        self._first = 0
        self._position = wanted[0].start
        self._scratch = memoryview(b"")
        self._is_scratch = False

    def get_buffer(self, left_bytes: int) -> memoryview:
        start, stop, buffer = self._wanted[self._first]
        self._is_scratch = start > self._position or stop - start < _SMALL_BYTES
        if not self._is_scratch:
            return buffer[self._position - start :]
        if not self._scratch:
            self._scratch = memoryview(bytearray(min(left_bytes, _SCRATCH_BYTES)))
        return self._scratch[: self._next_large() - self._position]

    def _next_large(self) -> int:
        """Return where the next range begins that is received into its own buffer, or the scratch ends."""
        end = self._position + len(self._scratch)
        for number in range(self._first, len(self._wanted)):
            start, stop, _ = self._wanted[number]
            if start >= end or (start > self._position and stop - start >= _SMALL_BYTES):
                return min(start, end)
        return end

    def buffer_updated(self, size_bytes: int) -> None:
        end = self._position + size_bytes
        while self._first < len(self._wanted):
            start, stop, buffer = self._wanted[self._first]
            if start >= end:
                break
            if self._is_scratch:
                low, high = max(start, self._position), min(stop, end)
                buffer[low - start : high - start] = self._scratch[
                    low - self._position : high - self._position
                ]
            if stop > end:
                break
            self._first += 1
        self._position = end


class _RangeRead(Sink):
    """One range of one object, in as many attempts as it takes; each goes on where the last one broke off.

    Attributes
    ----------
    size_bytes : int
        Of the whole object.
    is_unchanged : bool
        Whether `unless_version` is there; then nothing was read.
    """

    def __init__(
        self,
        service: ObjectService,
        object_name: ObjectName,
        version: str | None,
        byte_range: ByteRange | SuffixRange | None,
        destination: _Destination,
        wanted: Sequence[_WantedRange] = (),
        *,
        unless_version: str | None = None,
    ) -> None:
        self._service = service
        self._object_name = object_name
        self._url = service.url_of(object_name.key)
        self._wanted_version = version
        self._range = byte_range
        self._destination = destination
        self._wanted = wanted
        self._unless_version = unless_version
        self._received = 0
        self._expected = -1  # bytes of the whole range, known from the first answer on
        self._is_too_long = False
        self._start = byte_range.start if isinstance(byte_range, ByteRange) else 0
        self.version = ""
        self.size_bytes = 0
        self.is_unchanged = False

    def run(self) -> None:
        """Read all of it.

        Raises
        ------
        CkptStoreError
        """
        attempts = self._service.new_attempts()
        try:
            attempts.run(self._attempt)
        except Fault as fault:
            if fault.kind is Kind.UNCHANGED and self._unless_version is not None:
                self.is_unchanged = True
            elif fault.kind is Kind.BAD_RANGE:
                self._check_size(fault, attempts)
            else:
                raise self._error_of(fault, attempts) from None

    def _attempt(self, attempts: Attempts) -> None:
        if self._is_too_long:
            raise self._too_long()
        if self._received == self._expected:
            return  # the connection broke after the last byte
        before = self._received
        try:
            self._service.transport.get(
                self._object_name,
                attempts,
                byte_range=self._header(),
                version=self.version or self._wanted_version,
                # Once some of it was received, that version is wanted.
                unless_version=None if self.version else self._unless_version,
                accept=self._accept,
            )
            if self._received < self._expected:
                raise Fault(Kind.CUT, f"the body ended after {self._received} of {self._expected} bytes")
        except Fault:
            if self._received - before >= _PROGRESS_BYTES:
                attempts.reset_failures()
            raise

    def _check_size(self, fault: Fault, attempts: Attempts) -> None:
        """Ask for the size of the object after a 416, which does not contain it on every server."""
        try:
            info = attempts.child().run(partial(self._service.transport.head, self._object_name))
        except Fault:
            raise self._error_of(fault, attempts) from None
        check_pin(self.version or self._wanted_version, info.version, self._url)
        if isinstance(self._range, ByteRange) and info.size_bytes < self._range.stop:
            raise self._truncated(self._range, info.size_bytes)
        if info.size_bytes:
            raise self._error_of(fault, attempts)
        self.version = info.version

    def _header(self) -> str | None:
        if self._received:
            return f"bytes={self._start + self._received}-{self._start + self._expected - 1}"
        if isinstance(self._range, SuffixRange):
            return f"bytes=-{self._range.size_bytes}"
        return None if self._range is None else f"bytes={self._range.start}-{self._range.stop - 1}"

    def _accept(self, head: ResponseHead) -> Sink:
        """Check an answer by its headers, before any byte of its body is read."""
        if not head.version:
            raise Fault(Kind.GARBLED, "the answer names no version: this is not the object store")
        check_pin(self.version or self._wanted_version, head.version, self._url)
        start, stop, total = self._extent(head)
        if head.size_bytes not in (None, stop - start):
            raise Fault(Kind.GARBLED, f"{head.size_bytes} bytes are announced, and {stop - start}")
        if self._received and start != self._start + self._received:
            raise Fault(Kind.GARBLED, f"the answer begins at byte {start}")
        if not self._received:
            self._check_extent(start, stop, total)
            self.version, self.size_bytes = head.version, total
            self._start, self._expected = start, stop - start
        return self

    def get_buffer(self) -> memoryview:
        left_bytes = self._expected - self._received
        if not left_bytes:
            return memoryview(bytearray(1))  # to notice a body that is too long
        return self._destination.get_buffer(left_bytes)[:left_bytes]

    def buffer_updated(self, size_bytes: int) -> None:
        if self._received == self._expected:
            self._is_too_long = True
            raise self._too_long()
        self._destination.buffer_updated(size_bytes)
        self._received += size_bytes

    def _too_long(self) -> Fault:
        return Fault(Kind.GARBLED, f"the body is longer than the {self._expected} bytes announced")

    def _extent(self, head: ResponseHead) -> tuple[int, int, int]:
        """Return first byte, end and size of the whole object that an answer announces."""
        if head.status == 206:
            match = _CONTENT_RANGE.fullmatch(head.content_range or "")
            if match is None:
                raise Fault(Kind.GARBLED, f"the answer has Content-Range {head.content_range!r}")
            if head.size_bytes is None and head.encoding not in (None, "", "identity"):
                # With a length, the object was stored so; without, something on the way compressed it.
                raise Fault(Kind.UNSUPPORTED, f"the answer was compressed on the way ({head.encoding})")
            return int(match[1]), int(match[2]) + 1, int(match[3])
        if head.size_bytes is None:
            raise Fault(Kind.GARBLED, "the answer does not say how long it is")
        if self._header() is not None and not self._is_whole(head.size_bytes):
            # Not read: it may be a hundred gigabytes.
            raise Fault(
                Kind.UNSUPPORTED,
                "a range was answered with the whole object: the server or a proxy ignores it",
            )
        return 0, head.size_bytes, head.size_bytes

    def _is_whole(self, size_bytes: int) -> bool:
        """Whether the range covers a whole object of that size."""
        if self._received:
            return False
        if isinstance(self._range, SuffixRange):
            return size_bytes <= self._range.size_bytes
        return self._range is None or (self._range.start == 0 and size_bytes <= self._range.stop)

    def _check_extent(self, start: int, stop: int, total: int) -> None:
        wanted = self._range
        if isinstance(wanted, ByteRange):
            if total < wanted.stop:
                raise self._truncated(wanted, total)
            if (start, stop) != (wanted.start, wanted.stop):
                raise Fault(Kind.GARBLED, f"bytes {start} to {stop} came for {wanted.start} to {wanted.stop}")
        else:
            longest = total if wanted is None else min(wanted.size_bytes, total)
            if (start, stop) != (total - longest, total):
                raise Fault(Kind.GARBLED, f"bytes {start} to {stop} of {total} came")

    def _truncated(self, wanted: ByteRange, size_bytes: int) -> TruncatedFileError:
        """Return the error for an object that is too short, with the first wanted range that it lacks."""
        ends = ((piece.start, piece.stop) for piece in self._wanted if piece.stop > size_bytes)
        start, stop = next(ends, (wanted.start, wanted.stop))
        return truncated(self._url, start, stop, size_bytes)

    def _error_of(self, fault: Fault, attempts: Attempts) -> CkptStoreError:
        if fault.kind is Kind.PRECONDITION or (fault.kind is Kind.ABSENT and self._wanted_version):
            return NotFoundError(
                "the version asked for was replaced or deleted",
                url=self._url,
                expected=f"version {self.version or self._wanted_version}",
                hint="Start again from the record or the index.",
            )
        return error_of(fault, "cannot read the object", self._url, attempts)
