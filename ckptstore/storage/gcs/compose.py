"""Large objects for Google Cloud Storage: parts sent side by side as objects of their own, then composed.

Format
------
Part ``number`` of ``DIRECTORY/NAME`` is ``DIRECTORY/.ckptstore-parts/NAME/WRITE_ID/NUMBER``, which no listing
of the directory shows. `MOST_SOURCES` objects make one, so that more parts than that are composed in levels:
``LEVEL-NUMBER`` beside them. Every one of these carries the write id of the upload in its metadata.

Guarantees
----------
The object appears with the last request, which has its condition. What is left of an upload that died is
listed by `unfinished_uploads`.
"""

from __future__ import annotations

import logging
import re
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import NamedTuple

from ckptstore.checksums import combine
from ckptstore.errors import CkptStoreWarning
from ckptstore.storage.object_store.attempts import Attempts
from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.object_store.probe import give_up_composing
from ckptstore.storage.object_store.transport import (
    ObjectName,
    Precondition,
    PutRequest,
    PutResult,
    StaleUpload,
    Transport,
    UploadSession,
)
from ckptstore.storage.values import ObjectInfo

__all__ = [
    "MOST_SOURCES",
    "ComposeSession",
    "delete_names",
    "is_nameable",
    "parts_prefix",
    "unfinished_uploads",
]

_LOG = logging.getLogger("ckptstore")

MOST_SOURCES = 32
"""What the service takes in one compose request."""

_PARTS = ".ckptstore-parts"
_WRITE_ID_DIGITS = 32
_MAX_NAME_BYTES = 1024

# What stands behind the directory: final name, write id, part or intermediate object.
_TAIL = re.compile(r"([^/]+)/([0-9a-f]{32})/(?:\d+-)?\d{6,}")


def parts_prefix(start: str) -> str:
    """Return what the names of parts begin with, of objects whose name begins with `start`."""
    directory, slash, name = start.rpartition("/")
    return f"{directory}{slash}{_PARTS}/{name}"


def is_nameable(object_name: ObjectName) -> bool:
    """Return whether the names of its parts are short enough."""
    longest = f"{parts_prefix(object_name.name)}/{'0' * _WRITE_ID_DIGITS}/0-000000"
    return len(longest.encode("utf-8", "replace")) <= _MAX_NAME_BYTES


def unfinished_uploads(
    objects: Iterable[ObjectInfo], bucket: str, start: str, now_s: float
) -> list[StaleUpload]:
    """Return the uploads of which these objects are left; the age counts from the newest object.

    Parameters
    ----------
    objects : iterable of ObjectInfo
        What is listed below `parts_prefix` of `start`.
    now_s : float
        By the server's clock.
    """
    directory = start[: start.rfind("/") + 1]
    root = f"{bucket}/{directory}{_PARTS}/"
    last_s: dict[tuple[str, str], float] = {}
    sizes_bytes: dict[tuple[str, str], int] = {}
    for info in objects:
        tail = _TAIL.fullmatch(info.key.removeprefix(root))
        if tail is not None:
            upload = directory + tail[1], tail[2]
            last_s[upload] = max(info.mtime_s, last_s.get(upload, info.mtime_s))
            sizes_bytes[upload] = sizes_bytes.get(upload, 0) + info.size_bytes
    return [StaleUpload(*upload, now_s - seen_s, sizes_bytes[upload]) for upload, seen_s in last_s.items()]


def delete_names(
    transport: Transport, bucket: str, names: Sequence[str], attempts: Attempts
) -> dict[str, Fault]:
    """Delete these objects, a batch per request; return the faults of those that are left."""
    left: dict[str, Fault] = {}
    for first in range(0, len(names), transport.batch_size):
        batch = names[first : first + transport.batch_size]
        try:
            left |= transport.delete_many(bucket, batch, attempts)
        except Fault as fault:
            if fault.kind is not Kind.UNSUPPORTED:
                raise
            for name in batch:
                try:
                    transport.delete(ObjectName(bucket, name), attempts, version=None)
                except Fault as refusal:
                    if refusal.kind is not Kind.ABSENT:
                        left[name] = refusal
    return left


class _Made(NamedTuple):
    """A part, or an object composed of some, that is on the server."""

    name: str
    version: str
    size_bytes: int
    crc32c: int


