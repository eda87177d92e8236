"""One large object under way to an object store: parts in parallel, visible only when proved complete."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

from ckptstore.checksums import combine, crc32c
from ckptstore.errors import ChecksumError, CkptStoreError, NotFoundError
from ckptstore.storage.object_store.attempts import Attempts, RetryPolicy
from ckptstore.storage.object_store.conditional_write import new_upload_id
from ckptstore.storage.object_store.errors import error_of
from ckptstore.storage.object_store.faults import Fault
from ckptstore.storage.object_store.service import ObjectService
from ckptstore.storage.object_store.transport import (
    ObjectName,
    Precondition,
    PutRequest,
    Transport,
    UploadSession,
)
from ckptstore.storage.upload import Upload, changed_while_sent
from ckptstore.storage.values import Ambiguous, Committed, PutOutcome

__all__ = ["ObjectUpload"]

# Up to here an object of known size is sent in one request, which costs nothing to abandon.
SINGLE_SIZE_BYTES = 16 * 1024 * 1024

_MIB = 1024 * 1024

# For an object of unknown size: 10 000 parts of it hold 300 GB.
_UNKNOWN_PART_SIZE_BYTES = 32 * _MIB

# Cleaning up must not delay the caller for long.
_ABORT_POLICY = RetryPolicy(deadline_s=10.0, attempt_s=5.0)


class ObjectUpload(Upload):
    """An object that is sent in parts; in one request, by `commit`, if it has no more than one.

    `close` without `commit` or `abort` leaves what was sent, as the death of the process would. An upload
    that is collected without any of them is aborted in the background.

    Parameters
    ----------
    size_bytes : int or None
        What the object will have, if that is known.
    when_over : callable
        Called with this upload when it ended, at least once.
    """

    # Invariants: `_session` is set from the first part that needs one until the upload ends, so a session is
    # aborted exactly where one is left. `_last` is the part that no session takes.

    def __init__(
        self,
        service: ObjectService,
        target: ObjectName,
        size_bytes: int | None,
        *,
        when_over: Callable[[ObjectUpload], object],
    ) -> None:
        super().__init__(service.url_of(target.key))
        self.part_size_bytes = _part_size_bytes(size_bytes, service.transport)
        self.target = target
        self._service = service
        self._when_over = when_over
        self._begun_s = time.monotonic()
        self._request = PutRequest(target, new_upload_id(target), Precondition(None), size_bytes)
        self._session: UploadSession | None = None
        self._last: Sequence[memoryview] = ()
        # The last part, if it lies in memory of the caller, and the checksums of its pieces.
        self._shared_last: tuple[Sequence[memoryview], Sequence[int]] = (), ()
        self._lock = threading.Lock()
        # Asks the server, and may fail.
        self.parallel = self._parallel_parts(size_bytes)

    def _parallel_parts(self, size_bytes: int | None) -> int:
        attempts = self._service.new_attempts()
        try:
            return self._service.transport.parts(self.target, size_bytes, attempts).parallel
        except Fault as fault:
            raise error_of(fault, "cannot find out how to send the object", self._url, attempts) from None

    @property
    def upload_id(self) -> str | None:
        """The id by which the server lists it, once there is something to list."""
        return None if self._session is None else self._session.upload_id

    @property
    def age_s(self) -> float:
        """How long it has been under way."""
        return time.monotonic() - self._begun_s

    def _send(self, number: int, pieces: Sequence[memoryview], crc32c: int, is_last: bool) -> None:
        if number or not is_last:
            session = self._begin_once()
            if session.sends_last_part or not is_last:
                offset = number * self.part_size_bytes
                self._service.run(
                    lambda attempts: session.send(number, offset, pieces, crc32c, attempts),
                    "cannot send a part of the object",
                    self._url,
                )
                return
        self._last = pieces

    def _send_shared(self, number: int, pieces: Sequence[memoryview], is_last: bool) -> Sequence[int]:
        if not self._service.proves_checksums(self.target):
            return super()._send_shared(number, pieces, is_last)
        crcs = [crc32c(piece) for piece in pieces]
        whole = 0
        for crc, piece in zip(crcs, pieces, strict=True):
            whole = combine(whole, crc, len(piece))
        try:
            self._send(number, pieces, whole, is_last)
        except CkptStoreError as error:
            self._check_unchanged(pieces, crcs, error)
            raise
        if is_last:
            self._shared_last = pieces, crcs
        return crcs

    def _check_unchanged(
        self, pieces: Sequence[memoryview], crcs: Sequence[int], error: CkptStoreError
    ) -> None:
        """Raise `UsageError` if `error` comes from memory that changed after its checksum was taken."""
        if isinstance(error, ChecksumError) and [crc32c(piece) for piece in pieces] != list(crcs):
            raise changed_while_sent(self._url) from error

    def _begin_once(self) -> UploadSession:
        with self._lock:
            if self._session is None:
                self._session = self._begin()
            return self._session

    def _begin(self) -> UploadSession:
        request = self._request
        if self.parallel == 1:
            request = replace(request, size_bytes=None)
        if not self._service.is_honoured(request):
            request = replace(request, precondition=None)
        return self._service.run(
            lambda attempts: self._service.transport.begin(request, attempts),
            "cannot begin the upload",
            self._url,
        )

    def _commit(self, size_bytes: int, crc32c: int) -> PutOutcome:
        request = replace(self._request, size_bytes=size_bytes, crc32c=crc32c)
        try:
            if self._session is None:
                outcome = self._service.put(request, self._last)
            else:
                complete = partial(self._session.complete, self._last, size_bytes, crc32c)
                outcome = self._service.write(
                    request, lambda _, attempts: complete(attempts), doubts_repeats=True
                )
        except BaseException as error:
            self._give_up()
            if isinstance(error, CkptStoreError):
                self._check_unchanged(*self._shared_last, error)
            raise
        self._when_over(self)
        if isinstance(outcome, Committed | Ambiguous):
            # After an ambiguous outcome nothing may be cleaned up.
            session, self._session = self._session, None
            self._last = ()
            if session is not None and session.leaves_parts and isinstance(outcome, Committed):
                self._delete_parts(session)
        else:
            self._give_up()
        return outcome

    def has_landed(self) -> bool:
        """Return whether the object under the key is this one."""
        try:
            return self._service.head(self.target.key).write_id == self._request.write_id
        except NotFoundError:
            return False

    def _delete_parts(self, session: UploadSession) -> None:
        """Delete the parts of the object, which is in place whatever comes of this."""
        attempts = Attempts(_ABORT_POLICY, self._service.budget)
        try:
            attempts.begin()
            session.abort(attempts)
        except Fault:
            # Do not block on the clean-up.
            self._service.abort_later(session)

    def _abort(self) -> None:
        self._when_over(self)
        if self.is_ours:
            self._discard()

    def _close(self) -> None:
        self._when_over(self)
        self._last = ()
        self._shared_last = (), ()

    def _give_up(self) -> None:
        self._when_over(self)
        # The first error counts; what cannot be removed now is left for abort_stale_uploads.
        with suppress(CkptStoreError):
            self._discard()

    def _discard(self) -> None:
        with self._lock:
            session, self._session = self._session, None
        self._last = ()
        if session is None:
            return
        attempts = Attempts(_ABORT_POLICY, self._service.budget)
        try:
            attempts.run(session.abort)
        except Fault as fault:
            raise error_of(fault, "cannot remove the unfinished upload", self._url, attempts) from None

    def __del__(self) -> None:
        # Not here: the garbage collector may run in the thread that serves the requests.
        if self._is_open and self._session is not None and self.is_ours:
            self._service.abort_later(self._session)


def _part_size_bytes(size_bytes: int | None, transport: Transport) -> int:
    if size_bytes is None:
        return max(_UNKNOWN_PART_SIZE_BYTES, transport.part_size_bytes)
    if size_bytes <= SINGLE_SIZE_BYTES:
        return SINGLE_SIZE_BYTES
    fair = -(-size_bytes // transport.most_parts)
    return max(transport.part_size_bytes, -(-fair // _MIB) * _MIB)
