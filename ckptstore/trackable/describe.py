"""From the objects of a tree to the object graph that is stored beside their values."""

from __future__ import annotations

from collections.abc import Mapping

from ckptstore.errors import UsageError
from ckptstore.format.object_graph import (
    VARIABLE_VALUE,
    Attribute,
    Child,
    Node,
    SlotVariable,
    checkpoint_key,
    mark_checkpoint_values,
)
from ckptstore.suggest import did_you_mean
from ckptstore.trackable.optimizer import Optimizer
from ckptstore.trackable.tree import Tree

__all__ = ["SAVE_COUNTER", "describe"]

SAVE_COUNTER = "save_counter"
"""The child of the root that counts saves."""

# TensorFlow's name for a variable without one. Only name-based restore reads it.
_UNNAMED = "Variable"


def describe(tree: Tree, full_names: Mapping[str, str] | None = None) -> list[Node]:
    """Return the object graph of `tree`.

    Parameters
    ----------
    tree : Tree
    full_names : mapping, optional
        Path as in keys → name of the variable, for TensorFlow's name-based restore. The others are named as
        TensorFlow names unnamed variables: those of an optimizer and the save counter by their local name,
        slot variables by the names of their variable and slot, all others ``Variable``.

    Raises
    ------
    UsageError
        If `full_names` has a path that the tree does not have.
    """
    given = dict(full_names or {})
    names: dict[int, str] = {}
    attributes: list[tuple[Attribute, ...]] = []
    for node_id, node in enumerate(tree.nodes):
        if not node.has_value:
            attributes.append(())
            continue
        path = tree.path(node_id)
        names[node_id] = given.pop(path, "") or _default_name(tree, node_id, names)
        attributes.append((Attribute(VARIABLE_VALUE, checkpoint_key(path), names[node_id]),))
    if given:
        path = next(iter(given))
        known = [tree.path(node_id) for node_id in names]
        raise UsageError(
            "a name is given for a variable that the tree does not have",
            tensor=path,
            hint=did_you_mean(path, known, limit=1),
        )
    slots: dict[int, list[SlotVariable]] = {}
    for optimizer, name, variable, slot in tree.slots:
        slots.setdefault(optimizer, []).append(SlotVariable(variable, name, slot))
    return mark_checkpoint_values(
        [
            Node(
                tuple(Child(child, name) for name, child in node.children),
                attributes[node_id],
                tuple(slots.get(node_id, ())),
            )
            for node_id, node in enumerate(tree.nodes)
        ]
    )


def _default_name(tree: Tree, node_id: int, names: Mapping[int, str]) -> str:
    slot = tree.slot_at(node_id)
    if slot is not None:
        return f"{names[slot.variable]}/{slot.name}"
    parent = tree.nodes[node_id].parent
    if parent is None:
        return _UNNAMED
    if parent == (0, SAVE_COUNTER) or isinstance(tree.nodes[parent[0]].value, Optimizer):
        return parent[1]
    return _UNNAMED
