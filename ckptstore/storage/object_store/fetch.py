"""A question to a library that has no deadline, for operations that have one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from ckptstore.storage.latch import Latch
from ckptstore.storage.object_store.attempts import Attempts
from ckptstore.storage.object_store.faults import Fault, Kind

__all__ = ["Fetch"]

_T = TypeVar("_T")


class Fetch(Generic[_T]):
    """One call in a thread of its own; it goes on when nobody waits for it any more.

    Threads
    -------
    Any number may wait.
    """

    def __init__(self, ask: Callable[[], _T]) -> None:
        self._ask = ask
        self._answer: list[_T | Exception] = []
        self._waiting: list[Latch] = []
        threading.Thread(target=self._run, name="ckptstore-credentials", daemon=True).start()

    def _run(self) -> None:
        try:
            self._answer.append(self._ask())
        except Exception as error:  # noqa: BLE001 - of whatever library is asked; returned to who waits
            self._answer.append(error)
        for latch in list(self._waiting):
            latch.set()

    def wait(self, attempts: Attempts) -> _T | Exception:
        """Return the answer, or what it failed with, within the time of the attempt.

        Raises
        ------
        Fault
        """
        woken = Latch()
        self._waiting.append(woken)
        attempts.cancellation.watch(woken.set)
        try:
            if not self._answer:
                woken.wait(attempts.remaining_s())
        finally:
            attempts.cancellation.unwatch(woken.set)
        if self._answer:
            return self._answer[0]
        if attempts.is_cancelled:
            raise Fault(Kind.CANCELLED, "the request was given up")
        raise attempts.stalled()
