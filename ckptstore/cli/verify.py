"""``ckptstore verify``: prove that checkpoints can be restored."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ckptstore.cli.exit_codes import CORRUPT, OK, exit_code_of
from ckptstore.cli.output import Output
from ckptstore.cli.parameters import complete_path
from ckptstore.cli.shell_command import Options, shell_command
from ckptstore.errors import AccessError, CkptStoreError, NotFoundError, TransientError, UnsupportedError

if TYPE_CHECKING:
    from ckptstore.bundle.verify.verify import VerifyReport
    from ckptstore.storage.base import Location
    from ckptstore.view.verification_report import CheckedFacts

__all__ = ["verify_command"]


@shell_command("verify")
@click.argument("target", metavar="PREFIX|DIR|FILE", shell_complete=complete_path)
@click.option("--quick", is_flag=True, help="Check only the index and the sizes of the data files.")
def verify_command(output: Output, storage_options: Options, *, target: str, quick: bool) -> int:
    """Check every checksum of a checkpoint, or of every checkpoint in a directory.

    Each fault is shown with its tensor, file and bytes, and with what was expected and found. Exit code 4 if
    there is one.
    """
    from ckptstore.bundle.verify.verify import verify_bundle
    from ckptstore.cli.targets import at_checkpoint, at_directory
    from ckptstore.storage.registry import locate
    from ckptstore.view.verification_report import VerificationFacts

    def verify(prefix: Location) -> VerifyReport:
        return verify_bundle(prefix, quick=quick, progress=output.progress())

    location = locate(target, storage_options)
    checked: list[CheckedFacts] = []
    failure = None
    report = at_checkpoint(location, verify, output)
    if report is not None:
        checked.append(_checked(report, report.url))
        output.checked(checked[0])
    else:
        for name, prefix in _prefixes(at_directory(location), output):
            try:
                facts = _checked(verify(prefix), name)
            except (AccessError, TransientError, UnsupportedError, NotFoundError) as error:
                failure = failure or error
                facts = _unknown(error, name, prefix)
            checked.append(facts)
            output.checked(facts)
    result = VerificationFacts(target, quick, checked)
    output.verification(result)
    if result.faulty:
        return CORRUPT
    return OK if failure is None else exit_code_of(failure)


def _prefixes(directory: Location, output: Output) -> list[tuple[str, Location]]:
    """Return name and location of every checkpoint in a directory, with a warning for what is skipped.

    Raises
    ------
    NotFoundError
        If there are none: a script that verifies a backup must not take this for success.
    """
    from ckptstore.cli.survey import survey
    from ckptstore.directory.paths import UNNAMED

    found = []
    surveyed = survey(directory).facts
    if surveyed.listing_problem is not None:
        output.warning(f"only what the record lists is checked: {surveyed.listing_problem.message}")
    for facts in surveyed.checkpoints:
        if facts.state == "graph only":
            continue
        if facts.published:
            found.append((facts.prefix, directory.child("" if facts.prefix == UNNAMED else facts.prefix)))
        elif facts.problem is not None:
            output.warning(f"skipped {facts.prefix}: {facts.problem.message}")
    if not found:
        raise NotFoundError(
            "there is no checkpoint in this directory",
            url=directory.url or ".",
            hint="ckptstore ls shows its contents.",
        )
    return found


def _checked(report: VerifyReport, name: str) -> CheckedFacts:
    from ckptstore.view.problems import Problem
    from ckptstore.view.verification_report import CheckedFacts

    return CheckedFacts(
        prefix=name,
        url=report.url,
        tensors_checked=report.tensors_checked,
        bytes_checked=report.bytes_checked,
        problems=[Problem.of_fault(fault) for fault in report.faults],
        notes=report.notes,
    )


def _unknown(error: CkptStoreError, name: str, prefix: Location) -> CheckedFacts:
    from ckptstore.view.problems import Problem
    from ckptstore.view.verification_report import CheckedFacts

    return CheckedFacts(name, prefix.url, 0, 0, [Problem.of_error(error)], is_known=False)
