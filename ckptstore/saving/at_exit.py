"""Saves in the background when the interpreter exits: they finish, but not at any price.

Python waits for threads that are no daemons before it takes anything down. The guard is one: it runs while
any save does, and lets the interpreter go when all are over, or when time is up and they were cancelled. The
threads that do the work are daemons, so one that is stuck in the kernel cannot hold the process.
"""

from __future__ import annotations

import atexit
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

# How often the guard looks whether the main thread ended, and a save went on.
_LOOK_EVERY_S = 0.25


class PendingSave(Protocol):
    """What the guard has to know of a save."""

    @property
    def prefix(self) -> str:
        """Its URL."""

    @property
    def done_bytes(self) -> int:
        """How far it is; any number that grows while it makes progress."""

    def cancel(self) -> bool:
        """Give it up."""


class _Guard:
    def __init__(self) -> None:
        self.pending: dict[int, PendingSave] = {}
        self.changed = threading.Condition()
        self.thread: threading.Thread | None = None
        self.given_up = False

    def enter(self, save: PendingSave) -> None:
        with self.changed:
            self.pending[id(save)] = save
            if self.thread is None:
                thread = threading.Thread(target=self._watch, name="ckptstore-exit", daemon=False)
                # No new thread when the interpreter is ending: then the exit handler is all there is.
                with suppress(RuntimeError):
                    thread.start()
                    self.thread = thread

    def leave(self, save: PendingSave) -> None:
        with self.changed:
            self.pending.pop(id(save), None)
            self.changed.notify_all()

    def _watch(self) -> None:
        main = threading.main_thread()
        with self.changed:
            while self.pending and main.is_alive():
                self.changed.wait(_LOOK_EVERY_S)
            if not self.pending:
                self.thread = None
                return
        self.finish()
        with self.changed:
            self.thread = None

    def finish(self) -> None:
        """Let the pending saves finish within the deadline; cancel what does not."""
        started_s = moved_s = time.monotonic()
        seen = -1
        with self.changed:
            while self.pending:
                now_s = time.monotonic()
                done = sum(save.done_bytes for save in self.pending.values())
                if done != seen:
                    seen, moved_s = done, now_s
                if now_s - moved_s > EXIT_STALL_S or now_s - started_s > EXIT_DEADLINE_S:
                    break
                self.changed.wait(_LOOK_EVERY_S)
            late = list(self.pending.values())
        # Those that wait go before the one they wait for.
        cancelled = [save for save in reversed(late) if save.cancel()]
        with self.changed:
            self.changed.wait_for(lambda: not self.pending, CLEAN_UP_S)
            stuck = [save for save in self.pending.values() if save not in cancelled]
        for save in cancelled:
            _LOG.error("the interpreter ended before this checkpoint was saved: %s", save.prefix)
        for save in stuck:
            _LOG.error("the interpreter ended while this checkpoint was being published: %s", save.prefix)


_guard = _Guard()


def _forget() -> None:
    # Threads and saves of the parent stay in the parent.
    global _guard  # noqa: PLW0603 (a forked child starts anew)
    _guard = _Guard()


os.register_at_fork(after_in_child=_forget)


def enter(save: PendingSave) -> None:
    """Have the interpreter wait for `save` when it exits."""
    _guard.enter(save)


def leave(save: PendingSave) -> None:
    """Note that `save` is over."""
    _guard.leave(save)


def join_idle(timeout_s: float) -> None:
    """Wait for the guard's thread to end, if it has nothing to do any more."""
    thread = _guard.thread
    if thread is not None and not _guard.pending and thread is not threading.current_thread():
        thread.join(timeout_s)


# Saves that somebody's own exit handler began: handlers run in reverse order, after the threads were joined.
atexit.register(lambda: _guard.finish())  # noqa: PLW0108 (the guard of that moment)
