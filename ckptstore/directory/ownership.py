"""One run's hold on one record: acquire it, see whether another run took over, state who owns it.

Epochs belong to an owner, which is a basename: two models in one directory do not fence each other, two runs
that save the same basename do, and the newer one wins. A fenced run never comes back by itself: two runs that
did would fence each other for ever.

In a directory without a record, acquiring writes nothing; the first save's record does both. A record that
names no checkpoint makes TensorFlow raise, and one that names a checkpoint still being written makes it fail
to restore (docs/design/002-acquire-without-a-record.md).
"""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from ckptstore.config import host_id
from ckptstore.directory.catalog import Found, fault_of, list_checkpoints
from ckptstore.directory.collect import drop_leftovers
from ckptstore.directory.publish import read_standing
from ckptstore.directory.record_update import RecordSnapshot, new_write_id, read_record, update_record
from ckptstore.directory.retention import ClockName, Entry
from ckptstore.directory.window import own_entries
from ckptstore.errors import CkptStoreError, CkptStoreWarning, FencedError
from ckptstore.format.naming import data_name, meta_name, split_step
from ckptstore.format.record_protocol import Owner, Record
from ckptstore.storage.base import Location

__all__ = ["Held", "Ownership"]


@dataclass(slots=True)
class Held:
    """One basename that this run holds.

    Attributes
    ----------
    epoch : int
    in_record : bool
        Whether the record is known to carry our owner line.
    highest_step : int or None
    seen : set of str
        Prefixes that had files when the run began; their canonical data names may be taken.
    has_saved : bool
        Whether the record holds a save of this run.
    """

    epoch: int
    in_record: bool
    highest_step: int | None
    seen: set[str]
    has_saved: bool = False


