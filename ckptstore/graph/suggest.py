"""Close names for error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["close_names"]

_MAX_CANDIDATES = 500
_MAX_LENGTH = 200


def close_names(wanted: str, known: Iterable[str], what: str, *, suffix: str = "") -> str:
    """Return a sentence with the names in `known` that come closest to `wanted`.

    Comparing text is slow: in a graph of 100 000 nodes only the names that share their last part or their
    beginning with `wanted` are compared.

    Parameters
    ----------
    wanted : str
        The name that was not found.
    known : iterable of str
    what : str
        What `known` lists, e.g. ``"operations"``.
    suffix : str
        What to put behind a name that is proposed.
    """
    names = sorted(set(known))
    if not names:
        return f"There are no {what}."
    few = f"There are {len(names)} {what}" if len(names) > 8 else f"Known {what}: {', '.join(names)}"
    if len(wanted) > _MAX_LENGTH:
        return few + "."
    candidates = names if len(names) <= _MAX_CANDIDATES else _plausible(wanted, names)
    close = difflib.get_close_matches(wanted, [name for name in candidates if len(name) <= _MAX_LENGTH], n=3)
    return f"Did you mean {' or '.join(repr(name + suffix) for name in close)}?" if close else few + "."


def _plausible(wanted: str, names: list[str]) -> list[str]:
    """Return the names in the same scope, those with the same last part, and those that begin alike."""
    folded = [(name.casefold(), name) for name in names]
    scope, _, last_part = wanted.casefold().rpartition("/")
    beginning = wanted.casefold()[:4]
    found = [[name for fold, name in folded if fold.startswith(scope + "/")]] if scope else []
    found.append([name for fold, name in folded if fold.endswith("/" + last_part)])
    found.append([name for fold, name in folded if fold.startswith(beginning)])
    return [name for group in found for name in group[:_MAX_CANDIDATES]]
