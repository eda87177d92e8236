"""A history in TensorFlow, changed after each step where the page says that ckptstore does otherwise."""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saver_pb2
from tensorflow.python.checkpoint import checkpoint_management
from tensorflow.python.training import saver as saver_module

from ckptstore.testing.clock import ManualClock
from tests.interop.histories import rules as r
from tests.interop.histories.ledger import Ledger, Line, Owner, Writer, owner_of, owner_of_listed
from tests.interop.histories.rules import Rules
from tests.interop.histories.steps import HOUR_S, NewSaver, Recover, Save, SetLast
from tests.interop.histories.view import FILE, Listed, View, files_of, read_listed, write_listed

__all__ = ["Session", "TensorFlowSide"]

tf1 = tf.compat.v1


class _Time:
    """In the place of the module ``time``."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.time = clock


class Session:
    """One graph with one variable, for all histories: what takes time in TensorFlow is to build them."""

    def __init__(self) -> None:
        self.graph = tf.Graph()
        with self.graph.as_default():
            self.value = tf1.get_variable("w", shape=(2,), dtype=tf.float32)
            self._saver_def = tf1.train.Saver().as_saver_def()
            self._fed = tf1.placeholder(tf.float32, (2,))
            self._assign = self.value.assign(self._fed)
        self.session = tf1.Session(graph=self.graph)

    def set(self, number: float) -> None:
        """Let the variable have this number everywhere."""
        self.session.run(self._assign, {self._fed: np.full(2, number, np.float32)})

    def restored(self, path: str) -> np.ndarray:
        """Return the value of the variable in a checkpoint."""
        saver = self.saver(5, 1.0)
        with self.graph.as_default():
            saver.restore(self.session, path)
        return self.session.run(self.value)

    def saver(self, max_to_keep: int | None, hours: float, **options: bool) -> Any:
        """Return a new Saver; the graph stays as it is."""
        saver_def = saver_pb2.SaverDef()
        saver_def.CopyFrom(self._saver_def)
        saver_def.max_to_keep = max_to_keep or 0
        saver_def.keep_checkpoint_every_n_hours = hours
        with self.graph.as_default():
            return tf1.train.Saver(saver_def=saver_def, **options)

    @contextlib.contextmanager
    def clock(self, clock: Callable[[], float]) -> Iterator[None]:
        """Let TensorFlow's Savers and managers take the time from `clock`."""
        modules = (saver_module, checkpoint_management)
        before = [module.time for module in modules]
        for module in modules:
            module.time = _Time(clock)
        try:
            yield
        finally:
            for module, time in zip(modules, before, strict=True):
                module.time = time


