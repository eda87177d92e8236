"""The result of repairing a record."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ckptstore.view.problems import Problem, problem_line, problem_object
from ckptstore.view.text import count, escaped, plural
from ckptstore.view.text_table import Column, Row, TextTable, Tone

if TYPE_CHECKING:
    from ckptstore.directory.repair import RepairItem, RepairReport

__all__ = ["repair_lines", "repair_object", "repair_table"]

_MOST_PROBLEMS = 20


def repair_table(report: RepairReport) -> TextTable:
    """Return one row per checkpoint that is listed, was listed, or could have been."""
    columns = (
        Column(""),
        Column("CHECKPOINT", flexible=True),
        Column("RECORD"),
        Column("KEPT"),
    )
    rows = []
    for item in report.items:
        is_latest = item.is_listed and item.prefix == report.latest
        cells = (
            "*" if is_latest else "",
            escaped(item.prefix),
            item.action,
            "yes" if item.is_kept else "-",
        )
        rows.append(Row(cells, _tone(item, is_latest=is_latest)))
    return TextTable(columns, rows)


def _tone(item: RepairItem, *, is_latest: bool) -> Tone:
    if is_latest:
        return "good"
    if item.is_elsewhere:
        return "muted"
    return "plain" if item.is_listed else "bad"


def _problem(item: RepairItem) -> Problem | None:
    from ckptstore.bundle.verify.verify import BundleFault

    if item.fault is None:
        return None
    return (
        Problem.of_fault(item.fault) if isinstance(item.fault, BundleFault) else Problem.of_error(item.fault)
    )


def repair_lines(report: RepairReport, *, dry_run: bool) -> Iterator[tuple[str, Tone]]:
    """Yield why checkpoints are not listed, what was wrong with the record, and what changed."""
    wrong = [(item, problem) for item in report.items if (problem := _problem(item)) is not None]
    for item, problem in wrong[:_MOST_PROBLEMS]:
        yield f"{item.action}: {escaped(item.prefix)}: {problem_line(problem)}", "bad"
    if len(wrong) > _MOST_PROBLEMS:
        yield f"and {count(len(wrong) - _MOST_PROBLEMS)} more; --json lists all", "bad"
    elsewhere = [item for item in report.items if item.is_elsewhere]
    if elsewhere:
        yield (
            f"not checked, because outside of {escaped(report.url)}: {plural(len(elsewhere), 'checkpoint')}",
            "muted",
        )
    if report.was_missing:
        yield f"there was no record {escaped(report.record_url)}", "plain"
    elif report.fault is not None:
        yield f"record: {problem_line(Problem.of_error(report.fault))}", "bad"
    if report.lost:
        yield f"{plural(len(report.lost), 'line')} of the record that ckptstore wrote cannot be read", "bad"
    said = ""
    if report.latest_before is not None and report.latest_before != report.latest:
        said = f" (the record named {escaped(report.latest_before)})"
    yield f"* latest: {escaped(report.latest)}{said}", "plain"
    if report.doubt is not None:
        yield f"not certain: {escaped(report.doubt)}", "bad"
    kept = sum(item.is_kept for item in report.items)
    if kept and report.is_changed:
        yield (
            f"kept: {plural(kept, 'checkpoint')} without a known owner; retention never deletes them",
            "plain",
        )
        yield "to let it count them again, pass them to Saver.recover_last_checkpoints", "muted"
    if not report.is_changed:
        yield "the record is in order; nothing to repair", "plain"
    else:
        listed = plural(sum(item.is_listed for item in report.items), "checkpoint")
        verb = "would write" if dry_run else "wrote" if report.is_written else "did not write"
        note = " (dry run)" if dry_run else ""
        yield f"{verb} {escaped(report.record_url)}: {listed}{note}", "plain"


def repair_object(report: RepairReport, *, dry_run: bool) -> dict[str, Any]:
    """Return the output of ``ckptstore repair --json``, without ``schema``."""
    state = "missing" if report.was_missing else "unreadable" if report.fault is not None else "present"
    return {
        "directory": report.url,
        "dry_run": dry_run,
        "changed": report.is_changed,
        "written": report.is_written,
        "latest": report.latest,
        "latest_before": report.latest_before,
        "record": {
            "url": report.record_url,
            "state": state,
            "problem": None if report.fault is None else problem_object(Problem.of_error(report.fault)),
            "lines_lost": len(report.lost),
        },
        "owners": [
            {"basename": owner.basename, "epoch": owner.epoch, "run": owner.run, "host": owner.host}
            for owner in report.repaired.owners.values()
        ],
        "checkpoints": [
            {
                "prefix": item.prefix,
                "url": item.url,
                "action": item.action,
                "kept": item.is_kept,
                "latest": item.is_listed and item.prefix == report.latest,
                "problem": None if (problem := _problem(item)) is None else problem_object(problem),
            }
            for item in report.items
        ],
    }
