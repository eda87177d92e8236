"""The ``ckptstore`` command."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click
from click.shell_completion import shell_complete

from ckptstore import __version__
from ckptstore.cli.doctor import doctor_command
from ckptstore.cli.exit_codes import USAGE
from ckptstore.cli.gc import gc_command
from ckptstore.cli.inspect import inspect_command
from ckptstore.cli.ls import ls_command
from ckptstore.cli.pin import pin_command, unpin_command
from ckptstore.cli.prune import prune_command
from ckptstore.cli.repair import repair_command
from ckptstore.cli.run_guarded import run_guarded
from ckptstore.cli.verify import verify_command
from ckptstore.config import completion_request

__all__ = ["main"]

# The script that click makes for a shell sets it; `completion_request` reads it.
_COMPLETE_VARIABLE = "_CKPTSTORE_COMPLETE"


@click.group("ckptstore", context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ckptstore")
def _group() -> None:
    """List, inspect, check and repair TensorFlow checkpoints on a disk or in a bucket.

    Results go to standard output, everything else to standard error.

    \b
    Exit codes:
      0  done                    4  corrupt or incomplete
      1  not used                5  no access, or no space left
      2  usage                   6  transient failure: try again later
      3  not found               7  conflict with another writer

    \b
    Completion in bash, zsh or fish (here bash):
      eval "$(_CKPTSTORE_COMPLETE=bash_source ckptstore)"
    """


for _command in (
    *(inspect_command, ls_command, verify_command, pin_command, unpin_command),
    *(prune_command, gc_command, repair_command, doctor_command),
):
    _group.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Parameters
    ----------
    arguments : sequence of str, optional
        Without the program's name; those of the process by default.
    """
    request = completion_request()
    if request and arguments is None:
        return run_guarded(lambda: shell_complete(_group, {}, "ckptstore", _COMPLETE_VARIABLE, request))
    words = sys.argv[1:] if arguments is None else list(arguments)
    return run_guarded(lambda: _run(words))


def _run(arguments: list[str]) -> int:
    try:
        # Not click's main(): it has exit codes of its own for a broken pipe and Ctrl-C.
        with _group.make_context("ckptstore", arguments) as context:
            code: int = _group.invoke(context)
            return code
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        error.show()
        return USAGE
