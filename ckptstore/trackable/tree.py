"""The objects of a checkpoint as data: what they are, how they are connected, where each is referenced.

`walk` finds them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ckptstore.errors import UsageError
from ckptstore.format.object_graph import checkpoint_key, object_path, slot_path, unescape

__all__ = ["ItemRef", "Tree", "TreeNode", "TreeSlot"]


class ItemRef(NamedTuple):
    """One reference to a value: ``holder[key]``."""

    holder: Any
    key: Any


@dataclass(slots=True)
class TreeNode:
    """One object of the tree.

    Attributes
    ----------
    value : object
        The container, the `Optimizer`, or what is saved.
    parent : (int, str) or None
        The last step of its path: id of the parent, local name. None for the root and for slot variables.
    has_value : bool
        Whether it is saved: an array, a number or text.
    children : list of (str, int)
        Local name and id.
    refs : list of ItemRef
        All references to it in the tree; used for nodes with a value.
    """

    value: Any
    parent: tuple[int, str] | None
    has_value: bool
    children: list[tuple[str, int]] = field(default_factory=list)
    refs: list[ItemRef] = field(default_factory=list)


class TreeSlot(NamedTuple):
    """A slot variable: node `slot` is what node `optimizer` keeps for node `variable` under `name`."""

    optimizer: int
    name: str
    variable: int
    slot: int


class Tree:
    """The objects of a checkpoint: node 0 is the root.

    Attributes
    ----------
    slots : list of TreeSlot
        Ascending by `slot`; these nodes come after all others.
    """

    def __init__(self, nodes: list[TreeNode]) -> None:
        self.nodes = nodes
        self.slots: list[TreeSlot] = []
        self._paths: dict[int, str] = {}
        self._by_name: dict[int, dict[str, int]] = {}
        self._slot_of: dict[int, TreeSlot] = {}

    def add_slot(self, optimizer: int, name: str, variable: int, value: Any, ref: ItemRef) -> None:
        """Append the node of a slot variable."""
        slot = TreeSlot(optimizer, name, variable, len(self.nodes))
        self.nodes.append(TreeNode(value, None, True, refs=[ref]))
        self.slots.append(slot)
        self._slot_of[slot.slot] = slot

    def slot_at(self, node_id: int) -> TreeSlot | None:
        """Return the slot that a node is the variable of, or None."""
        return self._slot_of.get(node_id)

    def local_names(self, node_id: int) -> list[str]:
        """Return the names from the root to a node that is not a slot variable."""
        names = []
        step = self.nodes[node_id].parent
        while step is not None:
            names.append(step[1])
            step = self.nodes[step[0]].parent
        return names[::-1]

    def path(self, node_id: int) -> str:
        """Return the path of a node as in the keys of the checkpoint; the root's is empty."""
        slot = self._slot_of.get(node_id)
        if slot is not None:
            return slot_path(self.path(slot.variable), self.path(slot.optimizer), slot.name)
        step = self.nodes[node_id].parent
        if step is None:
            return ""
        # Only the paths of parents are cached: those of all nodes would take quadratic memory in a deep tree.
        parent, name = step
        before = self._paths.get(parent)
        if before is None:
            before = self._paths[parent] = object_path(self.local_names(parent))
        last = object_path([name])
        return f"{before}/{last}" if self.nodes[parent].parent is not None else last

    def key(self, node_id: int) -> str:
        """Return the name under which the value of a node is saved."""
        return checkpoint_key(self.path(node_id))

    def child(self, node_id: int, name: str) -> int | None:
        """Return the child `name` of a node."""
        by_name = self._by_name.get(node_id)
        if by_name is None:
            by_name = self._by_name[node_id] = dict(self.nodes[node_id].children)
        return by_name.get(name)

    def find(self, path: str) -> int | None:
        """Return the node at `path`, whose names may be escaped as in keys or not."""
        parts = path.split("/") if path else []
        pending = [(0, 0)]
        seen = set(pending)
        while pending:
            node_id, start = pending.pop()
            if start == len(parts):
                return node_id
            # A name may contain slashes; the shortest name that exists is tried first.
            for stop in range(len(parts), start, -1):
                found = self.child(node_id, "/".join(parts[start:stop]))
                if found is None and stop == start + 1:
                    with suppress(UsageError):  # this cannot be an escaped name
                        found = self.child(node_id, unescape(parts[start]))
                if found is not None and (found, stop) not in seen:
                    seen.add((found, stop))
                    pending.append((found, stop))
        return None

    def plain_paths(self) -> Iterator[str]:
        """Yield the unescaped path of every node with a value, except slot variables."""
        for node_id, node in enumerate(self.nodes):
            if node.has_value and node_id not in self._slot_of:
                yield "/".join(self.local_names(node_id))
