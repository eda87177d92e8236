"""Close names for error messages: "Did you mean …?"."""

from __future__ import annotations

import bisect
import difflib
from collections.abc import Callable, Iterable

__all__ = ["close_names", "did_you_mean", "did_you_mean_or_known"]

# difflib compares the wanted name with each candidate in turn: 100 000 of them would take seconds. Its time
# also grows with the square of a name's length, and a name in a file may be a megabyte long.
_MAX_CANDIDATES = 1000
_MAX_LENGTH = 400

# Up to so many names are listed when none of them is close.
_MAX_LISTED = 10


def close_names(wanted: str, known: Iterable[str], *, limit: int = 3) -> list[str]:
    """Return up to `limit` of `known` that are most like `wanted`, the closest first."""
    if len(wanted) > _MAX_LENGTH:
        return []
    candidates = sorted({name for name in known if len(name) <= _MAX_LENGTH})
    if len(candidates) > _MAX_CANDIDATES:
        # A name with one mistake, or without its scope, still sorts beside the right one, read either
        # forwards or backwards.
        forwards = _neighbours(wanted, candidates, str.casefold)
        backwards = _neighbours(wanted, candidates, lambda name: name[::-1].casefold())
        candidates = sorted({*forwards, *backwards})
    return difflib.get_close_matches(wanted, candidates, n=limit)


def _neighbours(wanted: str, names: list[str], key: Callable[[str], str]) -> list[str]:
    """Return the names between which `wanted` would stand if `names` were sorted by `key`."""
    ordered = sorted(names, key=key)
    at = bisect.bisect_left(ordered, key(wanted), key=key)
    return ordered[max(0, at - _MAX_CANDIDATES // 4) : at + _MAX_CANDIDATES // 4]


def did_you_mean(wanted: object, known: Iterable[str], *, limit: int = 3, suffix: str = "") -> str | None:
    """Return the question with the names in `known` that are close to `wanted`; None if there are none.

    Parameters
    ----------
    wanted : object
        What was given; something other than text has no close names.
    known : iterable of str
    limit : int
        Names to propose at most.
    suffix : str
        Appended to each proposed name.
    """
    close = close_names(wanted, known, limit=limit) if isinstance(wanted, str) else []
    return f"Did you mean {' or '.join(repr(name + suffix) for name in close)}?" if close else None


def did_you_mean_or_known(
    wanted: object, known: Iterable[str], kind: str, *, suffix: str = "", listed_by: str = ""
) -> str:
    """Return `did_you_mean`, or without close names a sentence that lists or counts `known`.

    Parameters
    ----------
    wanted, known, suffix
        As for `did_you_mean`.
    kind : str
        What `known` holds, in the plural: ``"operations"``.
    listed_by : str
        What lists all of them: ``"list_variables()"``.
    """
    names = sorted(set(known))
    question = did_you_mean(wanted, names, suffix=suffix)
    if question is not None:
        return question
    if not names:
        return f"There are no {kind}."
    if len(names) <= _MAX_LISTED:
        return f"Known {kind}: {', '.join(map(repr, names))}."
    return f"There are {len(names)} {kind}{f'; {listed_by} lists them' if listed_by else ''}."
