"""What all requests to one object store share: names, retries, verdicts of the probe, clean-up threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from ckptstore.errors import UsageError
from ckptstore.storage.fork_safe_locks import ForkSafeLocks
from ckptstore.storage.object_store.attempts import Attempts, RetryBudget, RetryPolicy
from ckptstore.storage.object_store.errors import error_of
from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.object_store.recent_versions import RecentVersions
from ckptstore.storage.object_store.transport import (
    ObjectName,
    PutRequest,
    PutResult,
    ResponseHead,
    Sink,
    Transport,
    UploadSession,
)
from ckptstore.storage.prefix_names import object_name_problem
from ckptstore.storage.values import Capabilities, ObjectInfo, PutOutcome

# What only writers need is imported where it is used: readers start without it.
if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from ckptstore.storage.object_store.probe import Verdicts

__all__ = ["ObjectService"]

_T = TypeVar("_T")

# How often an object may come and go while it is looked at.
_MOST_PROOFS = 3

# For work that no caller waits for.
_BACKGROUND_THREADS = 2


class ObjectService:
    """One `Transport`, and how it is used: with retries, with read-backs, with errors instead of faults.

    Attributes
    ----------
    budget : RetryBudget
        Shared by all operations.
    recent : RecentVersions
        Which version each key had a moment ago.

    Threads
    -------
    Safe for concurrent use, inside a running event loop, and after a fork.
    """

    def __init__(self, transport: Transport, policy: RetryPolicy | None = None) -> None:
        self.transport = transport
        self.policy = policy or RetryPolicy()
        self.budget = RetryBudget()
        self.recent = RecentVersions()
        self._locks = ForkSafeLocks()
        self._pool: tuple[int, ThreadPoolExecutor] | None = None
        self._buckets: set[str] = set()

    def url_of(self, key: str) -> str:
        """Return the URL of a key, for messages."""
        return f"{self.transport.scheme}://{key}"

    def object_name(self, key: str) -> ObjectName:
        """Return bucket and name of `key`.

        Raises
        ------
        UsageError
            If some server would take the name for another one.
        """
        bucket, name = self.split(key)
        self.check_name(name, key)
        return ObjectName(bucket, name)

    def split(self, key: str) -> tuple[str, str]:
        """Return the bucket of `key`, and the rest without any check."""
        bucket, _, name = key.partition("/")
        if not bucket:
            raise UsageError(
                "the URL has no bucket",
                url=self.url_of(key),
                expected=f"{self.transport.scheme}://bucket/path",
            )
        return bucket, name

    def check_name(self, name: str, key: str) -> None:
        """Raise `UsageError` if some server would take `name` for another one; `key` is for the message."""
        problem = object_name_problem(name)
        if not name:
            problem = "the URL names a bucket and no object in it"
        elif problem is not None:
            problem = f"this cannot be an object's name: {problem}"
        if problem is not None:
            raise UsageError(problem, url=ascii(self.url_of(key)), hint="Choose another path.")

    def new_attempts(self) -> Attempts:
        """Return the attempts of a new operation."""
        return Attempts(self.policy, self.budget)

    def run(self, call: Callable[[Attempts], _T], what: str, url: str) -> _T:
        """Make a request that may be repeated without a read-back.

        Raises
        ------
        CkptStoreError
            If the attempts were not enough; its message begins with `what`.
        """
        attempts = self.new_attempts()
        try:
            return attempts.run(call)
        except Fault as fault:
            raise error_of(fault, what, url, attempts) from None

    def verdicts(self, object_name: ObjectName, url: str | None = None) -> Verdicts:
        """Return what the server does with conditions; the first call for a bucket asks it.

        Raises
        ------
        CkptStoreError
            If the server cannot be asked; `url` stands in the message instead of the object's own.
        """
        from ckptstore.storage.object_store.probe import verdicts_for

        try:
            found = verdicts_for(self.transport, object_name, self.new_attempts())
        except Fault as fault:
            what = "cannot find out what the server does with conditions"
            raise error_of(fault, what, url or self.url_of(object_name.key)) from None
        self._buckets.add(object_name.bucket)
        return found

    @property
    def capabilities(self) -> Capabilities:
        """What holds in all buckets probed so far; before the first probe, what the service documents."""
        found = self.transport.nominal
        for bucket in sorted(self._buckets):
            from ckptstore.storage.object_store.probe import capabilities_of, verdicts_known

            found = capabilities_of(found, verdicts_known(self.transport, bucket))
        return found

    def head(self, key: str) -> ObjectInfo:
        """See `Storage.head`."""
        request = partial(self._head, self.object_name(key))
        info = self.run(request, "cannot look at the object", self.url_of(key))
        self.recent.note(key, info.version)
        return info

    def _head(self, object_name: ObjectName, attempts: Attempts) -> ObjectInfo:
        for _ in range(_MOST_PROOFS):
            try:
                return self.transport.head(object_name, attempts)
            except Fault as fault:
                is_refused = fault.kind in (Kind.FORBIDDEN, Kind.BAD_REQUEST)
                is_missing = fault.kind is Kind.UNPROVED
                if not is_missing and (not is_refused or self.transport.explains_head):
                    raise
            # The answer to a HEAD has no body: a missing object looks like a missing bucket, expired
            # credentials or a mistyped endpoint. The answer to a GET has one, and raises the right fault.
            with suppress(_ObjectExists):
                try:
                    self.transport.get(
                        object_name, attempts, byte_range="bytes=0-0", version=None, accept=_stop_reading
                    )
                except Fault as reason:
                    if reason.kind is not Kind.BAD_RANGE:  # an empty object
                        raise
            # It was created in between, and may be gone again; or only the HEAD is refused.
            if not is_missing:
                break
        return self.transport.head(object_name, attempts)

    def proves_checksums(self, target: ObjectName) -> bool:
        """Return whether the server refuses bytes that do not have the checksum sent with them."""
        from ckptstore.storage.object_store.probe import capabilities_of

        return capabilities_of(self.transport.nominal, self.verdicts(target)).checksum_proved_by_store

    def is_honoured(self, request: PutRequest) -> bool:
        """Return whether the server keeps the condition of `request`; the first call for a bucket asks it."""
        verdicts = self.verdicts(request.target)
        if request.precondition is None or request.precondition.version is None:
            return verdicts.can_create
        return verdicts.can_swap

    def put(self, request: PutRequest, pieces: Sequence[memoryview]) -> PutOutcome:
        """Write an object in one request, under its condition."""
        return self.write(request, lambda request, attempts: self.transport.put(request, pieces, attempts))

    def write(
        self,
        request: PutRequest,
        send: Callable[[PutRequest, Attempts], PutResult],
        *,
        doubts_repeats: bool = False,
    ) -> PutOutcome:
        """Write an object by calls of `send`, under its condition; see `ConditionalWrite`."""
        from ckptstore.storage.object_store.conditional_write import ConditionalWrite

        is_honoured = self.is_honoured(request)
        self.recent.forget(request.target.key)
        url = self.url_of(request.target.key)
        write = ConditionalWrite(
            self.transport, url, request, is_honoured=is_honoured, doubts_repeats=doubts_repeats
        )
        return write.run(send, self.new_attempts())

    def abort_later(self, session: UploadSession) -> None:
        """Abort a session in the background; what fails is left for `Storage.abort_stale_uploads`."""

        def abort() -> None:
            with suppress(Fault):
                self.new_attempts().run(session.abort)

        # At the end of the interpreter no thread can be started any more.
        with suppress(RuntimeError):
            self.background().submit(abort)

    def background(self) -> ThreadPoolExecutor:
        """Return the threads for work that no caller waits for."""
        from concurrent.futures import ThreadPoolExecutor

        with self._locks[0]:
            if self._pool is None or self._pool[0] != os.getpid():
                pool = ThreadPoolExecutor(_BACKGROUND_THREADS, thread_name_prefix="ckptstore-tidy")
                self._pool = os.getpid(), pool
            return self._pool[1]


class _ObjectExists(Exception):  # noqa: N818 - a message from inside a call, not an error
    pass


def _stop_reading(head: ResponseHead) -> Sink:
    raise _ObjectExists
