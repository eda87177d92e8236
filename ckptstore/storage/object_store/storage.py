"""The nine primitives on an object store: what S3 and GCS have in common.

Guarantees
----------
A write is in place whole or not at all. A conditional write whose answer was lost, or that came back as a
conflict, is read back: clients below us repeat requests on their own, so "somebody was faster" often means
"the first of your two was". "Not there" is concluded only from a read that the bucket itself answered.
"""

from __future__ import annotations

import os
import re
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn, TypeVar

from ckptstore.checksums import crc32c
from ckptstore.errors import UsageError
from ckptstore.storage.base import Storage
from ckptstore.storage.checks import byte_view, check_pin
from ckptstore.storage.fork_safe_locks import ForkSafeLocks
from ckptstore.storage.object_store.attempts import Attempts, RetryBudget, RetryPolicy
from ckptstore.storage.object_store.conditional_write import ConditionalWrite, new_write_id
from ckptstore.storage.object_store.deletes import ObjectDeleter
from ckptstore.storage.object_store.diagnosis import diagnose_objects
from ckptstore.storage.object_store.errors import error_of
from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.object_store.listing import list_objects
from ckptstore.storage.object_store.probe import Verdicts, capabilities_of, verdicts_for, verdicts_known
from ckptstore.storage.object_store.reads import ObjectReader
from ckptstore.storage.object_store.transport import (
    ObjectName,
    Precondition,
    PutResult,
    ResponseHead,
    Sink,
    Transport,
    UploadSession,
)
from ckptstore.storage.object_store.upload import ObjectUpload
from ckptstore.storage.upload import Upload
from ckptstore.storage.values import Capabilities, GetResult, ObjectInfo, PutOutcome, SuffixRange
from ckptstore.types import ByteRange

if TYPE_CHECKING:
    from ckptstore.storage.finding import Finding
    from ckptstore.storage.values import Buffer

__all__ = ["ObjectStorage"]

_T = TypeVar("_T")

# For what nobody waits for.
_THREADS = 2

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_MAX_NAME_BYTES = 1024


