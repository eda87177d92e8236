"""What one run owns in one record: acquire it, detect another run that took over, write the owner lines.

Epochs belong to an owner, which is a basename: two models in one directory do not fence each other, two runs
that save the same basename do, and the newer one wins. A fenced run never comes back by itself: two runs that
did would fence each other for ever.

In a directory without a record, acquiring writes nothing; the first save's record does both. A record that
names no checkpoint makes TensorFlow raise, and one that names a checkpoint still being written makes it
fail to restore (docs/design/002-acquire-without-a-record.md).
"""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from ckptstore.config import host_name
from ckptstore.directory.catalog import PrefixFiles, fault_of, list_checkpoints
from ckptstore.directory.incomplete import nothing_restorable
from ckptstore.directory.leftovers import remove_leftovers
from ckptstore.directory.moved import moved_here
from ckptstore.directory.record_entries import own_entries
from ckptstore.directory.record_update import RecordSnapshot, new_write_id, read_record, update_record
from ckptstore.directory.retention import ClockName, Entry
from ckptstore.errors import AccessError, CkptStoreWarning, CorruptError, FencedError
from ckptstore.format.naming import split_step
from ckptstore.format.record_protocol import Owner, Record
from ckptstore.storage.base import Location

__all__ = ["OwnedBasename", "Ownership"]


class _RecordGoneError(Exception):
    """The record vanished during the take-over: the first save creates another one."""


