"""How often a rank looks for a message, while it writes and when it has written."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

__all__ = ["UNHEARD_S", "look_until_written"]

_T = TypeVar("_T")

UNHEARD_S: Final = 0.1
"""So long a rank writes, or waits for what cannot be there yet, before it looks for a message."""

# Of the time that it has been writing: the pauses before the next look.
_UNHEARD_SHARE: Final = 0.1


def look_until_written(
    look: Callable[[float], _T],
    wait_s: float,
    begun_s: float,
    has_written: threading.Event | None,
) -> _T:
    """Wait for a message: look for it seldom while this rank writes, and all the time when it has written.

    Only bad news comes before that, and who looks takes time from all that write. What is due then has a wait
    of its own, the pauses of which begin small: those of one that began with the writing are a tenth of it.

    Parameters
    ----------
    look : callable
        Waits so many seconds for a message; returns it, or something false.
    wait_s : float
        How long to wait, in seconds.
    begun_s : float
        Since when this rank writes, by ``time.monotonic``.
    has_written : threading.Event or None
        None: it does not write.
    """
    ends_s = time.monotonic() + wait_s
    while has_written is not None and not has_written.is_set():
        now_s = time.monotonic()
        if now_s >= ends_s:
            break
        pause_s = min(max(UNHEARD_S, _UNHEARD_SHARE * (now_s - begun_s)), ends_s - now_s)
        if not has_written.wait(pause_s) and (found := look(0.0)):
            return found
    return look(max(0.0, ends_s - time.monotonic()))
