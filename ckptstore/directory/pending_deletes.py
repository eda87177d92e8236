"""The deletes that the record asks for: each save does those of what it owns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from ckptstore.directory.collect import collect_pending, collect_shards
from ckptstore.directory.graph_keeper import is_graph_suffix
from ckptstore.directory.owner_names import owner_of_step
from ckptstore.directory.ownership import Ownership
from ckptstore.directory.published_index import PublishedIndex, read_published_index
from ckptstore.directory.record_entries import is_listed
from ckptstore.directory.retention import Entry
from ckptstore.errors import CkptStoreError, NotFoundError
from ckptstore.format.naming import index_name
from ckptstore.format.record_facts import OwnerName, Pending, Record, Superseded
from ckptstore.storage.base import Location
from ckptstore.warn import warn

__all__ = ["PendingDeletes"]


class PendingDeletes:
    """Does the deletes that the record asks for, and remembers finished ones until the record drops them.

    Parameters
    ----------
    ownership : Ownership
        Whose lines are this writer's.

    Attributes
    ----------
    known : dict
        Prefix → the index that this writer saw there last.
    saved_s : dict
        Prefix → time in the record, of what this writer saved.
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
        self.saved_s: dict[str, float] = {}
        self.done: set[Pending | Superseded] = set()

    def victim(self, entry: Entry) -> PublishedIndex | None:
        """Return the index of a checkpoint that retention drops; None if it is gone, or not ours any more.

        Who saves the prefix again under this record gives it another time there, and each save has data files
        of its own. So it was saved under another record, or without one, if the time is the same and the
        files are not.
        """
        known = self.known.get(entry.prefix)
        found = self.look_up(entry.prefix)
        is_ours = known is None or found is None or known.shards == found.shards
        if is_ours or self.saved_s.get(entry.prefix) != entry.time_s:
            return found
        warn(
            f"{entry.prefix!r} was saved again under another record or without one: it leaves the list and is"
            " not deleted"
        )
        return None

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

    def without_done(self, record: Record) -> Record:
        """Return `record` without the lines whose deletes are finished."""
        if not self.done:
            return record
        pending = tuple(line for line in record.pending if line not in self.done)
        superseded = tuple(line for line in record.superseded if line not in self.done)
        return replace(record, pending=pending, superseded=superseded)

    def collect_earlier(self, record: Record, saved: str) -> None:
        """Do what earlier saves left to do, those of runs that ended too.

        Between the index and the record of this save, which then drops the lines: where every run saves once
        and ends, nobody else would. Readers of the index that `saved` replaced can finish: what this save
        superseded is not in `record` yet.
        """
        is_own = self._ownership.own_filter(record)
        listed = frozenset(() if record.state is None else record.state.all_model_checkpoint_paths)
        self.collect_pending(record)
        for superseded in record.superseded:
            prefix = superseded.prefix
            is_left = OwnerName(prefix, "exact") in record.owners and prefix not in listed
            if superseded not in self.done and "/" not in prefix and (is_own(prefix) or is_left):
                self._attempt(superseded, partial(self._collect_superseded, superseded, saved))

    def collect_pending(self, record: Record) -> None:
        """Do the pending deletes of the record. The checkpoint exists, so a failure is only a warning."""
        is_own = self._ownership.own_filter(record)
        pins = frozenset(record.pins)
        for pending in record.pending:
            exact = record.owners.get(OwnerName(pending.prefix, "exact"))
            # What was owned alone has no owner that comes back: whoever saves here deletes it.
            is_mine = is_own(pending.prefix) or exact is not None
            is_valid = "/" not in pending.prefix and is_graph_suffix(pending.suffix)
            if not is_mine or not is_valid or pending in self.done:
                continue
            if pending.prefix in pins or is_listed(self._directory, record.state, pending.prefix):
                # Saved again since, or written by hand.
                self.done.add(pending)
                continue
            step_owner = owner_of_step(pending.prefix)
            owner = exact or (None if step_owner is None else record.owners.get(step_owner))
            has_graph = pending.suffix in ("meta", None if owner is None else owner.suffix)
            collect = partial(collect_pending, self._directory, pending, with_graph=has_graph)
            self._attempt(pending, collect)
            self.known.pop(pending.prefix, None)

    def _collect_superseded(self, line: Superseded, saved: str) -> None:
        # Another program may have reused the names; this save did not.
        published = None if line.prefix == saved else self.look_up(line.prefix)
        live = () if published is None else published.shards
        collect_shards(self._directory, line.prefix, [shard for shard in line.shards if shard not in live])

    def _attempt(self, line: Pending | Superseded, collect: Callable[[], None]) -> None:
        try:
            collect()
        except CkptStoreError as error:
            warn(f"the checkpoint is saved, but old files of {line.prefix!r} are not deleted yet: {error}")
        else:
            self.done.add(line)
