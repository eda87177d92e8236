"""A caller's tree beside the skeleton of a checkpoint: which arrays are filled, which values are replaced."""

from __future__ import annotations

import collections
from collections.abc import Callable, Collection
from typing import Any, TypeAlias

import numpy as np

from ckptstore.errors import UsageError
from ckptstore.tree.habit import Habit, Path, TreeMember, is_numpy, shown
from ckptstore.tree.skeleton import (
    DEPTH,
    TREE_TENSOR,
    ArrayNode,
    Fields,
    array_nodes,
    is_plain,
    members,
    remade,
)

__all__ = ["ABSENT", "ArrayOf", "Filling", "build", "match"]

ArrayOf: TypeAlias = Callable[[ArrayNode], Any]
_Made: TypeAlias = Callable[[ArrayOf], Any]


class _Absent:
    """In the place of a node: the checkpoint has no document, or has nothing there."""


ABSENT = _Absent()
_MISSING = _Absent()


class Filling:
    """What a restore into a tree has to do.

    Attributes
    ----------
    filled : dict of str to list of object
        Arrays of the tree, by the name of their tensor in the checkpoint; several if they were tied.
    created : dict of str to ArrayNode
        Tensors without an array in the tree: they take the place of None, an empty container or a value.
    missing : list of str
        What the tree has and the checkpoint has not: names of arrays, places of other values.
    missing_arrays : dict of str to object
        The arrays among them: the same memory may be filled under another name.
    unexpected : list of str
        What the checkpoint has and the tree has not.
    edits, root : list, tuple
        What `finish` does: for the comparison alone.
    """

    def __init__(self) -> None:
        self.filled: dict[str, list[Any]] = {}
        self.created: dict[str, ArrayNode] = {}
        self.missing: list[str] = []
        self.missing_arrays: dict[str, Any] = {}
        self.unexpected: list[str] = []
        self.edits: list[tuple[Any, Any, _Made]] = []
        self.root: tuple[Any, _Made | None] = (None, None)

    def finish(self, array_of: ArrayOf) -> Any:
        """Put the plain values and the created arrays in their places, and return the tree.

        Call it when every array has been read: before, nothing of the tree is changed. Dictionaries and lists
        are changed in place; a tuple is replaced where it stands.
        """
        made = [(container, key, make(array_of)) for container, key, make in self.edits]
        for container, key, value in made:
            container[key] = value
        root, make = self.root
        return root if make is None else make(array_of)


def match(tree: Any, skeleton: Any, habit: Habit, names: Collection[str]) -> Filling:
    """Compare a tree with a skeleton; neither is changed.

    None and an empty container in the tree take what the checkpoint has in their place. A list, tuple or
    counter without arrays is one value. Elsewhere both must agree on what is a container, an array, or a
    plain value.

    Parameters
    ----------
    tree : object
        With arrays that can be filled.
    skeleton : object
        Of the checkpoint; `ABSENT` if it has no document.
    habit : Habit
    names : collection of str
        The tensors of the checkpoint.

    Raises
    ------
    UsageError
        If they do not agree. ``tensor`` is the name.
    """
    comparison = _Comparison(habit, names)
    found = comparison.found
    found.root = (tree, comparison.compare(tree, skeleton, ()))
    if skeleton is ABSENT:
        used = found.filled.keys() | found.created.keys() | {TREE_TENSOR}
        found.unexpected = sorted(set(names) - used)
    return found


def build(skeleton: Any, array_of: ArrayOf) -> Any:
    """Return a new tree, with the arrays that `array_of` gives.

    Containers that only the framework knows become dictionaries.
    """
    if isinstance(skeleton, ArrayNode):
        return array_of(skeleton)
    inside = members(skeleton)
    if inside is None:
        return skeleton
    made = [(child.key, build(child.value, array_of)) for child in inside]
    return dict(made) if isinstance(skeleton, Fields) else remade(skeleton, made)


