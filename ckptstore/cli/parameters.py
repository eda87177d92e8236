"""Values of options: ages (``0s``, ``90m``, ``24h``, ``7d``) and numpy's print options (``k=v``)."""

from __future__ import annotations

import re
from typing import Any

import click
from click.shell_completion import CompletionItem

__all__ = ["age_text", "complete_path", "parse_age", "parse_printoption"]

_AGE = re.compile(r"([0-9]{1,9})([smhd])")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

_TRUE = ("true", "t", "1")
_FALSE = ("false", "f", "0")


def complete_path(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Let the shell complete files and directories; of a URL it completes nothing."""
    return [] if "://" in incomplete else [CompletionItem(incomplete, type="file")]


def parse_age(context: click.Context, parameter: click.Parameter, text: str | None) -> float | None:
    """Return the age in seconds; a callback for an option. None for one that is not given.

    Raises
    ------
    click.BadParameter
        If `text` is not an age. A bare number is refused: its unit would be a guess, and files are
        deleted by it.
    """
    if text is None:
        return None
    match = _AGE.fullmatch(text)
    if match is None:
        raise click.BadParameter(f"{text!r} is not an age: give a number and s, m, h or d, e.g. 24h")
    return int(match[1]) * _SECONDS[match[2]]


def age_text(seconds: float) -> str:
    """Return an age as `parse_age` takes it, in the largest unit of which it is a multiple."""
    units = [(size, unit) for unit, size in _SECONDS.items() if seconds % size == 0]
    size, unit = max(units)
    return f"{seconds / size:.0f}{unit}"


def parse_printoption(text: str) -> tuple[str, Any]:
    """Return name and value of one of numpy's print options.

    Raises
    ------
    ValueError
        If numpy has no such option, or its value cannot be given as text. Worded as in TensorFlow's tool.
    """
    import numpy as np

    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"{text!r} is not in the form k=v.")
    present: dict[str, Any] = {**np.get_printoptions()}
    if name not in present:
        raise ValueError(f"{name!r} is not a valid printoption.")
    kind = type(present[name])
    if kind is type(None):
        raise ValueError(f"Setting {name!r} from the command line is not supported.")
    try:
        if kind is not bool:
            return name, kind(value)
        return name, (*_FALSE, *_TRUE).index(value.lower()) >= len(_FALSE)
    except ValueError as error:
        raise ValueError(f"{value!r} is not a value for {name!r}.") from error
