"""The result of a garbage collection."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ckptstore.view.problems import Problem, problem_line, problem_object
from ckptstore.view.text import count, escaped, human_age, human_size, plural
from ckptstore.view.text_table import Column, Row, TextTable, Tone

if TYPE_CHECKING:
    from ckptstore.directory.garbage import Garbage, GarbageFile, GarbageReport

__all__ = ["collection_lines", "collection_object", "garbage_table", "garbage_total"]

_MOST_SHOWN = 20


def garbage_table(garbage: Garbage) -> TextTable:
    """Return one row per file that is to be removed, and per unfinished upload that is to be dropped."""
    columns = (
        Column("FILE", flexible=True),
        Column("WHY"),
        Column("SIZE", right=True),
        Column("AGE", right=True),
    )
    rows = [
        Row(
            (
                escaped(file.name),
                file.reason,
                human_size(file.info.size_bytes),
                human_age(garbage.now_s - file.info.mtime_s),
            )
        )
        for file in (*garbage.files, *garbage.uploads)
    ]
    return TextTable(columns, rows)


def garbage_total(garbage: Garbage) -> str:
    """Return what is to be removed: ``"2 files, 1.5 MiB, and 1 unfinished upload, 40 B"``."""
    parts = [
        _total(files, thing)
        for files, thing in ((garbage.files, "file"), (garbage.uploads, "unfinished upload"))
        if files
    ]
    return ", and ".join(parts) or "nothing"


def _total(files: Iterable[GarbageFile], thing: str = "file") -> str:
    found = list(files)
    return f"{plural(len(found), thing)}, {human_size(sum(file.info.size_bytes for file in found))}"


def collection_lines(report: GarbageReport, *, dry_run: bool) -> Iterator[tuple[str, Tone]]:
    """Yield what was kept and why, and what was removed."""
    garbage = report.garbage
    yield from _kept_lines(garbage)
    uploads = plural(report.uploads_dropped, "unfinished upload")
    if dry_run:
        yield f"would remove {garbage_total(garbage)} (dry run)", "plain"
        return
    done = []
    if report.removed:
        done.append(f"removed {_total(report.removed)}")
    elif not garbage.files and not report.uploads_dropped:
        done.append(f"nothing to remove in {escaped(garbage.url)}")
    if report.uploads_dropped:
        done.append(f"dropped {uploads}")
    if done:
        yield ", ".join(done), "plain"
    rest = len(garbage.files) - len(report.removed)
    if rest:
        yield f"{plural(rest, 'file')} could not be removed", "bad"


def _kept_lines(garbage: Garbage) -> Iterator[tuple[str, Tone]]:
    lines: list[tuple[str, Tone]] = []
    lines += [
        (f"kept: {escaped(prefix)}: {problem_line(Problem.of_error(error))}", "bad")
        for prefix, error in garbage.unreadable
    ]
    lines += [(f"kept: {escaped(prefix)}: its writer is running", "muted") for prefix in garbage.in_use]
    lines += [(f"kept: {escaped(prefix)}: it is pinned", "muted") for prefix in garbage.pinned]
    lines += [
        (f"kept: {escaped(name)}: a graph that may have been exported by itself", "muted")
        for name in garbage.graphs
    ]
    yield from lines[:_MOST_SHOWN]
    if len(lines) > _MOST_SHOWN:
        yield f"and {count(len(lines) - _MOST_SHOWN)} more; --json lists all", "muted"
    if garbage.pending:
        number = plural(len(garbage.pending), "file")
        yield f"marked for deletion in the record; the next save removes: {number}", "muted"
    if garbage.young:
        age = human_age(garbage.min_age_s)
        yield f"kept, because younger than {age}: {_total(garbage.young)}", "muted"


def collection_object(report: GarbageReport, *, dry_run: bool) -> dict[str, Any]:
    """Return the output of ``ckptstore gc --json``, without ``schema``."""
    garbage = report.garbage
    removed = set(report.removed)
    return {
        "directory": garbage.url,
        "dry_run": dry_run,
        "min_age_s": garbage.min_age_s,
        "files": [_file_object(file, garbage) | {"removed": file in removed} for file in garbage.files],
        "files_removed": len(report.removed),
        "bytes_removed": sum(file.info.size_bytes for file in report.removed),
        "uploads": [_file_object(file, garbage) for file in garbage.uploads],
        "uploads_dropped": None if dry_run else report.uploads_dropped,
        "young": [_file_object(file, garbage) for file in garbage.young],
        "pending": list(garbage.pending),
        "in_use": list(garbage.in_use),
        "graphs": list(garbage.graphs),
        "pinned": list(garbage.pinned),
        "unreadable": [
            {"prefix": prefix, "problem": problem_object(Problem.of_error(error))}
            for prefix, error in garbage.unreadable
        ],
    }


def _file_object(file: GarbageFile, garbage: Garbage) -> dict[str, Any]:
    return {
        "name": file.name,
        "reason": file.reason,
        "size_bytes": file.info.size_bytes,
        "mtime_s": file.info.mtime_s,
        "age_s": round(garbage.now_s - file.info.mtime_s, 3),
    }