class ComposeSession(UploadSession):
    """See `UploadSession`.

    Parameters
    ----------
    transport : Transport
        One that composes.
    request : PutRequest
        Its size is a hint; a wrong one costs time.

    Threads
    -------
    `send` may be called from several threads.
    """

    sends_last_part = True
    leaves_parts = True

    def __init__(
        self,
        transport: Transport,
        request: PutRequest,
    ) -> None:
        self._transport = transport
        self._request = request
        self._prefix = f"{parts_prefix(request.target.name)}/{request.write_id}/"
        self._lock = threading.Lock()
        self._parts: dict[int, _Made] = {}
        self._composed: dict[str, _Made] = {}
        # The names of everything that a request may have made.
        self._names: set[str] = set()
        self._refusals = 0

    @property
    def upload_id(self) -> str:
        return self._request.write_id

    def send(
        self, number: int, offset: int, pieces: Sequence[memoryview], crc32c: int, attempts: Attempts
    ) -> None:
        part = self._parts.get(number)
        if part is None:
            request = self._own(f"{number:06d}", sum(map(len, pieces)), crc32c)
            part = self._make(request, lambda: self._transport.put(request, pieces, attempts), attempts)
        group = number // MOST_SOURCES
        with self._lock:
            self._parts[number] = part
            first = group * MOST_SOURCES
            parts = [self._parts[each] for each in range(first, first + MOST_SOURCES) if each in self._parts]
        part_bytes = offset // number if number else part.size_bytes
        if len(parts) == MOST_SOURCES and (self._request.size_bytes or 0) > MOST_SOURCES * part_bytes:
            # While other parts are on their way; at the end the caller would wait for it.
            self._merge(0, group, parts, attempts)

    def complete(
        self, last: Sequence[memoryview], size_bytes: int, crc32c: int, attempts: Attempts
    ) -> PutResult:
        sources = [self._parts[number] for number in sorted(self._parts)]
        level = 0
        while len(sources) > MOST_SOURCES:
            groups = [sources[first : first + MOST_SOURCES] for first in range(0, len(sources), MOST_SOURCES)]
            sources = [self._merge(level, number, group, attempts) for number, group in enumerate(groups)]
            level += 1
        try:
            return self._compose(self._request, sources, attempts)
        except Fault as fault:
            if fault.kind is Kind.PRECONDITION:
                self._refusals += 1
            # An object that exists and a source that does not have the same answer. The caller looked in
            # between, and no object was there.
            if fault.kind is Kind.ABSENT or self._refusals > 1:
                fault.kind = Kind.UPLOAD_GONE
            raise

    def _merge(self, level: int, number: int, sources: Sequence[_Made], attempts: Attempts) -> _Made:
        """Return one object composed of `sources`, now or before."""
        if len(sources) == 1:
            return sources[0]
        name = f"{level}-{number:06d}"
        found = self._composed.get(name)
        if found is None:
            crc32c = reduce(lambda whole, each: combine(whole, each.crc32c, each.size_bytes), sources, 0)
            size_bytes = sum(each.size_bytes for each in sources)

            request = self._own(name, size_bytes, crc32c)
            found = self._make(request, lambda: self._compose(request, sources, attempts), attempts)
            self._composed[name] = found
        return found

    def _compose(self, request: PutRequest, sources: Sequence[_Made], attempts: Attempts) -> PutResult:
        pinned = [(source.name, source.version) for source in sources]
        info = self._transport.compose(request, pinned, attempts)
        return PutResult(info.version, info.crc32c)

    def _own(self, name: str, size_bytes: int, crc32c: int) -> PutRequest:
        """Return the request for one of the upload's own objects."""
        target = ObjectName(self._request.target.bucket, self._prefix + name)
        return PutRequest(target, self._request.write_id, Precondition(None), size_bytes, crc32c)

    def _make(self, request: PutRequest, make: Callable[[], PutResult], attempts: Attempts) -> _Made:
        """Make one of the upload's own objects, once, however often it is asked for after a fault."""
        name = request.target.name
        with self._lock:
            may_be_there = name in self._names
            self._names.add(name)
        if may_be_there:
            # Cheaper than sending it again.
            found = self._find(request, attempts)
            if found is not None:
                return found
        try:
            result = make()
        except Fault as fault:
            if fault.kind is Kind.ABSENT:
                fault.kind = Kind.UPLOAD_GONE
            if fault.kind is not Kind.PRECONDITION:
                raise
            # The first of two identical requests won. Or one of its sources is gone.
            found = self._find(request, attempts)
            if found is None:
                fault.kind = Kind.UPLOAD_GONE
                raise
            return found
        return self._made(request, result.version, result.crc32c)

    def _find(self, request: PutRequest, attempts: Attempts) -> _Made | None:
        """Return the upload's own object if it is there, None if it is not."""
        try:
            info = self._transport.head(request.target, attempts)
        except Fault as fault:
            # If the whole bucket is missing, the next request fails with that.
            if fault.kind in (Kind.ABSENT, Kind.UNPROVED):
                return None
            raise
        return self._made(request, info.version, info.crc32c)

    @staticmethod
    def _made(request: PutRequest, version: str, crc32c: int | None) -> _Made:
        assert request.size_bytes is not None
        if crc32c is None or crc32c != request.crc32c:
            raise Fault(Kind.BAD_CHECKSUM, "a part arrived with another checksum")
        return _Made(request.target.name, version, request.size_bytes, crc32c)

    def abort(self, attempts: Attempts) -> None:
        with self._lock:
            names = sorted(self._names)
        try:
            left = delete_names(self._transport, self._request.target.bucket, names, attempts)
        except Fault as fault:
            if fault.kind is not Kind.FORBIDDEN:
                raise
            left = dict.fromkeys(names, fault)
        with self._lock:
            self._names -= set(names) - set(left)
        refusals = [refusal for refusal in left.values() if refusal.kind is Kind.FORBIDDEN]
        if refusals:
            self._give_up_parts(refusals[0])
        for other in left.values():
            if other.kind is not Kind.FORBIDDEN:
                raise other

    def _give_up_parts(self, fault: Fault) -> None:
        """Send objects to this bucket in one stream from now on, with one warning."""
        bucket = self._request.target.bucket
        if not give_up_composing(self._transport, bucket):
            return
        text = (
            f"parts of an upload stay in {self._transport.scheme}://{bucket}/{self._prefix}, because deleting"
            f" them was refused ({fault}); from now on large objects go there in one stream"
        )
        try:
            warnings.warn(text, CkptStoreWarning, stacklevel=2)
        except CkptStoreWarning:
            # A filter that turns warnings into errors must not fail an object that is in place already.
            _LOG.warning("%s", text)
