"""A mailbox in memory: what an engine keeps, with values that a test may look at and change."""

from __future__ import annotations

import threading

from ckptstore.distributed.mailbox import Announcement
from ckptstore.errors import ConflictError, CoordinatorLostError


class MemoryMailbox:
    """Shared by all ranks of a test; `may_block` calls hang while `blocked` is set."""

    may_block = True
    shortest_wait_s = 0.001
    longest_wait_s = 0.05
    asks_each = False

    def __init__(self, max_value_bytes: int = 1024) -> None:
        self.max_value_bytes = max_value_bytes
        self.values: dict[tuple[str, str], bytes] = {}
        self.announced: list[Announcement] = []
        self.largest = 0
        self.looked: list[tuple[str, list[str]]] = []
        self.running = threading.Event()
        self.running.set()
        self.is_lost = False
        self._lock = threading.Lock()

    def _enter(self) -> None:
        assert self.running.wait(60), "the mailbox was blocked and not released"
        if self.is_lost:
            raise CoordinatorLostError("the mailbox is gone")

    def put(self, directory, name, value):
        self._enter()
        with self._lock:
            if (directory, name) in self.values:
                raise ConflictError(f"{directory}/{name} is there already")
            self.values[directory, name] = value
            self.largest = max(self.largest, len(value))

    def look(self, directory, names):
        self._enter()
        with self._lock:
            self.looked.append((directory, list(names)))
            return {name: self.values[directory, name] for name in names if (directory, name) in self.values}

    def delete(self, directory, names):
        self._enter()
        with self._lock:
            for name in names:
                self.values.pop((directory, name), None)

    def announce(self, announcement):
        self._enter()
        self.announced.append(announcement)

    def announcements(self):
        self._enter()
        return list(self.announced)

    def close(self):
        pass
