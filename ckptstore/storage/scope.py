"""What the requests of one save or restore share: a deadline, a way to cancel them, and counters.

A scope is current while its ``with`` block runs, in the context of that thread (`contextvars`), and an
`Attempts` finds it by itself. Threads that work for a scope run in a copy of that context.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from types import TracebackType
from typing import TypeVar

from ckptstore.errors import DeadlineError, TransientError
from ckptstore.storage.latch import Latch

__all__ = ["Cancellation", "Scope", "current_scope"]

_T = TypeVar("_T")


class Cancellation:
    """Cancels several operations at once: no further attempt or pause, and running requests are dropped.

    Threads
    -------
    Safe for concurrent use.
    """

    def __init__(self) -> None:
        self._event = Latch()
        # A signal handler may cancel while its own thread is in here.
        self._lock = threading.RLock()
        self._running: set[Callable[[], object]] = set()

    @property
    def is_cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._event.is_set()

    def cancel(self) -> None:
        """Cancel everything."""
        self._event.set()
        with self._lock:
            running = list(self._running)
        for drop in running:
            drop()

    def watch(self, drop: Callable[[], object]) -> None:
        """Call `drop` on cancellation; at once if that has happened already."""
        with self._lock:
            self._running.add(drop)
        if self.is_cancelled:
            drop()

    def unwatch(self, drop: Callable[[], object]) -> None:
        """Forget `drop`."""
        with self._lock:
            self._running.discard(drop)

    def sleep(self, seconds: float) -> None:
        """Sleep that long, or until it is cancelled."""
        self._event.wait(seconds)


class Scope:
    """What the requests of one save or restore have in common.

    A scope inside another one inherits neither its deadline nor its cancellation, so that a cancelled save
    has the time to clean up. Only its requests are counted outside as well. See `branch` for a part of the
    same save or restore.

    Parameters
    ----------
    deadline_s : float, optional
        Seconds from now after which no request is made and no answer waited for; see `Attempts`.
    what : str
        What fails when it ends too early, for messages: ``"cannot save"``.
    url : str
        The place concerned, for messages.
    retries_failed : bool
        False: an operation ends with its first failed attempt, for whoever tries again later anyway.

    Attributes
    ----------
    cancellation : Cancellation
    on_progress : callable or None
        Called whenever more of a body came, in the thread that receives it; also for the scopes inside.
    requests, retries : int
        How many requests were made, repetitions included, and the number of repetitions.

    Threads
    -------
    Safe for concurrent use, except that one ``with`` block at a time belongs to it.
    """

    def __init__(
        self,
        deadline_s: float | None = None,
        *,
        what: str = "cannot go on",
        url: str = "",
        retries_failed: bool = True,
    ) -> None:
        self.deadline_s = deadline_s
        self.retries_failed = retries_failed
        self.cancellation = Cancellation()
        self.on_progress: Callable[[], object] | None = None
        self.requests = 0
        self.retries = 0
        self._what = what
        self._url = url
        self._ends_s = math.inf if deadline_s is None else time.monotonic() + deadline_s
        self._outer: Scope | None = None
        self._lock = threading.Lock()
        self._before: Scope | None = None

    def branch(self) -> Scope:
        """Return a scope that ends and is cancelled with this one, or by itself; see `detach`."""
        branch = Scope(what=self._what, url=self._url, retries_failed=self.retries_failed)
        branch.deadline_s, branch._ends_s = self.deadline_s, self._ends_s
        branch._outer = self
        self.cancellation.watch(branch.cancellation.cancel)
        return branch

    def detach(self) -> None:
        """Detach this branch from its scope, which outlives it."""
        if self._outer is not None:
            self._outer.cancellation.unwatch(self.cancellation.cancel)

    def remaining_s(self) -> float:
        """Return the seconds that are left, infinity without a deadline."""
        return max(0.0, self._ends_s - time.monotonic()) if self._ends_s < math.inf else math.inf

    def check(self) -> None:
        """Raise if it is over.

        Raises
        ------
        DeadlineError
            If its deadline has passed.
        TransientError
            If it was cancelled.
        """
        if self.cancellation.is_cancelled:
            raise TransientError(
                f"{self._what}: it was given up", url=self._url or None, hint="Start again when it suits."
            )
        if self.remaining_s() <= 0.0:
            raise DeadlineError(
                f"{self._what}: there is no time left",
                url=self._url or None,
                expected=f"an end within {self.deadline_s:g} s",
                hint="Allow more time, or look why the storage is slow.",
            )

    def count(self, requests: int = 0, retries: int = 0) -> None:
        """Add to the counts, also to those of the scopes around it."""
        with self._lock:
            self.requests += requests
            self.retries += retries
        if self._outer is not None:
            self._outer.count(requests, retries)

    def record_progress(self) -> None:
        """Tell whoever wants to know, here and in the scopes around it, that bytes came."""
        if self.on_progress is not None:
            self.on_progress()
        if self._outer is not None:
            self._outer.record_progress()

    def run(self, call: Callable[[], _T]) -> _T:
        """Return what `call` returns, with this scope current; several threads may do so."""
        # Not by a token: an interrupt between `set` and `try` would leave the scope current.
        before = _CURRENT.get()
        try:
            _CURRENT.set(self)
            return call()
        finally:
            _CURRENT.set(before)

    def __enter__(self) -> Scope:
        self._before = before = _CURRENT.get()
        if self._outer is None:
            self._outer = before
        try:
            _CURRENT.set(self)
        except BaseException:
            # Ctrl-C, right after it: there is no `__exit__` then.
            _CURRENT.set(before)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _CURRENT.set(self._before)


_CURRENT: ContextVar[Scope | None] = ContextVar("ckptstore_scope", default=None)


def current_scope() -> Scope | None:
    """Return the scope whose block is running here; None outside of every scope."""
    return _CURRENT.get()
