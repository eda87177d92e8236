"""In-process locks that a forked child finds free."""

from __future__ import annotations

import os
import threading
import weakref

from ckptstore.storage.reentry import reentered

__all__ = ["ForkSafeLocks"]


class ForkSafeLocks:
    """Several mutexes, by number: ``with locks[0]:``.

    In a forked child all of them are new, because a thread that holds one exists in the parent only. They are
    not wrapped: an interrupt inside an ``__enter__`` of ours would leave one locked for ever. Reentrant ones,
    because these know their owner: a signal handler that needs the one its thread holds is refused.

    Threads
    -------
    Safe for concurrent use.
    """

    def __init__(self, count: int = 1) -> None:
        self._locks = tuple(threading.RLock() for _ in range(count))
        _ALL.add(self)

    def __getitem__(self, number: int) -> threading.RLock:
        """Return a lock that the calling thread does not hold.

        Raises
        ------
        UsageError
            In a signal handler, or a finalizer, that interrupted the thread while it held the lock.
        """
        lock = self._locks[number]
        # What threading.Condition asks too; there is no public way before Python 3.14.
        if lock._is_owned():  # type: ignore[attr-defined]  # noqa: SLF001
            raise reentered()
        return lock

    def __len__(self) -> int:
        return len(self._locks)

    def renew(self) -> None:
        """Replace the locks by new ones, for a forked child: a thread of the parent may hold the old ones."""
        self._locks = tuple(threading.RLock() for _ in self._locks)


_ALL: weakref.WeakSet[ForkSafeLocks] = weakref.WeakSet()


def _renew_all() -> None:
    for locks in _ALL:
        locks.renew()


os.register_at_fork(after_in_child=_renew_all)
