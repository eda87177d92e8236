"""Which version each key had a moment ago, for deletes on servers that ignore their condition."""

from __future__ import annotations

import time
from collections import OrderedDict

from ckptstore.storage.fork_safe_locks import ForkSafeLocks

__all__ = ["RecentVersions"]

# How long a version that was seen replaces another look before an unconditional delete. Between the look at
# a victim and its delete a save makes two requests; one of them is a compare-and-swap, which proves that no
# other run took over.
_FRESH_S = 2.0
_MAX_KEYS = 1024


class RecentVersions:
    """The versions seen last.

    Threads
    -------
    Safe for concurrent use.
    """

    def __init__(self) -> None:
        self._locks = ForkSafeLocks()
        self._seen: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def note(self, key: str, version: str) -> None:
        """Record which version a key has at this moment."""
        with self._locks[0]:
            self._seen[key] = version, time.monotonic()
            self._seen.move_to_end(key)
            if len(self._seen) > _MAX_KEYS:
                self._seen.popitem(last=False)

    def forget(self, key: str) -> None:
        """Drop a key that this process is about to write."""
        with self._locks[0]:
            self._seen.pop(key, None)

    def take(self, key: str, version: str) -> bool:
        """Return whether `key` had this version a moment ago; answers once, then the key is forgotten."""
        with self._locks[0]:
            seen, when_s = self._seen.pop(key, ("", 0.0))
        return seen == version and time.monotonic() - when_s <= _FRESH_S
