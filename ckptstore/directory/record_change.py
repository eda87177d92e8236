"""The record that one save writes: pure, except that it reads the index of checkpoints to delete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ckptstore.directory.moved import moved_here
from ckptstore.directory.owner_names import step_of
from ckptstore.directory.ownership import Ownership
from ckptstore.directory.pending_deletes import PendingDeletes
from ckptstore.directory.published_index import PublishedIndex
from ckptstore.directory.record_entries import other_entries, restate
from ckptstore.directory.record_update import RecordSnapshot
from ckptstore.directory.retention import Entry, ManagerRetention, Retention, Verdict
from ckptstore.directory.retention_rules import RulesRetention
from ckptstore.directory.save_request import SaveRequest
from ckptstore.format.record import CheckpointState
from ckptstore.format.record_facts import Pending, Record, Superseded
from ckptstore.warn import warn

__all__ = ["RecordChange", "Window"]

# In a warning.
_MOST_NAMES = 10


class Window(NamedTuple):
    """What retention counts before a save.

    Attributes
    ----------
    entries : tuple of Entry
        The window after the previous save of this Saver, or the one that the user set.
    is_forced : bool
        Whether the user set it: what the record lists does not count then.
    others : list of tuple
        Listed paths outside of the window, with their times.
    basis : tuple
        Of what `entries` and `others` were made: while it stays the same, so do they, and a save does not
        look at each of ten thousand listed paths again.
    """

    entries: tuple[Entry, ...] = ()
    is_forced: bool = False
    others: Sequence[tuple[str, float | None]] = ()
    basis: tuple[object, ...] = ()


@dataclass(slots=True)
class RecordChange:
    """From the present record to the next one; called again if another writer changed it meanwhile.

    Attributes
    ----------
    start : Window
        From which the save starts.
    replaced : list of Superseded
        Data files of indexes that this save, or failed ones before it, replaced.
    now_s : float
        Time of the save, seconds since 1970.
    victims : tuple of Entry
        What the last call deletes.
    after : Window
        From which the next save starts.
    left : tuple of str
        Prefixes that left the list in it.
    """

    request: SaveRequest
    ownership: Ownership
    retention: Retention
    deletes: PendingDeletes
    start: Window
    replaced: list[Superseded]
    now_s: float = field(init=False)
    victims: tuple[Entry, ...] = ()
    after: Window = field(default_factory=Window)
    left: tuple[str, ...] = ()
    _before: tuple[Entry, ...] = ()
    _decided: tuple[RecordSnapshot, Record] | None = None
    _found: dict[str, PublishedIndex | None] = field(default_factory=dict)
    _has_warned: bool = False
    _has_warned_of_many: bool = False

    def __post_init__(self) -> None:
        self.now_s = self.ownership.clock()

    @property
    def prefix(self) -> str:
        """The checkpoint being saved."""
        return self.request.prefix.name

    def __call__(self, snapshot: RecordSnapshot) -> Record:
        """Return the record that makes this checkpoint the latest.

        Raises
        ------
        FencedError
            If another run took over.
        """
        if self._decided is not None and self._decided[0] is snapshot:
            # Decided before the index was published; since then only files were deleted and replaced.
            record = self._decided[1]
            pending, superseded = self._pending(record, ()), self._superseded(record)
            return replace(record, pending=pending, superseded=superseded).without_idle_owners()
        record = self._change(snapshot)
        self._decided = (snapshot, record)
        return record

    def _change(self, snapshot: RecordSnapshot) -> Record:
        name = self.request.owner
        foreign = self.ownership.check(snapshot, name) or snapshot.fault is not None
        record = snapshot.record
        record = replace(record, state=record.state and moved_here(self.ownership.directory, record.state))
        verdict = self._decide(record, foreign=foreign)
        stays = {entry.prefix for entry in verdict.window}
        self.left = tuple(entry.prefix for entry in self._before if entry.prefix not in stays)
        counted = {entry.prefix for entry in (*verdict.window, *verdict.victims, *verdict.preserved)}
        pins = self._pins(record, foreign=foreign)
        pending = self._pending(record, verdict.victims)
        self.victims = tuple(each for each in verdict.victims if self._found[each.prefix] is not None)
        record = replace(
            record,
            pending=pending,
            superseded=self._superseded(record),
            intents=self.ownership.open_intents(record, {entry.prefix for entry in verdict.window}),
            # Saved again, or set by the user: it is owned again.
            kept=tuple(prefix for prefix in record.kept if prefix not in counted),
        )
        record = self.ownership.restate_owner(
            record,
            name,
            self.request.step,
            self.request.suffix,
            self.retention.clock_name,
            verdict.clock_s,
        )
        last_preserved_s = record.state.last_preserved_timestamp if record.state else 0.0
        if isinstance(self.retention, ManagerRetention):
            last_preserved_s = verdict.clock_s or 0.0
        if self._is_as_before(record):
            # Another Saver of this run may have saved this prefix.
            others = [other for other in self.start.others if other[0] != self.prefix]
        else:
            is_counted = self.ownership.counts_filter(record)
            others = other_entries(self.ownership.directory, record.state, is_counted, counted)
        state = restate(others, verdict.window, self.prefix, last_preserved_s)
        record = replace(record, state=state, pins=pins, notes=self._notes(record, state, foreign=foreign))
        self.after = Window(verdict.window, others=others, basis=(state, *self.ownership.basis()))
        counted_lines = self.ownership.counted_in(record, [entry.prefix for entry in verdict.window])
        return replace(record, counted=counted_lines).without_idle_owners()

    def _is_as_before(self, record: Record) -> bool:
        """Return whether `record` lists what the save before this one wrote, and the same of it is ours."""
        state, *rest = self.start.basis or (None,)
        return state is not None and state is record.state and rest == self.ownership.basis()

    def _decide(self, record: Record, *, foreign: bool) -> Verdict:
        clock_s = self._clock_s(record)
        if foreign:
            if not self._has_warned:
                self._has_warned = True
                warn(
                    f"another program rewrote {self.ownership.record.url};"
                    " this save deletes nothing and takes over again"
                )
            return Verdict(self._counted(record, foreign=True), clock_s=clock_s)
        while True:
            counted = self._counted(record, foreign=False)
            if isinstance(self.retention, RulesRetention):
                counted = self._with_facts(record, counted)
            verdict = self._decide_unpinned(frozenset(record.pins), counted, clock_s)
            if not verdict.victims or self.start.is_forced:
                return verdict
            # A good one must not go because torn ones fill the window.
            if not self.ownership.torn.judge((*verdict.victims, *verdict.window[:-1])):
                self._warn_of_many(verdict.victims)
                return verdict

    def _counted(self, record: Record, *, foreign: bool) -> tuple[Entry, ...]:
        """Return the window with the checkpoint being saved."""
        if self.start.is_forced or (not foreign and self._is_as_before(record)):
            entries = list(self.start.entries)
        else:
            entries = self.ownership.window(
                record, foreign=foreign, known=self.start.entries, now_s=self.now_s
            )
        prefix = self.prefix
        self._before = (*[e for e in entries if e.prefix != prefix], Entry(prefix, self.now_s))
        return self._before

    def _decide_unpinned(
        self, pins: frozenset[str], counted: tuple[Entry, ...], clock_s: float | None
    ) -> Verdict:
        """Return the verdict over what is not pinned; what is keeps its place in the list."""
        free = tuple(entry for entry in counted if entry.prefix not in pins) if pins else counted
        if not free:
            return Verdict(counted, clock_s=clock_s)
        verdict = self.retention.decide(free, clock_s, self.now_s)
        if len(free) == len(counted):
            return verdict
        stays = pins.union(entry.prefix for entry in verdict.window)
        return replace(verdict, window=tuple(entry for entry in counted if entry.prefix in stays))

    def _pins(self, record: Record, *, foreign: bool) -> tuple[str, ...]:
        """Return the pins; those that a program which does not know them has dropped come back."""
        known = self.ownership.last_seen.pins if foreign else ()
        return tuple(dict.fromkeys((*record.pins, *known))) if known else record.pins

    def _notes(
        self, record: Record, state: CheckpointState, *, foreign: bool
    ) -> Mapping[str, Mapping[str, float]]:
        """Return the metrics of what `state` lists."""
        known = self.ownership.last_seen.notes if foreign else {}
        notes = {**known, **record.notes, **self._new_metrics()}
        if not notes:
            return {}
        listed = frozenset(state.all_model_checkpoint_paths)
        return {prefix: metrics for prefix, metrics in notes.items() if metrics and prefix in listed}

    def _new_metrics(self) -> dict[str, Mapping[str, float]]:
        """Return those that the record does not have yet: of this save, and of adopted ones."""
        adopted = {entry.prefix: entry.metrics for entry in self.ownership.adopted}
        return {**adopted, self.prefix: self.request.metrics}

    def _with_facts(self, record: Record, entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
        """Return `entries` with what rules look at."""
        alone = {name.basename for name in (*record.owners, *self.ownership.owned) if name.form == "exact"}
        notes = {**record.notes, **self._new_metrics()}
        return tuple(
            replace(
                entry,
                step=None if entry.prefix in alone else step_of(entry.prefix),
                metrics=notes.get(entry.prefix, {}),
            )
            for entry in entries
        )

    def _warn_of_many(self, victims: tuple[Entry, ...]) -> None:
        """Say before anything is published that more will go than usual."""
        if len(victims) <= self.retention.usual or self._has_warned_of_many:
            return
        self._has_warned_of_many = True
        names = [entry.prefix for entry in victims]
        more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        warn(
            f"this save of {self.prefix!r} deletes {len(names)} checkpoints, because"
            f" {self.retention.reason}: {', '.join(map(repr, names[:_MOST_NAMES]))}{more}"
        )

    def _clock_s(self, record: Record) -> float | None:
        clock_s = self.ownership.clock_s(record, self.retention.clock_name, self.retention.resume)
        if clock_s is None and isinstance(self.retention, ManagerRetention) and record.state is not None:
            # A record by TensorFlow's CheckpointManager: its clock is the field, 0 where it is left out.
            return self.retention.resume(record.state.last_preserved_timestamp)
        return clock_s

    def _pending(self, record: Record, victims: tuple[Entry, ...]) -> tuple[Pending, ...]:
        # A line is removed only once its deletes are known to be done: when unfinished lines were dropped, a
        # writer killed between record and deletes left checkpoints behind for ever.
        lines = [line for line in record.pending if line not in self.deletes.done]
        for victim in victims:
            if victim.prefix not in self._found:
                # What the user set may have been saved by another Saver since.
                self._found[victim.prefix] = (
                    self.deletes.look_up(victim.prefix)
                    if self.start.is_forced
                    else self.deletes.victim(victim)
                )
            published = self._found[victim.prefix]
            if published is not None:
                line = Pending(victim.prefix, published.version, published.shards, self.request.suffix)
                if line not in lines:
                    lines.append(line)
        return tuple(lines)

    def _superseded(self, record: Record) -> tuple[Superseded, ...]:
        lines = [line for line in record.superseded if line not in self.deletes.done]
        return (*lines, *(line for line in self.replaced if line not in lines))
