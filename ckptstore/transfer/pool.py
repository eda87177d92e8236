"""Threads that are lent out: tasks at the same time, the first error of which ends the others.

The threads belong to the process. They are not daemons, because they work on memory of the caller. An idle
thread soon ends by itself, so none of them delays the end of the interpreter.
"""

from __future__ import annotations

import contextvars
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from types import TracebackType
from typing import Generic, TypeVar

from ckptstore.errors import UsageError
from ckptstore.storage.scope import Scope

__all__ = ["TaskGroup", "run_tasks"]

_T = TypeVar("_T")

# Starting a thread takes 0.06 ms, and the end of the program waits for idle ones.
_IDLE_S = 0.05


class TaskGroup(Generic[_T]):
    """Tasks under way at the same time.

    Calls
    -----
    `submit` any number of times, then `finish`, or `stop`. Leaving the ``with`` block stops what is not
    finished; if it is left by an error that only follows from one in a task, that one is raised instead.

    Parameters
    ----------
    scope : Scope
        The tasks run in a branch of it, and in a copy of the context of their `submit`.
    parallel : int
        So many tasks at the same time; 1: in the thread that submits them.

    Attributes
    ----------
    scope : Scope
        The branch: cancelled by the first error, or with the scope around it.

    Threads
    -------
    One thread at a time, besides those of the tasks.
    """

    def __init__(self, scope: Scope, parallel: int) -> None:
        self.scope = scope.branch()
        self._parallel = parallel
        # Reentrant: a signal handler that cancels may interrupt the thread that holds it.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._waiting: deque[tuple[int, Callable[[], _T], contextvars.Context]] = deque()
        self._under_way = 0
        self._submitted = 0
        self._results: dict[int, _T] = {}
        self._error: BaseException | None = None
        self._pid = os.getpid()
        self.scope.cancellation.watch(self._wake)

    def submit(self, task: Callable[[], _T]) -> None:
        """Start `task` as soon as fewer than `parallel` are under way.

        Raises
        ------
        BaseException
            The error of a task; no task is running any more then.
        """
        if self._pid != os.getpid():
            raise UsageError(
                "this transfer belongs to the parent of this process", hint="Begin another one here."
            )
        if self._parallel == 1:
            self._run_here(task)
            return
        with self._lock:
            while self._is_going and self._under_way + len(self._waiting) >= self._parallel:
                self._changed.wait()
            if self._is_going:
                self._waiting.append((self._submitted, task, contextvars.copy_context()))
                self._submitted += 1
        self._check()
        _threads.offer(self._step)

    def _run_here(self, task: Callable[[], _T]) -> None:
        self._check()
        number, self._submitted = self._submitted, self._submitted + 1
        try:
            self._results[number] = self.scope.run(task)
        except BaseException as error:
            self._error = error
            self.scope.cancellation.cancel()
            raise

    @property
    def _is_going(self) -> bool:
        return self._error is None and not self.scope.cancellation.is_cancelled

    def _check(self) -> None:
        if not self._is_going:
            self.stop()
            if self._error is not None:
                raise self._error
        self.scope.check()

    def _step(self) -> None:
        """Run one task that waits; in a thread of the pool."""
        with self._lock:
            if not self._waiting:
                return
            number, task, context = self._waiting.popleft()
            self._under_way += 1
        failure: BaseException | None = None
        try:
            self.scope.check()
            result = context.run(self.scope.run, task)
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits for it
            failure = error
        # What the task holds must be free when the next one is let in.
        del task, context
        with self._lock:
            if failure is None:
                self._results[number] = result
            elif self._error is None:
                self._error = failure
            if failure is not None:
                self.scope.cancellation.cancel()
            self._under_way -= 1
            self._changed.notify_all()
        # Its traceback holds this frame, and all arrays that the task was filling.
        del failure

    def wait(self) -> None:
        """Wait until no task is running. Raises as `submit`."""
        if self._parallel > 1:
            with self._lock:
                while self._is_going and (self._waiting or self._under_way):
                    self._changed.wait()
        if not self._is_going:
            self._check()

    def finish(self) -> list[_T]:
        """Wait for all tasks and return what they returned, in the order in which they were submitted."""
        self.wait()
        self._leave()
        return [self._results[number] for number in range(self._submitted)]

    def stop(self) -> None:
        """Give up what is under way; when it returns, nothing runs any more."""
        if self._pid != os.getpid():
            # The threads stayed in the parent, and one of them may have held the lock.
            return
        self.scope.cancellation.cancel()
        interrupt: BaseException | None = None
        while True:
            try:
                with self._lock:
                    self._waiting.clear()
                    while self._under_way:
                        self._changed.wait()
                break
            except BaseException as error:  # noqa: BLE001 - Ctrl-C, or sys.exit in a signal handler
                # Still not: a task that runs on would work on memory that is the caller's again.
                interrupt = error
        self._leave()
        if interrupt is not None:
            raise interrupt

    def _leave(self) -> None:
        self.scope.cancellation.unwatch(self._wake)
        self.scope.detach()

    def _wake(self) -> None:
        with self._lock:
            self._changed.notify_all()

    def __enter__(self) -> TaskGroup[_T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._error is not None and isinstance(error, Exception) and error is not self._error:
            raise self._error from None

    def forget(self) -> None:
        """Let go of the error, when nobody asks for it again.

        Its traceback holds the group, and with it all arrays that were being filled: the two would hold each
        other until the garbage collector comes, which counts objects and not their bytes.
        """
        self._error = None


def run_tasks(scope: Scope, tasks: Iterable[Callable[[], _T]], parallel: int) -> list[_T]:
    """Run all of `tasks`, up to `parallel` at the same time, and return their results in order.

    Parameters
    ----------
    scope : Scope
    tasks : iterable of callable
        Asked for the next one when there is a thread for it, in the thread of the caller, with the branch of
        the tasks as the current scope.
    parallel : int
        1: in the thread of the caller.

    Raises
    ------
    BaseException
        What the first task that failed raised, or the iterable. When it comes, nothing runs any more.
    """
    group = TaskGroup[_T](scope, parallel)
    try:
        with group:
            pulled = iter(tasks)
            try:
                while True:
                    task = group.scope.run(lambda: next(pulled, None))
                    if task is None:
                        return group.finish()
                    group.submit(task)
            finally:
                if isinstance(pulled, Generator):
                    pulled.close()
    finally:
        group.forget()


class _Threads:
    """The threads of one process; as many as were ever busy at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._came = threading.Condition(self._lock)
        self._offers: deque[Callable[[], None]] = deque()
        self._idle = 0

    def offer(self, step: Callable[[], None]) -> None:
        """Have `step` run by some thread."""
        with self._lock:
            self._offers.append(step)
            if self._idle >= len(self._offers):
                self._came.notify()
                return
        try:
            threading.Thread(target=self._serve, name="ckptstore-transfer", daemon=False).start()
        except RuntimeError:
            # The system has no thread left, or the interpreter is shutting down.
            self._serve_one()

    def _serve(self) -> None:
        while True:
            with self._lock:
                while not self._offers:
                    self._idle += 1
                    try:
                        came = self._came.wait(_IDLE_S)
                    finally:
                        self._idle -= 1
                    if not came and not self._offers:
                        return
                step = self._offers.popleft()
            step()
            # An idle thread keeps nothing of the last transfer alive.
            del step

    def _serve_one(self) -> None:
        with self._lock:
            step = self._offers.popleft() if self._offers else None
        if step is not None:
            step()


_threads = _Threads()


def _renew() -> None:
    global _threads  # noqa: PLW0603 (a forked child starts anew)
    _threads = _Threads()


# A forked child has none of the threads, and one of the parent may have held a lock.
os.register_at_fork(after_in_child=_renew)
