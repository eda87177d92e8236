"""Saves in the background when the interpreter exits: they finish, within a time limit.

Python waits for threads that are not daemons before it shuts down. The guard is such a thread: it runs while
any save does, and ends when all are over, or when the time is up and they were cancelled. The threads that do
the work are daemons, so a thread that is stuck in the kernel cannot hold the process.
"""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401 - refuses to be loaded while the interpreter ends; clients need it
import logging
import os
import threading
import time
from contextlib import suppress
from typing import Protocol

__all__ = ["PendingSave", "enter", "join_idle", "leave"]

_LOG = logging.getLogger("ckptstore")

# After the main thread ended: without any progress, and altogether.
EXIT_STALL_S = 20.0
EXIT_DEADLINE_S = 300.0

# For what was cancelled to remove its files.
CLEAN_UP_S = 5.0

# How often the guard checks whether the main thread has ended and whether saves make progress.
_CHECK_EVERY_S = 0.25


class PendingSave(Protocol):
    """What the guard needs to know about a save."""

    @property
    def prefix(self) -> str:
        """The URL of the checkpoint."""

    @property
    def done_bytes(self) -> int:
        """Progress: a number that grows while the save advances."""

    def cancel(self) -> bool:
        """Cancel the save; return whether it was still possible."""


class _Guard:
    def __init__(self) -> None:
        self.pending: dict[int, PendingSave] = {}
        # Taken by itself: an interrupt in `Condition.__enter__`, which is Python, leaves it locked for ever.
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.thread: threading.Thread | None = None

    def enter(self, save: PendingSave) -> None:
        with self.lock:
            self.pending[id(save)] = save
            if self.thread is None or not self.thread.is_alive():
                # Before it starts: after an interrupt another one would be begun beside it.
                self.thread = threading.Thread(target=self._watch, name="ckptstore-exit", daemon=False)
                # The interpreter starts no new thread while it ends; only the exit handler remains then.
                with suppress(RuntimeError):
                    self.thread.start()

    def leave(self, save: PendingSave) -> None:
        with self.lock:
            self.pending.pop(id(save), None)
            self.changed.notify_all()

    def _watch(self) -> None:
        main = threading.main_thread()
        with self.lock:
            while self.pending and main.is_alive():
                self.changed.wait(_CHECK_EVERY_S)
            if not self.pending:
                self.thread = None
                return
        self.finish()
        with self.lock:
            self.thread = None

    def finish(self) -> None:
        """Wait for the pending saves within the deadline; cancel those that do not finish."""
        started_s = moved_s = time.monotonic()
        seen = -1
        with self.lock:
            while self.pending:
                now_s = time.monotonic()
                done = sum(save.done_bytes for save in self.pending.values())
                if done != seen:
                    seen, moved_s = done, now_s
                if now_s - moved_s > EXIT_STALL_S or now_s - started_s > EXIT_DEADLINE_S:
                    break
                self.changed.wait(_CHECK_EVERY_S)
            late = list(self.pending.values())
        # A save that waits for another one is cancelled before it.
        cancelled = [save for save in reversed(late) if save.cancel()]
        with self.lock:
            self.changed.wait_for(lambda: not self.pending, CLEAN_UP_S)
            stuck = [save for save in self.pending.values() if save not in cancelled]
        for save in cancelled:
            _LOG.error("the interpreter ended before this checkpoint was saved: %s", save.prefix)
        for save in stuck:
            _LOG.error("the interpreter ended while this checkpoint was being published: %s", save.prefix)


_guard = _Guard()


def _reset_in_child() -> None:
    # The threads and saves of the parent do not exist in the child.
    global _guard  # noqa: PLW0603 (a forked child starts anew)
    _guard = _Guard()


os.register_at_fork(after_in_child=_reset_in_child)


def enter(save: PendingSave) -> None:
    """Make the interpreter wait for `save` when it exits."""
    _guard.enter(save)


def leave(save: PendingSave) -> None:
    """Remove `save`, which is over."""
    _guard.leave(save)


def join_idle(timeout_s: float) -> None:
    """Wait for the guard's thread to end if no save is pending."""
    thread = _guard.thread
    if thread is None or not thread.is_alive() or thread is threading.current_thread():
        return
    if not _guard.pending:
        thread.join(timeout_s)


# For saves that another exit handler began: handlers run in reverse order, after the threads were joined.
atexit.register(lambda: _guard.finish())  # noqa: PLW0108 (the guard of that moment)