@dataclass(slots=True)
class OwnedBasename:
    """One basename that this run owns.

    Attributes
    ----------
    in_record : bool
        Whether the record is known to carry our owner line.
    seen : set of str
        Prefixes that had files when the run started; their canonical data names may be taken.
    has_saved : bool
        Whether the record holds a save of this run.
    knows_all : bool
        Whether there was neither record nor file when the run started: every prefix ever listed is in `seen`.
    """

    epoch: int
    in_record: bool
    highest_step: int | None
    seen: set[str]
    has_saved: bool = False
    knows_all: bool = False


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

    Threads
    -------
    One thread.
    """

    def __init__(self, directory: Location, record: Location, run: str, clock: Callable[[], float]) -> None:
        self.directory = directory
        self.record = record
        self.run = run
        self.clock = clock
        # Grows by `acquire`; nothing leaves it.
        self.owned: dict[str, OwnedBasename] = {}
        # Complete checkpoints of dead saves that the record does not list; emptied when a record lists them.
        self.adopted: list[Entry] = []
        # As read by `acquire` or written by the last save. Only its owner writes a prefix's pending and
        # superseded lines, so these are the present ones.
        self.last_seen = Record()
        # Prefix → time of its index when it was acquired.
        self._mtimes_s: dict[str, float] = {}
        # Listed, but without an index when acquired; saving such a prefix removes it from here.
        self._missing: set[Entry] = set()
        # Set once, for good: this run writes nothing more.
        self._fenced: FencedError | None = None

    def acquire(self, basename: str, timeout_s: float, *, fresh_start: bool = False) -> OwnedBasename:
        """Take over `basename` for this run, once; adopt or clean up what dead saves left.

        Parameters
        ----------
        fresh_start : bool
            Do so although there are checkpoints and none of them can be restored. They are left alone.

        Raises
        ------
        CorruptError
            If there are checkpoints and none of them can be restored.
        FencedError
            If this run was fenced before.
        """
        if self._fenced is not None:
            raise self._fenced
        if basename in self.owned:
            return self.owned[basename]
        snapshot = read_record(self.record)
        if snapshot.fault is not None:
            warnings.warn(
                f"the record cannot be read and will be written anew: {snapshot.fault}",
                CkptStoreWarning,
                stacklevel=5,
            )
        record = snapshot.record
        state = record.state and moved_here(self.directory, record.state)
        entries = own_entries(self.directory, state, {basename}, {}, 0.0)
        fault: CorruptError | None = None
        if entries:
            # Before the take-over: nothing is written if this raises.
            fault = self._nothing_restorable(entries, lambda: self._list_files(basename) or {}, fresh_start)
        previous = record.owners.get(basename)
        if record.state is not None and (previous is None or previous.run != self.run):
            record = self._take_over(basename, snapshot, timeout_s)
        owner = record.owners.get(basename)
        known = record.state is not None
        self.last_seen = record
        listing = self._list_files(basename)
        found = listing or {}
        if not entries:
            self._nothing_restorable(entries, lambda: found, fresh_start)
        # Times of the storage's clock, never in the future of ours: such a checkpoint would be preserved
        # for ever.
        now_s = self.clock()
        mtimes_s = {item.prefix: min(item.index.mtime_s, now_s) for item in found.values() if item.index}
        self._mtimes_s.update(mtimes_s)
        entries = own_entries(self.directory, record.state, {basename}, self._mtimes_s, 0.0)
        listed = {entry.prefix for entry in entries}
        if fault is not None:
            self._missing |= set(entries)
        elif listing is not None:
            self._missing |= {e for e in entries if e.prefix not in found or found[e.prefix].index is None}
        steps = [step for prefix in listed if (step := split_step(prefix)[1]) is not None]
        if owner is not None and owner.highest_step is not None:
            steps.append(owner.highest_step)
        highest = max(steps, default=None)
        if known and highest is not None:
            highest = self._adopt(found, listed, highest)
        else:
            # A record without a step of this basename cannot distinguish a save that died from checkpoints
            # kept on purpose: leave them all.
            highest = max((i.step for i in found.values() if i.index and i.step is not None), default=highest)
        if listing is not None:
            remove_leftovers(self.directory, self.record, basename, found, record)
        owned = OwnedBasename(1 if owner is None else owner.epoch, owner is not None, highest, set(found))
        owned.knows_all = snapshot.version is None and listing == {}
        self.owned[basename] = owned
        return owned

    def _nothing_restorable(
        self, entries: Sequence[Entry], find: Callable[[], dict[str, PrefixFiles]], fresh_start: bool
    ) -> CorruptError | None:
        fault = nothing_restorable(self.directory, [entry.prefix for entry in entries], find)
        if fault is not None and not fresh_start:
            raise fault
        return fault

    def _list_files(self, basename: str) -> dict[str, PrefixFiles] | None:
        """Return the files of `basename`; None if listing is not allowed: saving works without it."""
        try:
            return list_checkpoints(self.directory, basename)
        except AccessError as error:
            warnings.warn(
                f"the directory cannot be listed; dead saves are neither adopted nor cleaned up: {error}",
                CkptStoreWarning,
                stacklevel=6,
            )
            return None

    def _take_over(self, basename: str, snapshot: RecordSnapshot, timeout_s: float) -> Record:
        def raise_epoch(now: RecordSnapshot) -> Record:
            if now.record.state is None:
                raise _RecordGoneError
            owner = now.record.owners.get(basename)
            epoch = 1 if owner is None else owner.epoch + 1
            record = replace(now.record, state=moved_here(self.directory, now.record.state))
            return record.with_owner(self._owner_line(basename, epoch, owner))

        try:
            return update_record(self.record, raise_epoch, first=snapshot, timeout_s=timeout_s)
        except _RecordGoneError:
            return Record()

    def _adopt(self, found: dict[str, PrefixFiles], listed: Collection[str], highest: int) -> int:
        """Adopt complete checkpoints of saves that died between index and record."""
        newer = [
            item
            for item in found.values()
            if item.index is not None and item.step is not None and item.step > highest
        ]
        for item in sorted(newer, key=lambda item: item.step or 0):
            if item.prefix not in listed and fault_of(self.directory.child(item.prefix)) is None:
                self.adopted.append(Entry(item.prefix, self._mtimes_s[item.prefix]))
                highest = max(highest, item.step or 0)
        return highest

    def check(self, snapshot: RecordSnapshot) -> bool:
        """Raise if another run took over; return whether a foreign writer replaced our record.

        Raises
        ------
        FencedError
        """
        foreign = False
        for basename, owned in self.owned.items():
            owner = snapshot.record.owners.get(basename)
            if owner is None:
                foreign = foreign or owned.in_record
            elif owner.run != self.run:
                raise self._fence(owner, owned.epoch)
        return foreign

    def _fence(self, owner: Owner, epoch: int) -> FencedError:
        try:
            when = datetime.datetime.fromtimestamp(owner.time_s, datetime.UTC).isoformat(timespec="seconds")
        except (ValueError, OverflowError, OSError):
            # Outside of the calendar: the clock of that machine is wrong, or the line was forged.
            when = f"{owner.time_s!r} s"
        self._fenced = FencedError(
            f"another run took over the checkpoints of {owner.basename!r}:"
            f" run {owner.run} on host {owner.host} since {when}",
            url=self.record.url,
            expected=f"epoch {epoch}",
            actual=f"epoch {owner.epoch}",
            hint="This run saves nothing more here. To continue it, stop the other run and restart this one.",
        )
        return self._fenced

    def window(self, record: Record, *, foreign: bool, known: tuple[Entry, ...], now_s: float) -> list[Entry]:
        """Return the entries that this run owns, oldest first."""
        listed_entries = own_entries(
            self.directory, record.state, self.owned, self._mtimes_s, now_s, kept=record.kept
        )
        # Listed checkpoints that were gone when the run started take no place in the window.
        entries = [entry for entry in listed_entries if entry not in self._missing]
        listed = {entry.prefix for entry in entries}
        extra = [entry for entry in self.adopted if entry.prefix not in listed]
        if foreign:
            # The program that rewrote the record does not know our list and its times: this save deletes
            # nothing and merges both.
            ours = {entry.prefix: entry for entry in known}
            entries = [ours.pop(entry.prefix, entry) for entry in entries]
            extra = [entry for entry in extra if entry.prefix not in ours]
            return sorted([*entries, *extra, *ours.values()], key=lambda entry: entry.time_s)
        return entries + extra

    def clock_s(
        self, record: Record, clock_name: ClockName, resume: Callable[[float], float]
    ) -> float | None:
        """Return the retention clock, one for all basenames that this run holds; None if it never ran."""
        clocks = []
        for basename, owned in self.owned.items():
            owner = self._last_line(record, basename)
            clock_s: float | None = None if owner is None else getattr(owner, clock_name)
            if clock_s is not None:
                clocks.append(clock_s if owned.has_saved else resume(clock_s))
        return max(clocks, default=None)

    def _last_line(self, record: Record, basename: str) -> Owner | None:
        # A program that rewrote the record dropped our line.
        return record.owners.get(basename) or self.last_seen.owners.get(basename)

    def restate_owner(
        self,
        record: Record,
        basename: str,
        step: int | None,
        clock_name: ClockName,
        clock_s: float | None,
    ) -> Record:
        """Return `record` with our owner line for `basename` up to date, retention clock included.

        Lines of other basenames that this run holds come back if they were dropped. Nothing else changes
        before `record_saved`: the record may still be lost to another writer.
        """
        for name, owned in self.owned.items():
            present = record.owners.get(name)
            dropped = present is None and owned.in_record
            if name != basename and not dropped:
                continue
            epoch = owned.epoch + dropped if present is None else max(owned.epoch, present.epoch)
            line = self._owner_line(name, epoch, self._last_line(record, name))
            if name == basename:
                steps = [number for number in (owned.highest_step, step) if number is not None]
                line = replace(line, highest_step=max(steps, default=None))
                if clock_name == "next_keep_s":
                    line = replace(line, next_keep_s=clock_s)
                else:
                    line = replace(line, last_preserved_s=clock_s)
            record = record.with_owner(line)
        return record

    def record_saved(self, record: Record, prefix: str) -> None:
        """Update this from `record`, just written, which lists `prefix` as the latest."""
        for basename, owned in self.owned.items():
            owner = record.owners.get(basename)
            if owner is not None:
                owned.epoch, owned.in_record = owner.epoch, True
                steps = [step for step in (owned.highest_step, owner.highest_step) if step is not None]
                owned.highest_step = max(steps, default=None)
        saved = self.owned[split_step(prefix)[0]]
        saved.seen.add(prefix)
        saved.has_saved = True
        self._missing = {entry for entry in self._missing if entry.prefix != prefix}
        self.adopted.clear()
        self.last_seen = record

    def _owner_line(self, basename: str, epoch: int, previous: Owner | None) -> Owner:
        keep = previous is not None and previous.run == self.run
        return Owner(
            basename,
            epoch,
            self.run,
            host_name(),
            previous.time_s if keep and previous is not None else self.clock(),
            new_write_id(),
            None if previous is None else previous.highest_step,
            None if previous is None else previous.next_keep_s,
            None if previous is None else previous.last_preserved_s,
        )
