"""The checkpoints of one directory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ckptstore.storage.values import ObjectInfo
from ckptstore.view.problems import Problem, problem_line, problem_object
from ckptstore.view.text import count, escaped, human_age, human_size, plural
from ckptstore.view.text_table import Column, Row, TextTable, Tone

__all__ = [
    "CheckpointFacts",
    "DirectoryFacts",
    "RecordFacts",
    "State",
    "checkpoint_table",
    "directory_object",
    "directory_summary",
]

State = Literal["complete", "torn", "unreadable", "gone", "graph only"]
"""``complete``: can be restored. ``torn``: a file is missing, too short or damaged, or the index was never
published. ``unreadable``: not known, because access or the network failed. ``gone``: in the record, but
without files. ``graph only``: a ``.meta`` without a checkpoint."""

_MAX_PROBLEMS = 20

_TONES: dict[State, Tone] = {
    "complete": "plain",
    "torn": "bad",
    "unreadable": "bad",
    "gone": "bad",
    "graph only": "muted",
}


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """One prefix of the directory.

    Attributes
    ----------
    prefix : str
        Relative to the directory.
    version : int
        Of the format: 1 or 2.
    problem : Problem or None
        Why it is not complete.
    size_bytes : int
        All its files, the graph included.
    mtime_s : float or None
        Of its index; seconds since 1970.
    graph : bool
        Whether its ``.meta`` is there.
    listed, latest : bool
        Whether the record lists it; whether it is the one to resume from.
    published : bool
        Whether there is an index, or a V1 file. Without it readers do not see the checkpoint.
    pinned : bool
        Whether the record has a pin for it.
    metrics : mapping
        With which it was saved, as the record says.
    """

    prefix: str
    url: str
    step: int | None
    version: int
    state: State
    problem: Problem | None
    size_bytes: int
    mtime_s: float | None
    graph: bool
    listed: bool
    latest: bool
    published: bool
    pinned: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RecordFacts:
    """The contents of the record.

    Attributes
    ----------
    state : {"present", "missing", "unreadable"}
    problem : Problem or None
        Why it cannot be read.
    latest : str or None
        The path of the latest checkpoint, as written there.
    latest_prefix : str or None
        The same relative to the directory; None if it does not lead to one.
    """

    url: str
    state: Literal["present", "missing", "unreadable"]
    problem: Problem | None = None
    latest: str | None = None
    latest_prefix: str | None = None


@dataclass(frozen=True, slots=True)
class DirectoryFacts:
    """A directory at one moment.

    Attributes
    ----------
    now_s : float
        Seconds since 1970.
    checkpoints : sequence of CheckpointFacts
        The newest last.
    latest : str or None
        URL of the newest checkpoint that can be restored.
    latest_problem : Problem or None
        Why it could not be determined.
    listing_problem : Problem or None
        Why the directory could not be listed: only what the record lists is known.
    unfinished : sequence of ObjectInfo
        Uploads that are not complete, as the storage lists them.
    """

    url: str
    now_s: float
    record: RecordFacts
    checkpoints: Sequence[CheckpointFacts]
    latest: str | None
    latest_problem: Problem | None = None
    listing_problem: Problem | None = None
    unfinished: Sequence[ObjectInfo] = ()


def checkpoint_table(facts: DirectoryFacts) -> TextTable:
    """Return one row per checkpoint, the newest last, next to the prompt."""
    # Dropped before all others: --json has them.
    metrics = [Column("METRICS", dropped=1)] if any(item.metrics for item in facts.checkpoints) else []
    columns = (
        Column(""),
        Column("STEP", right=True, dropped=4),  # it is in the name, too
        Column("CHECKPOINT", flexible=True),
        Column("STATE"),
        Column("SIZE", right=True, dropped=6),
        Column("AGE", right=True, dropped=5),
        Column("GRAPH", dropped=2),
        Column("RECORD", dropped=3),
        *metrics,
    )
    rows = [
        Row(
            (
                "*" if item.latest else "",
                "-" if item.step is None else str(item.step),
                escaped(item.prefix),
                item.state,
                "-" if item.mtime_s is None else human_size(item.size_bytes),
                "-" if item.mtime_s is None else human_age(facts.now_s - item.mtime_s),
                "yes" if item.graph else "-",
                ", ".join(_of_record(item)) or "-",
                *([_metrics(item)] if metrics else []),
            ),
            "good" if item.latest else _TONES[item.state],
        )
        for item in facts.checkpoints
    ]
    return TextTable(columns, rows)


def _of_record(item: CheckpointFacts) -> list[str]:
    return [word for word, holds in (("listed", item.listed), ("pinned", item.pinned)) if holds]


def _metrics(item: CheckpointFacts) -> str:
    return " ".join(f"{escaped(name)}={value:.6g}" for name, value in item.metrics.items()) or "-"


def directory_summary(facts: DirectoryFacts) -> list[tuple[str, Tone]]:
    """Return the lines below the table: problems, the latest checkpoint, totals."""
    lines: list[tuple[str, Tone]] = []
    # The last ones are shown: the newest problem matters most.
    wrong = [item for item in facts.checkpoints if item.problem is not None]
    if len(wrong) > _MAX_PROBLEMS:
        lines.append((f"{count(len(wrong) - _MAX_PROBLEMS)} more problems; --json lists all", "bad"))
    lines += [
        (f"{item.state}: {escaped(item.prefix)}: {problem_line(item.problem)}", "bad")
        for item in wrong[-_MAX_PROBLEMS:]
        if item.problem is not None
    ]
    record = facts.record
    if facts.listing_problem is not None:
        reason = f"the directory cannot be listed: {problem_line(facts.listing_problem)}"
        lines.append((f"only what the record lists is shown, as {reason}", "bad"))
    if record.problem is not None:
        lines.append((f"record: {problem_line(record.problem)}", "bad"))
    lines += _unfinished_lines(facts)
    if not any(item.state != "graph only" for item in facts.checkpoints):
        lines.append((f"no checkpoints in {escaped(facts.url)}", "plain"))
        return lines
    if facts.latest is None:
        verdict = "none can be restored" if facts.latest_problem is None else "unknown"
        lines.append((f"latest: {verdict}", "bad"))
    else:
        why = {
            "present": "",
            "missing": " (there is no record)",
            "unreadable": " (the record cannot be read)",
        }
        said = why[record.state]
        latest = next((item.prefix for item in facts.checkpoints if item.latest), facts.latest)
        if record.latest is not None and record.latest_prefix != latest:
            said = f" (the record names {escaped(record.latest)})"
        lines.append((f"* latest: {escaped(latest)}{said}", "plain"))
    lines.append((_total(facts.checkpoints), "plain"))
    return lines


def _unfinished_lines(facts: DirectoryFacts) -> list[tuple[str, Tone]]:
    shown = facts.unfinished[-_MAX_PROBLEMS:]
    lines: list[tuple[str, Tone]] = [
        (
            f"unfinished upload: {escaped(info.key.rpartition('/')[2])}, {human_size(info.size_bytes)},"
            f" {human_age(facts.now_s - info.mtime_s)} old: a save is running, or died",
            "muted",
        )
        for info in shown
    ]
    rest = len(facts.unfinished) - len(shown)
    if rest:
        lines.insert(0, (f"{count(rest)} more unfinished uploads; --json lists all", "muted"))
    return lines


def _total(checkpoints: Sequence[CheckpointFacts]) -> str:
    real = [item for item in checkpoints if item.state != "graph only"]
    counts = [
        f"{number} {state}"
        for state in ("torn", "unreadable", "gone")
        if (number := sum(item.state == state for item in real))
    ]
    others = f" ({', '.join(counts)})" if counts else ""
    size = human_size(sum(item.size_bytes for item in checkpoints))
    return f"{plural(len(real), 'checkpoint')}{others}, {size}"


def directory_object(facts: DirectoryFacts) -> dict[str, Any]:
    """Return the output of ``ckptstore ls --json``, without ``schema``."""
    record = facts.record
    return {
        "directory": facts.url,
        "latest": facts.latest,
        "listing_problem": None if facts.listing_problem is None else problem_object(facts.listing_problem),
        "record": {
            "url": record.url,
            "state": record.state,
            "latest": record.latest,
            "problem": None if record.problem is None else problem_object(record.problem),
        },
        "checkpoints": [
            {
                "prefix": item.prefix,
                "url": item.url,
                "step": item.step,
                "format_version": item.version,
                "state": item.state,
                "problem": None if item.problem is None else problem_object(item.problem),
                "size_bytes": item.size_bytes,
                "mtime_s": item.mtime_s,
                "age_s": None if item.mtime_s is None else round(facts.now_s - item.mtime_s, 3),
                "graph": item.graph,
                "listed": item.listed,
                "latest": item.latest,
                "pinned": item.pinned,
                # JSON knows no NaN and no infinity.
                "metrics": {
                    name: value if math.isfinite(value) else repr(value)
                    for name, value in item.metrics.items()
                },
            }
            for item in facts.checkpoints
        ],
        "unfinished_uploads": [
            {
                "name": info.key.rpartition("/")[2],
                "size_bytes": info.size_bytes,
                "age_s": round(facts.now_s - info.mtime_s, 3),
            }
            for info in facts.unfinished
        ],
    }
