"""``ckptstore repair``: rebuild the record of a directory."""

from __future__ import annotations

import click

from ckptstore.cli.exit_codes import OK
from ckptstore.cli.output import Output
from ckptstore.cli.parameters import complete_path
from ckptstore.cli.shell_command import Options, shell_command

__all__ = ["repair_command"]


@shell_command("repair")
@click.argument("directory", metavar="DIR", shell_complete=complete_path)
@click.option("--dry-run", is_flag=True, help="Show what would be written; change nothing.")
@click.option(
    "--record", "record_name", metavar="NAME", help="The record to repair, if it is not 'checkpoint'."
)
def repair_command(
    output: Output, storage_options: Options, *, directory: str, dry_run: bool, record_name: str | None
) -> int:
    """Rebuild the record of the directory DIR from what can be restored; checkpoints do not change.

    A readable record keeps its entries, except for checkpoints that are gone or torn; complete checkpoints
    newer than its last entry are added. A missing or unreadable record is rebuilt from all complete
    checkpoints. These are "kept": listed, but never deleted by retention, because their owner is not known.

    Savers may keep running. Exit code 3 if there is no complete checkpoint.
    """
    from ckptstore.cli.targets import at_directory, require_directory
    from ckptstore.directory.latest import record_location
    from ckptstore.directory.repair import repair_record
    from ckptstore.storage.registry import locate

    place = at_directory(locate(directory, storage_options))
    require_directory(place)
    report = repair_record(place, record_location(place, record_name), dry_run=dry_run)
    output.repair(report, dry_run=dry_run)
    return OK
