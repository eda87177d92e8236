"""Ages on the command line: ``0s``, ``90m``, ``24h``, ``7d``."""

from __future__ import annotations

import re

import click

__all__ = ["parse_age"]

_AGE = re.compile(r"([0-9]{1,9})([smhd])")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_age(context: click.Context, parameter: click.Parameter, text: str) -> float:
    """Return the age in seconds; a callback for an option.

    Raises
    ------
    click.BadParameter
        If it is none. A bare number is refused: it could mean anything, and files are deleted by it.
    """
    match = _AGE.fullmatch(text)
    if match is None:
        raise click.BadParameter(f"{text!r} is no age: give a number and s, m, h or d, e.g. 24h")
    return int(match[1]) * _SECONDS[match[2]]
