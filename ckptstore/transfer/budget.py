"""How much memory a transfer may hold beyond the caller's own arrays."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from ckptstore.errors import UsageError
from ckptstore.storage.scope import Scope, current_scope

__all__ = ["MemoryBudget", "check_memory_budget"]


def check_memory_budget(limit_bytes: object) -> int | None:
    """Return a caller's `memory_budget` as an integer, None for no limit.

    Raises
    ------
    UsageError
        If it is anything else than a positive integer or None.
    """
    if limit_bytes is None:
        return None
    if isinstance(limit_bytes, bool) or not isinstance(limit_bytes, int | np.integer) or limit_bytes <= 0:
        raise UsageError(
            "memory_budget must be a number of bytes above 0, or None for no limit",
            expected="a number of bytes",
            actual=repr(limit_bytes),
        )
    return int(limit_bytes)


class MemoryBudget:
    """Bytes to acquire before memory is allocated, and to release after it is freed.

    First come, first served, so that small requests do not delay a large one for ever. A request above the
    limit is granted when nothing else is acquired.

    Parameters
    ----------
    limit_bytes : int, optional
        None: no limit; the bytes are only counted.

    Attributes
    ----------
    used_bytes : int
        Acquired now.
    high_water_bytes : int
        The most that was acquired at a time.

    Threads
    -------
    Safe for concurrent use.
    """

    def __init__(self, limit_bytes: int | None = None) -> None:
        self.limit_bytes = check_memory_budget(limit_bytes)
        self.used_bytes = 0
        self.high_water_bytes = 0
        # Reentrant: a signal handler that cancels may interrupt the thread that holds it.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._queue: deque[object] = deque()

    def acquire(
        self, size_bytes: int, *, scope: Scope | None = None, beside: int | Callable[[], int] = 0
    ) -> None:
        """Take `size_bytes`, as soon as there is room for them.

        Parameters
        ----------
        size_bytes : int
        scope : Scope, optional
            Bounds the wait; without it the current one does.
        beside : int or callable
            What the caller holds already and does not give back before it has this: it is not waited for,
            which would never end. A function is called again after `wake`.

        Raises
        ------
        TransientError, DeadlineError
            If `scope` ended before.
        """
        if self._take_at_once(size_bytes, beside):
            return
        scope = scope or current_scope() or Scope()
        place = object()
        scope.cancellation.watch(self.wake)
        try:
            with self._lock:
                self._queue.append(place)
                while self._queue[0] is not place or not self._has_room(size_bytes, beside):
                    scope.check()
                    remaining_s = scope.remaining_s()
                    self._changed.wait(min(remaining_s, threading.TIMEOUT_MAX))
                self._take(size_bytes)
        finally:
            scope.cancellation.unwatch(self.wake)
            with self._lock:
                if place in self._queue:
                    self._queue.remove(place)
                self._changed.notify_all()

    def _take_at_once(self, size_bytes: int, beside: int | Callable[[], int]) -> bool:
        with self._lock:
            if self._queue or not self._has_room(size_bytes, beside):
                return False
            self._take(size_bytes)
            return True

    def _has_room(self, size_bytes: int, beside: int | Callable[[], int]) -> bool:
        limit = self.limit_bytes
        if limit is None or self.used_bytes + size_bytes <= limit:
            return True
        return self.used_bytes <= (beside() if callable(beside) else beside)

    def _take(self, size_bytes: int) -> None:
        self.used_bytes += size_bytes
        self.high_water_bytes = max(self.high_water_bytes, self.used_bytes)

    def release(self, size_bytes: int) -> None:
        """Give back bytes that were acquired."""
        with self._lock:
            self.used_bytes -= size_bytes
            if self._queue:
                self._changed.notify_all()

    @contextmanager
    def hold(
        self, size_bytes: int, *, scope: Scope | None = None, beside: int | Callable[[], int] = 0
    ) -> Iterator[None]:
        """Take `size_bytes` while the block runs; parameters and errors as `acquire`."""
        self.acquire(size_bytes, scope=scope, beside=beside)
        try:
            yield
        finally:
            self.release(size_bytes)

    def wake(self) -> None:
        """Make waiting callers check again."""
        with self._lock:
            self._changed.notify_all()