@dataclass
class _Saver:
    """A Saver of TensorFlow, or several where ckptstore's has several lists."""

    step: NewSaver
    built_s: float
    lists: dict[str, Any] = field(default_factory=dict)
    writers: dict[str, Writer] = field(default_factory=dict)
    set_by_user: list[tuple[str, float]] = field(default_factory=list)
    named_by_user: list[str] = field(default_factory=list)
    taken_over: set[str] | None = None

    @property
    def keep(self) -> int:
        return self.step.max_to_keep or 0

    @property
    def every_s(self) -> float:
        return self.step.hours * HOUR_S


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
        self.ledgers: defaultdict[str, Ledger] = defaultdict(Ledger)
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
        highest = self.highest.get(owner)
        number_of_step = step.global_step or 0
        if name in self.saved or (
            owner.form == "steps" and highest is not None and number_of_step <= highest
        ):
            self.saved_again.add(name)
        looks_like = owner_of_listed(name)
        if looks_like.form == "steps":
            highest = self.highest.get(looks_like, -1)
            self.highest[looks_like] = max(highest, int(name.rpartition("-")[2]))
        if name in self.saved and not step.state:
            self.written_over.add(name)
        self.saved.add(name)
        return name

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
        owner = owner_of(prefix, step.global_step)
        ledger = self.ledgers[record]
        before = read_listed(self.directory, record)
        writer = saver.writers.get(record)
        if writer is None:
            writer = saver.writers[record] = Writer(self.run, saver.keep)
            if saver.taken_over is None:
                saved._last_checkpoints = []
        is_forced = False
        if saver.taken_over is not None and record not in saver.taken_over:
            is_forced = True
            saver.taken_over.add(record)
            saved._last_checkpoints = [(f"{self.shown}/{name}", time_s) for name, time_s in saver.set_by_user]
            named, saver.named_by_user = saver.named_by_user, []
            saver.set_by_user = []
        window = self._window(saved)
        is_anew = False
        if owner not in writer.owned and not self._has_saved_beside(writer, owner):
            answer = rules.apply(r.nothing_can_be_restored, prefix, owner, before, self.directory)
            if answer != prefix and not self.fresh_start:
                return answer
            is_anew = answer != prefix
        self._acquire(ledger, writer, owner, before, is_anew=is_anew)
        for name in (prefix, *(named if is_forced else ())):
            exact = Owner(name, "exact")
            if exact in ledger.owners:
                self._acquire(ledger, writer, exact, before)
            elif name != prefix:
                self._acquire(ledger, writer, owner_of_listed(name), before)
        if saver.keep and not is_forced:
            facts = (before, ledger, writer, now_s)
            window = rules.apply(r.the_list_goes_on, window, *facts)
            window = rules.apply(r.savers_share_a_list, window, *facts)
            window = rules.apply(r.what_is_gone_takes_no_place, window, writer, prefix, self.directory)
        saved._last_checkpoints = [(f"{self.shown}/{name}", time_s) for name, time_s in window]
        next_keep_s = rules.apply(
            r.the_clock_goes_on, saved._next_checkpoint_time, ledger, writer, saver.built_s + saver.every_s
        )
        next_keep_s = rules.apply(r.the_clock_is_not_in_the_future, next_keep_s, now_s, saver.every_s)
        saved._next_checkpoint_time = next_keep_s
        graphs_before = self._graphs()
        old = files_of(self.directory)[0]

        was_listed = before.names if before is not None else ()
        ledger.deleted = {name for name in ledger.deleted if not self._deletes(writer, ledger, name)}
        without_index = self._bytes_of({name for name, item in old.items() if not item.index})
        left_open = {
            name
            for name in ledger.replaced
            if not writer.owns(ledger, name)
            and (name in was_listed or not self._deletes(writer, ledger, name))
        }
        path = self._call(saved, step)

        self.records.add(record)
        listed = read_listed(self.directory, record)
        assert listed is not None
        surplus = len(saved._last_checkpoints) - saver.keep if saver.keep else 0
        for _ in range(rules.apply(r.the_surplus_goes_at_once, 0, surplus)):
            saved._checkpoints_to_be_deleted.append(saved._last_checkpoints.pop(0))
            saved._MaybeDeleteOldCheckpoints()
        present = self._bytes_of({name for name in old if not old[name].index})
        for name, data in rules.apply(r.files_without_an_index_stay, present, without_index).items():
            (self.directory / name).write_bytes(data)
        stays = {name for name, _ in self._window(saved)} if saver.keep else {prefix}
        listed = listed.with_entries([entry for entry in listed.entries if entry[0] in stays])
        new = self._window(saved) if saver.keep else [(prefix, now_s)]
        listed = rules.apply(r.times_in_the_record, listed, new)
        self._update_ledger(ledger, writer, owner, saved, [name for name, _ in new], prefix)
        listed = rules.apply(
            r.both_lists, listed, before, ledger, writer, {prefix, *(name for name, _ in window)}
        )
        listed = rules.apply(r.relative_paths, listed)
        write_listed(self.directory, record, listed)
        files = files_of(self.directory)[0]
        ledger.deleted |= {name for name, item in old.items() if item.index and name not in files}
        replaced = {prefix} if prefix in old and old[prefix].index else set()
        ledger.replaced |= replaced
        ledger.drop_idle(listed.names)
        ledger.replaced = left_open | replaced
        writer.owned = {each for each in writer.owned if each.form == "steps" or each in ledger.owners}
        left = {
            name: data
            for name, data in graphs_before.items()
            if old[name].index and name not in files_of(self.directory)[0]
        }
        order = [name for name, _ in window]
        lost = {
            name: left[name]
            for name in sorted(left, key=lambda name: order.index(name) if name in order else -1)
        }
        for name, data in rules.apply(
            r.the_last_graph_stays, self._graphs(), lost, [name for name, _ in new]
        ).items():
            (self.directory / f"{name}.meta").write_bytes(data)
        return path

    def _deletes(self, writer: Writer, ledger: Ledger, name: str) -> bool:
        """Return whether this Saver deletes what an earlier save left to do."""
        return writer.owns(ledger, name) or Owner(name, "exact") in ledger.owners

    def _has_saved_beside(self, writer: Writer, owner: Owner) -> bool:
        def basename(each: Owner) -> str:
            return each.basename if each.form == "steps" else r.step_of(each.basename)[0]

        return basename(owner) in {basename(each) for each in writer.has_saved & writer.owned}

    def _acquire(
        self, ledger: Ledger, writer: Writer, owner: Owner, listed: Listed | None, *, is_anew: bool = False
    ) -> None:
        if owner in writer.owned:
            return
        writer.acquire(ledger, owner)
        files = files_of(self.directory)[0]
        for name in () if listed is None else listed.names:
            if not writer.owns(ledger, name) or owner not in (owner_of_listed(name), Owner(name, "exact")):
                continue
            if is_anew or name not in files or not files[name].index:
                writer.gone.add(name)
            elif not files[name].data:
                writer.torn.add(name)
            else:
                writer.unknown.add(name)

    def _update_ledger(
        self, ledger: Ledger, writer: Writer, owner: Owner, saved: Any, window: list[str], prefix: str
    ) -> None:
        clocks = [ledger.owners[each].next_keep for each in writer.owned if each in ledger.owners]
        line = ledger.owners.setdefault(owner, Line(self.run, writer.keep))
        if writer.keep:
            line.next_keep = saved._next_checkpoint_time
        else:
            line.next_keep = max((clock_s for clock_s in clocks if clock_s is not None), default=None)
        for each in writer.owned:
            if each.form == "exact":
                ledger.owners.setdefault(each, Line(self.run, writer.keep))
        writer.has_saved.add(owner)
        for names in (writer.gone, writer.torn, writer.unknown):
            names.discard(prefix)
        ledger.saved_in[prefix] = self.run
        for name in window:
            each = owner_of_listed(name)
            ledger.counted.pop(name, None)
            if each in writer.owned and each in ledger.owners and ledger.owners[each].keep != writer.keep:
                ledger.counted[name] = writer.keep

    def _window(self, saved: Any) -> list[tuple[str, float]]:
        return [(os.path.basename(path), time_s) for path, time_s in saved._last_checkpoints]

    def _bytes_of(self, prefixes: set[str]) -> dict[str, bytes]:
        matches = [(path, FILE.fullmatch(path.name)) for path in self.directory.iterdir()]
        return {path.name: path.read_bytes() for path, match in matches if match and match[1] in prefixes}

    def _graphs(self) -> dict[str, bytes]:
        return {path.name.removesuffix(".meta"): path.read_bytes() for path in self.directory.glob("*.meta")}

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
        for saved in saver.lists.values():
            saved._last_checkpoints = []

    # ----------------------------------------------------------------------------------------------- looking

    def view(self, answer: object) -> View:
        checkpoints, others = files_of(self.directory)
        result = View(answer, checkpoints, tuple(others))
        for record in sorted(self.records):
            listed = read_listed(self.directory, record)
            if listed is not None:
                result.records[record] = listed
            path = tf1.train.latest_checkpoint(self.shown, record)
            latest = None if path is None else os.path.relpath(path, self.shown)
            latest = self.rules.apply(r.the_data_is_there, latest, self.directory)
            result.latest[record] = self.rules.apply(
                r.another_checkpoint_of_the_directory, latest, listed, self.directory
            )
        for slot, saver in self.savers.items():
            shown = [os.path.basename(path) for path, _ in saver.set_by_user]
            for record in saver.writers:
                shown += [name for name, _ in self._window(self._list_of(saver, record))]
            result.lists[f"saver {slot}"] = tuple(shown)
        return result
