"""From nested containers of arrays to the numbered objects of a checkpoint.

Format
------
Mirrors TensorFlow `tensorflow/python/checkpoint/graph_view.py` and
`tensorflow/python/trackable/data_structures.py`:

* Ids are given in breadth-first order, children in the order of their container. Slot variables come last.
* An array that can be reached twice is one object. Its path is the shortest one, and of equally short ones
  the first.
* A dictionary or list is one object per place in which it occurs, because TensorFlow wraps it anew at each;
  the places inside a container that itself occurs twice are the same places. This also ends the walk through
  a cycle.
* An optimizer's own variables and its slots are ordered by name.
* The elements of a named tuple are children by field name and by number. A tuple without contents is not an
  object; an empty dictionary or list is one.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ckptstore.errors import UsageError
from ckptstore.format.object_graph import object_path
from ckptstore.frameworks import instead_of
from ckptstore.suggest import did_you_mean
from ckptstore.trackable.optimizer import Optimizer
from ckptstore.trackable.tree import ItemRef, Tree, TreeNode

__all__ = ["check_member", "walk"]

# Immutable: two equal ones may be the same Python object, so they are distinguished by their place.
_PLAIN_VALUES = (bool, int, float, complex, str, bytes, np.generic)


def check_member(name: str, value: Any) -> None:
    """Raise `UsageError` unless `value` can be a child of the root; its contents are not checked."""
    if value is None or _identity(value, 0) is _UNKNOWN:
        raise _not_saveable(value, name)


def walk(root: Any, attached: Mapping[str, Any] | None = None) -> Tree:
    """Return the objects that can be reached from `root`.

    Parameters
    ----------
    root : object
        A container, an `Optimizer`, or a value.
    attached : mapping, optional
        Further children of the root, after its own. The root itself may be among them.

    Raises
    ------
    UsageError
        If something in it is neither a container nor a value, a name is not text, an attached child has the
        name of another child, or a slot variable is not for a variable of the tree. ``tensor`` names the
        path.
    """
    walker = _Walker(root)
    tree = walker.tree
    for node_id, node in enumerate(tree.nodes):
        if not node.has_value:
            walker.add_members(node_id, node.value)
        if node_id == 0 and attached is not None:
            walker.add_attached(attached)
    walker.add_slots()
    return tree


class _Walker:
    def __init__(self, root: Any) -> None:
        self.tree = Tree([])
        self._known: dict[Hashable, int] = {}
        identity = _identity(root, None)
        if identity is _ABSENT:
            raise UsageError("there is nothing to save in the root", actual=repr(root))
        if identity is _UNKNOWN:
            raise _not_saveable(root, "")
        self.tree.nodes.append(TreeNode(root, None, _has_value(root)))
        self._known[identity] = 0

    def add_members(self, node_id: int, value: Any) -> None:
        """Append the children of a container."""
        for name, member, spot, ref in _members(node_id, value):
            if not isinstance(name, str):
                raise UsageError(
                    "the keys of a dictionary must be text",
                    tensor=self.tree.path(node_id),
                    expected="str",
                    actual=repr(name),
                    hint="Use str(key), or a list.",
                )
            self._add(node_id, name, member, spot, ref)

    def add_attached(self, attached: Mapping[str, Any]) -> None:
        """Append children of the root that are not in the root's own container."""
        root = self.tree.nodes[0]
        own = dict(root.children)
        for name, value in attached.items():
            ref = ItemRef(attached, name)
            if name in own:
                node = self.tree.nodes[own[name]]
                if node.value is not value:
                    raise UsageError(
                        f"the root already has a child {name!r}",
                        tensor=name,
                        hint="Choose another name for one of the two.",
                    )
                node.refs.append(ref)
            elif value is root.value:
                root.children.append((name, 0))
                root.refs.append(ref)
            else:
                self._add(0, name, value, (id(attached), name), ref)

    def _add(self, parent: int, name: str, value: Any, spot: Hashable, ref: ItemRef) -> None:
        nodes = self.tree.nodes
        identity = _identity(value, spot)
        if identity is _ABSENT:
            return
        if identity is _UNKNOWN:
            raise _not_saveable(value, object_path([*self.tree.local_names(parent), name]))
        node_id = self._known.get(identity)
        if node_id is None:
            node_id = self._known[identity] = len(nodes)
            nodes.append(TreeNode(value, (parent, name), _has_value(value)))
        nodes[parent].children.append((name, node_id))
        nodes[node_id].refs.append(ref)

    def add_slots(self) -> None:
        """Append the slot variables of all optimizers: by optimizer, slot name, variable."""
        tree = self.tree
        count = len(tree.nodes)
        for node_id in range(count):
            optimizer = tree.nodes[node_id].value
            if not isinstance(optimizer, Optimizer):
                continue
            by_name = _mapping(optimizer.slots, "the slots of an optimizer")
            for name in _sorted_names(by_name):
                if not isinstance(name, str):
                    raise UsageError("a slot's name must be text", expected="str", actual=repr(name))
                by_path = by_name[name]
                found: dict[int, str] = {}
                for path in _mapping(by_path, f"the slot {name!r} of an optimizer"):
                    variable = self._variable(path)
                    if found.setdefault(variable, path) != path:
                        raise UsageError(
                            f"slot {name!r} has two values for one variable",
                            tensor=path,
                            hint=f"{found[variable]!r} is the same array.",
                        )
                for variable in sorted(found):
                    self._add_slot(node_id, name, variable, by_path, found[variable])

    def _variable(self, path: Any) -> int:
        tree = self.tree
        found = tree.find(path) if isinstance(path, str) else None
        if found is not None and tree.nodes[found].has_value and tree.slot_at(found) is None:
            return found
        raise UsageError(
            "a slot belongs to a variable of the tree, named by its path from the root",
            tensor=path if isinstance(path, str) else repr(path),
            actual="no such variable" if found is None else "a container",
            hint=did_you_mean(path, tree.plain_paths()) or "Give the path, e.g. 'net/w'.",
        )

    def _add_slot(
        self, optimizer: int, name: str, variable: int, holder: Mapping[str, Any], path: str
    ) -> None:
        value = holder[path]
        identity = _identity(value, (id(holder), path))
        if identity is _ABSENT:
            return
        if identity is _UNKNOWN or not _has_value(value):
            raise _not_saveable(value, f"{path}, slot {name}")
        if identity in self._known:
            raise UsageError(
                f"the array of slot {name!r} is used twice",
                tensor=path,
                hint="Every slot needs an array of its own.",
            )
        self._known[identity] = len(self.tree.nodes)
        self.tree.add_slot(optimizer, name, variable, value, ItemRef(holder, path))


