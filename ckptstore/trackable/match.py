"""Match the values of a checkpoint with the arrays of a tree.

Matching follows the object graph: from both roots along equal local names. The keys of the tensors do not
matter, so a checkpoint fits by whatever path its writer first reached an array.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from ckptstore.format.object_graph import OBJECT_GRAPH_KEY, VARIABLE_VALUE, Node
from ckptstore.trackable.tree import Tree

__all__ = ["Match", "match_graph", "match_names"]


@dataclass(frozen=True, slots=True)
class Match:
    """The pairs, and what is left over on either side.

    Attributes
    ----------
    values : dict
        Id of a node of the tree → name of the tensor that it receives.
    unmatched : tuple of str
        Paths of the tree for which the checkpoint has no value.
    unused : tuple of str
        Tensors of the checkpoint that nothing in the tree receives.
    """

    values: dict[int, str]
    unmatched: tuple[str, ...]
    unused: tuple[str, ...]


def match_graph(tree: Tree, nodes: Sequence[Node]) -> Match:
    """Match by the object graph of the checkpoint.

    Where two arrays of the tree were one when it was saved, both receive its value. Where one array was two,
    it receives the value under its shortest path, and the other one stays unused.

    Parameters
    ----------
    tree : Tree
    nodes : sequence of Node
        As decoded: every id in it exists. Cycles and repeated names are harmless; of equal names the first
        counts.
    """
    bound = _bind(tree, nodes)
    _bind_slots(tree, nodes, bound)
    values: dict[int, str] = {}
    used: set[int] = set()
    for node_id, stored_id in bound.items():
        if tree.nodes[node_id].has_value:
            for attribute in nodes[stored_id].attributes:
                if attribute.name == VARIABLE_VALUE:
                    values[node_id] = attribute.checkpoint_key
                    used.add(stored_id)
                    break
    return Match(values, _missing(tree, values), tuple(_unused(nodes, used)))


def _bind(tree: Tree, nodes: Sequence[Node]) -> dict[int, int]:
    """Return node of the tree → node of the checkpoint, along the shortest paths in the tree."""
    bound = {0: 0} if nodes else {}
    names: dict[int, dict[str, int]] = {}
    pending = list(bound)
    for node_id in pending:
        children = tree.nodes[node_id].children
        if not children:
            continue
        stored_id = bound[node_id]
        by_name = names.get(stored_id)
        if by_name is None:
            # Cached: in a hostile file every container may match one node with a million children.
            by_name = {child.local_name: child.node_id for child in reversed(nodes[stored_id].children)}
            names[stored_id] = by_name
        for name, child in children:
            if child not in bound and name in by_name:
                bound[child] = by_name[name]
                pending.append(child)
    return bound


def _bind_slots(tree: Tree, nodes: Sequence[Node], bound: dict[int, int]) -> None:
    """Add to `bound` the slot that each matched optimizer keeps for each matched variable."""
    stored: dict[int, dict[tuple[str, int], int]] = {}
    for optimizer, name, variable, slot in tree.slots:
        if optimizer not in bound or variable not in bound:
            continue
        stored_id = bound[optimizer]
        by_variable = stored.get(stored_id)
        if by_variable is None:
            by_variable = stored[stored_id] = {
                (entry.slot_name, entry.variable_id): entry.slot_id
                for entry in reversed(nodes[stored_id].slot_variables)
            }
        found = by_variable.get((name, bound[variable]))
        if found is not None:
            bound[slot] = found


def _unused(nodes: Sequence[Node], used: Collection[int]) -> Iterable[str]:
    for stored_id, node in enumerate(nodes):
        for attribute in node.attributes:
            if stored_id not in used or attribute.name != VARIABLE_VALUE:
                yield attribute.checkpoint_key
        if node.registered_saver is not None:
            yield f"{node.registered_saver[1]} (saved by the registered saver {node.registered_saver[0]})"


def match_names(tree: Tree, names: Iterable[str], optional: Collection[str] = ()) -> Match:
    """Match by name, for a checkpoint without an object graph.

    A value's name is its key, or its path with the local names as they are: ``net/w``. A slot variable's is
    that of its variable and the slot's: ``net/w/Adam``, which is what a ``tf.compat.v1.train.Saver`` calls
    it, if the slot is named so.

    Parameters
    ----------
    tree : Tree
    names : iterable of str
        All tensors of the checkpoint.
    optional : collection of str
        Paths of the tree that need not be found.
    """
    known = dict.fromkeys(names)
    values: dict[int, str] = {}
    for node_id, node in enumerate(tree.nodes):
        if not node.has_value:
            continue
        slot = tree.slot_at(node_id)
        plain = "/".join(tree.local_names(node_id if slot is None else slot.variable))
        for name in (tree.key(node_id), plain if slot is None else f"{plain}/{slot.name}"):
            if name in known:
                values[node_id] = name
                break
    used = {*values.values(), OBJECT_GRAPH_KEY}
    missing = [path for path in _missing(tree, values) if path not in optional]
    return Match(values, tuple(missing), tuple(name for name in known if name not in used))


def _missing(tree: Tree, values: Collection[int]) -> tuple[str, ...]:
    return tuple(
        tree.path(node_id)
        for node_id, node in enumerate(tree.nodes)
        if node.has_value and node_id not in values
    )
