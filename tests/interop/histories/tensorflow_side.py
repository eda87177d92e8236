"""A history in TensorFlow, changed after each step where the page says that ckptstore does otherwise."""

from __future__ import annotations

import os
from collections import OrderedDict, defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from ckptstore.testing.clock import ManualClock
from tests.interop.histories import rules as r
from tests.interop.histories.keeping import Keeping
from tests.interop.histories.ledger import Ledger, Owner, Writer, owner_of, owner_of_listed
from tests.interop.histories.rules import Rules, Window
from tests.interop.histories.session import Session, tf1
from tests.interop.histories.steps import (
    HOUR_S,
    ManagerSave,
    NewManager,
    NewSaver,
    Recover,
    Save,
    SetLast,
    UpdateState,
)
from tests.interop.histories.view import View, files_of, read_listed, update, write_listed

__all__ = ["TensorFlowSide"]


@dataclass
class _Saver:
    """A Saver of TensorFlow, or several where ckptstore's has several lists."""

    step: NewSaver
    built_s: float
    lists: dict[str, Any] = field(default_factory=dict)
    writers: dict[str, Writer] = field(default_factory=dict)
    set_by_user: list[tuple[str, float]] = field(default_factory=list)
    named_by_user: list[str] | None = None
    taken_over: set[str] = field(default_factory=set)
    # Record → what the user set, until a save has taken it over.
    forced: dict[str, list[str]] = field(default_factory=dict)

    @property
    def keep(self) -> int:
        return self.step.max_to_keep or 0

    @property
    def every_s(self) -> float:
        return self.step.hours * HOUR_S


@dataclass
class _Manager:
    """A CheckpointManager of TensorFlow."""

    step: NewManager
    built_s: float
    manager: Any
    counter: Any
    writer: Writer

    @property
    def owner(self) -> Owner:
        return Owner("ckpt", "steps")

    @property
    def window(self) -> list[tuple[str, float]]:
        return [(os.path.basename(path), time_s) for path, time_s in self.manager._maybe_delete.items()]

    def set_window(self, shown: str, window: list[tuple[str, float]]) -> None:
        self.manager._maybe_delete = OrderedDict((f"{shown}/{name}", time_s) for name, time_s in window)

    def will_save(self, *, check_interval: bool) -> bool:
        interval = self.step.interval
        last = None if interval is None else self.manager._last_checkpoint_step
        if interval is None or last is None:
            return True
        now = int(self.counter)
        return now != last and not (check_interval and now < last + interval)


