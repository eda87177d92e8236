"""What the cache takes of the disk: a bound, and which checkpoints make room for others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from ckptstore.cache.copy import Copy, copies_in, remains_in, remove, remove_parts
from ckptstore.storage.fork_safe_locks import ForkSafeLocks
from ckptstore.storage.local.directory import NO_ROOM
from ckptstore.storage.local.private_directory import PrivateDirectory

__all__ = ["Room"]

# Of what is free a process takes this share before it counts again: others fill the same directory.
_SHARE = 16

# A cache that is full stays so for a while; counting costs a look at every file.
_FULL_S = 5.0


class Room:
    """Bytes that may still be written.

    Nothing is counted before the first write.

    Parameters
    ----------
    root : PrivateDirectory
        Everything below it counts.
    max_bytes : int
        The bound.

    Threads
    -------
    Safe for concurrent use; one write at a time.
    """

    def __init__(self, root: PrivateDirectory, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._root = root
        self._locks = ForkSafeLocks()
        # What may be written before the next count, and until when there is nothing.
        self._allowed_bytes = 0
        self._full_until_s = 0.0

    def has(self, size_bytes: int, source: str, taken_bytes: int = 0) -> bool:
        """Return whether so much may be written now; makes room if there is none.

        Parameters
        ----------
        size_bytes : int
        source : str
            The directory that is read; see `Copy.source`.
        taken_bytes : int
            Of these, what is written without `write`.

        Raises
        ------
        OSError
            If the directory cannot be looked at.
        """
        with self._locks[0]:
            if not self._make(size_bytes, source):
                return False
            self._allowed_bytes -= taken_bytes
            return True

    def write(self, size_bytes: int, write: Callable[[], object], source: str) -> bool:
        """Call `write`, which adds so many bytes, if there is room; return whether it was done.

        Raises
        ------
        OSError
            Of `write`, unless the disk is full.
        """
        with self._locks[0]:
            if not self._make(size_bytes, source):
                return False
            self._allowed_bytes -= size_bytes
            oldest = self._removable(source)
            while True:
                try:
                    write()
                except OSError as error:
                    if error.errno not in NO_ROOM:
                        raise
                else:
                    return True
                # The disk is full before the bound is reached.
                self._allowed_bytes = 0
                if next(oldest, None) is None:
                    self._full_until_s = time.monotonic() + _FULL_S
                    return False

    def trim(self) -> int:
        """Remove what is above the bound; return how many bytes were freed."""
        with self._locks[0]:
            self._allowed_bytes = 0
            before = self._root.used_bytes()
            for _ in self._remains():
                pass
            used = self._root.used_bytes()
            oldest = self._removable(None)
            while used > self.max_bytes and next(oldest, None) is not None:
                used = self._root.used_bytes()
            return max(0, before - used)

    def _make(self, size_bytes: int, source: str) -> bool:
        if size_bytes <= self._allowed_bytes:
            return True
        if time.monotonic() < self._full_until_s:
            return False
        free = self.max_bytes - self._root.used_bytes()
        oldest = self._removable(source)
        while free < size_bytes and next(oldest, None) is not None:
            free = self.max_bytes - self._root.used_bytes()
        if free < size_bytes:
            self._allowed_bytes = 0
            self._full_until_s = time.monotonic() + _FULL_S
            return False
        self._allowed_bytes = max(size_bytes, free // _SHARE)
        return True

    def _remains(self) -> Iterator[str]:
        """Remove what killed processes left, yield each path."""
        yield from remove_parts(self._root)
        yield from (directory.path for directory in remains_in(self._root) if remove(directory))

    def _removable(self, source: str | None) -> Iterator[str]:
        """Remove one thing after the other, yield each path: remains first, then what was used longest ago.

        At last, for those who read the directory `source`, the newest complete checkpoints of others.
        """
        yield from self._remains()
        copies = sorted(copies_in(self._root), key=lambda copy: copy.used_s)
        needed = _needed(copies)
        for copy in copies:
            if copy.directory.path not in needed and copy.remove():
                yield copy.directory.path
        for copy in copies:
            is_last_resort = source is not None and copy.source != source
            if is_last_resort and copy.directory.path in needed and copy.remove():
                yield copy.directory.path


def _needed(copies: list[Copy]) -> set[str]:
    """Return the paths of the newest complete checkpoint of each directory in the storage."""
    needed: dict[str, str] = {}
    for copy in sorted(copies, key=lambda copy: (copy.step, copy.used_s), reverse=True):
        if copy.source not in needed and copy.is_complete():
            needed[copy.source] = copy.directory.path
    return set(needed.values())
