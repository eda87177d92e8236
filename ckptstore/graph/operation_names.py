"""Names that TensorFlow accepts for operations."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ckptstore.errors import UsageError

__all__ = ["check_name", "check_scope", "is_legal_name", "legal_names", "unused_scope"]

# Measured on TensorFlow 2.21. Its Python rule, [A-Za-z0-9.][A-Za-z0-9_.\\/>-]*, accepts more than its
# importer, which refuses a backslash, and a '>' unless a legal first character follows.
_PART = r"[A-Za-z0-9.][A-Za-z0-9_./-]*"
_LEGAL = re.compile(f"{_PART}(?:>{_PART})*")
_ILLEGAL_CHARACTER = re.compile(r"[^A-Za-z0-9_./>-]|>(?![A-Za-z0-9.])")


def is_legal_name(name: str) -> bool:
    """Whether TensorFlow accepts `name` for an operation."""
    return _LEGAL.fullmatch(name) is not None


def check_name(name: str) -> None:
    """Raise UsageError if `name` is not legal for an operation."""
    if not isinstance(name, str) or not is_legal_name(name):
        raise UsageError(
            "this is not a legal name for an operation",
            actual=repr(name)[:80],
            hint="Letters, digits and _ . - / are allowed; the first one is a letter, a digit or a dot.",
        )


def check_scope(scope: str) -> str:
    """Return `scope` without slashes at its end.

    Raises
    ------
    UsageError
        If it cannot begin an operation's name.
    """
    stripped = scope.rstrip("/") if isinstance(scope, str) else ""
    if not is_legal_name(stripped + "/a"):
        raise UsageError("this is not a legal name for a scope", actual=repr(scope)[:80])
    return stripped


def legal_names(keys: Sequence[str]) -> list[str]:
    """Return a legal name for each key, all different.

    A legal key stays unchanged. In the others each illegal character becomes ``_``, a ``v`` goes before an
    illegal first character, and ``_1``, ``_2`` … is appended if the name is taken.

    Parameters
    ----------
    keys : sequence of str
        All different.
    """
    fullmatch = _LEGAL.fullmatch
    if all(map(fullmatch, keys)):
        return list(keys)
    taken = {key for key in keys if fullmatch(key)}
    last_number: dict[str, int] = {}
    names = []
    for key in keys:
        name = key
        if not fullmatch(key):
            base = _ILLEGAL_CHARACTER.sub("_", key)
            if not fullmatch(base):
                base = "v" + base
            name = base
            while name in taken:
                last_number[base] = last_number.get(base, 0) + 1
                name = f"{base}_{last_number[base]}"
            taken.add(name)
        names.append(name)
    return names


def unused_scope(scope: str, names: Iterable[str]) -> str:
    """Return `scope`, with ``_1``, ``_2`` … appended if a name is equal to it or below it."""
    first_parts = {name.partition("/")[0] for name in names if name.startswith(scope)}
    number = 0
    found = scope
    while found in first_parts:
        number += 1
        found = f"{scope}_{number}"
    return found
