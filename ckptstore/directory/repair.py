"""Rebuilding the record from the checkpoints that are complete; nothing is ever deleted.

A record that can be read keeps its list, except what is gone or torn. In the place of one that is
missing or cannot be read, every complete checkpoint is listed, and none is handed to retention
(docs/design/004-repair.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from ckptstore.bundle.verify.verify import BundleFault
from ckptstore.directory.catalog import (
    PrefixFiles,
    doubt_about,
    fault_of,
    list_checkpoints,
    nearest_first,
    newest_first,
)
from ckptstore.directory.intents import may_be_adopted, was_published
from ckptstore.directory.paths import UNNAMED, basename_of, relative_prefix, resolve
from ckptstore.directory.record_entries import UNKNOWN_TIME_S, listed_paths
from ckptstore.directory.record_update import RecordSnapshot, read_record, update_record, with_new_write_ids
from ckptstore.errors import CkptStoreError, CorruptError, NotFoundError
from ckptstore.format.record import CheckpointState
from ckptstore.format.record_facts import Record
from ckptstore.format.record_salvage import salvage_record
from ckptstore.storage.abilities import now_s
from ckptstore.storage.base import Location

__all__ = ["RepairAction", "RepairItem", "RepairReport", "repair_record"]

RepairAction: TypeAlias = Literal["stays", "moved", "added", "dropped", "left out"]
"""``stays``: listed before and after. ``moved``: the same, by a path to where the directory was before.
``added``: newly listed. ``dropped``: listed before, and cannot be restored. ``left out``: neither.
"""


@dataclass(frozen=True, slots=True)
class RepairItem:
    """What becomes of one checkpoint in the record.

    Attributes
    ----------
    prefix : str
        As the record names it, or is to name it.
    is_kept : bool
        Listed, without an owner.
    is_elsewhere : bool
        Its path leads out of the directory, which was not searched.
    fault : BundleFault, CkptStoreError or None
        Why it cannot be restored.
    """

    prefix: str
    url: str
    action: RepairAction
    is_kept: bool = False
    is_elsewhere: bool = False
    fault: BundleFault | CkptStoreError | None = None

    @property
    def is_listed(self) -> bool:
        """Whether the repaired record lists it."""
        return self.action in ("stays", "moved", "added")


@dataclass(frozen=True, slots=True)
class RepairReport:
    """A record before and after.

    Attributes
    ----------
    url : str
        The directory.
    fault : CorruptError or None
        Why the record that is there cannot be read.
    lost : tuple of str
        Lines of ours in it that cannot be read.
    latest_before : str or None
        The path that the record named as the latest.
    is_changed, is_written : bool
        Whether `repaired` differs from the record; whether it was written.
    doubt : str or None
        Why another checkpoint may be the newest, where no record said which.
    """

    url: str
    record_url: str
    fault: CorruptError | None
    was_missing: bool
    lost: tuple[str, ...]
    items: tuple[RepairItem, ...]
    latest_before: str | None
    repaired: Record
    is_changed: bool
    is_written: bool = False
    doubt: str | None = None

    @property
    def latest(self) -> str:
        """The path that the repaired record names as the latest."""
        assert self.repaired.state is not None
        return self.repaired.state.model_checkpoint_path


class _NothingToDoError(Exception):
    """Another writer put the record in order meanwhile."""


def repair_record(
    directory: Location, record: Location, *, dry_run: bool = False, timeout_s: float = 60.0
) -> RepairReport:
    """Make the record of `directory` list what can be restored.

    Parameters
    ----------
    directory : Location
    record : Location
        A direct child of `directory`.
    dry_run : bool
        Look only.
    timeout_s : float
        Bound on the time that contention with savers may cost.

    Raises
    ------
    NotFoundError
        If there is no complete checkpoint; the record stays as it is.
    AccessError, TransientError
        If the storage does not show which checkpoints are complete; the record stays as it is.
    CorruptError
        If what stands in the place of the record is too large to be one.
    UnsupportedError
        If a newer ckptstore wrote the record.
    DeadlineError, AmbiguousOutcomeError
        As `update_record`.

    Guarantees
    ----------
    No checkpoint comes under retention that no saver owned before, except one that its saver finished and did
    not live to list. A crash at any point leaves the old record or the new one.
    """
    first = read_record(record)
    report = _RepairPlan(directory, record, first).report()
    if dry_run or not report.is_changed:
        return report
    reports = [report]

    def change(snapshot: RecordSnapshot) -> Record:
        if snapshot is not first:
            reports.append(_RepairPlan(directory, record, snapshot).report())
            if not reports[-1].is_changed:
                raise _NothingToDoError
        return reports[-1].repaired

    try:
        update_record(record, change, first=first, timeout_s=timeout_s)
    except _NothingToDoError:
        return reports[-1]
    return replace(reports[-1], is_written=True)


class _RepairPlan:
    """A directory and its record as found, and the record that should be there."""

    def __init__(self, directory: Location, record: Location, snapshot: RecordSnapshot) -> None:
        self._directory = directory
        self._record = record
        self._snapshot = snapshot
        if snapshot.fault is not None and snapshot.data is None:
            # Too large to be a record: whatever it is, it is not ours to replace.
            raise snapshot.fault
        self._salvage = salvage_record(snapshot.data or b"", source=record.url)
        # The list itself only as the reader of every day sees it: half of one may name anything.
        self._state = snapshot.record.state and self._salvage.record.state
        self._pending = self._salvage.record.pending
        self._intents = self._salvage.record.intents
        self._notes = dict(self._salvage.record.notes)
        self._found = list_checkpoints(directory)
        self._now_s = now_s(directory.storage)
        self._items: dict[str, RepairItem] = {}
        self._times_s: dict[str, float | None] = {}
        self._faults: dict[str, BundleFault | CkptStoreError | None] = {}

    def report(self) -> RepairReport:
        """Return what is to be done.

        Raises
        ------
        NotFoundError
            If nothing can be restored.
        """
        state = self._state
        if state is None:
            self._list_all()
            latest = self._newest([item.prefix for item in self._listed()])
        else:
            self._look_at_listed(state)
            adopted = self._adopt()
            latest = self._latest(state, adopted)
        if latest is None:
            raise NotFoundError(
                "there is no complete checkpoint to rebuild the record from",
                url=self._directory.url or ".",
                hint="ckptstore ls shows what is in it. The record, if there is one, was not changed.",
            )
        before = None if state is None else state.model_checkpoint_path
        salvaged = self._salvage
        is_changed = (
            self._snapshot.fault is not None
            or self._snapshot.is_recoded
            or state is None
            or state != self._snapshot.record.state
            or before != latest
            or any(item.action in ("moved", "added", "dropped") for item in self._items.values())
        )
        kept = tuple(self._name(item) for item in self._listed() if item.is_kept)
        listed = {self._name(item) for item in self._listed()}
        repaired = replace(
            with_new_write_ids(salvaged.record),
            state=self._restated(latest),
            pending=self._pending,
            kept=kept,
            intents=self._intents,
            notes={prefix: metrics for prefix, metrics in self._notes.items() if prefix in listed},
        )
        return RepairReport(
            url=self._directory.url or ".",
            record_url=self._record.url,
            fault=self._snapshot.fault,
            was_missing=self._snapshot.version is None,
            lost=salvaged.lost,
            items=tuple(self._items.values()),
            latest_before=before,
            repaired=repaired,
            is_changed=is_changed,
            doubt=self._doubt(latest) if state is None else None,
        )

    def _doubt(self, latest: str) -> str | None:
        listed = {item.prefix for item in self._listed()}
        found = {name: item for name, item in self._found.items() if (name or UNNAMED) in listed}
        return doubt_about(found, "" if latest == UNNAMED else latest, self._now_s)

    def _look_at_listed(self, state: CheckpointState) -> None:
        kept = self._salvage.kept
        for path, time_s in listed_paths(state):
            relative = relative_prefix(self._directory, path)
            places = resolve(self._directory, path)
            fault: BundleFault | CkptStoreError | None
            if not places:
                fault = NotFoundError("this path of the record leads nowhere", url=path)
                self._items[path] = RepairItem(path, path, "dropped", fault=fault)
                continue
            place = next((place for place in places if self._fault_of(place) is None), places[0])
            fault = self._fault_of(place)
            name = path
            if relative is None and fault is not None:
                # Perhaps it is there, for programs that may follow it. We may not.
                item = RepairItem(path, path, "stays", is_elsewhere=True)
            elif fault is not None:
                item = RepairItem(path, place.url, "dropped", fault=fault)
            else:
                is_literal = relative is not None and place is places[0]
                name = path if is_literal else place.key[len(self._directory.key) + 1 :] or UNNAMED
                action: RepairAction = "stays" if is_literal else "moved"
                item = RepairItem(name, place.url, action, is_kept=(relative or name) in kept)
            # If a path is listed twice, the last one counts.
            self._items.pop(name, None)
            self._items[name] = item
            self._times_s[name] = time_s

    def _adopt(self) -> list[str]:
        """Take in the checkpoints of saves that died between index and record."""
        record = replace(self._salvage.record, state=self._state)
        listed = {self._name(item) for item in self._items.values()}
        adopted = []
        for intent in record.intents:
            is_free = may_be_adopted(record, intent, listed) and intent.prefix in self._found
            if is_free and intent.prefix not in adopted and was_published(self._directory, intent):
                self._take_in(self._found[intent.prefix], is_kept=False)
                self._notes.pop(intent.prefix, None)
                if intent.metrics:
                    self._notes[intent.prefix] = dict(intent.metrics)
                adopted.append(intent.prefix)
        self._intents = tuple(each for each in record.intents if each.prefix not in adopted)
        return adopted

    def _latest(self, state: CheckpointState, adopted: list[str]) -> str | None:
        listed = {self._name(item): item for item in self._listed() if not item.is_elsewhere}
        places = resolve(self._directory, state.model_checkpoint_path)
        for name, item in listed.items():
            if item.url in {place.url for place in places}:
                # It was named on purpose, perhaps to go back to it. Only a later save comes before it.
                newest = self._newest([name, *adopted]) if name in self._found else name
                return item.prefix if newest in (name, None) else newest
        named = basename_of(state.model_checkpoint_path)
        for _, candidate in nearest_first(self._found, named, listed):
            name = candidate.prefix or UNNAMED
            if name in listed:
                return listed[name].prefix
            # It is not listed, so no saver owns it: it may have been preserved on purpose.
            if not self._is_leaving(candidate) and self._take_in(candidate, is_kept=True, is_told=False):
                return name
        # V1, or in a directory below.
        return next((item.prefix for item in reversed(listed.values())), None)

    def _list_all(self) -> None:
        """List every complete checkpoint, the newest last, and hand none of them to retention."""
        in_order = [*newest_first(self._found)][::-1]
        for item in in_order:
            if not self._is_leaving(item):
                self._take_in(item, is_kept=True)
        if not self._listed():
            # A checkpoint that was to be deleted is better than none.
            self._pending = ()
            for item in in_order:
                if item.prefix not in self._items:
                    self._take_in(item, is_kept=True)

    def _listed(self) -> list[RepairItem]:
        return [item for item in self._items.values() if item.is_listed]

    def _fault_of(self, place: Location) -> BundleFault | CkptStoreError | None:
        if place.key not in self._faults:
            self._faults[place.key] = fault_of(place)
        return self._faults[place.key]

    def _is_leaving(self, item: PrefixFiles) -> bool:
        """Return whether retention has decided to delete exactly this checkpoint."""
        return item.index is not None and any(
            line.prefix == item.prefix and line.version == item.index.version for line in self._pending
        )

    def _take_in(self, item: PrefixFiles, *, is_kept: bool, is_told: bool = True) -> bool:
        """List a checkpoint if it is complete; if not, it `is_told` that it was left out."""
        place = self._directory.child(item.prefix)
        fault = self._fault_of(place)
        name = item.prefix or UNNAMED
        if fault is None:
            self._items[name] = RepairItem(name, place.url, "added", is_kept)
            self._times_s[name] = None
        elif is_told:
            self._items[name] = RepairItem(name, place.url, "left out", fault=fault)
        return fault is None

    def _name(self, item: RepairItem) -> str:
        """Return the prefix relative to the directory, as the listing has it."""
        return relative_prefix(self._directory, item.prefix) or item.prefix

    def _newest(self, prefixes: list[str]) -> str | None:
        found = {name: self._found["" if name == UNNAMED else name] for name in prefixes}
        return next((item.prefix or UNNAMED for item in newest_first(found)), None)

    def _restated(self, latest: str) -> CheckpointState:
        paths = [item.prefix for item in self._listed()]
        last_preserved_s = self._state.last_preserved_timestamp if self._state is not None else 0.0
        return CheckpointState(latest, tuple(paths), tuple(map(self._time_s, paths)), last_preserved_s)

    def _time_s(self, path: str) -> float:
        time_s = self._times_s[path]
        if time_s is not None:
            return time_s
        name = relative_prefix(self._directory, path) or path
        found = self._found.get("" if name == UNNAMED else name)
        if found is None or found.index is None:
            return UNKNOWN_TIME_S
        # Never in the future: such a checkpoint would be preserved for good.
        return min(found.index.mtime_s, self._now_s)
