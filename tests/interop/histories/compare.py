"""Carry out one history in both programs, compare after each step, and cut a history that differs."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import ckptstore as ck
from ckptstore.cli.main import main
from ckptstore.testing.clock import ManualClock
from tests.interop.histories import rules as r
from tests.interop.histories.our_side import OurSide
from tests.interop.histories.rules import DataFacts, Rules
from tests.interop.histories.session import Session, tf1
from tests.interop.histories.steps import (
    Advance,
    DeleteFiles,
    History,
    ManagerSave,
    NewManager,
    NewSaver,
    Recover,
    Remove,
    Restart,
    Save,
    SetLast,
    Step,
    UpdateState,
)
from tests.interop.histories.tensorflow_side import TensorFlowSide
from tests.interop.histories.view import FILE, PrefixFiles, files_of

__all__ = ["Difference", "command", "differences_of", "explain", "shortest"]

# Most of these directories live in memory where there is one for files.
_PLACE = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@dataclass(frozen=True)
class Difference:
    """After which step the two differ, and in what."""

    step: int
    texts: tuple[str, ...]


class _Comparison:
    def __init__(self, session: Session, history: History, rules: Rules, base: Path) -> None:
        for name in ("theirs", "ours"):
            (base / name).mkdir()
        shown = [name if history.is_relative else str(base / name) for name in ("theirs", "ours")]
        self.rules = rules
        self.clock = ManualClock()
        self.theirs = TensorFlowSide(session, self.clock, shown[0], rules, fresh_start=history.fresh_start)
        self.ours = OurSide(self.clock, shown[1], fresh_start=history.fresh_start)
        self.theirs.beside = shown[1]
        self.numbers: dict[str, int] = {}
        self.handed_over = 0
        self.indexes_deleted: Counter[str] = Counter()
        self.session = session

    def carry_out(self, number: int, step: Step) -> tuple[object, object]:
        answers: list[object] = []
        if isinstance(step, Advance):
            self.clock.advance(step.seconds)
            return None, None
        if isinstance(step, Remove | DeleteFiles):
            self.delete(step)
            return None, None
        if isinstance(step, UpdateState):
            self.theirs.update_state(step)
            self.ours.update_state(step)
            return None, None
        if isinstance(step, Restart):
            self.restart(step)
            return None, None
        for side in (self.theirs, self.ours):
            answer: object = None
            if isinstance(step, NewSaver):
                side.new_saver(step)
            elif isinstance(step, NewManager):
                answer = side.new_manager(step)
            elif isinstance(step, Save | ManagerSave):
                answer = (
                    side.save(step, number) if isinstance(step, Save) else side.manager_save(step, number)
                )
                if answer not in (None, "CorruptError"):
                    # The newest last.
                    self.numbers.pop(str(answer), None)
                    self.numbers[str(answer)] = number
                    self.date(side.directory / f"{answer}.index")
            elif isinstance(step, Recover):
                answer = side.recover(step)
            elif isinstance(step, SetLast):
                answer = side.set_last(step)
            answers.append(answer)
        return answers[0], answers[1]

    def delete(self, step: Remove | DeleteFiles) -> None:
        """Delete files of one checkpoint in both directories."""
        prefixes = list(self.numbers)
        if step.back >= len(prefixes):
            return
        prefix = prefixes[-1 - step.back]
        if isinstance(step, Remove):
            tf1.train.remove_checkpoint(f"{self.theirs.shown}/{prefix}")
            ck.remove_checkpoint(f"{self.ours.shown}/{prefix}")
            return
        self.indexes_deleted[prefix] += step.kind == "index"
        for side in (self.theirs, self.ours):
            for path in side.directory.iterdir():
                match = FILE.fullmatch(path.name)
                if match and match[1] == prefix and step.kind in ("all", match[2].partition("-")[0]):
                    path.unlink()

    def date(self, path: Path) -> None:
        """Let the file be as old as the clock says; where it matters both programs look at the index."""
        # Whole seconds: of others, the last places of a number get lost on the way.
        os.utime(path, (int(self.clock.now_s),) * 2)

    def restart(self, step: Restart) -> None:
        """Let all Savers and managers end, and do what happens between two processes."""
        for side in (self.theirs, self.ours):
            side.restart()
            if step.deletes is not None:
                (side.directory / step.deletes).unlink(missing_ok=True)
                self.theirs.lines[side.shown].pop(step.deletes, None)
        if step.swaps:
            self.handed_over += 1
            self.theirs.as_tensorflow_wrote_it()
            # What one program left to be deleted later, the other one does not know of.
            with contextlib.redirect_stdout(io.StringIO()):
                for side in (self.theirs, self.ours):
                    assert main(["gc", side.shown, "--min-age", "0s"]) == 0
            self.theirs.shown, self.ours.shown = self.ours.shown, self.theirs.shown
            self.theirs.beside = self.ours.shown

    def differences(self, answers: tuple[object, object]) -> list[str]:
        theirs, ours = self.theirs.view(answers[0]), self.ours.view(answers[1])
        theirs.other_files = self.rules.apply(r.lock_file, theirs.other_files, ours.other_files)
        for prefix in {*ours.checkpoints, *theirs.checkpoints}:
            mine = ours.checkpoints.get(prefix, PrefixFiles())
            item = theirs.checkpoints.pop(prefix, PrefixFiles())
            facts = DataFacts(
                prefix in self.theirs.saved_again,
                prefix in self.theirs.written_over,
                self.indexes_deleted[prefix],
                len(self.theirs.records),
                self.handed_over,
            )
            for rule in (
                r.new_names_for_new_data,
                r.data_that_no_record_names,
                r.data_without_an_index_stays,
            ):
                if item != mine:
                    item = self.rules.apply(rule, item, mine, facts)
            if item != PrefixFiles():
                theirs.checkpoints[prefix] = item
        return list(_different("", vars(theirs), vars(ours)))

    def restores(self) -> list[str]:
        """Return what one program does not restore of what the other one has saved."""
        texts = []
        for side, read in ((self.theirs, _read_here), (self.ours, self._read_in_tensorflow)):
            for prefix, item in files_of(side.directory)[0].items():
                if item.index and item.data:
                    value = read(f"{side.shown}/{prefix}")
                    if value.tolist() != [self.numbers[prefix]] * 2:
                        texts.append(f"{side.shown}/{prefix}: {value}, and not {self.numbers[prefix]}")
        return texts

    def _read_in_tensorflow(self, path: str) -> np.ndarray:
        if path.rpartition("/")[2].startswith("ckpt-"):
            return tf1.train.load_checkpoint(path).get_tensor(_VALUE)
        return self.session.restored(path)


# Of the variable w of an object-based checkpoint.
_VALUE = "w/.ATTRIBUTES/VARIABLE_VALUE"


def _read_here(path: str) -> np.ndarray:
    values: dict[str, np.ndarray] = {}
    ck.Saver().restore(values, path)
    return values[_VALUE if _VALUE in values else "w"]


def _different(where: str, theirs: object, ours: object) -> Iterable[str]:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in sorted({*theirs, *ours}):
            yield from _different(f"{where} {key}".strip(), theirs.get(key), ours.get(key))
    elif theirs != ours:
        yield f"{where}:\n    TensorFlow  {theirs}\n    ckptstore   {ours}"


def differences_of(session: Session, history: History, rules: Rules) -> Difference | None:
    """Carry out `history` in both programs; return the first difference that no rule explains."""
    with contextlib.ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=_PLACE)))
        if history.is_relative:
            stack.enter_context(contextlib.chdir(base))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", ck.CkptStoreWarning)
        comparison = _Comparison(session, history, rules, base)
        stack.enter_context(session.clock(comparison.clock))
        for number, step in enumerate(history.steps, 1):
            texts = comparison.differences(comparison.carry_out(number, step))
            if texts:
                return Difference(number, tuple(texts))
        texts = comparison.restores()
    return Difference(len(history.steps), tuple(texts)) if texts else None


def shortest(session: Session, history: History, without: Iterable[str] = ()) -> tuple[History, Difference]:
    """Cut the steps of a history that differs, as long as it does."""

    def difference(steps: tuple[Step, ...]) -> Difference | None:
        return differences_of(session, replace(history, steps=steps), Rules(without))

    found = difference(history.steps)
    assert found is not None
    steps = history.steps[: found.step]
    position = len(steps) - 1
    while position >= 0:
        fewer = steps[:position] + steps[position + 1 :]
        cut = difference(fewer)
        if cut is not None:
            steps, found = fewer[: cut.step], cut
            position = min(position, len(steps))
        position -= 1
    return replace(history, steps=steps), found


def explain(history: History, found: Difference) -> str:
    """Return the steps and the difference after the last one."""
    where = "a relative path" if history.is_relative else "an absolute path"
    lines = [
        f"in a directory named by {where}, fresh_start={history.fresh_start}:",
        *(f"  {n:3} {step}" for n, step in enumerate(history.steps, 1)),
    ]
    return "\n".join([*lines, "", "after the last step:", *found.texts])


def command(seed: int) -> str:
    """Return what shows this history again."""
    return f'PYTHONPATH="$PWD" .cache/venv-tf/bin/python -m tests.interop.histories {seed}'
