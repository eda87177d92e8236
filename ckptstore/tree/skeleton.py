"""A tree without its arrays: what `flatten` makes, the document holds and `match` compares with another tree.

A skeleton is made of `dict`, `OrderedDict`, `Counter`, `list`, `tuple`, `Fields`, plain values, and an
`ArrayNode` in the place of each array.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ckptstore.tree.habit import Key, Path, TreeMember

__all__ = [
    "DEPTH",
    "MAPPINGS",
    "TREE_TENSOR",
    "ArrayNode",
    "Fields",
    "array_nodes",
    "is_key",
    "is_plain",
    "members",
    "remade",
]

# The tensor that holds the document.
TREE_TENSOR = "_CKPTSTORE_TREE"

# Deeper trees contain themselves, or are meant to exhaust the stack of whoever reads them.
DEPTH = 100

_KEYS = (type(None), bool, int, float, complex, str, bytes)
MAPPINGS = (dict, collections.OrderedDict, collections.Counter)


@dataclass(frozen=True, slots=True)
class ArrayNode:
    """A tensor of the checkpoint. `kind` is what `Habit.array_kind` said, or ``numpy``, ``numpy scalar``."""

    name: str
    kind: str = ""


class Fields(dict[Key, Any]):
    """The members of a container that only the framework knows, by key."""


def is_key(value: Any) -> bool:
    """Return whether the document can hold a value as the key of a mapping or the member of a set."""
    if type(value) is tuple:
        return all(map(is_key, value))
    return type(value) in _KEYS


def is_plain(value: Any) -> bool:
    """Return whether the document can hold a value without the help of a framework; tuples are containers."""
    if type(value) in (set, frozenset):
        return all(map(is_key, value))
    return type(value) in _KEYS


def members(value: Any) -> list[TreeMember] | None:
    """Return the members of a container, None if it is none."""
    if type(value) in MAPPINGS or type(value) is Fields:
        return [TreeMember(key, member) for key, member in value.items()]
    if type(value) in (list, tuple):
        return [TreeMember(index, member) for index, member in enumerate(value)]
    return None


def remade(container: Any, made: list[tuple[Key, Any]]) -> Any:
    """Return a container of the same type with other members; `Fields` become `Fields`."""
    if isinstance(container, list | tuple):
        return type(container)([member for _, member in made])
    result = type(container)()
    for key, member in made:
        result[key] = member
    return result


def array_nodes(skeleton: Any) -> Iterator[tuple[Path, ArrayNode]]:
    """Yield every array with its path, in the order of the tree."""
    if isinstance(skeleton, ArrayNode):
        yield (), skeleton
    for key, member in members(skeleton) or ():
        for path, node in array_nodes(member):
            yield (key, *path), node
