"""``ckptstore doctor``: test what works in a directory, and say what to do about the rest."""

from __future__ import annotations

import click

from ckptstore.cli.exit_codes import OK, exit_code_of
from ckptstore.cli.output import Output
from ckptstore.cli.shell_command import Options, shell_command

__all__ = ["doctor_command"]


@shell_command("doctor")
@click.argument("url", metavar="URL")
@click.option("--race", is_flag=True, help="Try two requests at the same moment, too, 20 times over.")
def doctor_command(output: Output, storage_options: Options, *, url: str, race: bool) -> int:
    """Test whether saving and restoring work in the directory URL, and say what to do if not.

    Small objects with random names are written there, read, replaced, listed and deleted again. On an object
    store conditional requests are tested too, one after the other; what the server does with two at the same
    moment is inferred from that, and tried with --race. Existing files do not change; the directory need not
    exist.

    "degraded" means that it works, but lacks a guarantee. Exit code 0 if the directory can be used.
    """
    from ckptstore.storage.diagnosis import diagnose
    from ckptstore.storage.registry import locate
    from ckptstore.view.diagnosis_report import DiagnosisFacts

    place = locate(url, storage_options)
    findings = diagnose(place.storage, place.key, races=race)
    facts = DiagnosisFacts(place.url or ".", place.storage.capabilities.backend, findings)
    output.diagnosis(facts)
    errors = (finding.error for finding in facts.failures if finding.error is not None)
    error = next(errors, None)
    return OK if error is None else exit_code_of(error)
