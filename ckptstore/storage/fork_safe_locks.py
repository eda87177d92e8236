"""In-process locks that a forked child finds free."""

from __future__ import annotations

import os
import threading
import weakref

__all__ = ["ForkSafeLocks"]


class ForkSafeLocks:
    """Several mutexes, by number: ``with locks[0]:``.

    In a forked child all of them are new, because a thread that holds one exists in the parent only. They are
    plain locks, not wrapped: an interrupt inside an ``__enter__`` of ours would leave one locked for ever.

    Threads
    -------
    Safe for concurrent use.
    """

    def __init__(self, count: int = 1) -> None:
        self._locks = tuple(threading.Lock() for _ in range(count))
        _ALL.add(self)

    def __getitem__(self, number: int) -> threading.Lock:
        return self._locks[number]

    def __len__(self) -> int:
        return len(self._locks)

    def renew(self) -> None:
        """Replace the locks by new ones, for a forked child: a thread of the parent may hold the old ones."""
        self._locks = tuple(threading.Lock() for _ in self._locks)


_ALL: weakref.WeakSet[ForkSafeLocks] = weakref.WeakSet()


def _renew_all() -> None:
    for locks in _ALL:
        locks.renew()


os.register_at_fork(after_in_child=_renew_all)
