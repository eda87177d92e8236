"""Asking a person before something is deleted."""

from __future__ import annotations

import sys

import click

__all__ = ["ask", "is_interactive"]


def ask(question: str) -> bool:
    """Return the answer to a question; Ctrl-C and Ctrl-D are passed on."""
    try:
        return click.confirm(question, err=True)
    except click.Abort:
        # The next message starts on its own line.
        print(file=sys.stderr)
        raise


def is_interactive() -> bool:
    """Return whether there is somebody to ask."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))
