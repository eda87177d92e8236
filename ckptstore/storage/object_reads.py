"""Reading from an object store: exact ranges, resumed where the connection broke, of one version."""

from __future__ import annotations

import re
import sys
from bisect import bisect_right
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import NamedTuple

from ckptstore.errors import CkptStoreError, NotFoundError, TruncatedFileError
from ckptstore.storage.base import Got, SuffixRange
from ckptstore.storage.checks import check_pin, resolve_range, resolve_reads, truncated
from ckptstore.storage.faults import Fault, Kind, error_of
from ckptstore.storage.object_tasks import run_tasks
from ckptstore.storage.retry import Cancellation, Operation
from ckptstore.storage.transport import Heading, Place, Receiver, Transport
from ckptstore.types import ByteRange

__all__ = ["ObjectReader"]

# A request costs 10 to 50 ms on a real service: as much as 64 KiB of a slow connection.
_GAP_SIZE_BYTES = 64 * 1024

# One request, and what is fetched again at most when it fails in a way that cannot be resumed.
_REQUEST_SIZE_BYTES = 8 * 1024 * 1024

_PARALLEL_READS = 8

# An attempt that brought so much was a good one: a proxy that cuts every body can be outlasted.
_GOOD_PIECE_BYTES = 64 * 1024

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(-?\d+)/(\d+)")


class ObjectReader:
    """The reads of one object.

    Parameters
    ----------
    transport : Transport
    place : Place
    url : str
        For messages.
    version : str or None
        The one that is wanted; without it, the one that the first answer shows.
    new_operation : callable
        ``new_operation(cancellation)`` begins an operation.
    """

    def __init__(
        self,
        transport: Transport,
        place: Place,
        url: str,
        version: str | None,
        new_operation: Callable[[Cancellation | None], Operation],
    ) -> None:
        self._transport = transport
        self._place = place
        self._url = url
        self._version = version
        self._new_operation = new_operation

    def get(self, byte_range: ByteRange | SuffixRange | None) -> Got:
        """Return bytes; see `Storage.get`."""
        if byte_range is not None:
            resolve_range(byte_range, sys.maxsize, self._url)  # an empty range is never sent
        pieces: list[bytes] = []
        download = _Download(self, byte_range, lambda piece: pieces.append(bytes(piece)))
        download.run(None)
        return Got(b"".join(pieces), download.version, download.size_bytes)

    def read_into(
        self, ranges: Sequence[ByteRange], buffers: Sequence[memoryview], pool: Callable[[], Executor]
    ) -> None:
        """Fill buffers; see `Storage.read_into`."""
        reads = resolve_reads(ranges, buffers, sys.maxsize, self._url)
        pieces = [_Piece(*read) for read in reads]
        requests = _requests(pieces)
        if not requests:
            return
        if self._version is None:
            # The first answer pins the version for all others.
            first = requests.pop(0)
            self._version = self._fetch(first, None).version
        if len(requests) == 1:
            self._fetch(requests[0], None)
        elif requests:
            run_tasks(
                pool(),
                [
                    lambda cancellation, request=request: self._fetch(request, cancellation)  # type: ignore[misc]
                    for request in requests
                ],
                _PARALLEL_READS,
            )

    def _fetch(self, request: _Request, cancellation: Cancellation | None) -> _Download:
        wanted = ByteRange(request.start, request.stop)
        download = _Download(self, wanted, request.scatter(), request.pieces)
        download.run(cancellation)
        return download


class _Piece(NamedTuple):
    """Bytes ``[start, stop)`` of the object, and where they go."""

    start: int
    stop: int
    buffer: memoryview


class _Request(NamedTuple):
    """One range to ask for, and the pieces that lie in it, ascending by start."""

    start: int
    stop: int
    pieces: Sequence[_Piece]

    def scatter(self) -> Receiver:
        """Return what puts a body that begins at `start` into the buffers."""
        position = self.start
        first = 0
        pieces = self.pieces
        # Of overlapping pieces a short one may end before a long one that begins earlier.
        ends: list[int] = []
        longest = 0
        for piece in pieces:
            longest = max(longest, piece.stop)
            ends.append(longest)

        def receive(data: memoryview) -> None:
            nonlocal position, first
            end = position + len(data)
            first = bisect_right(ends, position, lo=first)
            for number in range(first, len(pieces)):
                start, stop, buffer = pieces[number]
                if start >= end:
                    break
                low, high = max(start, position), min(stop, end)
                if low < high:
                    buffer[low - start : high - start] = data[low - position : high - position]
            position = end

        return receive


def _requests(pieces: list[_Piece]) -> list[_Request]:
    """Put neighbours into one request and long pieces into several; ascending by start."""
    requests: list[_Request] = []
    group: list[_Piece] = []
    start = stop = 0
    for piece in pieces:
        if piece.stop - piece.start > _REQUEST_SIZE_BYTES:
            for low in range(piece.start, piece.stop, _REQUEST_SIZE_BYTES):
                high = min(low + _REQUEST_SIZE_BYTES, piece.stop)
                part = piece.buffer[low - piece.start : high - piece.start]
                requests.append(_Request(low, high, [_Piece(low, high, part)]))
            continue
        grown = max(stop, piece.stop)
        if group and (piece.start - stop > _GAP_SIZE_BYTES or grown - start > _REQUEST_SIZE_BYTES):
            requests.append(_Request(start, stop, group))
            group = []
        if not group:
            start, stop = piece.start, piece.stop
        group.append(piece)
        stop = max(stop, piece.stop)
    if group:
        requests.append(_Request(start, stop, group))
    requests.sort(key=lambda request: request.start)
    return requests


