"""Reading from an object store: exact ranges, resumed where the connection broke, of one version."""

from __future__ import annotations

import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ckptstore.errors import CkptStoreError, NotFoundError, TruncatedFileError
from ckptstore.storage.checks import check_pin, resolve_range, resolve_reads, truncated
from ckptstore.storage.object_store.attempts import Attempts
from ckptstore.storage.object_store.errors import error_of
from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.object_store.transport import ObjectName, ResponseHead, Sink, Transport
from ckptstore.storage.values import GetResult, SuffixRange
from ckptstore.types import ByteRange

__all__ = ["ObjectReader"]

# A request costs 10 to 50 ms on a real service: as much as 64 KiB of a slow connection.
_GAP_SIZE_BYTES = 64 * 1024

# An attempt that brought so much was a good one: a proxy that cuts every body can be outlasted.
_GOOD_PIECE_BYTES = 64 * 1024

# Of an object whose size only its sender tells, no more than this is allocated ahead.
_BLOCK_BYTES = 8 * 1024 * 1024

# Pieces smaller than this are received many at a time, and copied.
_SMALL_BYTES = 64 * 1024
_SCRATCH_BYTES = 256 * 1024

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(-?\d+)/(\d+)")


class ObjectReader:
    """The reads of one object, one request after the other in the caller's thread.

    Parameters
    ----------
    transport : Transport
    object_name : ObjectName
    url : str
        For messages.
    version : str or None
        The one that is wanted; without it, the one that the first answer shows.
    new_attempts : callable
        Returns the `Attempts` of a new operation.
    """

    def __init__(
        self,
        transport: Transport,
        object_name: ObjectName,
        url: str,
        version: str | None,
        new_attempts: Callable[[], Attempts],
    ) -> None:
        self._transport = transport
        self._object_name = object_name
        self._url = url
        self._version = version
        self._new_attempts = new_attempts

    def get(self, byte_range: ByteRange | SuffixRange | None) -> GetResult:
        """Return bytes; see `Storage.get`."""
        if byte_range is not None:
            resolve_range(byte_range, sys.maxsize, self._url)  # an empty range is never sent
        blocks = _Blocks()
        download = _Download(self, byte_range, blocks)
        download.run()
        return GetResult(b"".join(blocks.filled_blocks), download.version, download.size_bytes)

    def read_into(self, ranges: Sequence[ByteRange], buffers: Sequence[memoryview]) -> None:
        """Fill buffers; see `Storage.read_into`."""
        pieces = [_Piece(*read) for read in resolve_reads(ranges, buffers, sys.maxsize, self._url)]
        for group in _groups(pieces):
            wanted = ByteRange(group[0].start, group[-1].stop)
            download = _Download(self, wanted, _Pieces(group), group)
            download.run()
            # The first answer pins the version for all others.
            self._version = download.version


class _Piece(NamedTuple):
    """Bytes ``[start, stop)`` of the object, and where they go."""

    start: int
    stop: int
    buffer: memoryview


def _groups(pieces: Sequence[_Piece]) -> list[list[_Piece]]:
    """Put neighbours together, of `pieces` ascending by start; what overlaps has requests of its own."""
    groups: list[list[_Piece]] = []
    for piece in pieces:
        if groups and 0 <= piece.start - groups[-1][-1].stop <= _GAP_SIZE_BYTES:
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return groups


class _Target(ABC):
    """Where the bytes of one range go, in order."""

    @abstractmethod
    def get_buffer(self, left_bytes: int) -> memoryview:
        """Return memory for the next bytes, of which so many are to come, at least one; may be longer."""

    @abstractmethod
    def buffer_updated(self, size_bytes: int) -> None:
        """Hear that so many bytes were put at the beginning of the window."""


class _Blocks(_Target):
    """New memory, which grows with what comes."""

    def __init__(self) -> None:
        self._blocks: list[bytearray] = []
        self._room = memoryview(b"")

    @property
    def filled_blocks(self) -> Sequence[bytearray]:
        """What came; only where all of it did."""
        return self._blocks

    def get_buffer(self, left_bytes: int) -> memoryview:
        if not self._room:
            self._blocks.append(bytearray(min(left_bytes, _BLOCK_BYTES)))
            self._room = memoryview(self._blocks[-1])
        return self._room

    def buffer_updated(self, size_bytes: int) -> None:
        self._room = self._room[size_bytes:]


