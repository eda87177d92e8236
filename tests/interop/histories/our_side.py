"""The same history in ckptstore."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

import ckptstore as ck
from ckptstore.testing.clock import ManualClock
from tests.interop.histories.steps import (
    ManagerSave,
    NewManager,
    NewSaver,
    Recover,
    Save,
    SetLast,
    UpdateState,
)
from tests.interop.histories.view import View, files_of, read_listed, update

__all__ = ["OurSide"]


class OurSide:
    """The directory in which ckptstore carries out the history."""

    def __init__(self, clock: ManualClock, shown: str, *, fresh_start: bool) -> None:
        self.clock = clock
        self.shown = shown
        self.fresh_start = fresh_start
        self.run = 1
        self.savers: dict[int, ck.Saver] = {}
        self.manager: ck.CheckpointManager | None = None
        self.records: set[str] = set()

    @property
    def directory(self) -> Path:
        return Path(self.shown)

    def restart(self) -> None:
        self.run += 1
        self.savers.clear()
        self.manager = None

    def new_saver(self, step: NewSaver) -> None:
        self.savers[step.slot] = ck.Saver(
            max_to_keep=step.max_to_keep,
            keep_checkpoint_every_n_hours=step.hours,
            save_relative_paths=step.relative,
            pad_step_number=step.pad,
            clock=self.clock,
            run=f"run {self.run}",
            durability="cache",
            fresh_start=self.fresh_start,
        )

    def save(self, step: Save, number: int) -> object:
        saver = self.savers.get(step.slot)
        if saver is None:
            return None
        try:
            path = saver.save(
                {"w": np.full(2, number, np.float32)},
                f"{self.shown}/{step.name}",
                global_step=step.global_step,
                latest_filename=step.record,
                write_meta_graph=step.graph,
                write_state=step.state,
            )
        except ck.CorruptError:
            return "CorruptError"
        if step.state:
            self.records.add(step.record or "checkpoint")
        assert path is not None
        return os.path.basename(path)

    def new_manager(self, step: NewManager) -> object:
        self.counter = np.zeros((), np.int64)
        self.weights = np.zeros(2, np.float32)
        self.manager = ck.CheckpointManager(
            ck.Checkpoint(w=self.weights),
            self.shown,
            step.max_to_keep,
            keep_checkpoint_every_n_hours=step.hours,
            step_counter=self.counter,
            checkpoint_interval=step.interval,
            clock=self.clock,
            run=f"run {self.run}",
            durability="cache",
            fresh_start=self.fresh_start,
        )
        latest = self._latest_of_manager()
        if not step.restores or latest is None or not latest.startswith("ckpt-"):
            return None
        return os.path.basename(self.manager.restore_or_initialize() or "")

    def _latest_of_manager(self) -> str | None:
        assert self.manager is not None
        try:
            latest = self.manager.latest_checkpoint
        except ck.CorruptError:
            return "CorruptError"
        return None if latest is None else os.path.basename(latest)

    def manager_save(self, step: ManagerSave, number: int) -> object:
        if self.manager is None:
            return None
        self.counter += step.trained
        self.weights[...] = number
        try:
            path = self.manager.save(step.number, check_interval=step.check_interval)
        except ck.CorruptError:
            return "CorruptError"
        self.records.add("checkpoint")
        return None if path is None else os.path.basename(path)

    def recover(self, step: Recover) -> object:
        saver, listed = self.savers.get(step.slot), read_listed(self.directory, step.record or "checkpoint")
        if saver is None or listed is None:
            return None
        saver.recover_last_checkpoints([f"{self.shown}/{name}" for name in listed.names])
        return None

    def set_last(self, step: SetLast) -> object:
        saver, listed = self.savers.get(step.slot), read_listed(self.directory, step.record or "checkpoint")
        if saver is None or listed is None:
            return None
        names = listed.names[len(listed.names) - step.count :] if step.count else ()
        paths = [f"{self.shown}/{name}" for name in names]
        if step.with_times:
            saver.set_last_checkpoints_with_time([(path, self.clock.now_s) for path in paths])
        else:
            saver.set_last_checkpoints(paths)
        return None

    def update_state(self, step: UpdateState) -> None:
        update(step, self.shown, ck.update_checkpoint_state)

    def view(self, answer: object) -> View:
        checkpoints, others = files_of(self.directory)
        result = View(answer, checkpoints, tuple(others))
        for record in sorted(self.records):
            listed = read_listed(self.directory, record)
            if listed is not None:
                result.records[record] = listed
            try:
                path = ck.latest_checkpoint(self.shown, record)
            except ck.CorruptError:
                result.latest[record] = "CorruptError"
            else:
                result.latest[record] = None if path is None else os.path.relpath(path, self.shown)
        if self.manager is not None:
            result.lists["manager"] = tuple(os.path.basename(path) for path in self.manager.checkpoints)
            result.latest["manager"] = self._latest_of_manager()
        for slot, saver in self.savers.items():
            result.lists[f"saver {slot}"] = tuple(os.path.basename(path) for path in saver.last_checkpoints)
        return result
