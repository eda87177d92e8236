"""The leaves of a skeleton by name: for trees that are not filled in place but made anew."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ckptstore.tree.habit import Habit, Path
from ckptstore.tree.skeleton import members

__all__ = ["leaves_by_name"]


def leaves_by_name(skeleton: Any, habit: Habit) -> dict[str, Any]:
    """Return every array node and every plain value of a skeleton by the name of its place.

    Where the kinds of containers differ, names still agree: a list, a tuple, named or not, and a dictionary
    with the same keys name their members alike. Of two places of one name the first counts.
    """
    found: dict[str, Any] = {}
    for path, leaf in _leaves(skeleton, ()):
        found.setdefault(habit.name_of(path), leaf)
    return found


def _leaves(skeleton: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    inside = members(skeleton)
    if inside is None:
        yield path, skeleton
    for key, member in inside or ():
        yield from _leaves(member, (*path, key))
