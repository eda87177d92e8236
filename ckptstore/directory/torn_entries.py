"""Listed checkpoints that cannot be restored: they take no place in the window, and retention leaves them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ckptstore.directory.catalog import PrefixFiles, fault_of
from ckptstore.directory.retention import Entry
from ckptstore.errors import AccessError, TransientError
from ckptstore.storage.base import Location

__all__ = ["TornEntries"]

# Each costs a request or two, once a run. What is torn stands at the end of the list as a rule.
_MOST_JUDGED = 16


class TornEntries:
    """What a run knows of the checkpoints that were listed when it began.

    Attributes
    ----------
    missing : set of Entry
        Without an index: they leave the list.
    torn : set of str
        With an index, but without all of their data: they stay listed, and may be whole again later.

    Threads
    -------
    One thread.
    """

    def __init__(self, directory: Location) -> None:
        self._directory = directory
        self.missing: set[Entry] = set()
        self.torn: set[str] = set()
        self._unknown: set[str] = set()
        self._may_judge = _MOST_JUDGED

    def add(self, entries: Iterable[Entry], found: Mapping[str, PrefixFiles]) -> None:
        """Add what is listed, and the files that are there."""
        for entry in entries:
            files = found.get(entry.prefix)
            if files is None or files.index is None:
                self.missing.add(entry)
            elif not files.data:
                self.torn.add(entry.prefix)
            else:
                self._unknown.add(entry.prefix)

    def discard(self, prefix: str) -> None:
        """Forget a checkpoint that was saved again."""
        self._unknown.discard(prefix)
        self.torn.discard(prefix)
        self.missing = {entry for entry in self.missing if entry.prefix != prefix}

    def judge(self, entries: Iterable[Entry]) -> bool:
        """Look at the newest of `entries` that nobody looked at yet; return whether one is torn."""
        if not self._unknown or self._may_judge == 0:
            return False
        found = False
        for prefix in reversed([each.prefix for each in entries if each.prefix in self._unknown]):
            if self._may_judge == 0:
                break
            self._may_judge -= 1
            self._unknown.discard(prefix)
            if self._is_torn(prefix):
                self.torn.add(prefix)
                found = True
        return found

    def _is_torn(self, prefix: str) -> bool:
        try:
            return fault_of(self._directory.child(prefix)) is not None
        except (AccessError, TransientError):
            # Saving works without reading.
            return False
