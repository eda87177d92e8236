"""``ckptstore gc``: remove the files that no checkpoint needs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from ckptstore.cli.exit_codes import OK, exit_code_of
from ckptstore.cli.output import Output
from ckptstore.cli.parameters import parse_age
from ckptstore.cli.shell_command import Options, shell_command
from ckptstore.errors import NotFoundError

if TYPE_CHECKING:
    from ckptstore.directory.garbage import GarbageReport
    from ckptstore.storage.base import Location

__all__ = ["gc_command"]


@shell_command("gc")
@click.argument("directory", metavar="DIR")
@click.option(
    "--min-age",
    metavar="AGE",
    default="24h",
    show_default=True,
    callback=parse_age,
    help="Leave files alone that are younger (30s, 90m, 24h, 7d): a save may be under way. "
    "0s only while nobody saves here.",
)
@click.option("--dry-run", is_flag=True, help="Show what would go; change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask. Without a terminal nobody is asked either.")
@click.option(
    "--record",
    "record_names",
    metavar="NAME",
    multiple=True,
    help="A record of this directory beside 'checkpoint'; repeatable. What it is about to delete stays.",
)
def gc_command(
    output: Output,
    storage_options: Options,
    *,
    directory: str,
    min_age: float,
    dry_run: bool,
    yes: bool,
    record_names: tuple[str, ...],
) -> int:
    """Remove the files of the directory DIR that no checkpoint needs, and drop unfinished uploads.

    That is data which no index names (a save that died, a checkpoint that was saved again), graphs left
    without their checkpoint, and TensorFlow's temporary files. An index is never removed, and neither is
    anything that a record says is still to be deleted. On a local disk nothing goes whose writer is alive.
    """
    from ckptstore.cli.targets import at_directory
    from ckptstore.directory.garbage import GarbageReport, collect_garbage
    from ckptstore.directory.garbage_search import find_garbage
    from ckptstore.storage.registry import locate
    from ckptstore.view.garbage_report import garbage_total
    from ckptstore.view.text import escaped

    place = at_directory(locate(directory, storage_options))
    records = _records(place, record_names)
    report = _only_uploads(place, min_age, dry_run=dry_run)
    if report is not None:
        output.collection(report, dry_run=dry_run)
        return OK
    garbage = find_garbage(place, records, min_age_s=min_age)
    output.garbage(garbage)
    if dry_run:
        output.collection(GarbageReport(garbage, (), 0), dry_run=True)
    else:
        if garbage.files and not yes and _is_watched():
            question = f"Remove {garbage_total(garbage.files)}, from {escaped(garbage.url)}?"
            if not _confirmed(question):
                output.note("nothing was removed")
                return OK
            # The answer may have taken an hour.
            garbage = garbage.still(find_garbage(place, records, min_age_s=min_age))
        report = collect_garbage(place, garbage)
        output.collection(report, dry_run=False)
        if report.error is not None:
            output.error(report.error)
            return exit_code_of(report.error)
    if garbage.failure is not None:
        output.error(garbage.failure)
        return exit_code_of(garbage.failure)
    return OK


def _records(directory: Location, names: tuple[str, ...]) -> list[Location]:
    """Return the usual record and those that the user named.

    Raises
    ------
    NotFoundError
        If one that the user named is missing: what a mistyped one is about to delete would not be spared.
    """
    from ckptstore.directory.latest import record_location

    records = {name: record_location(directory, name) for name in names}
    for record in records.values():
        try:
            record.storage.head(record.key)
        except NotFoundError:
            raise NotFoundError("there is no such record", url=record.url, hint="Check --record.") from None
    usual = record_location(directory, None)
    return [usual, *(record for record in records.values() if record.name != usual.name)]


def _only_uploads(directory: Location, min_age_s: float, *, dry_run: bool) -> GarbageReport | None:
    """Drop unfinished uploads of a directory that holds nothing else; None if it is like any other.

    Raises
    ------
    NotFoundError
        If there is no such directory, and nobody began to upload into it either.
    """
    from ckptstore.cli.targets import require_directory
    from ckptstore.directory.garbage import Garbage, collect_garbage

    try:
        require_directory(directory)
    except NotFoundError:
        # An object store has no directories: a first save that died leaves no other trace.
        if dry_run:
            raise
        report = collect_garbage(directory, Garbage(directory.url, 0.0, min_age_s, ()))
        if report.error is not None or not report.uploads_dropped:
            raise
        return report
    return None


def _confirmed(question: str) -> bool:
    try:
        return click.confirm(question, err=True)
    except click.Abort:
        # What follows begins on a line of its own.
        print(file=sys.stderr)
        raise


def _is_watched() -> bool:
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))
