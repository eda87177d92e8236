"""One large object under way to an object store: parts in parallel, visible only when proved complete."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from ckptstore.errors import CkptStoreError, TransientError, UsageError
from ckptstore.storage.object_store.attempts import Attempts, RetryPolicy
from ckptstore.storage.object_store.conditional_write import ConditionalWrite, new_write_id
from ckptstore.storage.object_store.errors import error_of
from ckptstore.storage.object_store.faults import Fault
from ckptstore.storage.object_store.transport import (
    ObjectName,
    Precondition,
    PutResult,
    Transport,
    UploadSession,
)
from ckptstore.storage.upload import Upload
from ckptstore.storage.values import Ambiguous, Committed, PutOutcome

if TYPE_CHECKING:
    from ckptstore.storage.object_store.storage import ObjectStorage

__all__ = ["ObjectUpload"]

# Up to here an object of known size travels in one request, which costs nothing to abandon.
SINGLE_SIZE_BYTES = 16 * 1024 * 1024

_MIB = 1024 * 1024

# Of an object whose size nobody told: 10 000 parts of it hold 300 GB.
_UNTOLD_PART_SIZE_BYTES = 32 * _MIB

# Cleaning up must not hold up whoever is leaving.
_ABORT_POLICY = RetryPolicy(deadline_s=10.0, attempt_s=5.0)


class ObjectUpload(Upload):
    """An object that is sent in parts; in one request, by `commit`, if it has no more than one.

    `close` without `commit` or `abort` leaves what was sent, as the death of the process would. An upload
    that is dropped without any of them is aborted in the background.
    """

    def __init__(
        self, storage: ObjectStorage, object_name: ObjectName, url: str, size_bytes: int | None
    ) -> None:
        super().__init__()
        self.part_size_bytes = _part_size_bytes(size_bytes, storage.transport)
        self._storage = storage
        self._object_name = object_name
        self._url = url
        self._pid = os.getpid()
        self._begun_s = time.monotonic()
        self._size_bytes = size_bytes
        self._write_id = new_write_id()
        self._is_open = True
        self._was_dropped = False
        self._session: UploadSession | None = None
        self._last: Sequence[memoryview] = ()
        self._failure: CkptStoreError | None = None
        self._lock = threading.Lock()
        # It may ask, and fail.
        self.parallel = _parallel_parts(storage, object_name, url, size_bytes)

    @property
    def object_name(self) -> ObjectName:
        """Where it shall be."""
        return self._object_name

    @property
    def upload_id(self) -> str | None:
        """The id by which the server lists it, once there is something to list."""
        return None if self._session is None else self._session.upload_id

    @property
    def age_s(self) -> float:
        """How long it has been under way."""
        return time.monotonic() - self._begun_s

    def _send(self, number: int, pieces: Sequence[memoryview], crc32c: int, is_last: bool) -> None:
        if self._failure is not None and self._pid == os.getpid():
            # That of another thread. Should this one be heard first, it tells what really happened.
            raise self._failure
        self._check_open()
        try:
            if number or not is_last:
                session = self._begun()
                if session.sends_last_part or not is_last:
                    offset = number * self.part_size_bytes
                    self._storage.run(
                        lambda attempts: session.send(number, offset, pieces, crc32c, attempts),
                        "cannot send a part of the object",
                        self._url,
                    )
                    return
        except BaseException as error:
            # Without this part nothing can follow.
            if self._failure is None and isinstance(error, CkptStoreError):
                self._failure = error
            self._is_open = False
            raise
        self._last = pieces

    def _begun(self) -> UploadSession:
        with self._lock:
            if self._session is None:
                self._session = self._begin()
            return self._session

    def _begin(self) -> UploadSession:
        is_honoured = self._storage.verdicts(self._object_name, self._url).create == "yes"
        precondition = Precondition(None) if is_honoured else None
        return self._storage.run(
            lambda attempts: self._storage.transport.begin(
                self._object_name,
                attempts,
                size_bytes=self._size_bytes if self.parallel > 1 else None,
                write_id=self._write_id,
                precondition=precondition,
            ),
            "cannot begin the upload",
            self._url,
        )

    def _commit(self, size_bytes: int, crc32c: int) -> PutOutcome:
        try:
            if self._session is None:
                outcome = self._storage.create(
                    self._object_name, self._url, self._last, crc32c, self._write_id
                )
            else:
                outcome = self._publish(self._session, self._last, size_bytes, crc32c)
        except BaseException:
            self._give_up()
            raise
        self._is_open = False
        self._storage.forget_upload(self)
        if isinstance(outcome, Committed | Ambiguous):
            # Of an ambiguous one nothing may be cleaned up.
            session, self._session = self._session, None
            self._last = ()
            if session is not None and session.leaves_parts and isinstance(outcome, Committed):
                self._tidy(session)
        else:
            self._give_up()
        return outcome

    def _check_open(self) -> None:
        if self._was_dropped:
            raise TransientError(
                "the unfinished upload was removed while it was written",
                url=self._url,
                hint="A clean-up took it for stale: raise its minimum age above the longest save.",
            )
        if not self._is_open or self._pid != os.getpid():
            raise UsageError(
                "this upload is over, or belongs to the parent of this process",
                url=self._url,
                hint="Begin another upload.",
            )

    def _publish(
        self, session: UploadSession, last: Sequence[memoryview], size_bytes: int, crc32c: int
    ) -> PutOutcome:
        write = ConditionalWrite(
            self._storage.transport,
            self._object_name,
            self._url,
            precondition=Precondition(None),
            is_honoured=self._storage.verdicts(self._object_name, self._url).create == "yes",
            write_id=self._write_id,
            size_bytes=size_bytes,
            crc32c=crc32c,
            doubts_repeats=True,
        )

        def complete(attempts: Attempts, precondition: Precondition | None) -> PutResult:
            return session.complete(last, size_bytes, crc32c, attempts)

        return write.run(complete, self._storage.new_attempts())

    def _tidy(self, session: UploadSession) -> None:
        """Remove what the object was made of; it is there, whatever comes of this."""
        attempts = Attempts(_ABORT_POLICY, self._storage.budget)
        try:
            attempts.begin()
            session.abort(attempts)
        except Fault:
            # Nobody shall wait until it works.
            self._storage.abort_later(session)

    def abort(self) -> None:
        self._is_open = False
        self._storage.forget_upload(self)
        if self._pid == os.getpid():
            self._discard()

    def drop_as_stale(self) -> None:
        """Abort it because a clean-up found it too old; a later `commit` says so."""
        self._was_dropped = True
        self.abort()

    def close(self) -> None:
        self._is_open = False
        self._storage.forget_upload(self)
        self._last = ()

    def _give_up(self) -> None:
        self._is_open = False
        self._storage.forget_upload(self)
        # The first error counts; what cannot be removed now is left for abort_stale_uploads.
        with suppress(CkptStoreError):
            self._discard()

    def _discard(self) -> None:
        with self._lock:
            session, self._session = self._session, None
        self._last = ()
        if session is None:
            return
        attempts = Attempts(_ABORT_POLICY, self._storage.budget)
        try:
            attempts.run(session.abort)
        except Fault as fault:
            raise error_of(fault, "cannot remove the unfinished upload", self._url, attempts) from None

    def __del__(self) -> None:
        # Not here: the garbage collector may run in the thread that serves the requests.
        if self._is_open and self._session is not None and self._pid == os.getpid():
            self._storage.abort_later(self._session)


def _parallel_parts(storage: ObjectStorage, object_name: ObjectName, url: str, size_bytes: int | None) -> int:
    attempts = storage.new_attempts()
    try:
        return storage.transport.parts(object_name, size_bytes, attempts).parallel
    except Fault as fault:
        raise error_of(fault, "cannot find out how to send the object", url, attempts) from None


def _part_size_bytes(size_bytes: int | None, transport: Transport) -> int:
    if size_bytes is None:
        return max(_UNTOLD_PART_SIZE_BYTES, transport.part_size_bytes)
    if size_bytes <= SINGLE_SIZE_BYTES:
        return SINGLE_SIZE_BYTES
    fair = -(-size_bytes // transport.most_parts)
    return max(transport.part_size_bytes, -(-fair // _MIB) * _MIB)
