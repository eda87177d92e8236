"""The deletes that the record asks for: each save does those of its own basenames."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

from ckptstore.directory.collect import collect_pending, collect_shards
from ckptstore.directory.graph_keeper import is_graph_suffix
from ckptstore.directory.ownership import Ownership
from ckptstore.directory.paths import owner_of
from ckptstore.directory.published_index import PublishedIndex, read_published_index
from ckptstore.errors import CkptStoreError, CkptStoreWarning, NotFoundError
from ckptstore.format.naming import index_name
from ckptstore.format.record_protocol import Pending, Record, Superseded
from ckptstore.storage.base import Location

__all__ = ["PendingDeletes"]


class PendingDeletes:
    """Does the deletes that the record asks for, and remembers finished ones until the record drops them.

    Parameters
    ----------
    ownership : Ownership
        Of the basenames whose lines are this writer's.

    Attributes
    ----------
    known : dict
        Prefix → the index that this writer saw there last.
    done : set
        Lines of the record whose deletes are finished; the next record omits them.

    Threads
    -------
    One at a time.
    """

    def __init__(self, directory: Location, ownership: Ownership) -> None:
        self._directory = directory
        self._ownership = ownership
        self.known: dict[str, PublishedIndex] = {}
        self.done: set[Pending | Superseded] = set()

    def look_up(self, prefix: str) -> PublishedIndex | None:
        """Return the index of a checkpoint that is to be deleted, None if it is gone."""
        known = self.known.get(prefix)
        if known is not None:
            location = self._directory.child(index_name(prefix))
            try:
                if location.storage.head(location.key).version == known.version:
                    return known
            except NotFoundError:
                return None
        published = read_published_index(self._directory, prefix)
        if published is not None:
            self.known[prefix] = published
        return published

    def collect(self, record: Record, before: Record, saved: str) -> None:
        """Do the pending deletes of the record. The checkpoint exists, so a failure is only a warning."""
        for pending in record.pending:
            if self._is_mine(pending.prefix) and is_graph_suffix(pending.suffix):
                self._attempt(pending, partial(collect_pending, self._directory, pending))
                self.known.pop(pending.prefix, None)
        earlier = set(before.superseded)
        for superseded in record.superseded:
            # Only those of earlier saves: readers of the index that this save replaced must be able to
            # finish.
            if self._is_mine(superseded.prefix) and superseded in earlier:
                self._attempt(superseded, partial(self._collect_superseded, superseded, saved))

    def _collect_superseded(self, line: Superseded, saved: str) -> None:
        # Another program may have reused the names; this save did not.
        published = None if line.prefix == saved else self.look_up(line.prefix)
        live = () if published is None else published.shards
        collect_shards(self._directory, line.prefix, [shard for shard in line.shards if shard not in live])

    def _is_mine(self, prefix: str) -> bool:
        return "/" not in prefix and owner_of(prefix) in self._ownership.owned

    def _attempt(self, line: Pending | Superseded, collect: Callable[[], None]) -> None:
        try:
            collect()
        except CkptStoreError as error:
            warnings.warn(
                f"the checkpoint is saved, but old files of {line.prefix!r} are not deleted yet: {error}",
                CkptStoreWarning,
                stacklevel=5,
            )
        else:
            self.done.add(line)
