"""``ckptstore doctor``: test what works in a directory, and say what to do about the rest."""

from __future__ import annotations

import click

from ckptstore.cli.exit_codes import OK, exit_code_of
from ckptstore.cli.output import Output
from ckptstore.cli.parameters import complete_path
from ckptstore.cli.shell_command import Options, shell_command

__all__ = ["doctor_command"]


@shell_command("doctor")
@click.argument("url", metavar="URL", shell_complete=complete_path)
@click.option(
    "--read-only", is_flag=True, help="Write nothing: try what a reader needs, and list the permissions."
)
@click.option("--race", is_flag=True, help="Try two requests at the same moment, too, 20 times over.")
def doctor_command(output: Output, storage_options: Options, *, url: str, read_only: bool, race: bool) -> int:
    """Test whether saving and restoring work in the directory URL, and say what to do if not.

    Small objects with random names are written there, read, replaced, listed and deleted again. On an object
    store conditional requests are tested too, one after the other; what the server does with two at the same
    moment is inferred from that, and tried with --race. Existing files do not change; the directory need not
    exist.

    "degraded" means that it works, but lacks a guarantee. Exit code 0 if the directory can be used. Where
    nothing may be written, reading is tried alone, and the last line says "readable, not writable".
    """
    from ckptstore.cli.targets import at_directory, refuse_prefix
    from ckptstore.directory.record_update import RECORD_NAME
    from ckptstore.storage.diagnosis import diagnose
    from ckptstore.storage.registry import locate
    from ckptstore.view.diagnosis_report import DiagnosisFacts

    place = at_directory(locate(url, storage_options))
    refuse_prefix(place)
    findings = diagnose(place.storage, place.key, record_name=RECORD_NAME, read_only=read_only, races=race)
    backend = place.storage.capabilities.backend
    facts = DiagnosisFacts(place.url or ".", backend, findings, read_only=read_only)
    output.diagnosis(facts)
    errors = (finding.error for finding in facts.failures if finding.error is not None)
    error = next(errors, None)
    return OK if error is None else exit_code_of(error)
