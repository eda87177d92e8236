"""Saves in the background: the handle that `Saver.save_async` returns, and the queue behind it.

One save of a Saver is in flight at a time, in a thread that lives as long as there is something to save. What
has to be checked is checked before a save comes here; what fails here is told once, by whatever asks first:
the handle's `result`, the Saver's next save, or its `close`.
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, wait
from contextvars import ContextVar
from typing import TYPE_CHECKING

from ckptstore import pending_saves
from ckptstore.errors import CkptStoreWarning, ConflictError, DeadlineError, SaveCancelledError, UsageError

if TYPE_CHECKING:
    from ckptstore.save_task import SaveTask
    from ckptstore.saver_options import QueuePolicy

__all__ = ["SaveHandle", "SaveQueue"]

_LOG = logging.getLogger("ckptstore")

# The queue whose save runs in this context, the threads that work for it included.
_AT_WORK: ContextVar[SaveQueue | None] = ContextVar("ckptstore_save_queue", default=None)

# A thread whose work is done ends within microseconds; this bounds the wait where a callback keeps it.
_SETTLE_S = 1.0


class SaveHandle:
    """A save in the background, returned by `Saver.save_async`.

    ``await handle`` waits for it without blocking the event loop and returns what `result` does. If the
    coroutine that waits is cancelled, the save goes on.

    In a forked child the saves of the parent are the parent's: methods raise `UsageError` unless the save was
    over before.

    Threads
    -------
    Safe for concurrent use.
    """

    def __init__(self, task: SaveTask, queue: SaveQueue) -> None:
        self._task = task
        self._queue = queue
        self._pid = os.getpid()
        self._future: Future[None] = Future()
        # Nobody cancels the future itself: `cancel` ends the work, and the work ends the future.
        self._future.set_running_or_notify_cancel()
        self._is_over = False
        self._error: BaseException | None = None
        self._answer: str | None = None

    @property
    def prefix(self) -> str:
        """The URL of the checkpoint."""
        return self._task.url

    @property
    def staged(self) -> bool:
        """Whether the arrays may be changed again."""
        return self._task.staged.is_set()

    @property
    def committed(self) -> bool:
        """Whether the checkpoint is saved and is the latest."""
        return self._is_over and self._error is None

    @property
    def done_bytes(self) -> int:
        """Bytes of data files that are stored already."""
        return self._task.done_bytes

    def wait_staged(self, timeout_s: float | None = None) -> None:
        """Wait until the arrays may be changed again; also when the save has failed.

        Raises
        ------
        DeadlineError
            If that takes longer than `timeout_s`. The save goes on.
        """
        self._check_process()
        if not self._task.staged.wait(timeout_s):
            raise self._not_yet("the arrays are still being read", timeout_s)

    def result(self, timeout_s: float | None = None) -> str | None:
        """Wait for the save, and return the prefix of the checkpoint; None if there was nothing to save.

        Ctrl-C while waiting leaves the save running.

        Raises
        ------
        DeadlineError
            If it is still under way after `timeout_s`; it goes on. Or if it took longer than the Saver's
            `deadline_s`; nothing of it stays.
        SaveCancelledError
            If it was cancelled, or a newer save took its place (``queue="skip"``). Nothing of it stays.
        UsageError
            If this save cannot go on before the caller does: from a callback, or a report of progress.
        CkptStoreError
            Whatever made it fail, as `Saver.save`; as often as it is asked.
        """
        self._check_process()
        if self._pid == os.getpid():
            if not self._is_over:
                self._queue.check_may_wait(self.prefix)
            if not wait([self._future], timeout_s).done:
                raise self._not_yet("the save is still under way", timeout_s)
            self._queue.tell(self)
            self._queue.settle()
        if self._error is not None:
            raise self._error
        return self._answer

    def cancel(self) -> bool:
        """Give the save up, if it is not being published yet. Does not wait.

        Returns
        -------
        bool
            True: the checkpoint will not exist, `result` raises `SaveCancelledError` once everything written
            so far is removed. False: too late, the save is being published, or it is over.
        """
        self._check_process()
        return self._queue.cancel(self)

    def add_done_callback(self, fn: Callable[[SaveHandle], object]) -> None:
        """Have `fn` called with this handle when the save is over; at once if it is.

        It is called in the thread that saves, and cannot wait for another save of this Saver: that raises
        `UsageError`. What it raises is logged.
        """
        self._check_process()

        def call(_: Future[None]) -> None:
            try:
                fn(self)
            except BaseException as error:
                # Not even SystemExit ends the thread that has other saves to make.
                if not isinstance(error, Exception) and not self._queue.is_own_thread:
                    raise
                _LOG.exception("a callback of the save of %s failed", self.prefix)

        self._future.add_done_callback(call)

    def __await__(self) -> Generator[object, None, str | None]:
        import asyncio

        self._check_process()
        loop = asyncio.get_running_loop()
        woken = loop.create_future()

        def wake() -> None:
            if not woken.done():
                woken.set_result(None)

        def over(_: Future[None]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(wake)

        self._future.add_done_callback(over)
        yield from woken
        return self.result()

    def __repr__(self) -> str:
        state = "running"
        if self._is_over:
            state = "committed" if self._error is None else f"failed: {type(self._error).__name__}"
        elif self._pid != os.getpid():
            state = "of the parent process"
        return f"<SaveHandle {self.prefix} {state}>"

    def _not_yet(self, what: str, timeout_s: float | None) -> DeadlineError:
        return DeadlineError(
            what,
            url=self.prefix,
            expected=f"no longer than {timeout_s} s",
            hint="It goes on in the background; wait longer, or cancel it.",
        )

    def _check_process(self) -> None:
        # Before any lock: a thread that the child does not have may hold it.
        if not self._is_over and self._pid != os.getpid():
            raise UsageError(
                "this save runs in the process that began it, not in its forked child",
                url=self.prefix,
                hint="Wait for it in the parent, or before forking.",
            )


class SaveQueue:
    """The saves of one Saver, one after the other.

    Parameters
    ----------
    policy : str
        What a save does that finds another one in flight: ``"wait"``, ``"skip"``, ``"refuse"``.

    Threads
    -------
    Saves are submitted by one thread at a time; everything else is safe for concurrent use.
    """

    def __init__(self, policy: QueuePolicy) -> None:
        self._policy = policy
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._waiting: deque[SaveHandle] = deque()
        self._running: SaveHandle | None = None
        self._thread: threading.Thread | None = None
        # Stands for the one call of `_work` that may make saves.
        self._worker: object | None = None
        self._untold: dict[SaveHandle, BaseException] = {}
        self._has_owner = True

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            # What is in flight, and what failed there, is the parent's.
            self._begin()

    @property
    def is_idle(self) -> bool:
        """Whether no save is in flight or waiting."""
        self._check_process()
        return self._running is None and not self._waiting

    @property
    def is_own_thread(self) -> bool:
        """Whether the caller is in the thread that makes the saves."""
        return threading.current_thread() is self._thread

    def check_may_wait(self, url: str | None = None) -> None:
        """Raise `UsageError` where waiting for a save would never end."""
        if self.is_own_thread or _AT_WORK.get() is self:
            raise UsageError(
                "a save was waited for in a thread that it needs itself",
                url=url,
                hint="Do not save, close or wait in a callback, or a report of progress, of the same Saver.",
            )

    def wait(self) -> None:
        """Wait until every save is over; how they ended does not matter here."""
        if not self.is_idle:
            self.check_may_wait()
        with self._changed:
            self._changed.wait_for(lambda: self._running is None and not self._waiting)
        self.settle()

    def raise_failure(self) -> None:
        """Raise what a save in the background died of, unless somebody was told."""
        self._check_process()
        with self._changed:
            untold, self._untold = list(self._untold.values()), {}
        if untold:
            for other in untold[1:]:
                untold[0].add_note(f"A later save failed, too: {other}")
            raise untold[0]

    def submit(self, task: SaveTask, *, snapshot: bool) -> SaveHandle:
        """Run `task` in the background, when its turn comes; return when its arrays may be changed again.

        Parameters
        ----------
        task : SaveTask
        snapshot : bool
            Copy the arrays. Without it, return at once.

        Raises
        ------
        ConflictError
            With the policy ``"refuse"``, if a save is in flight.
        UsageError
            In a callback or a report of progress, if it would have to wait there.
        CkptStoreError
            The failure of an earlier save that nobody was told of. Nothing is saved then.
        """
        if not self.is_idle and self._policy == "refuse":
            raise ConflictError(
                "another save of this Saver is in flight",
                url=task.url,
                hint="Wait for its result, or choose queue='wait' or queue='skip'.",
            )
        if snapshot and not (self._policy == "skip" and self._both_fit(task)):
            # What may not be given up later would only hold memory for as long as it waits.
            self.wait()
        self.raise_failure()
        handle = SaveHandle(task, self)
        if not snapshot:
            self._append(handle)
            return handle
        task.begin_snapshot()
        try:
            if not task.is_staged_whole:
                self.check_may_wait(task.url)
            self._append(handle)
            task.stage()
        except BaseException:
            # Nobody gets the handle, and the arrays may change now.
            self.cancel(handle)
            with self._changed:
                self._changed.wait_for(lambda: handle not in self._waiting and self._running is not handle)
            self.tell(handle)
            raise
        return handle

    def _both_fit(self, task: SaveTask) -> bool:
        """Tell whether the budget has room for a snapshot beside the one of the save in flight."""
        budget, running = task.memory_budget, self._running
        if budget is None or running is None:
            return True
        return task.size_bytes + running._task.size_bytes <= budget

    def _append(self, handle: SaveHandle) -> None:
        skipped: list[SaveHandle] = []
        with self._changed:
            if self._running is None and not self._waiting:
                # In flight from now on, not from when the thread gets to it: nothing takes its place.
                self._running = handle
            else:
                if self._policy == "skip":
                    skipped = list(self._waiting)
                    self._waiting.clear()
                self._waiting.append(handle)
            try:
                pending_saves.enter(handle)
                if self._worker is None:
                    self._begin_work()
            except BaseException:
                # Ctrl-C: nobody may wait for a save that nobody makes.
                if self._running is handle:
                    self._running = None
                else:
                    self._waiting.remove(handle)
                    self._waiting.extend(skipped)
                pending_saves.leave(handle)
                raise
        for older in skipped:
            older._task.cancel()
            self._end(older, _given_up(older, "a newer save of this Saver took its place"))
        if self._thread is None:
            handle._task.skip_snapshot()
            self._work(self._worker)

    def _begin_work(self) -> None:
        self._worker = worker = object()
        self._thread = threading.Thread(target=self._work, args=(worker,), name="ckptstore-save", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            # No new thread when the interpreter is ending: then in this one.
            self._thread = None
        except BaseException:
            # Should it run after all, it has nothing to do.
            self._thread = self._worker = None
            raise

    def _work(self, worker: object) -> None:
        token = _AT_WORK.set(self)
        try:
            while True:
                with self._changed:
                    if self._worker is not worker:
                        return
                    if self._running is None and not self._waiting:
                        self._worker = None
                        return
                    handle = self._running = self._running or self._waiting.popleft()
                error: BaseException | None = None
                try:
                    handle._answer = handle._task.run()
                except BaseException as failure:  # noqa: BLE001 - told by whoever asks first
                    error = failure
                if error is not None and handle._task.is_cancelled:
                    error = _given_up(handle, "it was cancelled", error)
                self._end(handle, error)
        except BaseException:
            with self._changed:
                if self._worker is worker:
                    self._worker = None
            raise
        finally:
            _AT_WORK.reset(token)

    def _end(self, handle: SaveHandle, error: BaseException | None) -> None:
        handle._task.release(error)
        is_missed = False
        if error is not None and not isinstance(error, SaveCancelledError):
            error.add_note(f"It happened while {handle.prefix} was saved in the background.")
            is_missed = True
        with self._changed:
            if error is not None and is_missed:
                self._untold[handle] = error
            if self._running is handle:
                self._running = None
            handle._error = error
            handle._is_over = True
            self._changed.notify_all()
        # Not above: the guard's lock may be held by a thread in which the garbage collector calls `let_go`.
        pending_saves.leave(handle)
        handle._future.set_result(None)
        if is_missed and not self._has_owner:
            self._warn()

    def cancel(self, handle: SaveHandle) -> bool:
        """See `SaveHandle.cancel`."""
        with self._changed:
            is_waiting = handle in self._waiting
            if is_waiting:
                self._waiting.remove(handle)
            elif handle._is_over:
                return handle._task.is_cancelled
        is_in_time = handle._task.cancel()
        if is_waiting:
            self._end(handle, _given_up(handle, "it was cancelled"))
        return is_in_time

    def tell(self, handle: SaveHandle) -> None:
        """Note that somebody was told how `handle` ended."""
        if self._pid == os.getpid():
            with self._changed:
                self._untold.pop(handle, None)

    def settle(self) -> None:
        """Let threads that have nothing to do any more end."""
        thread = self._thread
        if self._pid != os.getpid() or thread is None or thread is threading.current_thread():
            return
        if self.is_idle:
            thread.join(_SETTLE_S)
            pending_saves.settle(_SETTLE_S)

    def let_go(self) -> None:
        """Hear that the Saver is gone: of what failed, or fails from now on, it cannot tell."""
        if self._pid == os.getpid():
            self._has_owner = False
            self._warn()

    def _warn(self) -> None:
        with self._changed:
            untold, self._untold = self._untold, {}
        for error in untold.values():
            text = f"a save in the background failed, and nobody asked how it ended: {error}"
            try:
                warnings.warn(text, CkptStoreWarning, stacklevel=2)
            except CkptStoreWarning:
                # Where warnings are errors there is nobody to raise it to, and other saves are waiting.
                _LOG.warning("%s", text)


def _given_up(handle: SaveHandle, why: str, cause: BaseException | None = None) -> SaveCancelledError:
    error = SaveCancelledError(f"the save was given up: {why}", url=handle.prefix)
    error.__cause__ = cause
    return error