class _Comparison:
    def __init__(self, habit: Habit, names: Collection[str]) -> None:
        self.found = Filling()
        self._habit = habit
        self._names = names

    def compare(self, value: Any, node: Any, path: Path) -> _Made | None:
        """Return what makes the value that takes the place of `value`; None: it stays."""
        if len(path) > DEPTH:
            raise UsageError(f"the tree is deeper than {DEPTH} containers", actual=f"{shown(path[:4])}…")
        is_array = is_numpy(value) or self._habit.array_kind(value) is not None
        children = None if is_array else self._children(value)
        if children:
            return self._container(value, children, node, path)
        if node is ABSENT:
            name = self._habit.name_of(path)
            node = ArrayNode(name) if name in self._names else _MISSING
        if node is _MISSING:
            if is_array:
                name = self._habit.name_of(path)
                self.found.missing.append(name)
                self.found.missing_arrays[name] = value
            elif children is None and value is not None:
                self.found.missing.append(shown(path))
            return None
        if is_array:
            return self._array(value, node, path)
        if children is None and not self._is_plain(value) and self._has_nodes(node):
            raise self._differ(path, f"{type(value).__module__}.{type(value).__qualname__}", node)
        return self._created(node)

    def _is_plain(self, value: Any) -> bool:
        return is_plain(value) or self._habit.plain_of(value) is not None

    def _has_nodes(self, node: Any) -> bool:
        """Return whether a node is what somebody may hold by an object of his own, a model for example.

        A dictionary in its place would leave the object as it was.
        """
        return isinstance(node, ArrayNode) or members(node) is not None

    def _array(self, value: Any, node: Any, path: Path) -> _Made | None:
        if node is None or (isinstance(node, ArrayNode) and isinstance(value, np.generic)):
            # A scalar of numpy is a value: it cannot be filled.
            return self._created(node)
        if isinstance(node, ArrayNode):
            self.found.filled.setdefault(node.name, []).append(value)
            return None
        raise self._differ(path, "an array", node)

    def _container(self, value: Any, children: list[TreeMember], node: Any, path: Path) -> _Made | None:
        is_list = isinstance(value, list | tuple | collections.Counter)
        inside = members(node)
        if inside is None and node is not ABSENT and node is not _MISSING:
            raise self._differ(path, "a container", node)
        if is_list and inside is not None and not self._has_array(value) and not any(array_nodes(node)):
            return self._created(node)
        if is_list and isinstance(node, list | tuple) and len(children) < len(node):
            # Else a part of what belongs together would be left out.
            raise self._differ(path, f"a container of {len(children)}", node)
        nodes = dict(inside or ())
        default = node if inside is None else _MISSING
        replaced: dict[Any, _Made] = {}
        for key, member in children:
            make = self.compare(member, nodes.pop(key, default), (*path, key))
            if make is not None:
                replaced[key] = make
        for key, left in nodes.items():
            names = [one.name for _, one in array_nodes(left)]
            self.found.unexpected += names or [shown((*path, key))]
        return self._replace(value, replaced, path) if replaced else None

    def _replace(self, value: Any, replaced: dict[Any, _Made], path: Path) -> _Made | None:
        if isinstance(value, dict | list):
            self.found.edits += [(value, key, make) for key, make in replaced.items()]
            return None
        if type(value) is tuple:
            return lambda array_of: tuple(
                replaced[index](array_of) if index in replaced else member
                for index, member in enumerate(value)
            )
        raise UsageError(
            f"what stands at {shown(path)} cannot be changed in place",
            expected="arrays of the checkpoint's tree, or a dictionary, list or tuple",
            actual=type(value).__qualname__,
        )

    def _created(self, node: Any) -> _Made:
        for _, one in array_nodes(node):
            self.found.created[one.name] = one
        return lambda array_of: build(node, array_of)

    def _children(self, value: Any) -> list[TreeMember] | None:
        if isinstance(value, dict):
            return [TreeMember(key, member) for key, member in value.items()]
        found = self._habit.children(value)
        return members(value) if found is None else list(found)

    def _has_array(self, value: Any) -> bool:
        if is_numpy(value) or self._habit.array_kind(value) is not None:
            return True
        return any(self._has_array(child.value) for child in self._children(value) or ())

    def _differ(self, path: Path, expected: str, node: Any) -> UsageError:
        if isinstance(node, ArrayNode):
            actual = "an array"
        elif members(node) is not None:
            actual = f"a container of {len(members(node) or ())}"
        else:
            actual = f"{type(node).__qualname__} {node!r}"
        return UsageError(
            f"the tree and the checkpoint differ at {shown(path)}",
            tensor=self._habit.name_of(path),
            expected=f"{expected}, as in the tree",
            actual=f"{actual} in the checkpoint",
            hint="Pass a tree like the one that was saved; None takes whatever the checkpoint has.",
        )