class _Pieces(_Target):
    """The buffers of neighbouring pieces; what lies between them goes nowhere."""

    def __init__(self, pieces: Sequence[_Piece]) -> None:
        self._pieces = pieces
        self._first = 0
        self._position = pieces[0].start
        self._scratch = memoryview(b"")
        self._is_scratch = False

    def get_buffer(self, left_bytes: int) -> memoryview:
        start, stop, buffer = self._pieces[self._first]
        self._is_scratch = start > self._position or stop - start < _SMALL_BYTES
        if not self._is_scratch:
            return buffer[self._position - start :]
        if not self._scratch:
            self._scratch = memoryview(bytearray(min(left_bytes, _SCRATCH_BYTES)))
        return self._scratch[: self._next_large() - self._position]

    def _next_large(self) -> int:
        """Return where the next piece begins that is worth a window of its own, or the scratch ends."""
        end = self._position + len(self._scratch)
        for number in range(self._first, len(self._pieces)):
            start, stop, _ = self._pieces[number]
            if start >= end or (start > self._position and stop - start >= _SMALL_BYTES):
                return min(start, end)
        return end

    def buffer_updated(self, size_bytes: int) -> None:
        end = self._position + size_bytes
        while self._first < len(self._pieces):
            start, stop, buffer = self._pieces[self._first]
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


class _Download(Sink):
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
        target: _Target,
        pieces: Sequence[_Piece] = (),
    ) -> None:
        self._transport = reader._transport
        self._object_name = reader._object_name
        self._url = reader._url
        self._new_attempts = reader._new_attempts
        self._wanted_version = reader._version
        self._range = byte_range
        self._target = target
        self._pieces = pieces
        self._received = 0
        self._expected = -1  # bytes of the whole range, once an answer told
        self._is_too_long = False
        self._start = byte_range.start if isinstance(byte_range, ByteRange) else 0
        self.version = ""
        self.size_bytes = 0

    def run(self) -> None:
        """Read all of it.

        Raises
        ------
        CkptStoreError
        """
        attempts = self._new_attempts()
        try:
            attempts.run(self._attempt)
        except Fault as fault:
            if fault.kind is Kind.BAD_RANGE:
                self._look(fault, attempts)
            else:
                raise self._error_of(fault, attempts) from None

    def _attempt(self, attempts: Attempts) -> None:
        if self._is_too_long:
            raise self._too_long()
        if self._received == self._expected:
            return  # the connection broke after the last byte
        before = self._received
        try:
            self._transport.get(
                self._object_name,
                attempts,
                byte_range=self._header(),
                version=self.version or self._wanted_version,
                accept=self._accept,
            )
            if self._received < self._expected:
                raise Fault(Kind.CUT, f"the body ended after {self._received} of {self._expected} bytes")
        except Fault:
            if self._received - before >= _GOOD_PIECE_BYTES:
                attempts.reset_failures()
            raise

    def _look(self, fault: Fault, attempts: Attempts) -> None:
        """Find out how long the object is, after a 416, which does not say it everywhere."""
        try:
            info = attempts.child().run(lambda attempts: self._transport.head(self._object_name, attempts))
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
        """Judge an answer by its headers, before any byte of its body is taken."""
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
            return memoryview(bytearray(1))  # for the byte that must not come
        return self._target.get_buffer(left_bytes)[:left_bytes]

    def buffer_updated(self, size_bytes: int) -> None:
        if self._received == self._expected:
            self._is_too_long = True
            raise self._too_long()
        self._target.buffer_updated(size_bytes)
        self._received += size_bytes

    def _too_long(self) -> Fault:
        return Fault(Kind.GARBLED, f"the body is longer than the {self._expected} bytes announced")

    def _extent(self, head: ResponseHead) -> tuple[int, int, int]:
        """Return first byte, end and size of the whole object that an answer announces."""
        if head.status == 206:
            match = _CONTENT_RANGE.fullmatch(head.content_range or "")
            if match is None:
                raise Fault(Kind.GARBLED, f"the answer says Content-Range {head.content_range!r}")
            if head.size_bytes is None and head.encoding not in (None, "", "identity"):
                # With a length it is what somebody stored; without, what something on the way made of it.
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

    def _error_of(self, fault: Fault, attempts: Attempts) -> CkptStoreError:
        if fault.kind is Kind.PRECONDITION or (fault.kind is Kind.ABSENT and self._wanted_version):
            return NotFoundError(
                "the version asked for was replaced or deleted",
                url=self._url,
                expected=f"version {self.version or self._wanted_version}",
                hint="Start again from the record or the index.",
            )
        return error_of(fault, "cannot read the object", self._url, attempts)
