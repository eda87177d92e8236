"""Memory that is lent to one request after the other, and that a device may still read from meanwhile."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

__all__ = ["Mark", "Ring"]


class Mark(Protocol):
    """A place in the queue of a device: reached when every copy that was begun before it is over."""

    def query(self) -> bool:
        """Return whether it is reached."""

    def synchronize(self) -> object:
        """Wait until it is reached."""


class Ring:
    """Blocks of one size; one that is given back is lent again when the copies out of it are over.

    So the next bytes are fetched and verified while the last ones travel to the device.

    Parameters
    ----------
    limit_bytes : int
        Of all blocks; a single one may be larger.
    allocate : callable
        Returns new memory of so many bytes, from which the device copies by itself.
    mark : callable
        Returns a mark behind the copies that were begun so far; None: they are over already.

    Attributes
    ----------
    held_bytes : int
        Of the blocks that there are.

    Threads
    -------
    Safe for concurrent use. A thread holds one block at a time.
    """

    def __init__(
        self, limit_bytes: int, allocate: Callable[[int], memoryview], mark: Callable[[], Mark | None]
    ) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._allocate = allocate
        self._mark = mark
        self._idle: list[memoryview] = []
        # In the order in which the device gets to them.
        self._under_way: deque[tuple[memoryview, Mark]] = deque()
        self._changed = threading.Condition()

    def lend(self, size_bytes: int) -> memoryview:
        """Return a block, as soon as there is one.

        Parameters
        ----------
        size_bytes : int
            The same each time.
        """
        while True:
            with self._changed:
                if self._idle:
                    return self._idle.pop()
                has_room = self.held_bytes + size_bytes <= self.limit_bytes or not self.held_bytes
                if self._under_way and (not has_room or self._under_way[0][1].query()):
                    block, mark = self._under_way.popleft()
                elif has_room:
                    self.held_bytes += size_bytes
                    break
                else:
                    # Other threads hold them all.
                    self._changed.wait()
                    continue
            mark.synchronize()
            return block
        return self._allocate(size_bytes)

    def take_back(self, block: memoryview) -> None:
        """Take a block back; copies out of it that this thread has begun may still run."""
        mark = self._mark()
        with self._changed:
            if mark is None:
                self._idle.append(block)
            else:
                self._under_way.append((block, mark))
            self._changed.notify()

    def drain(self) -> None:
        """Wait for all copies, also of what was in no block, and let go of the blocks. None is lent now."""
        mark = self._mark()
        if mark is not None:
            mark.synchronize()
        with self._changed:
            self._under_way.clear()
            self._idle.clear()
            self.held_bytes = 0