class TensorFlowSide:
    """The directory in which TensorFlow carries out the history.

    Parameters
    ----------
    shown : str
        The directory as the history names it.
    """

    def __init__(
        self, session: Session, clock: ManualClock, shown: str, rules: Rules, *, fresh_start: bool
    ) -> None:
        self.session = session
        self.clock = clock
        self.shown = shown
        self.rules = rules
        self.fresh_start = fresh_start
        self.run = 1
        self.savers: dict[int, _Saver] = {}
        self.manager: _Manager | None = None
        # Directory → record → what ckptstore's record in it says. It is that of `beside` which counts.
        self.lines: defaultdict[str, defaultdict[str, Ledger]] = defaultdict(lambda: defaultdict(Ledger))
        self.beside = ""
        # Records that a Saver wrote last: TensorFlow's have no times.
        self.absolute: dict[str, bool] = {}
        self.records: set[str] = set()
        self.saved: set[str] = set()
        # And steps below an earlier one, whose names may have been in use.
        self.saved_again: set[str] = set()
        self.highest: dict[Owner, int] = {}
        self.written_over: set[str] = set()

    @property
    def directory(self) -> Path:
        return Path(self.shown)

    def restart(self) -> None:
        self.run += 1
        self.savers.clear()
        self.manager = None

    @property
    def ledgers(self) -> defaultdict[str, Ledger]:
        """What the records say in the directory where ckptstore works."""
        return self.lines[self.beside]

    def as_tensorflow_wrote_it(self) -> None:
        """Let the records that a Saver wrote look as it does: no times, and paths as it was told."""
        for record, is_absolute in self.absolute.items():
            for shown in (self.shown, self.beside):
                listed = read_listed(Path(shown), record)
                if listed is None:
                    continue
                prefix = "<directory>/" if is_absolute else ""
                paths = tuple(f"{prefix}{name}" for name in listed.names)
                latest = prefix + listed.latest.removeprefix("<directory>/")
                write_listed(Path(shown), record, replace(listed, latest=latest, paths=paths, times=()))
        self.absolute.clear()

    def new_saver(self, step: NewSaver) -> None:
        self.savers[step.slot] = _Saver(step, self.clock.now_s)

    # ------------------------------------------------------------------------------------------------ saving

    def _list_of(self, saver: _Saver, record: str) -> Any:
        key = self.rules.apply(r.one_list_per_record, "", record)
        if key not in saver.lists:
            step = saver.step
            now_s, self.clock.now_s = self.clock.now_s, saver.built_s
            saver.lists[key] = self.session.saver(
                step.max_to_keep, step.hours, save_relative_paths=step.relative, pad_step_number=step.pad
            )
            self.clock.now_s = now_s
        return saver.lists[key]

    def save(self, step: Save, number: int) -> object:
        saver = self.savers.get(step.slot)
        if saver is None:
            return None
        record = step.record or "checkpoint"
        saved = self._list_of(saver, record)
        self.session.set(number)
        if step.state:
            path = self._save_and_keep(step, saver, record, saved)
            if path == "CorruptError":
                return path
        else:
            path = self._call(saved, step)
        name = os.path.basename(path)
        owner = owner_of(name, step.global_step)
        self._note_names(name, owner, step.global_step or 0, is_written_over=not step.state)
        self._note_record(name, record if step.state else "")
        return name

    def _note_record(self, name: str, record: str) -> None:
        """Note under which record `name` was saved last; empty for none."""
        for each, ledger in self.ledgers.items():
            if each == record:
                ledger.outside.discard(name)
            else:
                ledger.outside.add(name)

    def _note_names(self, name: str, owner: Owner, step: int, *, is_written_over: bool) -> None:
        highest = self.highest.get(owner)
        is_below = owner.form == "steps" and highest is not None and step <= highest
        if name in self.saved or is_below:
            self.saved_again.add(name)
        looks_like = owner_of_listed(name)
        if looks_like.form == "steps":
            number = int(name.rpartition("-")[2])
            self.highest[looks_like] = max(self.highest.get(looks_like, -1), number)
        if name in self.saved and is_written_over:
            self.written_over.add(name)
        self.saved.add(name)

    def _call(self, saved: Any, step: Save) -> str:
        with self.session.graph.as_default():
            return saved.save(
                self.session.session,
                f"{self.shown}/{step.name}",
                global_step=step.global_step,
                latest_filename=step.record,
                write_meta_graph=step.graph,
                write_state=step.state,
            )

    def _prefix(self, step: Save, saver: _Saver) -> str:
        if step.global_step is None:
            return step.name
        return f"{step.name}-{step.global_step:08d}" if saver.step.pad else f"{step.name}-{step.global_step}"

    def _save_and_keep(self, step: Save, saver: _Saver, record: str, saved: Any) -> str:
        rules, now_s = self.rules, self.clock.now_s
        prefix = self._prefix(step, saver)
        writer = saver.writers.setdefault(record, Writer(self.run, saver.keep))
        if saver.named_by_user is not None and record not in saver.taken_over:
            saver.forced[record] = saver.named_by_user
            saver.taken_over.add(record)
            saved._last_checkpoints = [(f"{self.shown}/{name}", time_s) for name, time_s in saver.set_by_user]
            saver.named_by_user, saver.set_by_user = [], []
        ledger, owner = self.ledgers[record], owner_of(prefix, step.global_step)
        keeping = Keeping(rules, self.directory, record, ledger, writer, prefix, owner)
        if keeping.refuses(fresh_start=self.fresh_start):
            return "CorruptError"
        keeping.acquire(saver.forced.get(record, []), now_s)
        first_keep_s = saver.built_s + saver.every_s
        clock_s = writer.clock_s(ledger, "next_keep", lambda clock_s: min(clock_s, first_keep_s))
        if not saver.keep:
            clock_s = writer.clock_s(ledger, "next_keep", lambda clock_s: clock_s)
        next_keep_s = rules.apply(r.the_clock_goes_on, saved._next_checkpoint_time, clock_s, first_keep_s)
        saved._next_checkpoint_time = rules.apply(
            r.the_clock_is_not_in_the_future, next_keep_s, now_s + saver.every_s
        )
        window = self._window(saved)
        if saver.keep and record not in saver.forced:

            def stay_for_good(surplus: Window) -> list[str]:
                clock_s, names = saved._next_checkpoint_time, []
                for name, time_s in surplus:
                    if time_s > clock_s:
                        clock_s += saver.every_s
                        names.append(name)
                return names

            window = keeping.window(window, now_s, stay_for_good)
            saved._last_checkpoints = [(f"{self.shown}/{name}", time_s) for name, time_s in window]
        keeping.begin(window)
        saver.forced.pop(record, None)

        path = self._call(saved, step)

        self.lines[self.shown][record].forget_lines()
        self.absolute[record] = not saver.step.relative and os.path.isabs(self.shown)
        surplus = len(saved._last_checkpoints) - saver.keep if saver.keep else 0
        for _ in range(rules.apply(r.the_surplus_goes_at_once, 0, surplus)):
            saved._checkpoints_to_be_deleted.append(saved._last_checkpoints.pop(0))
            saved._MaybeDeleteOldCheckpoints()
        self.records.add(record)
        listed = read_listed(self.directory, record)
        assert listed is not None
        window = self._window(saved) if saver.keep else [(prefix, now_s)]
        stays = {name for name, _ in window}
        listed = listed.with_entries([entry for entry in listed.entries if entry[0] in stays])
        listed = rules.apply(r.times_in_the_record, listed, window)
        keeping.finish(window, listed, {"next_keep": saved._next_checkpoint_time if saver.keep else clock_s})
        return path

    def _window(self, saved: Any) -> list[tuple[str, float]]:
        return [(os.path.basename(path), time_s) for path, time_s in saved._last_checkpoints]

    # -------------------------------------------------------------------------------------------- managers

    def new_manager(self, step: NewManager) -> object:
        checkpoint = tf.train.Checkpoint(w=tf.Variable([0.0, 0.0]))
        counter = tf.Variable(0, dtype=tf.int64)
        manager = tf.train.CheckpointManager(
            checkpoint,
            self.shown,
            step.max_to_keep,
            keep_checkpoint_every_n_hours=step.hours,
            step_counter=counter,
            checkpoint_interval=step.interval,
        )
        listed = read_listed(self.directory, "checkpoint")
        self.manager = made = _Manager(
            step, self.clock.now_s, manager, counter, Writer(self.run, step.max_to_keep or 0)
        )
        latest = self._latest(manager.latest_checkpoint, "checkpoint")
        if latest == "CorruptError" and self.fresh_start:
            latest = None
        manager._latest_checkpoint = None if latest is None else f"{self.shown}/{latest}"
        window = self.rules.apply(r.what_is_listed_is_counted, made.window, listed, self.clock.now_s)
        window = self.rules.apply(r.also_without_times, window, listed, self.clock.now_s)
        window = self.rules.apply(r.a_manager_counts_its_own, window, self.ledgers["checkpoint"], made.owner)
        made.set_window(self.shown, window)
        if not step.restores or latest is None or not latest.startswith("ckpt-"):
            return None
        return os.path.basename(manager.restore_or_initialize())

    def manager_save(self, step: ManagerSave, number: int) -> object:
        made = self.manager
        if made is None:
            return None
        manager, now_s, rules = made.manager, self.clock.now_s, self.rules
        made.counter.assign_add(step.trained)
        if not made.will_save(check_interval=step.check_interval):
            return manager.save(step.number, check_interval=step.check_interval)
        manager.checkpoint.w.assign(np.full(2, number, np.float32))
        count = int(manager.checkpoint.save_counter) + 1
        prefix = f"ckpt-{count if step.number is None else step.number}"
        ledger, writer = self.ledgers["checkpoint"], made.writer
        keeping = Keeping(rules, self.directory, "checkpoint", ledger, writer, prefix, made.owner)
        if keeping.refuses(fresh_start=self.fresh_start):
            manager.checkpoint.save_counter.assign_add(1)
            return "CorruptError"
        keeping.acquire([], now_s)
        clock_s = writer.clock_s(ledger, "last_preserved", lambda clock_s: min(clock_s, made.built_s))
        facts = (clock_s, keeping.before, made.built_s)
        clock_s = rules.apply(r.the_first_save_reads_the_record, manager._last_preserved_timestamp, *facts)
        clock_s = rules.apply(r.the_clock_is_not_in_the_future, clock_s, now_s)
        manager._last_preserved_timestamp = clock_s

        def stay_for_good(surplus: Window) -> list[str]:
            preserved_s, names = manager._last_preserved_timestamp, []
            for name, time_s in surplus:
                if made.step.hours and time_s - made.step.hours * HOUR_S >= preserved_s:
                    preserved_s = time_s
                    names.append(name)
            return names

        window = rules.apply(r.as_old_as_the_files, made.window, keeping.before, writer)
        window = keeping.window(window, now_s, stay_for_good)
        made.set_window(self.shown, window)
        keeping.begin(window)

        path = manager.save(step.number, check_interval=step.check_interval)

        self.lines[self.shown]["checkpoint"].forget_lines()
        self.absolute.pop("checkpoint", None)
        self.records.add("checkpoint")
        listed = read_listed(self.directory, "checkpoint")
        assert listed is not None
        preserved_s = manager._last_preserved_timestamp
        keeping.finish(made.window, listed, {"last_preserved": preserved_s})
        written = read_listed(self.directory, "checkpoint")
        assert written is not None
        write_listed(self.directory, "checkpoint", replace(written, last_preserved=preserved_s))
        name = os.path.basename(path)
        self._note_names(name, made.owner, int(name.rpartition("-")[2]), is_written_over=False)
        self._note_record(name, "checkpoint")
        return name

    # ------------------------------------------------------------------------------------- what the user sets

    def recover(self, step: Recover) -> object:
        saver, listed = self.savers.get(step.slot), read_listed(self.directory, step.record or "checkpoint")
        if saver is None or listed is None:
            return None
        saved = self._list_of(saver, step.record or "checkpoint")
        saved.recover_last_checkpoints([f"{self.shown}/{name}" for name in listed.names])
        self._set(saver, self._window(saved))
        return None

    def set_last(self, step: SetLast) -> object:
        saver, listed = self.savers.get(step.slot), read_listed(self.directory, step.record or "checkpoint")
        if saver is None or listed is None:
            return None
        names = listed.names[len(listed.names) - step.count :] if step.count else ()
        saved = self._list_of(saver, step.record or "checkpoint")
        paths = [f"{self.shown}/{name}" for name in names]
        if step.with_times:
            saved.set_last_checkpoints_with_time([(path, self.clock.now_s) for path in paths])
        else:
            saved.set_last_checkpoints(paths)
        self._set(saver, self._window(saved))
        return None

    def _set(self, saver: _Saver, window: list[tuple[str, float]]) -> None:
        saver.named_by_user = [name for name, _ in window]
        window = self.rules.apply(r.nothing_is_counted_without_a_limit, window, saver.keep)
        saver.set_by_user = window
        saver.taken_over = set()
        saver.forced = {record: [] for record in saver.writers}
        for saved in saver.lists.values():
            saved._last_checkpoints = []

    def update_state(self, step: UpdateState) -> None:
        record = step.record or "checkpoint"
        before = read_listed(self.directory, record)
        if before is None:
            return
        update(step, self.shown, tf1.train.update_checkpoint_state)
        listed = read_listed(self.directory, record)
        assert listed is not None
        listed = self.rules.apply(r.the_latest_is_listed_once, listed)
        listed = self.rules.apply(r.the_time_of_the_last_preserved_stays, listed, before)
        write_listed(self.directory, record, self.rules.apply(r.relative_paths, listed))
        self.ledgers[record].user_wrote += 1

    # ----------------------------------------------------------------------------------------------- looking

    def view(self, answer: object) -> View:
        checkpoints, others = files_of(self.directory)
        result = View(answer, checkpoints, tuple(others))
        for record in sorted(self.records):
            listed = read_listed(self.directory, record)
            if listed is not None:
                result.records[record] = listed
            path = tf1.train.latest_checkpoint(self.shown, record)
            result.latest[record] = self._latest(path, record)
        if self.manager is not None:
            manager = self.manager.manager
            result.lists["manager"] = tuple(name for name, _ in self.manager.window)
            latest = manager.latest_checkpoint
            result.latest["manager"] = None if latest is None else os.path.basename(latest)
        for slot, saver in self.savers.items():
            shown = [os.path.basename(path) for path, _ in saver.set_by_user]
            for record in saver.writers:
                shown += [name for name, _ in self._window(self._list_of(saver, record))]
            result.lists[f"saver {slot}"] = tuple(shown)
        return result

    def _latest(self, path: str | None, record: str) -> str | None:
        """Return the latest checkpoint, of which TensorFlow says that it is `path`."""
        latest = None if path is None else os.path.relpath(path, self.shown)
        latest = self.rules.apply(r.the_data_is_there, latest, self.directory)
        listed = read_listed(self.directory, record)
        latest = self.rules.apply(r.another_checkpoint_of_the_directory, latest, listed, self.directory)
        return self.rules.apply(r.the_newest_of_the_directory, latest, listed, self.directory)