class ObjectStorage(Storage):
    """The objects that one `Transport` reaches; keys are ``bucket/name``.

    Parameters
    ----------
    transport : Transport
    policy : RetryPolicy, optional

    Threads
    -------
    Safe for concurrent use, inside a running event loop, and after a fork.
    """

    def __init__(self, transport: Transport, policy: RetryPolicy | None = None) -> None:
        self.transport = transport
        self.policy = policy or RetryPolicy()
        self.budget = RetryBudget()
        self._locks = ForkSafeLocks()
        self._pool: tuple[int, ThreadPoolExecutor] | None = None
        self._uploads: weakref.WeakSet[ObjectUpload] = weakref.WeakSet()
        self._buckets: set[str] = set()
        self._deleter = ObjectDeleter(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.transport.scheme}://>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a storage holds credentials and is not pickled: pass the URL and the options instead"
        )

    @property
    def parallel_reads(self) -> int:  # type: ignore[override]
        return self.transport.parallel_reads

    @property
    def capabilities(self) -> Capabilities:  # type: ignore[override]
        """What was found out of the buckets asked so far; before that, what the service documents."""
        found = self.transport.nominal
        for bucket in sorted(self._buckets):
            found = _weaker(found, capabilities_of(found, verdicts_known(self.transport, bucket)))
        return found

    def probe(self, key: str) -> Capabilities:
        """Find out what the server of `key` really does: six requests, once for each bucket."""
        verdicts = self.verdicts(self.object_name(key), self.url_of(key))
        return capabilities_of(self.transport.nominal, verdicts)

    def verdicts(self, object_name: ObjectName, url: str) -> Verdicts:
        """Return what the server does with conditions; the first call for a bucket asks it."""
        try:
            found = verdicts_for(self.transport, object_name, self.new_attempts())
        except Fault as fault:
            raise error_of(fault, "cannot find out what the server does with conditions", url) from None
        self._buckets.add(object_name.bucket)
        return found

    def url_of(self, key: str) -> str:
        return f"{self.transport.scheme}://{key}"

    def get(
        self, key: str, byte_range: ByteRange | SuffixRange | None = None, *, version: str | None = None
    ) -> GetResult:
        got = self._reader(key, version).get(byte_range)
        self._deleter.note(key, got.version)
        return got

    def read_into(
        self,
        key: str,
        ranges: Sequence[ByteRange],
        buffers: Sequence[memoryview],
        *,
        version: str | None = None,
    ) -> None:
        self._reader(key, version).read_into(ranges, buffers)

    def _reader(self, key: str, version: str | None) -> ObjectReader:
        return ObjectReader(
            self.transport, self.object_name(key), self.url_of(key), version, self.new_attempts
        )

    def head(self, key: str) -> ObjectInfo:
        object_name, url = self.object_name(key), self.url_of(key)
        attempts = self.new_attempts()
        try:
            info = attempts.run(lambda attempts: self._head(object_name, attempts))
        except Fault as fault:
            raise error_of(fault, "cannot look at the object", url, attempts) from None
        self._deleter.note(key, info.version)
        return info

    def _head(self, object_name: ObjectName, attempts: Attempts) -> ObjectInfo:
        try:
            return self.transport.head(object_name, attempts)
        except Fault as fault:
            is_mute = not self.transport.explains_head and fault.kind in (Kind.FORBIDDEN, Kind.BAD_REQUEST)
            if fault.kind is not Kind.UNPROVED and not is_mute:
                raise
        # A HEAD has no body to tell a missing object from a missing bucket, expired credentials or a mistyped
        # endpoint. A GET has: it raises the fault that is the case.
        with suppress(_ItIsThere):
            try:
                self.transport.get(
                    object_name, attempts, byte_range="bytes=0-0", version=None, accept=_stop_reading
                )
            except Fault as reason:
                if reason.kind is not Kind.BAD_RANGE:  # an empty object
                    raise
        # Put there in between, or the HEAD alone is refused.
        return self.transport.head(object_name, attempts)

    def put_new(self, key: str, data: Buffer) -> PutOutcome:
        view = byte_view(data)
        return self.create(self.object_name(key), self.url_of(key), (view,), crc32c(view), new_write_id())

    def put_if(self, key: str, data: Buffer, version: str) -> PutOutcome:
        object_name, url = self.object_name(key), self.url_of(key)
        view = byte_view(data)
        is_honoured = self.verdicts(object_name, url).can_swap
        condition = Precondition(version)
        return self._put(object_name, url, (view,), crc32c(view), new_write_id(), condition, is_honoured)

    def create(
        self, object_name: ObjectName, url: str, pieces: Sequence[memoryview], checksum: int, write_id: str
    ) -> PutOutcome:
        """Create an object in one request; for `put_new` and small uploads."""
        is_honoured = self.verdicts(object_name, url).create == "yes"
        return self._put(object_name, url, pieces, checksum, write_id, Precondition(None), is_honoured)

    def _put(
        self,
        object_name: ObjectName,
        url: str,
        pieces: Sequence[memoryview],
        checksum: int,
        write_id: str,
        precondition: Precondition,
        is_honoured: bool,
    ) -> PutOutcome:
        self._deleter.forget(object_name.key)

        def send(attempts: Attempts, condition: Precondition | None) -> PutResult:
            return self.transport.put(
                object_name, pieces, attempts, crc32c=checksum, write_id=write_id, precondition=condition
            )

        write = ConditionalWrite(
            self.transport,
            object_name,
            url,
            precondition=precondition,
            is_honoured=is_honoured,
            write_id=write_id,
            size_bytes=sum(map(len, pieces)),
            crc32c=checksum,
        )
        return write.run(send, self.new_attempts())

    def copy_from(self, source_key: str, target_key: str, version: str) -> PutOutcome | None:
        object_name, url = self.object_name(target_key), self.url_of(target_key)
        found = self.head(source_key)
        check_pin(version, found.version, self.url_of(source_key))
        verdicts, write_id = self.verdicts(object_name, url), new_write_id()

        def send(attempts: Attempts, condition: Precondition | None) -> PutResult:
            try:
                return self.transport.copy(
                    found, object_name, attempts, write_id=write_id, precondition=condition
                )
            except Fault as fault:
                if fault.kind is Kind.UNSUPPORTED:
                    raise _CannotCopy from None
                raise

        write = ConditionalWrite(
            self.transport,
            object_name,
            url,
            precondition=Precondition(None),
            is_honoured=verdicts.create == "yes",
            write_id=write_id,
            size_bytes=found.size_bytes,
            crc32c=found.crc32c,
            doubts_repeats=True,
        )
        self._deleter.forget(object_name.key)
        try:
            return write.run(send, self.new_attempts())
        except _CannotCopy:
            return None

    def upload(self, key: str, size_bytes: int | None = None) -> Upload:
        upload = ObjectUpload(self, self.object_name(key), self.url_of(key), size_bytes)
        self._uploads.add(upload)
        return upload

    def forget_upload(self, upload: ObjectUpload) -> None:
        """Hear that an upload is over."""
        self._uploads.discard(upload)

    def abort_later(self, session: UploadSession) -> None:
        """Abort a session that nobody holds any more, in the background and as far as that is possible."""

        def abort() -> None:
            with suppress(Fault):
                self.new_attempts().run(session.abort)

        # The interpreter may be shutting down: then it is left to `abort_stale_uploads`.
        with suppress(RuntimeError):
            self.pool().submit(abort)

    def delete_if(self, key: str, version: str) -> bool:
        return self._deleter.delete_if(key, version)

    def delete_many(self, keys: Sequence[str]) -> None:
        self._deleter.delete_many(keys)

    def abort_stale_uploads(self, prefix: str, min_age_s: float) -> int:
        return self._deleter.abort_stale_uploads(prefix, min_age_s, list(self._uploads))

    def diagnose(self, directory_key: str) -> Iterator[Finding]:
        return diagnose_objects(self, directory_key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        bucket, start = self._split(prefix)
        directory = start.rpartition("/")[0]
        if directory:
            self._check_name(directory, prefix)
        return iter(list_objects(self, bucket, start))

    def now_s(self) -> float:
        # What the last answer said; before the first one nobody can want to compare.
        return time.time() + self.transport.skew_s

    def new_attempts(self) -> Attempts:
        """Return the attempts of a new operation."""
        return Attempts(self.policy, self.budget)

    def run(self, call: Callable[[Attempts], _T], what: str, url: str) -> _T:
        """Make a request that may simply be repeated; translate what it does not overcome."""
        attempts = self.new_attempts()
        try:
            return attempts.run(call)
        except Fault as fault:
            raise error_of(fault, what, url, attempts) from None

    def pool(self) -> ThreadPoolExecutor:
        """Return the threads for what nobody waits for."""
        with self._locks[0]:
            if self._pool is None or self._pool[0] != os.getpid():
                pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="ckptstore-tidy")
                self._pool = os.getpid(), pool
            return self._pool[1]

    def object_name(self, key: str) -> ObjectName:
        """Return bucket and name of `key`.

        Raises
        ------
        UsageError
            If some server would take the name for another one.
        """
        bucket, name = self._split(key)
        self._check_name(name, key)
        return ObjectName(bucket, name)

    def _split(self, key: str) -> tuple[str, str]:
        bucket, _, name = key.partition("/")
        if not bucket:
            raise UsageError(
                "the URL names no bucket",
                url=self.url_of(key),
                expected=f"{self.transport.scheme}://bucket/path",
            )
        return bucket, name

    def _check_name(self, name: str, key: str) -> None:
        segments = name.split("/")
        problem = None
        if not name:
            problem = "the URL names a bucket and no object in it"
        elif "" in segments or "." in segments or ".." in segments:
            # One server refuses these, one takes them for another name, one keeps them.
            problem = "an object's name must not hold an empty segment, '.' or '..'"
        elif _CONTROL.search(name):
            problem = "an object's name must not hold control characters"
        else:
            try:
                if len(name.encode()) > _MAX_NAME_BYTES:
                    problem = f"an object's name has at most {_MAX_NAME_BYTES} bytes"
            except UnicodeEncodeError:
                problem = "an object's name must be Unicode text"
        if problem is not None:
            raise UsageError(problem, url=ascii(self.url_of(key)), hint="Choose another path.")


class _ItIsThere(Exception):  # noqa: N818 - a message from inside a call, not an error
    pass


class _CannotCopy(Exception):  # noqa: N818 - likewise
    pass


def _stop_reading(head: ResponseHead) -> Sink:
    raise _ItIsThere


def _weaker(first: Capabilities, second: Capabilities) -> Capabilities:
    """Return what both claim."""
    return Capabilities(
        first.backend,
        first.create_if_absent and second.create_if_absent,
        first.compare_and_swap and second.compare_and_swap,
        first.conditional_delete and second.conditional_delete,
        first.durable_when_acknowledged and second.durable_when_acknowledged,
        first.checksum_proved_by_store and second.checksum_proved_by_store,
        first.several_hosts and second.several_hosts,
    )
