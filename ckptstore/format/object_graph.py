"""The object graph of an object-based checkpoint: the Python object that each tensor belongs to.

Format
------
The entry ``_CHECKPOINTABLE_OBJECT_GRAPH`` is a scalar string that holds a ``TrackableObjectGraph``; mirrors
TensorFlow `tensorflow/core/protobuf/trackable_object_graph.proto` and
`tensorflow/python/checkpoint/graph_view.py`. Node 0 is the root; ids are given in breadth-first order, nodes
of slot variables come after all others.

A tensor's key is the path of local names from the root, each escaped, then ``/.ATTRIBUTES/`` and the
attribute's name::

    model/table/x..y/.ATTRIBUTES/VARIABLE_VALUE
    model/w/.OPTIMIZER_SLOT/opt/momentum/.ATTRIBUTES/VARIABLE_VALUE
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ckptstore.errors import FormatError, UsageError
from ckptstore.format.protos import message_class, parse_message

__all__ = [
    "OBJECT_GRAPH_KEY",
    "VARIABLE_VALUE",
    "Attribute",
    "Child",
    "Node",
    "SlotVariable",
    "checkpoint_key",
    "decode",
    "encode",
    "escape",
    "local_names",
    "mark_checkpoint_values",
    "object_path",
    "parent_edges",
    "slot_path",
    "unescape",
]

OBJECT_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
"""The entry of the bundle that holds the graph."""

VARIABLE_VALUE = "VARIABLE_VALUE"
"""The attribute under which a variable's value is saved."""

_ATTRIBUTES = ".ATTRIBUTES"
_OPTIMIZER_SLOT = ".OPTIMIZER_SLOT"


@dataclass(frozen=True, slots=True)
class Child:
    """An edge of the graph: the attribute `local_name` (not escaped) of an object is the object `node_id`."""

    node_id: int
    local_name: str


@dataclass(frozen=True, slots=True)
class Attribute:
    """A tensor of an object.

    Attributes
    ----------
    name : str
        ``VARIABLE_VALUE`` for the value of a variable.
    checkpoint_key : str
        The tensor's name in the bundle.
    full_name : str
        The variable's name in the graph, used by name-based restore only; may be empty.
    """

    name: str
    checkpoint_key: str
    full_name: str = ""


@dataclass(frozen=True, slots=True)
class SlotVariable:
    """A variable of an optimizer: slot `slot_name` of node `variable_id` is node `slot_id`."""

    variable_id: int
    slot_name: str
    slot_id: int


@dataclass(frozen=True, slots=True)
class Node:
    """One object.

    Attributes
    ----------
    children : tuple of Child
        In the order in which the object received them.
    attributes : tuple of Attribute
    slot_variables : tuple of SlotVariable
    has_checkpoint_values : bool or None
        Whether the object or one below it has values; None if not set (older writers).
    registered_saver : (name, object_name) or None
    """

    children: tuple[Child, ...] = ()
    attributes: tuple[Attribute, ...] = ()
    slot_variables: tuple[SlotVariable, ...] = ()
    has_checkpoint_values: bool | None = None
    registered_saver: tuple[str, str] | None = None


def escape(local_name: str) -> str:
    """Return a local name in the form of a key: ``.`` doubled, ``/`` as ``.S``."""
    return local_name.replace(".", "..").replace("/", ".S")


def unescape(part: str) -> str:
    """Return the local name of which `part` is the escaped form.

    Raises
    ------
    UsageError
        If `part` is not an escaped name, e.g. ``.ATTRIBUTES``.
    """
    if re.fullmatch(r"(?:[^./]|\.\.|\.S)*", part, re.DOTALL) is None:
        raise UsageError("this is not an escaped local name", actual=repr(part))
    return re.sub(r"\.(.)", lambda match: "/" if match[1] == "S" else ".", part)


def object_path(local_names: Sequence[str]) -> str:
    """Return the path of an object from the root, each name escaped; empty for the root."""
    return "/".join(map(escape, local_names))


def slot_path(variable_path: str, optimizer_path: str, slot_name: str) -> str:
    """Return the path of a slot variable, e.g. the momentum that the optimizer at `optimizer_path` keeps."""
    return f"{variable_path}/{_OPTIMIZER_SLOT}/{optimizer_path}/{escape(slot_name)}"


def checkpoint_key(path: str, attribute: str = VARIABLE_VALUE) -> str:
    """Return the bundle's name for the tensor `attribute` of the object at `path`."""
    return f"{path}/{_ATTRIBUTES}/{escape(attribute)}"


