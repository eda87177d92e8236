"""The parts that all commands share: common options, and how warnings and errors are shown."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Concatenate, TextIO

import click

from ckptstore.cli.exit_codes import exit_code_of
from ckptstore.cli.output import Output
from ckptstore.errors import CkptStoreError, CkptStoreWarning

__all__ = ["Options", "open_output", "parse_storage_option", "shell_command"]

Options = dict[str, Any]
"""Options of the storage backend."""


def shell_command(name: str) -> Callable[[Callable[Concatenate[Output, Options, ...], int]], click.Command]:
    """Make a function the subcommand `name`; goes above click's own decorators.

    The function gets the output, the storage options and its own arguments by name, and returns the exit
    code. A `CkptStoreError` that it raises is shown and becomes the exit code.
    """

    def decorate(function: Callable[Concatenate[Output, Options, ...], int]) -> click.Command:
        @functools.wraps(function)
        def run(*, as_json: bool, storage_option: tuple[tuple[str, Any], ...], **arguments: Any) -> int:
            output = open_output(as_json=as_json)
            with _warnings_shown(output):
                try:
                    return function(output, dict(storage_option), **arguments)
                except CkptStoreError as error:
                    output.error(error)
                    return exit_code_of(error)

        command = click.command(name)(run)
        command.params += _common_options()
        return command

    return decorate


def open_output(*, as_json: bool) -> Output:
    """Return the output for this run."""
    # Imported here, so that --help is fast.
    if as_json:
        from ckptstore.cli.json_output import JsonOutput

        return JsonOutput()
    from ckptstore.cli.console import ConsoleOutput

    return ConsoleOutput()


def _common_options() -> list[click.Parameter]:
    return [
        click.Option(
            ["--json", "as_json"],
            is_flag=True,
            help="One JSON object on standard output; warnings and errors as JSON lines on standard error.",
        ),
        click.Option(
            ["--storage-option"],
            multiple=True,
            metavar="KEY=VALUE",
            callback=lambda context, parameter, values: tuple(map(parse_storage_option, values)),
            help="Option of the storage backend; repeatable. VALUE is JSON (true, 8, {…}) or plain text.",
        ),
    ]


def parse_storage_option(text: str) -> tuple[str, Any]:
    """Return key and value of ``KEY=VALUE``.

    Raises
    ------
    click.BadParameter
        If there is no ``=``, or no key before it. The message does not repeat the text: it may be a secret.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise click.BadParameter("expected KEY=VALUE")
    try:
        return key, json.loads(value)
    except (ValueError, RecursionError):
        return key, value


@contextmanager
def _warnings_shown(output: Output) -> Iterator[None]:
    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        output.warning(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always", CkptStoreWarning)
        # Filters for other warnings stay as the interpreter was configured.
        warnings.showwarning = show
        yield
