"""Tables and sentences for a person."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TextIO

import click

from ckptstore.cli.output import Output
from ckptstore.cli.progress_display import progress_display
from ckptstore.config import terminal_style
from ckptstore.view.diagnosis_report import DiagnosisFacts, diagnosis_lines, diagnosis_table
from ckptstore.view.directory_listing import DirectoryFacts, checkpoint_table, directory_summary
from ckptstore.view.garbage_report import collection_lines, garbage_table
from ckptstore.view.inspection import (
    Inspection,
    TensorFacts,
    heading_line,
    summary_lines,
    tensor_line,
    tensor_table,
    total_lines,
)
from ckptstore.view.problems import Problem, problem_line
from ckptstore.view.prune_report import prune_lines, prune_table
from ckptstore.view.repair_report import repair_lines, repair_table
from ckptstore.view.text import escaped, wrapped
from ckptstore.view.text_table import TextTable, Tone, table_lines
from ckptstore.view.verification_report import (
    CheckedFacts,
    VerificationFacts,
    checked_lines,
    verification_lines,
)

if TYPE_CHECKING:
    from ckptstore.directory.garbage import Garbage, GarbageReport
    from ckptstore.directory.prune import PrunePlan, PruneReport
    from ckptstore.directory.repair import RepairReport
    from ckptstore.errors import CkptStoreError
    from ckptstore.transfer.progress import Progress

__all__ = ["ConsoleOutput"]

_STYLES: dict[Tone, dict[str, Any]] = {
    "title": {"bold": True},
    "plain": {},
    "good": {"fg": "green"},
    "bad": {"fg": "red"},
    "muted": {"dim": True},
}


class ConsoleOutput(Output):
    """For people: colours and folded columns on a terminal; elsewhere one line per row, for grep and awk.

    No colours with ``NO_COLOR``, and no control codes with ``TERM=dumb``.
    """

    def inspection(self, inspection: Inspection) -> None:
        _print(heading_line(inspection))
        if inspection.tensors:
            _show_table(tensor_table(inspection))
        for line in summary_lines(inspection):
            _print(line)

    def tensor_names(self, inspection: Inspection) -> None:
        for facts in inspection.tensors:
            if facts.spec is not None:
                print(tensor_line(facts.spec))
        for line in total_lines(inspection):
            _print(line)

    def values(self, inspection: Inspection, values: Iterable[tuple[TensorFacts, Any]]) -> None:
        for facts, value in values:
            if facts.spec is None:
                continue  # total_lines reports it
            print(tensor_line(facts.spec))
            if facts.problem is not None:
                _print(f"damaged: {problem_line(facts.problem)}", "bad")
            elif facts.spec.dtype.name == "variant":
                print("<not convertible to a numpy dtype>")
            else:
                # numpy writes bytes as Python does, with control characters escaped.
                print(value)
        for line in total_lines(inspection):
            _print(line)

    def directory(self, facts: DirectoryFacts) -> None:
        if facts.checkpoints:
            _show_table(checkpoint_table(facts))
        for line, tone in directory_summary(facts):
            _print(line, tone)

    def checked(self, facts: CheckedFacts) -> None:
        for line, tone in checked_lines(facts):
            _print(line, tone)

    def verification(self, facts: VerificationFacts) -> None:
        for line, tone in verification_lines(facts):
            _print(line, tone)

    def garbage(self, garbage: Garbage) -> None:
        if garbage.files or garbage.uploads:
            _show_table(garbage_table(garbage))

    def collection(self, report: GarbageReport, *, dry_run: bool) -> None:
        for line, tone in collection_lines(report, dry_run=dry_run):
            _print(line, tone)

    def repair(self, report: RepairReport, *, dry_run: bool) -> None:
        _show_table(repair_table(report))
        for line, tone in repair_lines(report, dry_run=dry_run):
            _print(line, tone)

    def diagnosis(self, facts: DiagnosisFacts) -> None:
        _show_table(diagnosis_table(facts))
        for line, tone in diagnosis_lines(facts):
            _print(line, tone)

    def pin(self, url: str, *, is_pinned: bool, is_changed: bool) -> None:
        said = {
            (True, True): "pinned: {}: nothing deletes it until ckptstore unpin",
            (True, False): "{} was pinned already",
            (False, True): "unpinned: {}: retention counts it again if the record lists it",
            (False, False): "{} was not pinned",
        }[is_pinned, is_changed]
        _print(said.format(escaped(url)))

    def prune_plan(self, plan: PrunePlan) -> None:
        if plan.items:
            _show_table(prune_table(plan))

    def pruned(self, report: PruneReport, *, dry_run: bool) -> None:
        for line, tone in prune_lines(report, dry_run=dry_run):
            _print(line, tone)

    def note(self, text: str) -> None:
        _print(f"ckptstore: {escaped(text)}", "muted", sys.stderr)

    def warning(self, text: str) -> None:
        _print(f"ckptstore: warning: {escaped(text)}", "plain", sys.stderr)

    def error(self, error: CkptStoreError) -> None:
        _print(f"ckptstore: error: {problem_line(Problem.of_error(error))}", "bad", sys.stderr)

    def progress(self) -> Progress:
        return progress_display()


def _print(text: str, tone: Tone = "plain", stream: TextIO | None = None) -> None:
    """Print a sentence; on a terminal in its tone, and broken between words."""
    stream = stream or sys.stdout
    if stream.isatty():
        text = "\n".join(_styled(line, tone) for line in wrapped(text, _width_of(stream)))
    print(text, file=stream)


def _show_table(table: TextTable) -> None:
    if not sys.stdout.isatty():
        for line, _ in table_lines(table):
            print(line)
        return
    for line, tone in table_lines(table, _width_of(sys.stdout)):
        print(_styled(line, tone))
    print()


def _styled(line: str, tone: Tone) -> str:
    style = _STYLES[tone]
    return click.style(line, **style) if style and terminal_style() == "colour" else line


def _width_of(stream: TextIO) -> int:
    try:
        # 0 if the terminal does not know its width.
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
