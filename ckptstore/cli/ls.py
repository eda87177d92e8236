"""``ckptstore ls``: the checkpoints of a directory."""

from __future__ import annotations

import click

from ckptstore.cli.exit_codes import OK, exit_code_of
from ckptstore.cli.output import Output
from ckptstore.cli.parameters import complete_path
from ckptstore.cli.shell_command import Options, shell_command

__all__ = ["ls_command"]


@shell_command("ls")
@click.argument("directory", metavar="DIR", shell_complete=complete_path)
def ls_command(output: Output, storage_options: Options, *, directory: str) -> int:
    """List the checkpoints of the directory DIR, the newest last.

    Each is "complete" (it can be restored: the index is readable, all data files are long enough), "torn"
    (something is missing or damaged), "gone" (listed in the record, but without files) or "unreadable" (no
    access). The star marks the latest one, from which training would resume. "verify" checks every byte.
    """
    from ckptstore.cli.survey import survey
    from ckptstore.cli.targets import at_directory, require_directory
    from ckptstore.storage.registry import locate

    place = at_directory(locate(directory, storage_options))
    require_directory(place)
    result = survey(place, with_uploads=True)
    output.directory(result.facts)
    if result.failure is not None:
        output.error(result.failure)
        return exit_code_of(result.failure)
    return OK
