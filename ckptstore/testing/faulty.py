"""A storage that fails on request: a call that raises, or the death of the process in a chosen call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from ckptstore.errors import CkptStoreError
from ckptstore.storage.base import Storage
from ckptstore.storage.upload import Upload
from ckptstore.storage.wrappers import StorageWrapper
from ckptstore.testing.counting import Call

__all__ = ["FaultyStorage", "SimulatedCrash"]

_T = TypeVar("_T")


class SimulatedCrash(BaseException):
    """The process died here. Not an Exception: no handler of the code under test may survive it."""


class FaultyStorage(StorageWrapper):
    """Pass calls on to `inner` until the chosen one.

    Calls are numbered from 1, and writing, committing, aborting and closing an upload are calls too. After a
    crash every further call raises `SimulatedCrash` and reaches nothing, also in ``finally`` blocks: a dead
    process does not clean up. To try every call, count those of a run without faults, then crash before and
    after each.

    Parameters
    ----------
    inner : Storage
    crash_before : int, optional
        The call that is never made.
    crash_after : int, optional
        The call that is made, but whose answer is lost.
    errors : mapping of int to CkptStoreError, optional
        Calls that raise instead of being made; the run goes on.
    lost_answers : mapping of int to CkptStoreError, optional
        Calls that are made, and raise instead of returning.
    counted : callable, optional
        ``counted(primitive, keys)`` returns whether a call has a number; others are passed on. By default all
        have one.

    Attributes
    ----------
    calls : list of Call
        The numbered calls so far, the failed one included; ``calls[n - 1]`` is number n. Of a ``delete_many``
        it has the first key only.

    Threads
    -------
    Safe for concurrent use; a call that another thread is in when the crash comes is still made.
    """

    def __init__(
        self,
        inner: Storage,
        *,
        crash_before: int | None = None,
        crash_after: int | None = None,
        errors: Mapping[int, CkptStoreError] | None = None,
        lost_answers: Mapping[int, CkptStoreError] | None = None,
        counted: Callable[[str, Sequence[str]], bool] | None = None,
    ) -> None:
        super().__init__(inner)
        self._crash_before = crash_before
        self._crash_after = crash_after
        self._errors = dict(errors or {})
        self._lost_answers = dict(lost_answers or {})
        self._counted = counted
        self._lock = threading.Lock()
        self._held: list[Upload] = []
        self._death = ""
        self.calls: list[Call] = []

    def intercept(self, primitive: str, keys: Sequence[str], call: Callable[[], _T]) -> _T:
        with self._lock:
            if self.crashed:
                raise SimulatedCrash(self._death)
            number = None
            if self._counted is None or self._counted(primitive, keys):
                self.calls.append(Call(primitive, keys[0] if keys else ""))
                number = len(self.calls)
                if number == self._crash_before:
                    self._crash(f"before call {number}, {primitive}")
        if number is None:
            return call()
        if number in self._errors:
            raise self._errors[number]
        try:
            answer = call()
        finally:
            # Also if the answer is an error, such as a record that is not there.
            if number == self._crash_after:
                with self._lock:
                    self._crash(f"after call {number}, {primitive}")
        if number in self._lost_answers:
            raise self._lost_answers[number]
        return answer

    @property
    def crashed(self) -> bool:
        """Whether the chosen call was reached."""
        return bool(self._death)

    def _crash(self, when: str) -> None:
        self._death = f"the process died {when}"
        raise SimulatedCrash(self._death)

    def on_upload(self, upload: Upload) -> None:
        # Kept: the garbage collector would remove what a dead process leaves behind.
        with self._lock:
            self._held.append(upload)

    def release_holds(self) -> None:
        """Release what the system takes from a dead process: the locks that prove that a writer is alive.

        Unfinished uploads stay as they are. Call it after the crash, before the next run looks.
        """
        with self._lock:
            held, self._held = self._held, []
        for upload in held:
            upload.close()
