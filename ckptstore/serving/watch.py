"""Follow a directory: every new step once, for hosts that serve while a job saves."""

from __future__ import annotations

import logging
import platform
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from ckptstore.directory.follow import Follower, Published
from ckptstore.errors import CkptStoreError, DeadlineError, TransientError, UsageError
from ckptstore.serving.schedule import Schedule
from ckptstore.serving.step import Step
from ckptstore.storage.latch import Latch
from ckptstore.storage.registry import locate
from ckptstore.storage.scope import Scope
from ckptstore.types import Options, PathText

if TYPE_CHECKING:
    from ckptstore.cache.cache import Cache
    from ckptstore.cache.last_seen import LastSeen

__all__ = ["WatchHealth", "Watcher", "watch"]

_LOG = logging.getLogger("ckptstore")

# The default: a look costs a request, and an object store counts them.
_FAR_EVERY_S = 10.0
_NEAR_EVERY_S = 1.0

# A look that gets no answer ends after a period, but never before the first of these or after the second.
_SHORTEST_LOOK_S = 5.0
_LONGEST_LOOK_S = 20.0

_PERIODS_UNTIL_STALE = 3
_PERIODS_BETWEEN_LISTINGS = 10

# An asynchronous iterator that is cancelled leaves a thread behind for so long.
_ASYNC_WAIT_S = 0.5


@dataclass(frozen=True, slots=True)
class WatchHealth:
    """How a `Watcher` is, for probes and dashboards.

    Attributes
    ----------
    looked_s_ago : float or None
        Seconds since a look succeeded; None before the first one.
    changed_s_ago : float or None
        Seconds since a new step was seen; None before the first one.
    failures_in_a_row : int
        Looks that failed since one succeeded.
    error : str or None
        What the last of them said; None after a look that succeeded.
    is_stale : bool
        Whether no look has succeeded for three periods: what is served may be old. Also while nobody asks
        for the next step.
    requests : int
        Requests to an object store so far, repetitions included; 0 on other storages.
    """

    looked_s_ago: float | None
    changed_s_ago: float | None
    failures_in_a_row: int
    error: str | None
    is_stale: bool
    requests: int


