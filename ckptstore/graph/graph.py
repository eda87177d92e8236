"""The network in a ``.meta``: look up its operations and tensors by name, without TensorFlow."""

from __future__ import annotations

import functools
from typing import Any

from ckptstore.format.metagraph import SaverDef, decode_saver_def, serialize_meta_graph
from ckptstore.graph.collection_items import VariableDefinitions, decode_collection
from ckptstore.graph.graph_file import GraphFile
from ckptstore.graph.node_table import NodeTable
from ckptstore.graph.nodes import REFERENCE_VARIABLE_OPS, RESOURCE_VARIABLE_OPS, Operation, Tensor, Variable
from ckptstore.graph.signatures import Function, Signature, read_function, read_signature

__all__ = ["Graph", "file_of"]


class Graph:
    """An immutable network: functions that change one return a new one.

    Lists are in the order of the file.

    Parameters
    ----------
    data : bytes or GraphFile
        A ``.meta`` file, binary or text. It is kept, so that exporting the graph gives the same bytes back.
    source : str
        URL of the bytes, for error messages.

    Raises
    ------
    FormatError
        Not by the constructor: a damaged part, or data that is not a ``.meta``, raises when it is first used.

    Threads
    -------
    Safe for concurrent use.
    """

    def __init__(self, data: bytes | GraphFile, *, source: str = "<graph>") -> None:
        self._file = data if isinstance(data, GraphFile) else GraphFile(data, source=source)
        self._nodes = NodeTable(self._file)

    @property
    def saver_def(self) -> SaverDef | None:
        """How the graph saves and restores itself, or None if it cannot."""
        message = self._file.message
        return decode_saver_def(message.saver_def) if message.HasField("saver_def") else None

    def as_graph_def(self) -> bytes:
        """Return the serialized ``GraphDef``: nodes, functions and versions."""
        return serialize_meta_graph(self._file.message.graph_def)

    def get_operation_by_name(self, name: str) -> Operation:
        """Return the operation called `name`.

        Raises
        ------
        TensorNotFoundError
            If it does not exist; the hint lists close names.
        """
        return self._nodes.operation(name)

    def get_tensor_by_name(self, name: str) -> Tensor:
        """Return the tensor called `name`: the operation's name, a colon and the number of the output.

        Raises
        ------
        TensorNotFoundError
            If the name is not of that form, or the operation or output does not exist; the hint lists close
            names.
        """
        return self._nodes.tensor(name)

    def get_operations(self) -> list[Operation]:
        """Return all operations."""
        return list(self._nodes.operations())

    @property
    def placeholders(self) -> list[Tensor]:
        """The tensors that are fed from outside, except those that a Saver feeds with its file name."""
        file_names = self._nodes.file_name_nodes
        found = self._nodes.operations("Placeholder", "PlaceholderV2", "PlaceholderWithDefault")
        return [tensor for op in found if op.name not in file_names for tensor in op.outputs[:1]]

    @property
    def constants(self) -> list[Tensor]:
        """The tensors that have a ``value``."""
        return [tensor for op in self._nodes.operations("Const") for tensor in op.outputs[:1]]

    @property
    def variables(self) -> list[Variable]:
        """The variables of the network, whose values are in a checkpoint.

        These are the ``VariableV2``, ``Variable`` and ``VarHandleOp`` operations, whether or not a collection
        lists them; not ``TemporaryVariable``, which lives within one step.
        """
        found = self._nodes.operations(*REFERENCE_VARIABLE_OPS, *RESOURCE_VARIABLE_OPS)
        return [self._variable_definitions.variable(operation) for operation in found]

    def get_all_collection_keys(self) -> list[str]:
        """Return the names of the collections, sorted."""
        return sorted(self._file.message.collection_def)

    def get_collection(self, name: str) -> list[Any]:
        """Return what the collection `name` lists; empty if it does not exist, as in TensorFlow.

        Returns
        -------
        list
            `Variable` in a collection of variables, `SaverDef` in ``savers``, else `Tensor` and `Operation`
            for names, bytes, int or float; a serialized ``google.protobuf.Any`` for an object of another
            kind.

        Raises
        ------
        FormatError
            If it names something that is not in the graph, or an entry is damaged.
        """
        collections = self._file.message.collection_def
        return decode_collection(self._nodes, collections[name], name) if name in collections else []

    @property
    def signatures(self) -> dict[str, Signature]:
        """The ways to call the network, by name."""
        signatures = self._file.message.signature_def
        return {
            name: read_signature(signatures[name], source=self._file.source) for name in sorted(signatures)
        }

    @property
    def functions(self) -> dict[str, Function]:
        """The functions that operations call, by name."""
        return {
            function.signature.name: read_function(function, source=self._file.source)
            for function in self._file.message.graph_def.library.function
        }

    def __repr__(self) -> str:
        count = len(self._file.message.graph_def.node)
        return f"<ckptstore.graph.Graph {self._file.source!r}, {count} operations>"

    @functools.cached_property
    def _variable_definitions(self) -> VariableDefinitions:
        return VariableDefinitions(self._file)


def file_of(graph: Graph) -> GraphFile:
    """Return the file of `graph`, for what makes another graph or file from it."""
    return graph._file
