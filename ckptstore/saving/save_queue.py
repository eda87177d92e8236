"""The background saves of one Saver: one at a time, in a thread that lives while there is work.

Arguments are checked before a save is queued. A failure is reported once, by whichever comes first: the
save's handle, the Saver's next save, or its `close`.
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections import deque
from concurrent.futures import Future
from contextvars import ContextVar
from typing import TYPE_CHECKING

from ckptstore.errors import CkptStoreWarning, ConflictError, SaveCancelledError, UsageError
from ckptstore.saving import at_exit
from ckptstore.storage.reentry import refuse_reentry

if TYPE_CHECKING:
    from ckptstore.saving.options import QueuePolicy
    from ckptstore.saving.task import SaveTask

__all__ = ["QueuedSave", "SaveQueue"]

_LOG = logging.getLogger("ckptstore")

# The queue whose save runs in this context, the threads that work for it included.
_AT_WORK: ContextVar[SaveQueue | None] = ContextVar("ckptstore_save_queue", default=None)

# An idle thread ends within microseconds; this bounds the wait when a callback delays it.
_JOIN_S = 1.0


class QueuedSave:
    """One save in a queue, and how it ended.

    Attributes
    ----------
    future : Future
        Done when the save is over; holds nothing.
    is_over : bool
    error : BaseException or None
        What it failed with; read it when `is_over`.
    answer : str or None
        What the task returned; read it when `is_over`.

    Threads
    -------
    Written by its queue, read by any.
    """

    def __init__(self, task: SaveTask, queue: SaveQueue) -> None:
        self.task = task
        self.queue = queue
        self.future: Future[None] = Future()
        # The future itself is never cancelled: `cancel` ends the work, and the work completes the future.
        self.future.set_running_or_notify_cancel()
        self.is_over = False
        self.error: BaseException | None = None
        self.answer: str | None = None
        self._pid = os.getpid()

    @property
    def prefix(self) -> str:
        """The URL of the checkpoint."""
        return self.task.url

    @property
    def done_bytes(self) -> int:
        """Bytes of data files that are stored already."""
        return self.task.done_bytes

    @property
    def is_of_this_process(self) -> bool:
        """False in a forked child: the thread that makes the save stayed in the parent."""
        return self._pid == os.getpid()

    def cancel(self) -> bool:
        """Cancel the save unless it is being published already; return whether it was in time."""
        return self.queue.cancel(self)


class SaveQueue:
    """The saves of one Saver, one after the other.

    Parameters
    ----------
    policy : str
        What a save does when another one is in flight: ``"wait"``, ``"skip"``, ``"refuse"``.

    Threads
    -------
    Saves are submitted by one thread at a time; everything else is safe for concurrent use.
    """

    def __init__(self, policy: QueuePolicy) -> None:
        self._policy = policy
        self._begin()

    def _begin(self) -> None:
        # The process that owns everything below; a forked child starts anew.
        self._pid = os.getpid()
        # Guards the fields below; notified when a save is over. While a save runs or waits, `_worker` is set.
        # Taken by itself: an interrupt in `Condition.__enter__`, which is Python, leaves it locked for ever.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        # Next first, without the running one; while it is not empty, the worker runs or is about to.
        self._waiting: deque[QueuedSave] = deque()
        # Set from the moment a save is next, which may be before its thread reaches it, until `_end`.
        self._running: QueuedSave | None = None
        # The thread of `_worker`, or of the last one. None: no thread could be started, and saves run in the
        # thread that submits them.
        self._thread: threading.Thread | None = None
        # Identifies the one call of `_work` that may run saves; None while idle.
        self._worker: object | None = None
        # Failed saves whose error nothing has raised yet; each error leaves once.
        self._unreported: dict[QueuedSave, BaseException] = {}
        # False once the Saver is collected: failures are then warnings.
        self._has_owner = True

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            # Saves in flight and their failures belong to the parent.
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
                "waiting for a save in a thread that the save itself needs",
                url=url,
                hint="Do not save, close or wait in a callback, or a report of progress, of the same Saver.",
            )

    def wait(self) -> None:
        """Wait until every save is over, whether it succeeded or not."""
        refuse_reentry()
        if not self.is_idle:
            self.check_may_wait()
        with self._lock:
            self._changed.wait_for(lambda: self._running is None and not self._waiting)
        self.join_idle()

    def raise_failure(self) -> None:
        """Raise the first unreported failure of a background save."""
        self._check_process()
        with self._lock:
            unreported, self._unreported = list(self._unreported.values()), {}
        if unreported:
            for other in unreported[1:]:
                unreported[0].add_note(f"A later save failed, too: {other}")
            raise unreported[0]

    def submit(self, task: SaveTask, *, snapshot: bool) -> QueuedSave:
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
            The unreported failure of an earlier save. Nothing is saved then.
        """
        refuse_reentry(task.url)
        if not self.is_idle and self._policy == "refuse":
            raise ConflictError(
                "another save of this Saver is in flight",
                url=task.url,
                hint="Wait for its result, or choose queue='wait' or queue='skip'.",
            )
        if snapshot and not (self._policy == "skip" and self._both_fit(task)):
            # A save that cannot be skipped later would only hold memory while it waits.
            self.wait()
        self.raise_failure()
        save = QueuedSave(task, self)
        if snapshot:
            task.begin_snapshot()
        try:
            if not task.is_staged_whole:
                self.check_may_wait(task.url)
            self._append(save)
            task.stage()
        except BaseException:
            # The caller gets no handle, and the arrays may change from now on.
            self.cancel(save)
            with self._lock:
                self._changed.wait_for(lambda: save not in self._waiting and self._running is not save)
            self.mark_reported(save)
            raise
        return save

    def _both_fit(self, task: SaveTask) -> bool:
        """Return whether the budget has room for a snapshot beside that of the save in flight."""
        budget, running = task.memory_budget, self._running
        if budget is None or running is None:
            return True
        return task.size_bytes + running.task.size_bytes <= budget

    def _append(self, save: QueuedSave) -> None:
        skipped: list[QueuedSave] = []
        with self._lock:
            waiting = list(self._waiting)
            try:
                if self._running is None and not waiting:
                    # In flight from now on, not only when the thread reaches it: nothing takes its place.
                    self._running = save
                else:
                    if self._policy == "skip":
                        skipped = waiting
                        self._waiting.clear()
                    self._waiting.append(save)
                at_exit.enter(save)
                if self._worker is None:
                    self._begin_work()
            except BaseException:
                # Ctrl-C: a save that no thread will run must not be waited for.
                if self._running is save:
                    self._running = None
                self._waiting = deque(waiting)
                at_exit.leave(save)
                raise
        for older in skipped:
            older.task.cancel()
            self._end(older, _cancelled(older, "a newer save of this Saver took its place"))
        if self._thread is None:
            save.task.skip_snapshot()
            self._work(self._worker)

    def _begin_work(self) -> None:
        try:
            self._worker = worker = object()
            thread = threading.Thread(target=self._work, args=(worker,), name="ckptstore-save", daemon=True)
            thread.start()
            self._thread = thread
        except RuntimeError:
            # The interpreter starts no new thread while it ends: run in this one.
            self._thread = None
        except BaseException:
            # If the thread runs after all, it finds no work.
            self._thread = self._worker = None
            raise

    def _work(self, worker: object) -> None:
        token = _AT_WORK.set(self)
        try:
            while True:
                with self._lock:
                    if self._worker is not worker:
                        return
                    if self._running is None and not self._waiting:
                        self._worker = None
                        return
                    save = self._running = self._running or self._waiting.popleft()
                error: BaseException | None = None
                try:
                    save.answer = save.task.run()
                except BaseException as failure:  # noqa: BLE001 - reported by whatever asks first
                    error = failure
                if error is not None and save.task.is_cancelled:
                    error = _cancelled(save, "it was cancelled", error)
                self._end(save, error)
        except BaseException:
            with self._lock:
                if self._worker is worker:
                    self._worker = None
            raise
        finally:
            _AT_WORK.reset(token)

    def _end(self, save: QueuedSave, error: BaseException | None) -> None:
        save.task.release(error)
        is_failure = False
        if error is not None and not isinstance(error, SaveCancelledError):
            error.add_note(f"This failed while {save.prefix} was being saved in the background.")
            is_failure = True
        with self._lock:
            if error is not None and is_failure:
                self._unreported[save] = error
            if self._running is save:
                self._running = None
            save.error = error
            save.is_over = True
            self._changed.notify_all()
        # Not above: the guard's lock may be held by a thread in which the garbage collector
        # calls `report_as_warnings`.
        at_exit.leave(save)
        save.future.set_result(None)
        if is_failure and not self._has_owner:
            self._warn()

    def cancel(self, save: QueuedSave) -> bool:
        """Cancel `save` unless it is being published already; return whether it was in time."""
        with self._lock:
            is_waiting = save in self._waiting
            if is_waiting:
                self._waiting.remove(save)
            elif save.is_over:
                return save.task.is_cancelled
        is_in_time = save.task.cancel()
        if is_waiting:
            self._end(save, _cancelled(save, "it was cancelled"))
        return is_in_time

    def mark_reported(self, save: QueuedSave) -> None:
        """Record that the outcome of `save` was reported to the caller."""
        if self._pid == os.getpid():
            with self._lock:
                self._unreported.pop(save, None)

    def join_idle(self) -> None:
        """Wait for the threads to end if no save is in flight."""
        thread = self._thread
        if self._pid != os.getpid() or thread is None or thread is threading.current_thread():
            return
        if self.is_idle:
            thread.join(_JOIN_S)
            at_exit.join_idle(_JOIN_S)

    def report_as_warnings(self) -> None:
        """Report failures as warnings, now and later: called when the Saver is collected."""
        if self._pid == os.getpid():
            self._has_owner = False
            self._warn()

    def _warn(self) -> None:
        with self._lock:
            unreported, self._unreported = self._unreported, {}
        for error in unreported.values():
            text = f"a background save failed, and its result was never asked for: {error}"
            try:
                warnings.warn(text, CkptStoreWarning, stacklevel=2)
            except CkptStoreWarning:
                # With warnings as errors there is no caller to raise it to, and other saves are waiting.
                _LOG.warning("%s", text)


def _cancelled(save: QueuedSave, why: str, cause: BaseException | None = None) -> SaveCancelledError:
    error = SaveCancelledError(f"the save was cancelled: {why}", url=save.prefix)
    error.__cause__ = cause
    return error
