"""What goes wrong with the cache's own files: told once, and read around."""

from __future__ import annotations

from ckptstore.storage.local.directory import NO_ROOM
from ckptstore.warn import warn

__all__ = ["Troubles"]


class Troubles:
    """Collects them in any thread, and warns in that of the caller: once of each kind.

    Threads
    -------
    Safe for concurrent use.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._seen: set[str] = set()
        self._untold: list[str] = []

    def add(self, error: OSError | None) -> None:
        """Note an error; None: there is no room, and nothing to remove."""
        if error is None or error.errno in NO_ROOM:
            kind, what = "full", "is full, or its disk is, and nothing in it can be removed"
        else:
            kind, what = str(error.errno), f"cannot be used: {error}"
        if kind not in self._seen:
            self._seen.add(kind)
            self._untold.append(what)

    def tell(self) -> None:
        """Warn of what is new."""
        while self._untold:
            what = self._untold.pop(0)
            warn(f"the cache {self._path} {what}; what it lacks is read from the storage each time")
