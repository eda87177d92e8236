"""Whose turn it is to fetch a cell: one process of the host, while the others fetch something else.

To each cell a byte of the lock file stands. Whoever gets the lock fetches what is missing of the cell, and
gives signs of life meanwhile; cells of others are passed over, and waited for at the end, as long as their
owners get on. The locks only save traffic: `fetching` is right without them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum

from ckptstore.cache.copy import Copy
from ckptstore.cache.pieces import Place
from ckptstore.storage.local.range_locks import RangeLocks

__all__ = ["CELL_SIZE_BYTES", "Patience", "Turn", "Turns", "cell_of"]

CELL_SIZE_BYTES = 16 * 1024 * 1024
"""What one process fetches while the others fetch something else."""

# A cell whose owner gets nowhere for so long, frozen perhaps, is fetched without its lock; and for a while
# all others that are locked, without waiting again.
_PATIENCE_S = 20.0
_IMPATIENT_S = 60.0

# Offsets in the lock file: byte 0 has another meaning, and a shard has no more cells than this.
_CELLS_PER_SHARD = 1 << 40


class Patience:
    """Remembers that waiting was in vain, for all that reads one checkpoint.

    Attributes
    ----------
    lost_until_s : float
        Until then, by the monotonic clock, nobody is waited for.

    Threads
    -------
    Safe for concurrent use.
    """

    lost_until_s = 0.0


class Turn(Enum):
    """What to do about a cell."""

    MINE = "fetch it; the others wait"
    NOBODYS = "fetch it, as the others may, too"
    THEIRS = "look again later"


def cell_of(place: Place) -> int:
    """Return the byte of the lock file that stands for the cell of a shard and an offset."""
    shard_id, offset = place
    return 1 + shard_id * _CELLS_PER_SHARD + offset // CELL_SIZE_BYTES


class Turns:
    """The cells that one reader has, and what it knows of those of others.

    Parameters
    ----------
    copy : Copy
    patience : Patience
    trouble : callable
        Gets the error if there can be no locks; then every cell is mine.

    Threads
    -------
    `take` by one thread at a time; the others are safe for concurrent use.
    """

    def __init__(self, copy: Copy, patience: Patience, trouble: Callable[[OSError], None]) -> None:
        self._patience = patience
        self._locks: RangeLocks | None = None
        self._mine: set[int] = set()
        # Of cells that others have: their owner's last sign of life, and since when it is the last.
        self._seen: dict[int, tuple[bytes, float]] = {}
        try:
            self._locks = copy.locks()
        except OSError as error:
            trouble(error)

    def take(self, cell: int) -> Turn:
        """Return whose turn a cell is; it is kept from the others until `give_back`, if it is mine."""
        locks = self._locks
        if locks is None:
            return Turn.MINE
        if locks.acquire(cell):
            self._mine.add(cell)
            locks.beat(cell)
            return Turn.MINE
        return Turn.THEIRS if self._gets_on(locks, cell) else Turn.NOBODYS

    def _gets_on(self, locks: RangeLocks, cell: int) -> bool:
        """Return whether the owner of a cell is worth waiting for."""
        now_s = time.monotonic()
        if now_s < self._patience.lost_until_s:
            return False
        beat = locks.last_beat(cell)
        seen, since_s = self._seen.get(cell, (None, now_s))
        if beat != seen:
            self._seen[cell] = beat, now_s
        elif now_s - since_s >= _PATIENCE_S:
            self._patience.lost_until_s = now_s + _IMPATIENT_S
            return False
        return True

    def get_on(self, cell: int) -> None:
        """Show those who wait for a cell of mine that it will come."""
        if self._locks is not None and cell in self._mine:
            self._locks.beat(cell)

    def give_back(self, cell: int) -> None:
        """End the turn, if it is mine."""
        if self._locks is not None and cell in self._mine:
            self._mine.discard(cell)
            self._locks.release(cell)

    def close(self) -> None:
        """Give back all cells."""
        if self._locks is not None:
            self._locks.close()
