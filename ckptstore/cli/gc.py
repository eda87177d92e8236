"""``ckptstore gc``: remove the files that no checkpoint needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ckptstore.cli.confirmation import ask, is_interactive
from ckptstore.cli.exit_codes import OK, exit_code_of
from ckptstore.cli.output import Output
from ckptstore.cli.parameters import complete_path, parse_age
from ckptstore.cli.shell_command import Options, shell_command
from ckptstore.errors import NotFoundError

if TYPE_CHECKING:
    from ckptstore.directory.garbage import Garbage
    from ckptstore.storage.base import Location

__all__ = ["gc_command"]


@shell_command("gc")
@click.argument("directory", metavar="DIR", shell_complete=complete_path)
@click.option(
    "--min-age",
    metavar="AGE",
    default="24h",
    show_default=True,
    callback=parse_age,
    help="Keep files younger than this (30s, 90m, 24h, 7d), which a running save may need. "
    "0s only if no save is running.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be removed; change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation. Without a terminal it never asks.")
@click.option(
    "--record",
    "record_names",
    metavar="NAME",
    multiple=True,
    help="Another record of this directory besides 'checkpoint'; repeatable. "
    "Files that it has marked for deletion stay.",
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

    These are data files that no index names (of a save that died, or a checkpoint that was saved again),
    graphs without their checkpoint, and TensorFlow's temporary files. An index is never removed, and neither
    is a file that a record marks for deletion. On a local disk, files of a running writer stay.
    """
    from ckptstore.cli.targets import at_directory
    from ckptstore.directory.garbage import GarbageReport, collect_garbage
    from ckptstore.directory.garbage_search import find_garbage
    from ckptstore.storage.registry import locate
    from ckptstore.view.garbage_report import garbage_total
    from ckptstore.view.text import escaped

    place = at_directory(locate(directory, storage_options))
    records = _records(place, record_names)
    garbage = _only_uploads(place, min_age)
    if garbage is None:
        garbage = find_garbage(place, records, min_age_s=min_age)
    output.garbage(garbage)
    if dry_run:
        output.collection(GarbageReport(garbage, (), 0), dry_run=True)
    else:
        if (garbage.files or garbage.uploads) and not yes and is_interactive():
            question = f"Remove {garbage_total(garbage)}, from {escaped(garbage.url)}?"
            if not ask(question):
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
        If one that the user named is missing. With a mistyped name, files that the real record marks for
        deletion would not be protected.
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


def _only_uploads(directory: Location, min_age_s: float) -> Garbage | None:
    """Return the unfinished uploads of a directory that holds nothing else; None if it has files.

    Raises
    ------
    NotFoundError
        If the directory does not exist and has no unfinished uploads.
    """
    from ckptstore.cli.targets import require_directory
    from ckptstore.directory.garbage import Garbage, stale_uploads
    from ckptstore.storage.abilities import now_s

    try:
        require_directory(directory)
    except NotFoundError:
        # An object store has no directories: a first save that died leaves no other trace.
        uploads = stale_uploads(directory, min_age_s)
        if not uploads:
            raise
        return Garbage(directory.url, now_s(directory.storage), min_age_s, (), uploads=uploads)
    return None
