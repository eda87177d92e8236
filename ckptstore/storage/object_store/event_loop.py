"""One event loop in a thread of its own, for clients that are written for asyncio.

Not fsspec's loop: coroutines on it could not call us, and its state after a fork is not ours to repair.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import selectors
import threading
import weakref
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from ckptstore.errors import TransientError
from ckptstore.storage.object_store.attempts import Attempts
from ckptstore.storage.object_store.faults import Fault, Kind, scarcity_hint
from ckptstore.storage.reentry import refuse_reentry

__all__ = ["LoopThread"]

_T = TypeVar("_T")

# A cancelled request closes its connection at once; this bounds the wait for one that does not.
_STOP_TIMEOUT_S = 5.0


# A connection that is closed gives its socket back in one of the next rounds of the loop, or never.
_LAST_ROUNDS = 3


class LoopThread:
    """A running event loop; its thread ends with the process, or with `close`.

    After a fork the child neither uses nor closes the parent's connections: closing one in the child would
    end the parent's conversation.

    Attributes
    ----------
    loop : asyncio.AbstractEventLoop
    pid : int
        The process that it runs in; a forked child needs another one.
    kept : list of object
        What must not be collected in a forked child, such as the client that owns the connections.

    Raises
    ------
    TransientError
        If the system has no file descriptor or no thread left for it.

    Threads
    -------
    Safe for concurrent use, also inside a running loop of the caller. Not in its own thread.
    """

    def __init__(self) -> None:
        # Not epoll: parent and child share what the kernel watches, and the child would remove the parent's
        # connections from it.
        try:
            self.loop = asyncio.SelectorEventLoop(selectors.PollSelector())
        except OSError as error:
            raise _no_room(error) from error
        self.loop.set_default_executor(_ThreadEach())
        self.pid = os.getpid()
        self.kept: list[object] = []
        self._thread = threading.Thread(target=self._serve, name="ckptstore-requests", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            self.loop.close()
            raise _no_room(error) from error
        _threads.add(self)

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        for _ in range(_LAST_ROUNDS):
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()
        # Its descriptors go with the thread, and not when the loop is collected.
        self.loop.close()

    def call(self, start: Callable[[], Coroutine[Any, Any, _T]], attempts: Attempts) -> _T:
        """Run the coroutine that `start` makes, as one attempt of `attempts`, and return its result.

        Raises
        ------
        Fault
            `Kind.STALLED` after no progress for as long as the attempt may wait, `Kind.CANCELLED` if the
            operation was cancelled. In both cases, and on Ctrl-C, the coroutine has ended by then: it writes
            into no buffer any more.
        """
        refuse_reentry()
        call = _CoroutineCall(self.loop, start)
        attempts.cancellation.watch(call.drop)
        try:
            while not call.answer.done():
                concurrent.futures.wait([call.answer], timeout=attempts.remaining_s())
                if not call.answer.done() and attempts.remaining_s() <= 0:
                    raise attempts.stalled()
            answer: _T = call.answer.result()
            return answer
        finally:
            attempts.cancellation.unwatch(call.drop)
            if not call.answer.done():
                call.drop()
                concurrent.futures.wait([call.answer], timeout=_STOP_TIMEOUT_S)

    def close(self) -> None:
        """Stop the loop and wait for its thread; nothing in a forked child."""
        if self.pid == os.getpid() and not self.loop.is_closed():
            with suppress(RuntimeError):  # closed in between
                self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(_STOP_TIMEOUT_S)


def _no_room(error: Exception) -> TransientError:
    return TransientError(
        f"cannot begin to talk to the object store: {error}",
        hint=scarcity_hint(error) or "Try again when fewer threads run, or raise the limit (`ulimit -u`).",
    )


_threads: weakref.WeakSet[LoopThread] = weakref.WeakSet()
_held: list[LoopThread] = []
_inherited: list[LoopThread] = []


def _hold() -> None:
    _held.extend(_threads)


def _inherit() -> None:
    for thread in _held:
        # A client that is collected at exit nevertheless reports to its loop that it was not closed.
        thread.loop.set_exception_handler(lambda loop, context: None)
    _inherited.extend(_held)
    _held.clear()


# Held from before the fork on, so that the child's first garbage collection does not collect them.
os.register_at_fork(before=_hold, after_in_parent=_held.clear, after_in_child=_inherit)


class _ThreadEach(concurrent.futures.ThreadPoolExecutor):
    """A thread for each call, such as asyncio makes to look up the name of a host.

    A pool takes no work once the interpreter is exiting, while saves in the background still have to finish.
    """

    def submit(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[_T]:
        answer: concurrent.futures.Future[_T] = concurrent.futures.Future()

        def work() -> None:
            if not answer.set_running_or_notify_cancel():
                return
            try:
                answer.set_result(fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 - raised where the answer is awaited
                answer.set_exception(error)

        threading.Thread(target=work, name="ckptstore-lookup", daemon=True).start()
        return answer


class _CoroutineCall:
    """A coroutine on a loop of another thread; `answer` is done when it ended, and not before.

    `asyncio.run_coroutine_threadsafe` will not do: its future is done as soon as it is cancelled, while the
    coroutine may still be writing into the caller's memory.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, start: Callable[[], Coroutine[Any, Any, Any]]
    ) -> None:
        self.answer: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self._loop = loop
        self._start = start
        self._task: asyncio.Task[Any] | None = None
        loop.call_soon_threadsafe(self._launch)

    def drop(self) -> None:
        """Ask the coroutine to end."""
        if not self.answer.done():
            self._loop.call_soon_threadsafe(self._cancel)

    def _launch(self) -> None:
        self._task = self._loop.create_task(self._start())
        self._task.add_done_callback(self._finish)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _finish(self, task: asyncio.Task[Any]) -> None:
        # It ends in this thread: asyncio counts its tasks, and what a signal handler raises while another
        # thread takes one out of the count, Python ignores, `sys.exit` for example.
        self._task = None
        if task.cancelled():
            self.answer.set_exception(Fault(Kind.CANCELLED, "the request was given up"))
            return
        error = task.exception()
        if error is None:
            self.answer.set_result(task.result())
        else:
            self.answer.set_exception(error)