class Ownership:
    """What one Saver (or manager) of one run holds in one record.

    Parameters
    ----------
    directory : Location
    record : Location
        Of the record, a direct child of `directory`.
    clock : callable
        Seconds since 1970.

    Threads
    -------
    One thread.
    """

    def __init__(self, directory: Location, record: Location, clock: Callable[[], float]) -> None:
        self.directory = directory
        self.record = record
        self._clock = clock
        self.held: dict[str, Held] = {}
        self.adopted: list[Entry] = []
        # Only its owner writes a prefix's pending and superseded lines, so what it saw last is what there is.
        self.last_seen = Record()
        self._mtimes_s: dict[str, float] = {}
        self._missing: set[str] = set()
        self._fenced: FencedError | None = None

    def acquire(self, basename: str, run: str, timeout_s: float) -> Held:
        """Take over `basename` for `run`, once; see what is there.

        Raises
        ------
        FencedError
            If this run was fenced before.
        """
        if self._fenced is not None:
            raise self._fenced
        if basename in self.held:
            return self.held[basename]
        snapshot = read_record(self.record)
        if snapshot.fault is not None:
            warnings.warn(
                f"the record cannot be read and will be written anew: {snapshot.fault}",
                CkptStoreWarning,
                stacklevel=5,
            )
        self.last_seen = snapshot.record
        previous = snapshot.record.owners.get(basename)
        epoch = 1 if previous is None else previous.epoch + (previous.run != run)
        known = snapshot.record.state is not None
        if known and (previous is None or previous.run != run):

            def take_over(now: RecordSnapshot) -> Record:
                nonlocal epoch
                owner = now.record.owners.get(basename)
                epoch = 1 if owner is None else owner.epoch + 1
                line = self._owner_line(basename, epoch, run, owner)
                return now.record.with_owner(line)

            update_record(self.record, take_over, first=snapshot, timeout_s=timeout_s)
        found = list_checkpoints(self.directory, basename)
        # Times of the storage's clock, never in the future of ours: such a checkpoint would be preserved for
        # good.
        now_s = self._clock()
        mtimes_s = {item.prefix: min(item.index.mtime_s, now_s) for item in found.values() if item.index}
        self._mtimes_s.update(mtimes_s)
        entries = own_entries(self.directory, snapshot.record.state, {basename}, self._mtimes_s, 0.0)
        listed = {entry.prefix for entry in entries}
        self._missing |= {prefix for prefix in listed if prefix not in found or found[prefix].index is None}
        steps = [step for prefix in listed if (step := split_step(prefix)[1]) is not None]
        if previous is not None and previous.highest_step is not None:
            steps.append(previous.highest_step)
        highest = max(steps, default=None)
        if known:
            highest = self._adopt(found, listed, highest)
        else:
            # Without a record nothing tells a save that died from checkpoints kept on purpose: leave them
            # all.
            highest = max((i.step for i in found.values() if i.index and i.step is not None), default=highest)
        self._drop_leftovers(basename, found, snapshot.record)
        held = Held(epoch, known, highest, set(found))
        self.held[basename] = held
        return held

    def _adopt(self, found: dict[str, Found], listed: Collection[str], highest: int | None) -> int | None:
        """Take in complete checkpoints of saves that died between index and record."""
        newer = [
            item
            for item in found.values()
            if item.index is not None and item.step is not None and (highest is None or item.step > highest)
        ]
        for item in sorted(newer, key=lambda item: item.step or 0):
            if item.prefix not in listed and fault_of(self.directory.child(item.prefix)) is None:
                self.adopted.append(Entry(item.prefix, self._mtimes_s[item.prefix]))
                highest = item.step
        return highest

    def _drop_leftovers(self, basename: str, found: dict[str, Found], record: Record) -> None:
        """Remove what a writer left that is provably dead; only a local disk can prove it."""
        storage = self.directory.storage
        names = []
        for item in found.values():
            dead = [
                data_name(item.prefix, *shard)
                for shard, info in item.data.items()
                if shard not in record.shards_named(item.prefix) and storage.is_abandoned(info.key)
            ]
            if dead and item.index is not None:
                standing = read_standing(self.directory, item.prefix)
                named = {data_name(item.prefix, *shard) for shard in standing.shards} if standing else set()
                dead = [name for name in dead if name not in named]
            elif len(dead) == len(item.data) and dead and item.meta is not None:
                dead.append(meta_name(item.prefix))
            names.extend(dead)
        try:
            if names:
                drop_leftovers(self.directory, names)
            storage.abort_stale_uploads(self.directory.child(basename).key, float("inf"))
        except CkptStoreError as error:
            warnings.warn(
                f"leftovers of a dead writer could not be removed: {error}", CkptStoreWarning, stacklevel=6
            )

    def check(self, snapshot: RecordSnapshot, run: str) -> bool:
        """Raise if another run took over; return whether a foreign writer replaced our record.

        Raises
        ------
        FencedError
        """
        foreign = False
        for basename, held in self.held.items():
            owner = snapshot.record.owners.get(basename)
            if owner is None:
                foreign = foreign or held.in_record
            elif owner.run != run:
                raise self._fence(owner, held.epoch)
        return foreign

    def _fence(self, owner: Owner, epoch: int) -> FencedError:
        when = datetime.datetime.fromtimestamp(owner.time_s, datetime.UTC).isoformat(timespec="seconds")
        self._fenced = FencedError(
            f"another run took over the checkpoints of {owner.basename!r}:"
            f" run {owner.run} on host {owner.host} since {when}",
            url=self.record.url,
            expected=f"epoch {epoch}",
            actual=f"epoch {owner.epoch}",
            hint="This run saves nothing more here. If it should go on, stop the other and start it anew.",
        )
        return self._fenced

    def saved(self, prefix: str) -> None:
        """Note that `prefix` is there: it counts again if it was gone before."""
        self._missing.discard(prefix)

    def window(self, record: Record, *, foreign: bool, known: tuple[Entry, ...], now_s: float) -> list[Entry]:
        """Return the entries that this run owns, oldest first."""
        listed_entries = own_entries(self.directory, record.state, self.held, self._mtimes_s, now_s)
        # What was listed but gone when the run began takes no place in the window.
        entries = [entry for entry in listed_entries if entry.prefix not in self._missing]
        listed = {entry.prefix for entry in entries}
        extra = [entry for entry in self.adopted if entry.prefix not in listed]
        if foreign:
            # Whoever rewrote the record does not know our list; this save deletes nothing and puts both
            # together.
            extra += [e for e in known if e.prefix not in listed and e not in extra]
            return sorted(entries + extra, key=lambda entry: entry.time_s)
        return entries + extra

    def restate_owner(
        self,
        record: Record,
        run: str,
        basename: str,
        step: int | None,
        clock_name: ClockName,
        clock_s: float | None,
    ) -> Record:
        """Return `record` with our owner line for `basename` up to date, retention clock included."""
        held = self.held[basename]
        previous = record.owners.get(basename)
        if previous is None and held.in_record:
            held.epoch += 1
            held.in_record = False
        if step is not None:
            held.highest_step = step if held.highest_step is None else max(step, held.highest_step)
        line = replace(self._owner_line(basename, held.epoch, run, previous), highest_step=held.highest_step)
        if clock_name == "next_keep_s":
            line = replace(line, next_keep_s=clock_s)
        else:
            line = replace(line, last_preserved_s=clock_s)
        return record.with_owner(line)

    def _owner_line(self, basename: str, epoch: int, run: str, previous: Owner | None) -> Owner:
        keep = previous is not None and previous.run == run
        return Owner(
            basename,
            epoch,
            run,
            host_id(),
            previous.time_s if keep and previous is not None else self._clock(),
            new_write_id(),
            None if previous is None else previous.highest_step,
            None if previous is None else previous.next_keep_s,
            None if previous is None else previous.last_preserved_s,
        )