class _Download:
    """One range of one object, in as many attempts as it takes; each goes on where the last one broke off.

    Attributes
    ----------
    version : str
    size_bytes : int
        Of the whole object.
    """

    def __init__(
        self,
        reader: ObjectReader,
        byte_range: ByteRange | SuffixRange | None,
        receiver: Receiver,
        pieces: Sequence[_Piece] = (),
    ) -> None:
        self._transport = reader._transport
        self._place = reader._place
        self._url = reader._url
        self._new_operation = reader._new_operation
        self._wanted_version = reader._version
        self._range = byte_range
        self._receiver = receiver
        self._pieces = pieces
        self._received = 0
        self._expected = -1  # bytes of the whole range, once an answer told
        self._start = byte_range.start if isinstance(byte_range, ByteRange) else 0
        self.version = ""
        self.size_bytes = 0

    def run(self, cancellation: Cancellation | None) -> None:
        """Read all of it.

        Raises
        ------
        CkptStoreError
        """
        operation = self._new_operation(cancellation)
        try:
            operation.run(self._attempt)
        except Fault as fault:
            if fault.kind is Kind.BAD_RANGE:
                self._look(fault, operation)
            else:
                raise self._error_of(fault, operation) from None

    def _attempt(self, operation: Operation) -> None:
        if self._received == self._expected:
            return  # the connection broke after the last byte
        before = self._received
        try:
            self._transport.get(
                self._place,
                operation,
                byte_range=self._header(),
                version=self.version or self._wanted_version,
                accept=self._accept,
            )
            if self._received < self._expected:
                raise Fault(Kind.CUT, f"the body ended after {self._received} of {self._expected} bytes")
        except Fault:
            if self._received - before >= _GOOD_PIECE_BYTES:
                operation.forgive()
            raise

    def _look(self, fault: Fault, operation: Operation) -> None:
        """Find out how long the object is, after a 416, which does not say it everywhere."""
        try:
            info = operation.child().run(lambda op: self._transport.head(self._place, op))
        except Fault:
            raise self._error_of(fault, operation) from None
        check_pin(self.version or self._wanted_version, info.version, self._url)
        if isinstance(self._range, ByteRange) and info.size_bytes < self._range.stop:
            raise self._truncated(self._range, info.size_bytes)
        if info.size_bytes:
            raise self._error_of(fault, operation)
        self.version = info.version

    def _header(self) -> str | None:
        if self._received:
            return f"bytes={self._start + self._received}-{self._start + self._expected - 1}"
        if isinstance(self._range, SuffixRange):
            return f"bytes=-{self._range.size_bytes}"
        return None if self._range is None else f"bytes={self._range.start}-{self._range.stop - 1}"

    def _accept(self, heading: Heading) -> Receiver:
        """Judge an answer by its headers, before any byte of its body is taken."""
        if not heading.version:
            raise Fault(Kind.GARBLED, "the answer names no version: this is not the object store")
        check_pin(self.version or self._wanted_version, heading.version, self._url)
        start, stop, total = self._extent(heading)
        if self._received and start != self._start + self._received:
            raise Fault(Kind.GARBLED, f"the answer begins at byte {start}")
        if not self._received:
            self._check_extent(start, stop, total)
            self.version, self.size_bytes = heading.version, total
            self._start, self._expected = start, stop - start
        return self._receive

    def _receive(self, data: memoryview) -> None:
        if self._received + len(data) > self._expected:
            raise Fault(Kind.GARBLED, f"the body is longer than the {self._expected} bytes announced")
        self._receiver(data)
        self._received += len(data)

    def _extent(self, heading: Heading) -> tuple[int, int, int]:
        """Return first byte, end and size of the whole object that an answer announces."""
        if heading.status == 206:
            match = _CONTENT_RANGE.fullmatch(heading.content_range or "")
            if match is None:
                raise Fault(Kind.GARBLED, f"the answer says Content-Range {heading.content_range!r}")
            return int(match[1]), int(match[2]) + 1, int(match[3])
        if heading.size_bytes is None:
            raise Fault(Kind.GARBLED, "the answer does not say how long it is")
        if self._header() is not None and not self._is_whole(heading.size_bytes):
            # Not read: it may be a hundred gigabytes.
            raise Fault(
                Kind.UNSUPPORTED,
                "a range was answered with the whole object: the server or a proxy ignores it",
            )
        return 0, heading.size_bytes, heading.size_bytes

    def _is_whole(self, size_bytes: int) -> bool:
        """Tell whether an object of that size is what the range asks for, or less."""
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
        """Return the error for an object that is too short, with the first piece that it lacks."""
        ends = ((piece.start, piece.stop) for piece in self._pieces if piece.stop > size_bytes)
        start, stop = next(ends, (wanted.start, wanted.stop))
        return truncated(self._url, start, stop, size_bytes)

    def _error_of(self, fault: Fault, operation: Operation) -> CkptStoreError:
        if fault.kind is Kind.PRECONDITION or (fault.kind is Kind.ABSENT and self._wanted_version):
            return NotFoundError(
                "the version asked for was replaced or deleted",
                url=self._url,
                expected=f"version {self.version or self._wanted_version}",
                hint="Start again from the record or the index.",
            )
        return error_of(fault, "cannot read the object", self._url, operation)