class Watcher:
    """The steps of a directory, each once, the newest only: an iterator and an asynchronous iterator.

    `watch` makes one. It looks while somebody waits for the next step; there is no thread of its own.

    Attributes
    ----------
    current : Step or None
        The one that was returned last.

    Threads
    -------
    Safe for concurrent use; of several threads that wait, one gets the step. `stop` may also be called in a
    signal handler. The asynchronous iterator looks in a thread of its event loop's pool; if it is cancelled,
    a look that is under way ends there in its own time, and what it finds is returned next.
    """

    def __init__(
        self,
        directory: PathText,
        *,
        every_s: float | None = None,
        spread_s: float = 0.0,
        start: Literal["latest", "next"] = "latest",
        latest_filename: str | None = None,
        cache: Cache | PathText | None = None,
        storage_options: Options = None,
    ) -> None:
        if start not in ("latest", "next"):
            raise UsageError("start must be 'latest' or 'next'", actual=repr(start))
        place = locate(directory, storage_options)
        if every_s is None:
            every_s = _NEAR_EVERY_S if place.storage.capabilities.backend == "local" else _FAR_EVERY_S
        for name, value in (("every_s", every_s), ("spread_s", spread_s)):
            if not 0 <= value < float("inf"):
                raise UsageError(f"{name} must be a number of seconds, not below 0", actual=repr(value))
        self.current: Step | None = None
        self._url = place.url or "."
        self._storage_options = storage_options
        self._cache: Cache | None = None
        if cache is not None:
            # On use: who follows a directory may have none.
            from ckptstore.cache.cache import as_cache

            self._cache = as_cache(cache)
        self._place = place
        self._latest_filename = latest_filename
        self._every_s = every_s
        self._follower = Follower(place, latest_filename)
        self._begins_with_next = start == "next"
        now_s = time.monotonic()
        self._schedule = Schedule(every_s or _LONGEST_LOOK_S, spread_s, platform.node(), place.url, now_s)
        self._stopped = Latch()
        # Held during a look; it knows its owner: a look of a signal handler inside a look would mix the two.
        self._turn = threading.RLock()
        self._scope: Scope | None = None
        self._looks = 0
        self._requests = 0
        self._looked_s: float | None = None
        self._changed_s: float | None = None
        self._listed_s: float | None = None
        self._failures = 0
        self._error: Exception | None = None
        # Seen and not returned yet, and when it is to be.
        self._waiting: tuple[Step, float] | None = None
        # Held for a moment, and by a signal handler too.
        self._taking = threading.RLock()

    def __repr__(self) -> str:
        state = "stopped" if self._stopped.is_set() else f"every {self._every_s:g} s"
        return f"<Watcher of {self._url}, {state}>"

    def next(self, timeout_s: float | None = None) -> Step | None:
        """Wait for the next step.

        Parameters
        ----------
        timeout_s : float, optional
            Seconds; None: no limit. With 0 a look is made only if one is due.

        Returns
        -------
        Step or None
            The newest complete checkpoint, once. Steps that were replaced by newer ones meanwhile are left
            out, and one that an operator rolled back to is a new step. None after `timeout_s`, after `stop`,
            and with ``every_s=0`` when nothing new was there.

        Raises
        ------
        AccessError, TransientError, CorruptError, UsageError, UnsupportedError
            If the very first look fails. Later ones do not raise: they are logged, counted in `health`, and
            tried again, less often the longer it lasts.
        """
        ends_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self._advance(ends_s)
            step = self._take()
            if step is not None or self._is_over() or self._is_looking_here():
                return step
            if ends_s is not None and time.monotonic() >= ends_s:
                return None

    def check(self, timeout_s: float | None = 60.0) -> Step | None:
        """Look now, whatever is due.

        A request that fails is repeated as any read is, until `timeout_s`, or until `stop` ends it. In a
        signal handler that interrupts a look of its own thread it returns None, and `next` looks again at
        once.

        Parameters
        ----------
        timeout_s : float, optional
            Seconds until it raises `DeadlineError`; None: each request ends a minute after its last progress.

        Returns
        -------
        Step or None
            One that `next` has not returned; without waiting for this host's turn (`spread_s`).

        Raises
        ------
        AccessError, TransientError, CorruptError, UsageError, UnsupportedError
            If the look fails.
        """
        if self._is_looking_here():
            self._schedule.next_s = time.monotonic()
            return None
        ends_s = None if timeout_s is None else time.monotonic() + timeout_s
        if not self._turn.acquire(timeout=-1.0 if timeout_s is None else max(0.0, timeout_s)):
            raise DeadlineError(
                "cannot look for a new step: another look is under way",
                url=self._url,
                expected=f"its end within {timeout_s:g} s",
                hint="Allow more time, or call it again.",
            )
        try:
            self._look(is_patient=True, may_list=True, ends_s=ends_s)
        finally:
            self._turn.release()
        return self._take(is_due=True)

    def health(self) -> WatchHealth:
        """Return how it is; makes no request, and does not wait for one."""
        now_s = time.monotonic()
        looked_s, changed_s, error = self._looked_s, self._changed_s, self._error
        return WatchHealth(
            None if looked_s is None else now_s - looked_s,
            None if changed_s is None else now_s - changed_s,
            self._failures,
            None if error is None else str(error),
            looked_s is None or now_s - looked_s > _PERIODS_UNTIL_STALE * self._schedule.every_s,
            self._requests,
        )

    def stop(self) -> None:
        """End all waiting, now and later, and give up a look that is under way."""
        self._stopped.set()
        scope = self._scope
        if scope is not None:
            scope.cancellation.cancel()

    def __enter__(self) -> Watcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __iter__(self) -> Iterator[Step]:
        return self

    def __next__(self) -> Step:
        step = self.next()
        if step is None:
            raise StopIteration
        return step

    def __aiter__(self) -> AsyncIterator[Step]:
        return self

    async def __anext__(self) -> Step:
        # On use: who does not wait for it has no loop.
        import asyncio

        while True:
            # A step is taken here and not in the thread: one that nobody awaits any more would lose it.
            await asyncio.to_thread(lambda: self._advance(time.monotonic() + _ASYNC_WAIT_S))
            step = self._take()
            if step is not None:
                return step
            if self._is_over():
                raise StopAsyncIteration

    def _advance(self, ends_s: float | None) -> None:
        """Wait for what is due next, at most until `ends_s`, and make the look if it is one."""
        if self._is_over() or self._is_looking_here():
            return
        due_s = self._schedule.next_s
        if self._waiting is not None:
            due_s = min(due_s, self._waiting[1])
        pause_s = (due_s if ends_s is None else min(due_s, ends_s)) - time.monotonic()
        if pause_s > 0 and self._stopped.wait(pause_s):
            return
        rest_s = -1.0 if ends_s is None else max(0.0, ends_s - time.monotonic())
        if not self._turn.acquire(timeout=rest_s):
            return
        try:
            if self._stopped.is_set() or self._schedule.next_s > time.monotonic():
                return
            self._look(is_patient=self._looks == 0)
        except CkptStoreError:
            if self._has_nothing() and not self._stopped.is_set():
                raise
        finally:
            self._turn.release()

    def _has_nothing(self) -> bool:
        """Return whether no look has succeeded, and the cache had no answer either."""
        return self._looked_s is None and self.current is None and self._waiting is None

    def _is_looking_here(self) -> bool:
        """Return whether this is a signal handler that has interrupted a look of its own thread."""
        # What threading.Condition asks too; there is no public way before Python 3.14.
        return bool(self._turn._is_owned())  # type: ignore[attr-defined]  # noqa: SLF001

    def _is_over(self) -> bool:
        return self._stopped.is_set() or (self._every_s == 0 and self._looks > 0)

    def _take(self, *, is_due: bool = False) -> Step | None:
        with self._taking:
            if self._waiting is None or self._stopped.is_set():
                return None
            step, due_s = self._waiting
            if not is_due and due_s > time.monotonic():
                return None
            self._waiting, self.current = None, step
            return step

    def _look(self, *, is_patient: bool, may_list: bool = False, ends_s: float | None = None) -> None:
        """Look once, until `ends_s` at most; `is_patient`: repeat the first request too if it fails."""
        try:
            found = self._find(is_patient, may_list, ends_s)
        except Exception as error:
            # Whatever it is, the next look comes at its time, and not at once.
            self._failed(error)
            if isinstance(error, TransientError) and self._take_last_seen(error):
                return
            raise
        finally:
            self._looks += 1
        if self._failures:
            _LOG.warning("%s can be read again after %d failures", self._url, self._failures)
        is_first = self._looked_s is None
        now_s = time.monotonic()
        self._failures, self._error, self._looked_s = 0, None, now_s
        self._schedule.looked(now_s)
        if found is not None:
            if self._cache is not None:
                self._cache.last_seen.remember(self._place, self._latest_filename, found.place)
            self._seen(found, now_s, is_first=is_first)

    def _may_answer(self) -> LastSeen | None:
        """Return what may answer at the start in place of the storage."""
        if self._cache is None or self._begins_with_next or not self._has_nothing():
            return None
        return self._cache.last_seen

    def _take_last_seen(self, error: TransientError) -> bool:
        last_seen = self._may_answer()
        known = None
        if last_seen is not None:
            known = last_seen.instead_of(error, self._place, self._latest_filename)
        if known is None:
            return False
        self._seen(Published(*known), time.monotonic(), is_first=True)
        return True

    def _find(self, is_patient: bool, may_list: bool, ends_s: float | None) -> Published | None:
        follower = self._follower
        limit_s: float | None = min(max(self._schedule.every_s, _SHORTEST_LOOK_S), _LONGEST_LOOK_S)
        # A look that fails is made again anyway: the requests of a thousand hosts must not become eight
        # thousand while a store is down.
        last_seen = self._may_answer()
        if is_patient and (last_seen is None or not last_seen.knows(self._place, self._latest_filename)):
            limit_s = None
        with self._current_scope(_sooner(limit_s, ends_s), retries_failed=is_patient):
            snapshot = follower.changed_record()
        if snapshot is None:
            return None
        now_s, listings = time.monotonic(), follower.listings
        between_s = _PERIODS_BETWEEN_LISTINGS * self._schedule.every_s
        may_list = may_list or self._listed_s is None or now_s - self._listed_s >= between_s
        try:
            with self._current_scope(_sooner(None, ends_s)):
                return follower.look(snapshot, may_list=may_list)
        finally:
            if follower.listings > listings:
                self._listed_s = now_s

    @contextmanager
    def _current_scope(self, limit_s: float | None, *, retries_failed: bool = True) -> Iterator[None]:
        """Count the requests of the block, and let `stop` cancel them."""
        scope = Scope(
            limit_s, what="cannot look for a new step", url=self._url, retries_failed=retries_failed
        )
        self._scope = scope
        if self._stopped.is_set():
            # `stop` may have come before it could find the scope.
            scope.cancellation.cancel()
        try:
            with scope:
                yield
        finally:
            self._scope = None
            self._requests += scope.requests

    def _failed(self, error: Exception) -> None:
        if self._stopped.is_set():
            return
        before = self._error
        self._error = error
        self._failures += 1
        self._schedule.failed(time.monotonic())
        if type(before) is not type(error) and self._looked_s is not None:
            _LOG.warning("no new step can be seen, and what was seen last stays: %s", error)

    def _seen(self, found: Published, now_s: float, *, is_first: bool) -> None:
        self._changed_s = now_s
        step = Step(
            found.place.url, found.step, found.version, time.time(), self._storage_options, self._cache
        )
        with self._taking:
            if is_first and self.current is None:
                # A host that starts has nothing to serve yet. After a first look that failed, nobody knows
                # what was there at the start.
                skips = self._begins_with_next and self._looks == 1
                self._waiting = None if skips else (step, now_s)
            elif self.current is not None and _is_same(step, self.current):
                # The record was set back while a newer one waited for its turn.
                self._waiting = None
            else:
                # A newer one takes the place in the queue: frequent saves must not put it off for ever.
                due_s = now_s + self._schedule.delay_s if self._waiting is None else self._waiting[1]
                self._waiting = (step, due_s)