class _Sentinel:
    pass


_ABSENT = _Sentinel()
_UNKNOWN = _Sentinel()


def _identity(value: Any, spot: Hashable) -> Hashable:
    """Return the key under which `value` is one object; `spot` identifies the place in which it occurs."""
    if isinstance(value, np.ndarray | Optimizer):
        return _UNKNOWN if isinstance(value, np.ma.MaskedArray) else id(value)
    if isinstance(value, _PLAIN_VALUES):
        return spot
    if isinstance(value, Mapping | list):
        return spot
    if isinstance(value, tuple):
        return spot if _holds_something(value) else _ABSENT
    return _ABSENT if value is None else _UNKNOWN


def _has_value(value: Any) -> bool:
    return not isinstance(value, Mapping | list | tuple | Optimizer)


def _holds_something(value: tuple[Any, ...]) -> bool:
    pending: list[Any] = [value]
    while pending:
        for element in pending.pop():
            if isinstance(element, tuple):
                pending.append(element)
            elif element is not None:
                return True
    return False


def _members(node_id: int, value: Any) -> Iterator[tuple[Any, Any, Hashable, ItemRef]]:
    """Yield local name, value, spot and ref of everything in a container."""
    if isinstance(value, Optimizer):
        own = _mapping(value.values, "the values of an optimizer")
        for key in _sorted_names(own):
            yield key, own[key], (id(own), key), ItemRef(own, key)
    elif isinstance(value, Mapping):
        for key, member in value.items():
            yield key, member, (id(value), key), ItemRef(value, key)
    elif isinstance(value, list):
        for index, member in enumerate(value):
            yield str(index), member, (id(value), index), ItemRef(value, index)
    elif isinstance(value, tuple):
        # TensorFlow makes a new tuple of wrapped elements for each place, so the spot is the node's.
        for index, name in enumerate(_field_names(value)):
            yield name, value[index], (node_id, "field", index), ItemRef(value, index)
        for index, member in enumerate(value):
            yield str(index), member, (node_id, "field", index), ItemRef(value, index)


def _sorted_names(mapping: Mapping[Any, Any]) -> list[Any]:
    # TensorFlow's optimizers list their variables by name. A key that is not text is refused later.
    return sorted(mapping, key=str)


def _field_names(value: tuple[Any, ...]) -> Sequence[str]:
    return getattr(value, "_fields", ())


def _mapping(value: Any, what: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise UsageError(f"{what} must be a dictionary", actual=type(value).__name__)
    return value


def _not_saveable(value: Any, path: str) -> UsageError:
    if isinstance(value, np.ma.MaskedArray):
        return UsageError(
            "a masked array would lose its mask",
            tensor=path,
            hint="Put x.filled(value) and np.ma.getmaskarray(x) into the tree.",
        )
    if hasattr(type(value), "__array__"):
        # A framework's variable could be read, but not be filled by a restore.
        return UsageError(
            "this value is neither an array nor a number",
            tensor=path,
            expected="a numpy array, a number or text",
            actual=type(value).__name__,
            hint=f"{instead_of(value) or 'Put np.array(x) into the tree before a save.'}"
            " After a restore, copy it back.",
        )
    return UsageError(
        "a checkpoint cannot hold this",
        tensor=path,
        expected="an array, a number, text, a dictionary, list or tuple of them, or an Optimizer",
        actual=type(value).__name__,
        hint=instead_of(value),
    )
