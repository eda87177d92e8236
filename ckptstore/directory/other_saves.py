"""Saves of one run at one prefix at the same time: all but one of them are refused.

Fencing tells runs apart, but not the processes and Savers of one run. What a save sees of the others costs no
request: only where the record or the index is not what it was does it look at who wrote it
(docs/design/022-one-save-of-a-prefix.md).
"""

from __future__ import annotations

import math

from ckptstore.checksums import crc32c
from ckptstore.directory.catalog import fault_of
from ckptstore.directory.published_index import PublishedIndex
from ckptstore.directory.save_request import SaveRequest
from ckptstore.errors import ConflictError, NotFoundError
from ckptstore.format.naming import index_name
from ckptstore.format.record_facts import Intent, Pending, Record, Superseded

__all__ = ["OtherSaves"]


class OtherSaves:
    """Tells one save of others of its run that save the same prefix meanwhile.

    Calls
    -----
    `look` until the save is announced, `begin` with the record by then, and from then on `check` and
    `check_index`.

    Parameters
    ----------
    request : SaveRequest
        Of this save.
    last_seen : Record
        As this run saw it last, before the save.
    published : PublishedIndex or None
        What was there when the save began.
    began_s : float
        When that was, seconds since 1970; minus infinity if `last_seen` was read since.

    Attributes
    ----------
    replaces_crc32c : int or None
        Of the index that was there.
    saved_s : float or None
        The time that this save writes into the list.
    version : str or None
        Of the index that is there: the one that this save found, and once it is published its own.
    """

    def __init__(
        self, request: SaveRequest, last_seen: Record, published: PublishedIndex | None, began_s: float
    ) -> None:
        self.replaces_crc32c = None if published is None else published.crc32c
        self.saved_s: float | None = None
        self.version = None if published is None else published.version
        self._request = request
        self._prefix = request.prefix.name
        self._index_crc32c = 0
        self._is_announced = False
        self._seen = last_seen
        self._began_s = began_s

    def look(self, record: Record) -> None:
        """Raise if `record` lists a save of the prefix that ended after this one began.

        Raises
        ------
        ConflictError
        """
        if record is self._seen or not self._is_ours(record):
            return
        time_s = self._time_listed(record)
        # One that ended before is replaced: saves that come one after the other are no mistake.
        is_listed = time_s is not None and time_s > self._began_s and time_s != self._time_listed(self._seen)
        has_left = self._began_s == -math.inf and self._left(record) - self._left(self._seen)
        if is_listed or has_left:
            raise self._error()

    def begin(self, record: Record, index: bytes) -> None:
        """Note the record from which the save goes on, and its index."""
        self._seen = record
        self._index_crc32c = crc32c(index)
        self._is_announced = any(each.index_crc32c == self._index_crc32c for each in self._announced(record))

    def check(self, record: Record) -> None:
        """Raise if another save has listed the prefix since `begin`, or replaces the index of this one.

        Raises
        ------
        ConflictError
        """
        if record is self._seen or not self._is_ours(record):
            return
        time_s = self._time_listed(record)
        if time_s is not None and time_s == self.saved_s:
            # The answer to this write of ours was lost.
            return
        is_listed = time_s not in (None, self._time_listed(self._seen))
        announced = self._announced(record)
        # Whoever lists the prefix removes what is announced for it.
        is_gone = self._is_announced and all(each.index_crc32c != self._index_crc32c for each in announced)
        # One that expects another index there than ours loses the race for it, and is the one to be refused.
        later = announced - self._announced(self._seen)
        is_replaced = any(each.replaces_crc32c == self._index_crc32c for each in later)
        if is_listed or is_gone or is_replaced or self._left(record) - self._left(self._seen):
            raise self._error()
        if not self._is_announced and self.version is not None and not self._is_there():
            raise self._error()

    def check_index(self, record: Record) -> None:
        """Raise if another save put the index in its place that this one did not expect there.

        Raises
        ------
        ConflictError
        """
        self.check(record)
        announced = {each.index_crc32c for each in self._announced(record)} - {self._index_crc32c}
        if not announced or not self._is_ours(record):
            return
        index = self._request.prefix.parent.child(index_name(self._prefix))
        try:
            is_theirs = crc32c(index.storage.get(index.key).data) in announced
        except NotFoundError:
            return
        if is_theirs:
            raise self._error()

    def _is_there(self) -> bool:
        """Return whether the index that must be there is, with the data files that it names."""
        index = self._request.prefix.parent.child(index_name(self._prefix))
        try:
            if index.storage.head(index.key).version != self.version:
                return False
            return fault_of(self._request.prefix) is None
        except NotFoundError:
            return False

    def _is_ours(self, record: Record) -> bool:
        owner = record.owners.get(self._request.owner)
        return owner is not None and owner.run == self._request.run

    def _time_listed(self, record: Record) -> float | None:
        state = record.state
        if state is None or self._prefix not in state.all_model_checkpoint_paths:
            return None
        times = state.all_model_checkpoint_timestamps
        number = state.all_model_checkpoint_paths.index(self._prefix)
        return times[number] if number < len(times) else None

    def _announced(self, record: Record) -> set[Intent]:
        """Return what this run announced for the prefix."""
        key = (self._prefix, self._request.run)
        return {each for each in record.intents if (each.prefix, each.run) == key}

    def _left(self, record: Record) -> set[Pending | Superseded]:
        """Return what is to be deleted of the prefix: it was replaced, or dropped from the list."""
        lines: tuple[Pending | Superseded, ...] = (*record.pending, *record.superseded)
        return {each for each in lines if each.prefix == self._prefix}

    def _error(self) -> ConflictError:
        return ConflictError(
            "another process, or another Saver, of this run saves the same checkpoint at the same time",
            url=self._request.prefix.url,
            hint="What stands there is complete, and of one save alone. Let one process of a run save each"
            " checkpoint, or give each its own prefix; to replace it, save again.",
        )
