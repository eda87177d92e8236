"""One large object under way to an object store: parts in parallel, visible only when proved complete."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING

from ckptstore.checksums import combine, crc32c
from ckptstore.errors import CkptStoreError, TransientError, UsageError
from ckptstore.storage.base import Ambiguous, Committed, PutOutcome, Upload
from ckptstore.storage.checks import byte_view
from ckptstore.storage.faults import Fault, error_of
from ckptstore.storage.object_writes import ConditionalWrite, new_write_id
from ckptstore.storage.retry import Cancellation, Operation, RetryPolicy
from ckptstore.storage.transport import Place, Precondition, Session, Stored

if TYPE_CHECKING:
    from ckptstore.storage.base import Buffer
    from ckptstore.storage.object_store import ObjectStorage

__all__ = ["ObjectUpload"]

# Up to here the object travels in one request, which costs nothing to abandon.
SINGLE_SIZE_BYTES = 16 * 1024 * 1024

# Four parts in flight and one being filled: 40 MiB. Below 5 MiB S3 refuses parts.
_PART_SIZE_BYTES = 8 * 1024 * 1024
_MIB = 1024 * 1024

# Of an object whose size nobody told, the parts grow: 10 000 of them then hold 300 GB.
_PARTS_OF_ONE_SIZE = 2500

# Cleaning up must not hold up whoever is leaving.
_ABORT_POLICY = RetryPolicy(deadline_s=10.0, attempt_s=5.0)


class ObjectUpload(Upload):
    """An object that is buffered while it is small, and sent in parts as soon as it is not.

    `close` without `commit` or `abort` leaves what was sent, as the death of the process would. An upload
    that is dropped without any of them is aborted in the background.
    """

    def __init__(self, storage: ObjectStorage, place: Place, url: str, size_bytes: int | None) -> None:
        self._storage = storage
        self._place = place
        self._url = url
        self._pid = os.getpid()
        self._begun_s = time.monotonic()
        self._hint = size_bytes
        self._write_id = new_write_id()
        self._is_open = True
        self._was_dropped = False
        self._session: Session | None = None
        self._cancellation = Cancellation()
        self._running: deque[Future[tuple[int, int, int]]] = deque()
        self._spare: list[bytearray] = []
        self._waiting: list[bytearray] = []  # full parts of an object that may still turn out small
        self._filling = bytearray()
        self._parts = 0
        self._sent_bytes = 0
        self._checksums: dict[int, tuple[int, int]] = {}  # part → CRC32C, size in bytes
        self._lock = threading.Lock()

    @property
    def place(self) -> Place:
        """Where it shall be."""
        return self._place

    @property
    def upload_id(self) -> str | None:
        """The id by which the server lists it, once there is something to list."""
        return None if self._session is None else self._session.upload_id

    @property
    def age_s(self) -> float:
        """How long it has been under way."""
        return time.monotonic() - self._begun_s

    def write(self, data: Buffer) -> None:
        self._check_open()
        view = byte_view(data)
        try:
            while view:
                room = self._part_size() - len(self._filling)
                if not room:
                    self._next_part()
                    continue
                self._filling += view[:room]
                view = view[room:]
        except BaseException:
            # How much of it was taken is unknown, so nothing can follow.
            self._give_up()
            raise

    def commit(self) -> PutOutcome:
        self._check_open()
        try:
            outcome = self._publish() if self._session is not None else self._put()
        except BaseException:
            self._give_up()
            raise
        self._is_open = False
        self._storage.forget_upload(self)
        if isinstance(outcome, Committed | Ambiguous):
            # Of an ambiguous one nothing may be cleaned up.
            self._session = None
            self._release()
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

    def _put(self) -> PutOutcome:
        pieces = [*self._waiting, self._filling]
        data = memoryview(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        return self._storage.create(self._place, self._url, data, self._write_id)

    def _part_size(self) -> int:
        if self._hint is not None and self._hint > SINGLE_SIZE_BYTES:
            fair = -(-self._hint // self._storage.transport.most_parts)
            return max(_PART_SIZE_BYTES, -(-fair // _MIB) * _MIB)
        number = self._parts + len(self._waiting)
        return _PART_SIZE_BYTES << min(number // _PARTS_OF_ONE_SIZE, 6)

    def _next_part(self) -> None:
        """Put the full part away, knowing that another byte follows."""
        self._waiting.append(self._filling)
        self._filling = bytearray()
        held_bytes = sum(map(len, self._waiting))
        is_large = held_bytes >= SINGLE_SIZE_BYTES or (self._hint or 0) > SINGLE_SIZE_BYTES
        if self._session is None and not is_large:
            return
        if self._session is None:
            self._begin()
        waiting, self._waiting = self._waiting, []
        for part in waiting:
            self._send(part)
        if self._spare:
            spare = self._spare.pop()
            # The traceback of an attempt that failed may still hold views of it.
            with suppress(BufferError):
                spare.clear()
                self._filling = spare

    def _begin(self) -> None:
        is_honoured = self._storage.verdicts(self._place, self._url).create == "yes"
        precondition = Precondition(None) if is_honoured else None
        self._session = self._storage.run(
            lambda op: self._storage.transport.begin(
                self._place,
                op,
                size_bytes=self._hint,
                write_id=self._write_id,
                precondition=precondition,
            ),
            "cannot begin the upload",
            self._url,
        )

    def _send(self, part: bytearray) -> None:
        session = self._session
        assert session is not None
        number, offset = self._parts, self._sent_bytes
        self._parts += 1
        self._sent_bytes += len(part)
        while len(self._running) >= session.parallel:
            self._reap()

        def send() -> tuple[int, int, int]:
            view = memoryview(part)
            checksum = crc32c(view)
            self._storage.run(
                lambda op: session.send(number, offset, view, checksum, op),
                "cannot send a part of the object",
                self._url,
                self._cancellation,
            )
            view.release()
            self._spare.append(part)
            return number, checksum, len(part)

        self._running.append(self._storage.pool().submit(send))

    def _reap(self) -> None:
        number, checksum, size_bytes = self._running.popleft().result()
        self._checksums[number] = (checksum, size_bytes)

    def _publish(self) -> PutOutcome:
        session = self._session
        assert session is not None
        last = memoryview(self._filling)
        if session.sends_last_part:
            self._send(self._filling)
            last = memoryview(b"")
        while self._running:
            self._reap()
        whole = 0
        for number in range(self._parts):
            checksum, size_bytes = self._checksums[number]
            whole = combine(whole, checksum, size_bytes)
        if last:
            whole = crc32c(last, whole)
        size_bytes = self._sent_bytes + len(last)
        write = ConditionalWrite(
            self._storage.transport,
            self._place,
            self._url,
            precondition=Precondition(None),
            is_honoured=self._storage.verdicts(self._place, self._url).create == "yes",
            write_id=self._write_id,
            size_bytes=size_bytes,
            crc32c=whole,
            doubts_repeats=True,
        )

        def complete(operation: Operation, precondition: Precondition | None) -> Stored:
            return session.complete(last, size_bytes, whole, operation)

        return write.run(complete, self._storage.operation(self._cancellation))

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
        self._release()

    def _give_up(self) -> None:
        self._is_open = False
        self._storage.forget_upload(self)
        # The first error counts; what cannot be removed now is left for abort_stale_uploads.
        with suppress(CkptStoreError):
            self._discard()

    def _discard(self) -> None:
        """Drop what was sent, once nothing of it is on its way any more."""
        with self._lock:
            session, self._session = self._session, None
        self._release()
        if session is None:
            return
        operation = Operation(_ABORT_POLICY, self._storage.budget)
        try:
            operation.run(session.abort)
        except Fault as fault:
            raise error_of(fault, "cannot remove the unfinished upload", self._url, operation) from None

    def _release(self) -> None:
        """Stop what runs and let go of the memory."""
        if self._pid != os.getpid():
            self._running.clear()  # they run in the parent, if anywhere
        self._cancellation.cancel()
        while self._running:
            # A part that is still on its way when the upload is aborted would stay on the server.
            self._running.popleft().exception()
        self._waiting.clear()
        self._filling = bytearray()
        self._spare.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.abort()
        except CkptStoreError as failure:
            if error is None:
                raise
            error.add_note(str(failure))
        finally:
            self.close()

    def __del__(self) -> None:
        # Not here: the garbage collector may run in the thread that serves the requests.
        if self._is_open and self._session is not None and self._pid == os.getpid():
            self._storage.abort_later(self._session)
