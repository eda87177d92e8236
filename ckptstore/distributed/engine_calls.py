"""Calls of an engine that may hang: made in a thread of their own, and given up when their time is over."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

__all__ = ["EngineCall"]


class EngineCall:
    """One call, made in a thread that may outlive it.

    Parameters
    ----------
    timeout_s : float
        What the work may take by itself; it looks at `deadline` and `is_over`.

    Attributes
    ----------
    began, deadline : float
        By ``time.monotonic``.
    over : threading.Event
        Set when nobody waits for the outcome any more.
    """

    def __init__(self, timeout_s: float) -> None:
        self.began = time.monotonic()
        self.deadline = self.began + timeout_s
        self.over = threading.Event()
        self._done = threading.Event()
        self._error: BaseException | None = None

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for the outcome any more."""
        return self.over.is_set()

    @property
    def is_done(self) -> bool:
        """Whether the work has ended."""
        return self._done.is_set()

    def start(self, work: Callable[[], object], *, in_thread: bool) -> None:
        """Do `work` now, or begin it in a thread; its error is kept for `wait`."""
        if in_thread:
            # A daemon: the program may end while the work hangs.
            threading.Thread(target=self._do, args=(work,), name="ckptstore coordinator", daemon=True).start()
        else:
            self._do(work)

    def wait(self, seconds: float) -> bool:
        """Wait so long for the end of the work; return whether it has ended, or raise its error."""
        try:
            is_done = self._done.wait(seconds)
        finally:
            self.over.set()
        if is_done and self._error is not None:
            raise self._error
        return is_done

    def _do(self, work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits for it
            self._error = error
        self._done.set()
