"""One save or restore: what its threads share, and its reports of progress."""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TypeVar

from ckptstore.errors import CkptStoreWarning
from ckptstore.storage.reentry import refuse_reentry
from ckptstore.storage.scope import Scope
from ckptstore.transfer.budget import MemoryBudget
from ckptstore.transfer.pool import TaskGroup, run_tasks
from ckptstore.transfer.progress import Event, Report
from ckptstore.transfer.ring import Ring

__all__ = ["Transfer"]

_T = TypeVar("_T")

_LOG = logging.getLogger("ckptstore")

# News of fewer bytes than both are not worth a call, unless it was quiet for so long.
_NEWS_BYTES = 8 * 1024 * 1024
_NEWS_SHARE = 0.01
_QUIET_S = 0.1


class Transfer:
    """One save or restore under way.

    Calls
    -----
    Whoever begins it enters it with ``with`` for the time of all its requests, and passes it down; the rooms
    below call `run` or `group`, `advance`, and take memory from `budget`. It is over when the block is left.

    Parameters
    ----------
    kind : str
        ``"save"``, ``"restore"`` or ``"verify"``.
    url : str
        What is saved or restored, as the user named it.
    step : int, optional
        Of the checkpoint.
    memory_budget : int or MemoryBudget, optional
        Bytes to hold beyond the caller's own arrays; None: no limit.
    deadline_s : float, optional
        Bound on the whole.
    report : callable, optional
        Gets an `Event` at the beginning, now and then, and at the end; one at a time, and from any thread.
        What it raises is a warning, once, and ends the reports.
    ring : Ring, optional
        Where the blocks come from that requests are lent, in place of the budget.

    Attributes
    ----------
    scope : Scope
        Current inside the block: what its requests share.
    budget : MemoryBudget
    done_bytes : int
    total_bytes : int or None
        None while that is not known.

    Threads
    -------
    `advance`, `cancel`, `budget` and `scope` from any thread; one thread enters it.
    """

    def __init__(
        self,
        kind: str,
        url: str,
        *,
        step: int | None = None,
        memory_budget: int | MemoryBudget | None = None,
        deadline_s: float | None = None,
        report: Report | None = None,
        ring: Ring | None = None,
    ) -> None:
        self.kind = kind
        self.url = url
        self.step = step
        self.scope = Scope(deadline_s, what=f"cannot {kind}", url=url)
        self.budget = (
            memory_budget if isinstance(memory_budget, MemoryBudget) else MemoryBudget(memory_budget)
        )
        self.ring = ring
        self.done_bytes = 0
        self.total_bytes: int | None = None
        self._report = report
        self._report_failure: Exception | None = None
        self._begun_s = time.monotonic()
        self._lock = threading.RLock()
        self._told_bytes = 0
        self._told_s = self._begun_s

    def expect(self, total_bytes: int) -> None:
        """Set the total number of bytes."""
        self.total_bytes = total_bytes
        self._tell()

    def advance(self, size_bytes: int) -> None:
        """Report that `size_bytes` more bytes are done."""
        with self._lock:
            self.done_bytes += size_bytes
            if self._report is None:
                return
            news_bytes = self.done_bytes - self._told_bytes
            enough_bytes = min(_NEWS_BYTES, _NEWS_SHARE * (self.total_bytes or 0))
            if news_bytes >= max(enough_bytes, 1) or time.monotonic() - self._told_s >= _QUIET_S:
                self._tell()

    def restart(self, total_bytes: int) -> None:
        """Set the total number of bytes, with none of them done."""
        with self._lock:
            self.done_bytes = 0
            self.expect(total_bytes)

    def cancel(self) -> None:
        """Give it up: requests under way are dropped, nothing new begins."""
        self.scope.cancellation.cancel()

    def group(self, parallel: int) -> TaskGroup[None]:
        """Return a group of tasks of this transfer; see `TaskGroup`."""
        return TaskGroup(self.scope, parallel)

    def run(self, tasks: Iterable[Callable[[], _T]], parallel: int) -> list[_T]:
        """Run `tasks` and return their results in order; see `run_tasks`."""
        return run_tasks(self.scope, tasks, parallel)

    def _tell(self, *, is_over: bool = False, error: BaseException | None = None) -> None:
        with self._lock:
            if self._report is None:
                return
            self._told_bytes = self.done_bytes
            self._told_s = time.monotonic()
            event = Event(
                self.kind,
                self.url,
                self.done_bytes,
                self.total_bytes,
                self._told_s - self._begun_s,
                step=self.step,
                is_over=is_over,
                error=None if error is None else f"{type(error).__name__}: {error}",
            )
            try:
                self._report(event)
            except Exception as failure:  # noqa: BLE001 - the caller's own code, which must not break a save
                self._report = None
                self._report_failure = failure

    def __enter__(self) -> Transfer:
        refuse_reentry(self.url)
        self.scope.__enter__()
        try:
            self._tell()
        except BaseException as error:
            # Ctrl-C: what this thread does next is not part of this transfer.
            self.scope.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.scope.__exit__(kind, error, trace)
        self._tell(is_over=True, error=error)
        self._log(error)
        if self._report_failure is not None:
            _warn(f"the report of progress failed, and was switched off: {self._report_failure!r}")

    def _log(self, error: BaseException | None) -> None:
        if not _LOG.isEnabledFor(logging.INFO):
            return
        seconds = time.monotonic() - self._begun_s
        _LOG.info(
            "%s of %s%s: %d bytes in %.3f s (%.0f MB/s), %d requests, %d retries",
            self.kind,
            self.url if self.step is None else f"step {self.step} ({self.url})",
            "" if error is None else f" failed with {type(error).__name__}",
            self.done_bytes,
            seconds,
            self.done_bytes / 1e6 / max(seconds, 1e-9),
            self.scope.requests,
            self.scope.retries,
        )


def _warn(text: str) -> None:
    try:
        warnings.warn(text, CkptStoreWarning, stacklevel=4)
    except CkptStoreWarning:
        # Whoever turns warnings into errors does not mean a checkpoint that is saved already.
        _LOG.warning("%s", text)
