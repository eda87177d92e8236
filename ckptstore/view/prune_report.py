"""What a prune deletes, and what keeps the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ckptstore.view.text import escaped, human_age, human_size, plural
from ckptstore.view.text_table import Column, Row, TextTable, Tone

if TYPE_CHECKING:
    from ckptstore.directory.prune import PruneItem, PrunePlan, PruneReport

__all__ = ["prune_lines", "prune_object", "prune_table", "prune_total"]


def prune_table(plan: PrunePlan) -> TextTable:
    """Return one row per checkpoint, the newest last: whether it stays, and because of what."""
    columns = (
        Column("CHECKPOINT"),
        Column("VERDICT"),
        Column("SIZE", right=True, dropped=2),
        Column("AGE", right=True, dropped=1),
        Column("BECAUSE", flexible=True, prose=True),
    )
    rows = [
        Row(
            (
                escaped(item.prefix),
                "goes" if item.goes else "stays",
                human_size(item.size_bytes),
                "-" if item.time_s is None else human_age(plan.now_s - item.time_s),
                "no rule keeps it" if item.goes else ", ".join(map(escaped, item.because)),
            ),
            "bad" if item.goes else "plain",
        )
        for item in plan.items
    ]
    return TextTable(columns, rows)


def prune_total(items: Sequence[PruneItem]) -> str:
    """Return how many checkpoints these are, and how large."""
    return f"{plural(len(items), 'checkpoint')}, {human_size(sum(item.size_bytes for item in items))}"


def prune_lines(report: PruneReport, *, dry_run: bool) -> Iterator[tuple[str, Tone]]:
    """Yield what was deleted, or would be."""
    plan = report.plan
    unlisted = sum(item.because == ("not listed",) for item in plan.items)
    if unlisted:
        number = plural(unlisted, "checkpoint")
        yield f"not listed in the record, so not judged without --unlisted: {number}", "muted"
    if plan.unfinished:
        number = plural(len(plan.unfinished), "checkpoint")
        verb = "would be" if dry_run else "were"
        yield f"left to delete by an earlier save or prune; {verb} deleted, too: {number}", "muted"
    if dry_run:
        yield f"would delete {prune_total(plan.victims)} (dry run)", "plain"
    elif report.deleted:
        yield f"deleted {prune_total(report.deleted)}", "plain"
    elif not plan.victims:
        yield f"nothing to delete in {escaped(plan.url)}", "plain"
    rest = len(plan.victims) - len(report.deleted)
    if rest and not dry_run:
        yield f"{plural(rest, 'checkpoint')} could not be deleted yet; the next save or prune does it", "bad"


def prune_object(report: PruneReport, *, dry_run: bool) -> dict[str, Any]:
    """Return the output of ``ckptstore prune --json``, without ``schema``."""
    plan = report.plan
    deleted = {item.prefix for item in report.deleted}
    return {
        "directory": plan.url,
        "record": plan.record_url,
        "dry_run": dry_run,
        "checkpoints": [
            {
                "prefix": item.prefix,
                "step": item.step,
                "goes": item.goes,
                "because": list(item.because),
                "size_bytes": item.size_bytes,
                "age_s": None if item.time_s is None else round(plan.now_s - item.time_s, 3),
                "deleted": item.prefix in deleted,
            }
            for item in plan.items
        ],
        "checkpoints_deleted": len(report.deleted),
        "bytes_deleted": sum(item.size_bytes for item in report.deleted),
        "unfinished": [line.prefix for line in plan.unfinished],
    }
