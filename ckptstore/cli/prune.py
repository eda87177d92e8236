"""``ckptstore prune``: delete the checkpoints that no rule keeps."""

from __future__ import annotations

from functools import partial
from typing import IO, TYPE_CHECKING

import click

from ckptstore.cli.confirmation import ask, is_interactive
from ckptstore.cli.exit_codes import OK, exit_code_of
from ckptstore.cli.output import Output
from ckptstore.cli.parameters import age_text, complete_path, parse_age
from ckptstore.cli.shell_command import Options, shell_command
from ckptstore.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from ckptstore.directory.prune import NamedRule, PruneReport
    from ckptstore.storage.base import Location

__all__ = ["prune_command"]

_COUNT = click.IntRange(min=1)
_MOST_DIGITS = 10
_LARGEST_PLAN = 64 * 1024 * 1024


@shell_command("prune")
@click.argument("target", metavar="DIR|PREFIX", shell_complete=complete_path)
@click.option("--keep-last", type=_COUNT, metavar="N", help="Keep the N newest.")
@click.option("--keep-every-steps", type=_COUNT, metavar="N", help="Keep each step that is a multiple of N.")
@click.option(
    "--keep-every",
    metavar="AGE",
    callback=parse_age,
    help="Keep the first, and each that is so much later than the last kept (90m, 24h, 7d).",
)
@click.option(
    "--keep-best",
    metavar="METRIC[:max]=N",
    multiple=True,
    help="Keep the N with the smallest, or with :max the largest, values of a metric; repeatable.",
)
@click.option("--keep-younger", metavar="AGE", callback=parse_age, help="Keep what was saved since.")
@click.option("--keep", "names", metavar="NAME", multiple=True, help="Keep this checkpoint; repeatable.")
@click.option(
    "--unlisted",
    is_flag=True,
    help="Judge complete checkpoints that the record does not list, too: those of a saver that keeps all, "
    "but also those that were preserved for good or copied in.",
)
@click.option(
    "--record", "record_name", metavar="NAME", help="The record to go by, if it is not 'checkpoint'."
)
@click.option("--dry-run", is_flag=True, help="Show what would be deleted, and what keeps the others.")
@click.option(
    "--plan-out",
    type=click.File("w", encoding="ascii", atomic=True),
    metavar="FILE",
    help="Delete nothing, and write down what would be deleted, for --apply.",
)
@click.option(
    "--apply",
    "plan_file",
    type=click.File(encoding="utf-8", errors="replace"),
    metavar="FILE",
    help="Delete what this plan names, without a question; nothing if the record or one of the checkpoints "
    "has changed since.",
)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation. Without a terminal it is needed.")
def prune_command(
    output: Output,
    storage_options: Options,
    *,
    target: str,
    keep_last: int | None,
    keep_every_steps: int | None,
    keep_every: float | None,
    keep_best: tuple[str, ...],
    keep_younger: float | None,
    names: tuple[str, ...],
    unlisted: bool,
    record_name: str | None,
    dry_run: bool,
    plan_out: IO[str] | None,
    plan_file: IO[str] | None,
    yes: bool,
) -> int:
    """Delete the checkpoints of the directory DIR that none of the given rules keeps.

    With the prefix of a series (run/model for run/model-1000) only that series is judged. The newest
    checkpoint of each series always stays. So do pinned ones, and those that no saver with steps owns.

    Savers may keep running: none is fenced, and none loses what it is saving.

    Exit code 3 if there is no record, 7 if a plan does not fit any more.
    """
    from ckptstore.directory.latest import record_location
    from ckptstore.directory.prune import PruneReport, PruneRequest, prune
    from ckptstore.directory.prune_plan_file import apply_plan, plan_text
    from ckptstore.storage.registry import locate
    from ckptstore.view.prune_report import prune_total
    from ckptstore.view.text import escaped

    rules = _rules(keep_last, keep_every_steps, keep_every, keep_best, keep_younger)
    directory_of = partial(_series, locate(target, storage_options))
    if plan_file is not None:
        if rules or names or unlisted or dry_run or plan_out is not None:
            raise UsageError("--apply goes with no other rule or option", hint="The plan says what goes.")
        directory, _ = directory_of()
        request = PruneRequest(directory, record_location(directory, record_name), ())
        return _show(output, apply_plan(request, plan_file.read(_LARGEST_PLAN)))
    if not rules and not names:
        raise UsageError(
            "nothing says what to keep", hint="Give --keep-last or another rule; --help lists them."
        )
    dry_run = dry_run or plan_out is not None
    if not (dry_run or yes or is_interactive()):
        raise UsageError("there is no terminal to ask on", hint="Give --yes, or --dry-run to look only.")
    directory, basename = directory_of()
    request = PruneRequest(
        directory, record_location(directory, record_name), rules, names, basename, unlisted
    )
    plan = request.plan()
    output.prune_plan(plan)
    if plan_out is not None:
        plan_out.write(plan_text(plan))
    if dry_run:
        output.pruned(PruneReport(plan), dry_run=True)
        return OK
    if plan.victims and not yes and not ask(f"Delete {prune_total(plan.victims)}, from {escaped(plan.url)}?"):
        output.note("nothing was deleted")
        return OK
    return _show(output, prune(request, plan))


def _show(output: Output, report: PruneReport) -> int:
    output.pruned(report, dry_run=False)
    if report.error is not None:
        output.error(report.error)
        return exit_code_of(report.error)
    return OK


def _rules(
    last: int | None,
    every_steps: int | None,
    every_s: float | None,
    best: tuple[str, ...],
    younger_s: float | None,
) -> list[NamedRule]:
    """Return the rules, each with its option."""
    from ckptstore.directory.retention_rules import Best, EveryHours, EveryNSteps, Latest, YoungerThan

    rules: list[NamedRule] = []
    if last is not None:
        rules.append((f"--keep-last {last}", Latest(last)))
    if every_steps is not None:
        rules.append((f"--keep-every-steps {every_steps}", EveryNSteps(every_steps)))
    if every_s is not None:
        rules.append((f"--keep-every {age_text(every_s)}", EveryHours(every_s / 3600.0)))
    for text in best:
        metric, _, number = text.rpartition("=")
        if not metric or not (number.isdecimal() and number.isascii() and len(number) < _MOST_DIGITS):
            raise UsageError(
                "--keep-best has an unknown form", expected="METRIC=N or METRIC:max=N", actual=repr(text)
            )
        is_max = metric.endswith(":max")
        name = metric.removesuffix(":max" if is_max else ":min")
        rules.append((f"--keep-best {text}", Best(int(number), name, "max" if is_max else "min")))
    if younger_s is not None:
        rules.append((f"--keep-younger {age_text(younger_s)}", YoungerThan(younger_s)))
    return rules


def _series(location: Location) -> tuple[Location, str | None]:
    """Return the directory that is meant, and the basename if `location` is that of a series."""
    from ckptstore.cli.targets import at_directory, require_directory
    from ckptstore.directory.catalog import list_checkpoints

    directory = at_directory(location)
    try:
        require_directory(directory)
    except (NotFoundError, UsageError):
        if location.key and list_checkpoints(location.parent, f"{location.name}-"):
            return location.parent, location.name
        raise
    return directory, None
