"""An event that a signal handler may set and wait for, whatever the handler has interrupted."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress

__all__ = ["Latch"]


class Latch:
    """Opened once, and waited for.

    `threading.Event` has a lock inside: a signal handler that interrupts ``set`` or ``wait`` and calls one of
    them waits for its own thread, and a thread that calls ``set`` waits for the handler.

    Threads
    -------
    Safe for concurrent use, and in signal handlers.
    """

    def __init__(self) -> None:
        self._is_open = False
        # One lock for each thread that waits, held until it may go on. Appending and taking are atomic.
        self._waiting: deque[threading.Lock] = deque()

    def is_set(self) -> bool:
        """Return whether it is open."""
        return self._is_open

    def set(self) -> None:
        """Open it."""
        self._is_open = True
        while True:
            try:
                self._waiting.popleft().release()
            except IndexError:
                return

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until it is open, or that long; return whether it is."""
        if self._is_open:
            return True
        turn = threading.Lock()
        turn.acquire()
        self._waiting.append(turn)
        # Opened in between: nobody may come to release this one.
        if not self._is_open:
            turn.acquire(timeout=-1 if timeout_s is None else min(max(timeout_s, 0.0), threading.TIMEOUT_MAX))
            if not self._is_open:
                # Not there any more if `set` has just taken it.
                with suppress(ValueError):
                    self._waiting.remove(turn)
        return self._is_open
