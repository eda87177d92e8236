"""From a tree to its arrays by name, and a skeleton of everything else."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ckptstore.errors import UsageError
from ckptstore.format.object_graph import OBJECT_GRAPH_KEY
from ckptstore.frameworks import instead_of
from ckptstore.tree.habit import FieldKey, Habit, Path, is_numpy, shown
from ckptstore.tree.skeleton import DEPTH, TREE_TENSOR, ArrayNode, Fields, is_key, is_plain, members, remade

__all__ = ["Flat", "flatten"]

_OURS = (TREE_TENSOR, OBJECT_GRAPH_KEY)


@dataclass
class Flat:
    """The arrays of a tree by name, each memory once, and its skeleton.

    Attributes
    ----------
    arrays : dict of str to object
        As they stand in the tree: the adapter makes arrays of numpy of them.
    tied : dict of str to str
        Further names of an array, and the name that it is stored under.
    """

    arrays: dict[str, Any] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
    skeleton: Any = None


def flatten(tree: Any, habit: Habit) -> Flat:
    """Return the arrays and the skeleton of a tree.

    Raises
    ------
    UsageError
        If it holds something that is neither an array, a container nor a plain value, two arrays have one
        name, a name is not possible, or it is deeper than 100 containers. ``tensor`` is the name, and the
        message says where it stands.
    """
    walk = _Flatten(habit)
    walk.flat.skeleton = walk.skeleton_of(tree, ())
    return walk.flat


class _Flatten:
    def __init__(self, habit: Habit) -> None:
        self.flat = Flat()
        self._habit = habit
        self._places: dict[str, Path] = {}
        self._stored: dict[Hashable, str] = {}

    def skeleton_of(self, value: Any, path: Path) -> Any:
        if len(path) > DEPTH:
            raise UsageError(
                f"the tree is deeper than {DEPTH} containers",
                actual=f"{shown(path[:4])}…",
                hint="Perhaps it contains itself.",
            )
        if is_numpy(value):
            return self._array(value, path, "numpy" if isinstance(value, np.ndarray) else "numpy scalar")
        kind = self._habit.array_kind(value)
        if kind is not None:
            return self._array(value, path, kind)
        if self._habit.plain_of(value) is not None or is_plain(value):
            return value
        found = self._habit.children(value)
        if found is not None:
            return Fields((child.key, self._member(child.value, path, child.key)) for child in found)
        inside = members(value)
        if inside is None:
            raise self._not_saveable(value, path)
        made = [(child.key, self._member(child.value, path, child.key)) for child in inside]
        return remade(value, made)

    def _member(self, value: Any, path: Path, key: Any) -> Any:
        if not isinstance(key, FieldKey) and not is_key(key):
            raise UsageError(
                f"a key of {shown(path)} is neither text, a number, bytes, None nor a tuple of them",
                actual=f"{type(key).__qualname__} {key!r}",
            )
        return self.skeleton_of(value, (*path, key))

    def _array(self, value: Any, path: Path, kind: str) -> ArrayNode:
        name = self._habit.name_of(path)
        if not name or name in _OURS:
            raise UsageError(
                f"the array at {shown(path)} cannot be named {name!r}",
                hint="Give the tree a dictionary, or another key, as its root.",
            )
        if name in self._places:
            raise UsageError(
                "two arrays have the same name",
                tensor=name,
                actual=f"{shown(self._places[name])} and {shown(path)}",
                hint="Rename one of the keys.",
            )
        self._places[name] = path
        identity = self._habit.identity(value)
        if identity is not None:
            stored = self._stored.setdefault(identity, name)
            if stored != name:
                self.flat.tied[name] = stored
                return ArrayNode(stored, kind)
        self.flat.arrays[name] = value
        return ArrayNode(name, kind)

    def _not_saveable(self, value: Any, path: Path) -> UsageError:
        return UsageError(
            f"what stands at {shown(path)} can be saved neither as an array nor as a plain value",
            tensor=self._habit.name_of(path) or None,
            actual=f"{type(value).__module__}.{type(value).__qualname__}",
            hint=instead_of(value)
            or "Pass its arrays, numbers, texts, bytes, lists, tuples, sets and dictionaries.",
        )
