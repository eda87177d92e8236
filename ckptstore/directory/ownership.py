"""What one run owns in one record: acquire it, detect another run that took over, write the owner lines.

Epochs belong to an owner: a basename that is saved with steps, or one prefix that is saved without
(docs/design/018-who-owns-what.md). Two models in one directory do not fence each other, two runs that save
the same one do, and the newer one wins. A fenced run never comes back by itself: two runs that did would
fence each other for ever.

In a directory without a record, acquiring writes nothing; the first save's record does both. A record that
names no checkpoint makes TensorFlow raise, and one that names a checkpoint still being written makes it
fail to restore (docs/design/002-acquire-without-a-record.md).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace

from ckptstore.config import host_name
from ckptstore.directory.catalog import PrefixFiles
from ckptstore.directory.fencing import fenced_by, fenced_by_unknown
from ckptstore.directory.first_look import check_listed, list_files
from ckptstore.directory.incomplete import nothing_restorable
from ckptstore.directory.intents import Announcements, is_set_back, may_be_adopted, was_published
from ckptstore.directory.leftovers import remove_leftovers
from ckptstore.directory.moved import moved_here
from ckptstore.directory.own_prefixes import counted_lines, counts_filter, own_filter
from ckptstore.directory.owned import Owned
from ckptstore.directory.owner_names import (
    common_basename,
    highest_step,
    line_of,
    may_have_saved,
    owner_of_step,
    start_of,
    step_of,
)
from ckptstore.directory.paths import inside
from ckptstore.directory.record_entries import listed_paths, newest_own, own_entries
from ckptstore.directory.record_update import RecordSnapshot, new_write_id, read_record, update_record
from ckptstore.directory.retention import ClockName, Entry
from ckptstore.directory.torn_entries import TornEntries
from ckptstore.errors import CorruptError, FencedError
from ckptstore.format.record_facts import Intent, Owner, OwnerName, Record
from ckptstore.storage.base import Location
from ckptstore.warn import warn

__all__ = ["Ownership"]


class _RecordGoneError(Exception):
    """The record vanished during the take-over: the first save creates another one."""


class Ownership:
    """What one Saver or manager of one run owns in one record.

    Parameters
    ----------
    record : Location
        Of the record, a direct child of `directory`.
    run : str
        Identity for fencing.
    clock : callable
        Seconds since 1970.
    keep : int
        Of the retention, by which the Savers of one run are told apart.

    Threads
    -------
    One thread.
    """

    def __init__(
        self, directory: Location, record: Location, run: str, clock: Callable[[], float], keep: int
    ) -> None:
        self.directory = directory
        self.record = record
        self.run = run
        self.clock = clock
        self._keep = keep
        # Grows by `acquire`. The owner of a single prefix leaves it when nothing in the record names that,
        # and any owner when another run took over.
        self.owned: dict[OwnerName, Owned] = {}
        # Complete checkpoints of dead saves that the record does not list; emptied when a record lists them.
        self.adopted: list[Entry] = []
        # As read by `acquire` or written by the last save. Only its owner writes a prefix's pending and
        # superseded lines, so these are the present ones.
        self.snapshot = RecordSnapshot(Record(), None)
        self._announcements = Announcements(run, self.owned.keys())
        # Prefix → time of its index when it was acquired, or of the save by this run.
        self._mtimes_s: dict[str, float] = {}
        self.torn = TornEntries(directory)
        # For good: this run saves nothing more as one of these.
        self._fenced: dict[OwnerName, FencedError] = {}

    @property
    def last_seen(self) -> Record:
        """The record as this run saw it last."""
        return self.snapshot.record

    def own_filter(self, record: Record) -> Callable[[str], bool]:
        """Return a function that tells which of the listed prefixes of `record` are this run's."""
        return own_filter(self.owned, record)

    def filter_of(self, record: Record, name: OwnerName) -> Callable[[str], bool]:
        """Return a function that tells which of the listed prefixes are this run's as `name`."""
        is_own = self.own_filter(record)
        return lambda prefix: may_have_saved(name, prefix) and is_own(prefix)

    def counts_filter(self, record: Record) -> Callable[[str], bool]:
        """Return a function that tells which of the listed prefixes of `record` retention counts.

        Those of `own_filter` but for what another Saver of this run has saved, and for torn ones.
        """
        is_counted = counts_filter(self.owned, record, self._keep, self.own_filter(record))
        torn = self.torn.torn
        return is_counted if not torn else lambda prefix: prefix not in torn and is_counted(prefix)

    def basis(self) -> list[object]:
        """Return on what the filters depend besides the record."""
        return [tuple(self.owned), frozenset(self.torn.torn), frozenset(self.torn.missing), *self.adopted]

    def counted_in(self, record: Record, window: Collection[str]) -> dict[str, int]:
        """Return the `counted` lines of `record`, which lists `window` and has our owner lines."""
        return counted_lines(self.owned, record, self._keep, window)

    def acquire(
        self, name: OwnerName, timeout_s: float, *, fresh_start: bool = False, check: bool = True
    ) -> Owned:
        """Become the owner `name` for this run, once; adopt or clean up what dead saves left.

        Parameters
        ----------
        fresh_start : bool
            Do so although there are checkpoints and none of them can be restored. They are left alone.
        check : bool
            Look whether there are such. Not where this run has saved a checkpoint of the basename.

        Raises
        ------
        CorruptError
            If there are checkpoints of the basename and none of them can be restored.
        FencedError
            If this run was fenced before.
        """
        if name in self._fenced:
            raise self._fenced[name]
        if name in self.owned:
            return self.owned[name]
        snapshot = read_record(self.record)
        if snapshot.fault is not None:
            warn(f"the record cannot be read and will be written anew: {snapshot.fault}")
        check = check and not self._has_saved_beside(name)
        listed: list[str] = []
        fault: CorruptError | None = None
        if check:
            # Before the take-over: nothing is written if this raises.
            snapshot, listed, fault = check_listed(
                self.directory, self.record, name, snapshot, fresh_start=fresh_start
            )
        record = snapshot.record
        previous = line_of(record, name)
        # The owner of a single prefix that is new gets its line together with its checkpoint.
        is_new = previous is None and name.form == "exact"
        if record.state is not None and not is_new and (previous is None or previous.run != self.run):
            snapshot = self._take_over(name, snapshot, timeout_s)
        looks_beside = check and not listed
        listing = list_files(self.directory, name, beside=looks_beside)
        if looks_beside and not fresh_start:
            fault = nothing_restorable(self.directory, [], lambda: listing or {})
            if fault is not None and read_record(self.record).version == snapshot.version:
                raise fault
            fault = None
        owner = snapshot.record.owners.get(name)
        owned = Owned(1 if owner is None else owner.epoch, owner is not None, snapshot.version is not None)
        self.owned[name] = owned
        self.snapshot = snapshot
        self._look_around(name, owned, snapshot.record, listing, is_anew=fault is not None)
        owned.knows_all = snapshot.version is None and not owned.seen and owned.is_listed
        return owned

    def _has_saved_beside(self, name: OwnerName) -> bool:
        """Return whether this run has saved a checkpoint of the same basename."""
        basename = common_basename(name)
        return any(
            owned.has_saved and common_basename(each) == basename for each, owned in self.owned.items()
        )

    def _look_around(
        self,
        name: OwnerName,
        owned: Owned,
        record: Record,
        listing: Mapping[str, PrefixFiles] | None,
        *,
        is_anew: bool,
    ) -> None:
        """Find out what is there of this owner, adopt saves that died, and remove what dead writers left.

        With `is_anew` nothing that is listed can be restored: all of it leaves the list.
        """
        owner = record.owners.get(name)
        owned.is_listed = listing is not None
        found = {prefix: item for prefix, item in (listing or {}).items() if may_have_saved(name, prefix)}
        owned.seen = set(found)
        owned.published = {prefix: None for prefix, item in found.items() if item.index is not None}
        # Times of the storage's clock, never in the future of ours: such a checkpoint would be preserved
        # for ever.
        now_s = self.clock()
        mtimes_s = {item.prefix: min(item.index.mtime_s, now_s) for item in found.values() if item.index}
        self._mtimes_s.update(mtimes_s)
        is_own = self.filter_of(record, name)
        entries = own_entries(self.directory, record.state, is_own, self._mtimes_s, 0.0)
        listed = {entry.prefix for entry in entries}
        if is_anew:
            self.torn.missing.update(entries)
        elif listing is not None:
            self.torn.add(entries, found)
        # In a record without times they are known again by these.
        self._mtimes_s.update((entry.prefix, entry.time_s) for entry in self.torn.missing)
        adopted = self._adopt(name, record, listed, now_s)
        if name.form == "steps":
            owned.highest_step = highest_step(owner, [*listed, *adopted])
            if owned.highest_step is None:
                # Without one, nothing tells which names an earlier run had.
                owned.highest_step = highest_step(None, [p for p, i in found.items() if i.index])
        if listing is not None:
            remove_leftovers(self.directory, self.record, start_of(name), found, record)

    def _take_over(self, name: OwnerName, snapshot: RecordSnapshot, timeout_s: float) -> RecordSnapshot:
        def raise_epoch(now: RecordSnapshot) -> Record:
            if now.record.state is None:
                raise _RecordGoneError
            owner = line_of(now.record, name)
            epoch = 1 if owner is None else owner.epoch + 1
            record = replace(now.record, state=moved_here(self.directory, now.record.state))
            record = record.with_owner(self._owner_line(name, epoch, owner))
            # What the Savers of the run before saved, this one counts.
            counted = {
                prefix: keep for prefix, keep in record.counted.items() if not may_have_saved(name, prefix)
            }
            return replace(record, counted=counted)

        try:
            return update_record(self.record, raise_epoch, first=snapshot, timeout_s=timeout_s)
        except _RecordGoneError:
            return RecordSnapshot(Record(), None)

    def _adopt(self, name: OwnerName, record: Record, listed: Collection[str], now_s: float) -> list[str]:
        """Adopt the checkpoints of saves that died between index and record; return their prefixes."""
        adopted = []
        for intent in record.intents:
            if intent.owner != name or not may_be_adopted(record, intent, listed):
                continue
            if intent.prefix not in adopted and was_published(self.directory, intent):
                time_s = self._mtimes_s.get(intent.prefix, now_s)
                self.adopted.append(Entry(intent.prefix, time_s, metrics=dict(intent.metrics)))
                adopted.append(intent.prefix)
        return adopted

    def announce(self, record: Record, intent: Intent) -> Record:
        """Return `record` with `intent`, and without those that are settled.

        Our line is written with it: the bytes of each record are unique, and a new owner gets its line here.
        """
        name = intent.owner
        if not self.owned[name].in_record:
            # A new owner of a single prefix has taken nothing over.
            record = replace(record, state=record.state and moved_here(self.directory, record.state))
        line = self._owner_line(name, self._epoch(record, name), self._last_line(record, name))
        newest = newest_own(self.directory, record.state, self.filter_of(record, name))
        intents = self._announcements.announce(
            record, replace(intent, after=newest or ""), {entry.prefix for entry in self.adopted}
        )
        # Of a save that died nothing else may name the owner.
        return replace(record.with_owner(line), intents=intents).without_idle_owners(self.owned)

    def open_intents(self, record: Record, window: Collection[str]) -> tuple[Intent, ...]:
        """Return what stays announced when the checkpoints of `window` are listed."""
        return self._announcements.left_open(record, window)

    def check(self, snapshot: RecordSnapshot, name: OwnerName) -> bool:
        """Raise if another run took over as `name`; return whether a foreign writer replaced our record.

        What else another run has taken over is not this run's any more.

        Raises
        ------
        FencedError
        """
        foreign = False
        for each, owned in list(self.owned.items()):
            # A line without a form: a run of 0.1.0rc1 has taken over.
            owners = snapshot.record.owners
            owner = line_of(snapshot.record, each) if each.form == "steps" else owners.get(each)
            if owner is None:
                foreign = foreign or self.is_rewritten(snapshot, each)
            elif owner.run != self.run:
                self._fenced[each] = fenced_by(owner, owned.epoch, self.record)
                del self.owned[each]
        if name in self._fenced:
            raise self._fenced[name]
        if foreign and self.is_rewritten(snapshot, name):
            self._refuse_unknown(snapshot.record, name)
        return foreign

    def is_rewritten(self, snapshot: RecordSnapshot, name: OwnerName) -> bool:
        """Return whether another program wrote `snapshot`, a record without our line of `name`."""
        owned, record = self.owned[name], snapshot.record
        if name in record.owners or _may_have_left(record, name):
            return False
        return owned.in_record or (
            not owned.had_record and snapshot.version is not None and not record.owners
        )

    def _refuse_unknown(self, record: Record, name: OwnerName) -> None:
        """Raise if a rewritten record lists what this run never saw: another run saved in between."""
        listed = listed_paths(self.last_seen.state)
        known = self.owned[name].published.keys() | {inside(self.directory, path) for path, _ in listed}
        is_own = self.filter_of(record, name)
        for entry in own_entries(self.directory, record.state, is_own, {}, 0.0):
            if entry.prefix not in known:
                raise self.fence_unknown(name, entry.prefix)

    def fence_unknown(self, name: OwnerName, prefix: str) -> FencedError:
        """Give up `name`, because `prefix` was saved by somebody else; return the error to raise."""
        self._fenced[name] = fenced_by_unknown(prefix, self.record)
        del self.owned[name]
        return self._fenced[name]

    def window(self, record: Record, *, foreign: bool, known: tuple[Entry, ...], now_s: float) -> list[Entry]:
        """Return the entries that this run owns, oldest first."""
        is_counted = self.counts_filter(record)
        listed_entries = own_entries(self.directory, record.state, is_counted, self._mtimes_s, now_s)
        # Listed checkpoints that were gone when the run started take no place in the window.
        missing = self.torn.missing
        entries = [e for e in listed_entries if e not in missing] if missing else listed_entries
        listed = {entry.prefix for entry in entries}
        extra = [entry for entry in self.adopted if entry.prefix not in listed]
        if foreign:
            # The program that rewrote the record does not know our list and its times: this save deletes
            # nothing and merges both.
            ours = {entry.prefix: entry for entry in known}
            entries = [ours.pop(entry.prefix, entry) for entry in entries]
            extra = [entry for entry in extra if entry.prefix not in ours]
            return sorted([*entries, *extra, *ours.values()], key=lambda entry: entry.time_s)
        if record.state is not None and is_set_back(record.state):
            # What somebody went back to counts as the newest.
            latest = inside(self.directory, record.state.model_checkpoint_path)
            entries.sort(key=lambda entry: entry.prefix == latest)
        return entries + extra

    def clock_s(
        self, record: Record, clock_name: ClockName, resume: Callable[[float], float]
    ) -> float | None:
        """Return the retention clock, one for all that this run owns; None if it never ran."""
        clocks = []
        for name, owned in self.owned.items():
            owner = self._last_line(record, name)
            clock_s: float | None = None if owner is None else getattr(owner, clock_name)
            if clock_s is not None:
                clocks.append(clock_s if owned.has_saved else resume(clock_s))
        return max(clocks, default=None)

    def _epoch(self, record: Record, name: OwnerName) -> int:
        owned, present = self.owned[name], record.owners.get(name)
        if present is not None:
            return max(owned.epoch, present.epoch)
        # One higher where our line was dropped: another run may have taken that for a free place. That of a
        # single prefix leaves a record of ours when nothing names the prefix any more.
        return owned.epoch + (owned.in_record and not _may_have_left(record, name))

    def _last_line(self, record: Record, name: OwnerName) -> Owner | None:
        # A program that rewrote the record dropped our line.
        return record.owners.get(name) or self.last_seen.owners.get(name)

    def restate_owner(
        self,
        record: Record,
        name: OwnerName,
        step: int | None,
        suffix: str,
        clock_name: ClockName,
        clock_s: float | None,
    ) -> Record:
        """Return `record` with our owner line for `name` up to date, retention clock included.

        Lines of others that this run is come back if they were dropped. Single prefixes that the user told
        this run to count get one: without it nobody would delete them. Nothing else changes before
        `record_saved`: the record may still be lost to another writer.
        """
        for each, owned in self.owned.items():
            present = record.owners.get(each)
            is_absent = present is None and (owned.in_record or each.form == "exact")
            if each != name and not is_absent:
                continue
            line = self._owner_line(each, self._epoch(record, each), self._last_line(record, each))
            if each == name:
                steps = [number for number in (owned.highest_step, step) if number is not None]
                line = replace(line, highest_step=max(steps, default=None), suffix=suffix)
                if clock_name == "next_keep_s":
                    line = replace(line, next_keep_s=clock_s)
                else:
                    line = replace(line, last_preserved_s=clock_s)
            record = record.with_owner(line)
        return record

    def record_announced(self, snapshot: RecordSnapshot, name: OwnerName) -> None:
        """Update this from the record, just written, with an announcement of `name`."""
        owned = self.owned[name]
        owned.epoch, owned.in_record = snapshot.record.owners[name].epoch, True
        self._announcements.settle(snapshot.record)
        self.snapshot = snapshot

    def record_saved(
        self, snapshot: RecordSnapshot, name: OwnerName, saved: Entry, left: Iterable[str]
    ) -> None:
        """Update this from the record, just written.

        Parameters
        ----------
        saved : Entry
            Of `name`; it is the latest now.
        left : iterable of str
            Prefixes that left the list.
        """
        record = snapshot.record
        for each, owned in list(self.owned.items()):
            owner = record.owners.get(each)
            if owner is not None:
                owned.epoch, owned.in_record = owner.epoch, True
                steps = [step for step in (owned.highest_step, owner.highest_step) if step is not None]
                owned.highest_step = max(steps, default=None)
            elif each.form == "exact":
                del self.owned[each]
                self._mtimes_s.pop(each.basename, None)
        for gone in left:
            step = owner_of_step(gone)
            if step in self.owned:
                self.owned[step].forget(gone, step_of(gone))
            self._mtimes_s.pop(gone, None)
        owned = self.owned[name]
        owned.seen.add(saved.prefix)
        owned.has_saved = True
        self._mtimes_s[saved.prefix] = saved.time_s
        self.torn.discard(saved.prefix)
        self.adopted.clear()
        self._announcements.settle(record)
        self.snapshot = snapshot

    def _owner_line(self, name: OwnerName, epoch: int, previous: Owner | None) -> Owner:
        same = previous is not None and previous.run == self.run
        keep = self._keep if previous is None or not same or previous.keep is None else previous.keep
        return Owner(
            name.basename,
            epoch,
            self.run,
            host_name(),
            previous.time_s if same and previous is not None else self.clock(),
            new_write_id(),
            None if previous is None else previous.highest_step,
            None if previous is None else previous.next_keep_s,
            None if previous is None else previous.last_preserved_s,
            name.form,
            keep if name.form == "steps" else None,
            "meta" if previous is None else previous.suffix,
        )


def _may_have_left(record: Record, name: OwnerName) -> bool:
    """Return whether another Saver of this run may have dropped the line of `name`, with its checkpoint."""
    listed = () if record.state is None else record.state.all_model_checkpoint_paths
    return name.form == "exact" and bool(record.owners) and name.basename not in listed
