"""Pauses between attempts, with jitter: the only module that sleeps.

What repeats requests is `object_store.attempts`.
"""

from __future__ import annotations

import random
import time

from ckptstore.storage.scope import Cancellation, current_scope

__all__ = ["Backoff", "pause"]


class Backoff:
    """Full jitter between 1 ms and `longest_s`, until a deadline, that of the current scope included.

    Full jitter, because with a fixed growth eight writers of one record needed up to 45 tries, with it 16.

    Parameters
    ----------
    timeout_s : float
        Seconds from now after which `wait` refuses.
    shortest_s, longest_s : float
        Bounds of the random pause; the upper one doubles from the first towards the second.

    Threads
    -------
    One thread.
    """

    def __init__(self, timeout_s: float, *, shortest_s: float = 0.01, longest_s: float = 1.0) -> None:
        self._scope = scope = current_scope()
        if scope is not None:
            timeout_s = min(timeout_s, scope.remaining_s())
        self._deadline_s = time.monotonic() + timeout_s
        self._bound_s = shortest_s
        self._longest_s = longest_s
        self.attempts = 1

    def wait(self) -> bool:
        """Sleep a little and return True, or return False at once when the deadline would pass."""
        pause_s = random.uniform(0.0, self._bound_s)
        if time.monotonic() + pause_s > self._deadline_s:
            return False
        if self._scope is not None and self._scope.cancellation.is_cancelled:
            return False
        self._bound_s = min(self._bound_s * 2, self._longest_s)
        self.attempts += 1
        time.sleep(pause_s)
        return True


def pause(seconds: float, cancellation: Cancellation | None = None) -> None:
    """Sleep that long, or until `cancellation` is cancelled; everything that polls or retries waits here."""
    if cancellation is None:
        time.sleep(seconds)
    else:
        cancellation.sleep(seconds)