def parent_edges(nodes: Sequence[Node]) -> list[tuple[int, str] | None]:
    """Return, for each node, the last step of its path from the root: ``(parent's id, local name)``.

    Of several paths the shortest counts, of equally short ones the first. None for the root, and for nodes
    without a path: those of slot variables. Whole paths are not built: in a hostile file that is one long
    chain they would take quadratic memory.
    """
    edges: list[tuple[int, str] | None] = [None] * len(nodes)
    reached = [0] if nodes else []
    for node_id in reached:
        for child in nodes[node_id].children:
            if child.node_id != 0 and edges[child.node_id] is None:
                edges[child.node_id] = (node_id, child.local_name)
                reached.append(child.node_id)
    return edges


def local_names(edges: Sequence[tuple[int, str] | None], node_id: int) -> list[str]:
    """Return the local names on the path from the root to `node_id`, from the result of `parent_edges`."""
    names = []
    edge = edges[node_id]
    while edge is not None:
        names.append(edge[1])
        edge = edges[edge[0]]
    return names[::-1]


def mark_checkpoint_values(nodes: Sequence[Node]) -> list[Node]:
    """Return the nodes with ``has_checkpoint_values`` as TensorFlow sets it.

    True for an object that has attributes, slots or a saver of its own, and for all objects above it; False
    for the rest.
    """
    parents: list[list[int]] = [[] for _ in nodes]
    for node_id, node in enumerate(nodes):
        for child in node.children:
            parents[child.node_id].append(node_id)
    marked = [bool(node.attributes or node.slot_variables or node.registered_saver) for node in nodes]
    pending = [node_id for node_id, mark in enumerate(marked) if mark]
    while pending:
        for parent in parents[pending.pop()]:
            if not marked[parent]:
                marked[parent] = True
                pending.append(parent)
    return [replace(node, has_checkpoint_values=mark) for node, mark in zip(nodes, marked, strict=True)]


def encode(nodes: Sequence[Node]) -> bytes:
    """Return the ``TrackableObjectGraph`` of `nodes`, byte for byte as TensorFlow writes it.

    Raises
    ------
    UsageError
        If a name is not UTF-8 text.
    """
    graph = message_class("TrackableObjectGraph")()
    add_node = graph.nodes.add
    try:
        for node in nodes:
            proto = add_node()
            for child in node.children:
                proto.children.add(node_id=child.node_id, local_name=child.local_name)
            for attribute in node.attributes:
                proto.attributes.add(
                    name=attribute.name,
                    full_name=attribute.full_name,
                    checkpoint_key=attribute.checkpoint_key,
                )
            for slot in node.slot_variables:
                proto.slot_variables.add(
                    original_variable_node_id=slot.variable_id,
                    slot_name=slot.slot_name,
                    slot_variable_node_id=slot.slot_id,
                )
            if node.registered_saver is not None:
                proto.registered_saver.name, proto.registered_saver.object_name = node.registered_saver
            if node.has_checkpoint_values is not None:
                # False is written too, as a message without content.
                proto.has_checkpoint_values.SetInParent()
                proto.has_checkpoint_values.value = node.has_checkpoint_values
        return bytes(graph.SerializeToString(deterministic=True))
    except (UnicodeError, ValueError) as error:
        raise UsageError(
            f"an object's name cannot be stored: {error}", hint="Names must be UTF-8 text."
        ) from error


def decode(data: bytes, *, source: str) -> list[Node]:
    """Return the nodes of a ``TrackableObjectGraph``; node 0 is the root.

    Raises
    ------
    FormatError
        If `data` is not such a message, or an edge leads to a node that does not exist.
    """
    graph = parse_message("TrackableObjectGraph", data)
    if graph is None:
        raise FormatError("the object graph cannot be parsed", url=source, tensor=OBJECT_GRAPH_KEY)
    count = len(graph.nodes)
    nodes: list[Node] = []
    for proto in graph.nodes:
        node = Node(
            tuple(Child(child.node_id, child.local_name) for child in proto.children),
            tuple(Attribute(a.name, a.checkpoint_key, a.full_name) for a in proto.attributes),
            tuple(
                SlotVariable(slot.original_variable_node_id, slot.slot_name, slot.slot_variable_node_id)
                for slot in proto.slot_variables
            ),
            proto.has_checkpoint_values.value if proto.HasField("has_checkpoint_values") else None,
            (proto.registered_saver.name, proto.registered_saver.object_name)
            if proto.HasField("registered_saver")
            else None,
        )
        for target in _targets(node):
            if not 0 <= target < count:
                raise FormatError(
                    f"node {len(nodes)} of the object graph refers to a node that does not exist",
                    url=source,
                    tensor=OBJECT_GRAPH_KEY,
                    expected=f"0 to {count - 1}",
                    actual=target,
                )
        nodes.append(node)
    return nodes


def _targets(node: Node) -> list[int]:
    targets = [child.node_id for child in node.children]
    for slot in node.slot_variables:
        targets += (slot.variable_id, slot.slot_id)
    return targets
