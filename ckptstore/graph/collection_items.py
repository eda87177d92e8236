"""The items of a graph's collections, as Python objects."""

from __future__ import annotations

from typing import Any

from ckptstore.errors import FormatError, TensorNotFoundError
from ckptstore.format.metagraph import COLLECTION_MESSAGES, decode_saver_def, parse_entry
from ckptstore.format.metagraph_scope import operation_name
from ckptstore.format.protos import Proto
from ckptstore.graph.graph_file import GraphFile
from ckptstore.graph.node_table import NodeTable
from ckptstore.graph.nodes import Operation, Variable

__all__ = ["VariableDefinitions", "decode_collection"]


class VariableDefinitions:
    """The entries of variables in a graph's collections.

    Raises
    ------
    FormatError
        If an entry of a collection of variables is damaged.
    """

    def __init__(self, file: GraphFile) -> None:
        self._by_operation: dict[str, Proto] = {}
        self._trainable: set[str] = set()
        seen: set[bytes] = set()
        collections = file.message.collection_def
        for key in sorted(collections):
            if COLLECTION_MESSAGES.get(key) != "VariableDef":
                continue
            for entry in collections[key].bytes_list.value:
                if entry in seen and key != "trainable_variables":
                    continue
                seen.add(entry)
                definition = parse_entry("VariableDef", entry, key, source=file.source)
                name = operation_name(definition.variable_name)
                self._by_operation.setdefault(name, definition)
                if key == "trainable_variables":
                    self._trainable.add(name)

    def variable(self, operation: Operation) -> Variable:
        """Return the variable of `operation`."""
        return Variable(
            operation,
            self._by_operation.get(operation.name),
            in_trainable=operation.name in self._trainable,
        )


def decode_collection(nodes: NodeTable, collection: Proto, key: str) -> list[Any]:
    """Return the items of a ``CollectionDef``; see `Graph.get_collection`."""
    kind = collection.WhichOneof("kind")
    if kind is None:
        return []
    values = getattr(collection, kind).value
    if kind == "any_list":
        return [value.SerializeToString(deterministic=True) for value in values]
    if kind == "node_list":
        return [_element(nodes, name, key) for name in values]
    message_name = COLLECTION_MESSAGES.get(key) if kind == "bytes_list" else None
    if message_name == "VariableDef":
        return [_variable(nodes, entry, key) for entry in values]
    if message_name == "SaverDef":
        return [
            decode_saver_def(parse_entry("SaverDef", entry, key, source=nodes.file.source))
            for entry in values
        ]
    return list(values)


def _variable(nodes: NodeTable, entry: bytes, key: str) -> Variable:
    definition = parse_entry("VariableDef", entry, key, source=nodes.file.source)
    element = _element(nodes, operation_name(definition.variable_name), key)
    return Variable(element, definition, in_trainable=key == "trainable_variables")


def _element(nodes: NodeTable, name: str, key: str) -> Any:
    try:
        return nodes.element(name)
    except TensorNotFoundError as error:
        raise FormatError(
            f"the collection {key!r} names {name!r}, which the graph does not have", url=nodes.file.source
        ) from error