def _sooner(limit_s: float | None, ends_s: float | None) -> float | None:
    """Return the shorter of a time from now and the time until `ends_s`; None: no limit."""
    if ends_s is None:
        return limit_s
    left_s = max(0.0, ends_s - time.monotonic())
    return left_s if limit_s is None else min(limit_s, left_s)


def _is_same(one: Step, other: Step) -> bool:
    return (one.prefix, one.version) == (other.prefix, other.version)


def watch(
    directory: PathText,
    *,
    every_s: float | None = None,
    spread_s: float = 0.0,
    start: Literal["latest", "next"] = "latest",
    latest_filename: str | None = None,
    cache: Cache | PathText | None = None,
    storage_options: Options = None,
) -> Watcher:
    """Follow the checkpoints of a directory: each new step once, complete, the newest only.

    It follows the record, also back to an older step. While nothing changes, a look is one conditional
    request, and none that lists. An outage raises nothing: the last step stays, `Watcher.health` says so, and
    looks become rarer, up to eight periods apart.

    Parameters
    ----------
    directory : str or PathLike
        Directory or URL that somebody saves to. It may be empty, and need not exist on a local disk.
    every_s : float, optional
        Seconds between two looks, give or take a fifth, at a place in the period that is this host's own.
        None: 10 on an object store, 1 on a local disk. 0: look once.
    spread_s : float
        A new step is returned up to so many seconds after it was seen, each host at its own time, always the
        same. So a thousand hosts do not fetch at once, and the first ones try a step before the others.
        The step that is there at the start is returned at once.
    start : {"latest", "next"}
        Whether the step that is there already is the first one.
    latest_filename : str, optional
        Name of the record, ``checkpoint`` by default.
    cache : Cache or path, optional
        What `Step.open` uses. If the first look fails because the storage is away, the first step is the last
        one that was seen, with a warning.
    storage_options : mapping, optional
        Goes to the backend as it is.

    Returns
    -------
    Watcher

    Raises
    ------
    UsageError
        If an option is wrong. Nothing is read yet.

    Examples
    --------
    >>> from ckptstore import Saver
    >>> with Saver() as saver:
    ...     _ = saver.save({"w": [1.0, 2.0]}, "memory://docs/watch/model", global_step=1)
    >>> with watch("memory://docs/watch", every_s=0) as watcher:
    ...     [step.step for step in watcher]
    [1]
    """
    return Watcher(
        directory,
        every_s=every_s,
        spread_s=spread_s,
        start=start,
        latest_filename=latest_filename,
        cache=cache,
        storage_options=storage_options,
    )
