"""The network in a ``.meta``: ask it by name, without TensorFlow."""

from __future__ import annotations

import functools
from typing import Any

from ckptstore.errors import FormatError, TensorNotFoundError, UsageError
from ckptstore.format.metagraph import (
    SaverDef,
    decode_saver_def,
    parse_meta_graph,
    serialize_meta_graph,
)
from ckptstore.format.protos import Proto
from ckptstore.graph.collection_items import VariableDefinitions, decode_collection
from ckptstore.graph.nodes import REFERENCE_VARIABLE_OPS, RESOURCE_VARIABLE_OPS, Operation, Tensor, Variable
from ckptstore.graph.op_defs import Definitions
from ckptstore.graph.signatures import Function, Signature, read_function, read_signature
from ckptstore.suggest import did_you_mean_or_known

__all__ = ["Graph"]

_MAX_INDEX_DIGITS = 10

_MIN_OUTPUT_LIMIT = 65_536

# The operations whose first input is a file name: the placeholders behind it are the Saver's, not the
# network's.
_FILE_OPS = frozenset(
    {"Save", "SaveSlices", "SaveV2", "Restore", "RestoreSlice", "RestoreV2", "ShardedFilename"}
)


class Graph:
    """A network, never changed once made; what changes it returns another one.

    Parameters
    ----------
    data : bytes
        A ``.meta`` file, binary or text. It is kept, so that exporting the graph gives the same bytes back.
    source : str
        URL for error messages.
    message : MetaGraphDef, optional
        What `data` holds, for callers that parsed it already. The graph owns it from here on.
    is_text : bool, optional
        Whether `data` is the text form, for callers that know.

    Raises
    ------
    FormatError
        Here only if `data` is no ``.meta``; what is wrong inside is found, and raised, when it is asked for.

    Threads
    -------
    Safe for concurrent use.
    """

    def __init__(
        self,
        data: bytes,
        *,
        source: str = "<graph>",
        message: Proto | None = None,
        is_text: bool | None = None,
    ) -> None:
        self.source = source
        self._data = data
        self._is_text = is_text
        self._message = message
        self._made: dict[int, Operation] = {}
        self._outputs_left = max(_MIN_OUTPUT_LIMIT, len(data))

    # What it is made of.

    @property
    def data(self) -> bytes:
        """The bytes it was made from."""
        return self._data

    @property
    def is_text(self) -> bool:
        """Whether `data` is the text form."""
        if self._is_text is None:
            self._message, self._is_text = parse_meta_graph(self._data, source=self.source)
        return self._is_text

    @property
    def size_bytes(self) -> int:
        """The size of the file: nothing that is read from it may take more memory."""
        return len(self._data)

    @property
    def message(self) -> Proto:
        """The ``MetaGraphDef``; not to be changed."""
        if self._message is None:
            self._message, self._is_text = parse_meta_graph(self._data, source=self.source)
        return self._message

    @property
    def saver_def(self) -> SaverDef | None:
        """How the graph saves and restores itself, or None if it cannot."""
        return decode_saver_def(self.message.saver_def) if self.message.HasField("saver_def") else None

    def as_graph_def(self) -> bytes:
        """Return the serialized ``GraphDef``: nodes, functions and versions."""
        return serialize_meta_graph(self.message.graph_def)

    # Lookup by name.

    def get_operation_by_name(self, name: str) -> Operation:
        """Return the operation called `name`.

        Raises
        ------
        TensorNotFoundError
            If there is none; the hint lists close names.
        """
        if not isinstance(name, str):
            raise UsageError("an operation's name is text", actual=type(name).__name__)
        position = self._positions.get(name)
        if position is None:
            operation, colon, _ = name.partition(":")
            hint = did_you_mean_or_known(name, self._positions, "operations")
            if colon and operation in self._positions:
                hint = f"{name!r} names a tensor: ask get_tensor_by_name, or for operation {operation!r}."
            raise TensorNotFoundError(f"the graph has no operation {name!r}", url=self.source, hint=hint)
        return self._operation(position)

    def get_tensor_by_name(self, name: str) -> Tensor:
        """Return the tensor called `name`: the operation's name, a colon and the number of the output.

        Raises
        ------
        TensorNotFoundError
            If the name is not of that form, or there is no such operation or output; the hint lists close
            names.
        """
        if not isinstance(name, str):
            raise UsageError("a tensor's name is text", actual=type(name).__name__)
        operation, colon, digits = name.rpartition(":")
        if not colon:
            known = name in self._positions
            raise TensorNotFoundError(
                f"{name!r} is not the name of a tensor",
                url=self.source,
                expected="operation:output, e.g. 'w:0'",
                hint=f"Did you mean {name + ':0'!r}?" if known else self._close_tensors(name),
            )
        if not (digits.isascii() and digits.isdigit() and len(digits) <= _MAX_INDEX_DIGITS) or not operation:
            raise TensorNotFoundError(
                f"{name!r} is not the name of a tensor",
                url=self.source,
                expected="operation:output, e.g. 'w:0'",
                hint="The part after the colon is the number of the operation's output, from 0.",
            )
        position = self._positions.get(operation)
        if position is None:
            raise TensorNotFoundError(
                f"the graph has no tensor {name!r}",
                url=self.source,
                hint=self._close_tensors(operation),
            )
        outputs = self._operation(position).outputs
        if int(digits) >= len(outputs):
            raise TensorNotFoundError(
                f"operation {operation!r} has no output {digits}",
                url=self.source,
                expected=f"0 to {len(outputs) - 1}" if outputs else "no outputs at all",
                hint=f"Its outputs are {', '.join(repr(t.name) for t in outputs[:5])}." if outputs else None,
            )
        return outputs[int(digits)]

    # Everything of a kind, in the order of the file.

    def get_operations(self) -> list[Operation]:
        """Return all operations."""
        return [self._operation(position) for position in self._positions.values()]

    @property
    def placeholders(self) -> list[Tensor]:
        """The tensors that are fed from outside; not those through which a Saver gets its file name."""
        file_names = self._file_name_nodes
        found = self._operations_of_type("Placeholder", "PlaceholderV2", "PlaceholderWithDefault")
        return [tensor for op in found if op.name not in file_names for tensor in op.outputs[:1]]

    @property
    def constants(self) -> list[Tensor]:
        """The tensors that have a ``value``."""
        return [tensor for op in self._operations_of_type("Const") for tensor in op.outputs[:1]]

    @property
    def variables(self) -> list[Variable]:
        """What the network learns or counts, and a checkpoint holds.

        These are the ``VariableV2``, ``Variable`` and ``VarHandleOp`` operations, whether or not a collection
        lists them; not ``TemporaryVariable``, which lives within one step.
        """
        found = self._operations_of_type(*REFERENCE_VARIABLE_OPS, *RESOURCE_VARIABLE_OPS)
        return [self._definitions_of_variables.variable(operation) for operation in found]

    # Collections, signatures, functions.

    def get_all_collection_keys(self) -> list[str]:
        """Return the names of the collections, sorted."""
        return sorted(self.message.collection_def)

    def get_collection(self, name: str) -> list[Any]:
        """Return what the collection `name` lists; nothing if there is none of that name, as in TensorFlow.

        Returns
        -------
        list
            `Variable` in a collection of variables, `SaverDef` in ``savers``, else `Tensor` and `Operation`
            for names, bytes, int or float; a serialized ``google.protobuf.Any`` for an object of another
            kind.

        Raises
        ------
        FormatError
            If it names something that the graph does not have, or an entry is damaged.
        """
        if name not in self.message.collection_def:
            return []
        return decode_collection(self, self.message.collection_def[name], name)

    @property
    def signatures(self) -> dict[str, Signature]:
        """The ways to call the network, by name."""
        signatures = self.message.signature_def
        return {name: read_signature(signatures[name], source=self.source) for name in sorted(signatures)}

    @property
    def functions(self) -> dict[str, Function]:
        """The functions that its operations call, by name."""
        return {
            function.signature.name: read_function(function, source=self.source)
            for function in self.message.graph_def.library.function
        }

    def __repr__(self) -> str:
        return f"<ckptstore.graph.Graph {self.source!r}, {len(self.message.graph_def.node)} operations>"

    # For the modules of this room.

    @functools.cached_property
    def definitions(self) -> Definitions:
        """The definitions of its operations."""
        return Definitions(
            self.message.meta_info_def.stripped_op_list.op, self.message.graph_def.library.function
        )

    def element(self, name: str) -> Tensor | Operation:
        """Return the tensor or operation called `name`, whichever it is the name of."""
        return self.get_tensor_by_name(name) if ":" in name else self.get_operation_by_name(name)

    def input_tensor(self, operation: Operation, name: str) -> Tensor:
        """Return the input `name` of `operation`; ``a`` is ``a:0``, and ``^a`` gives any output of ``a``."""
        producer_name, _, digits = name.removeprefix("^").partition(":")
        position = self._positions.get(producer_name)
        if position is not None:
            producer = self._operation(position)
            if name.startswith("^"):
                return Tensor(producer, 0, None, None)
            if not digits or (digits.isascii() and digits.isdigit() and len(digits) <= _MAX_INDEX_DIGITS):
                index = int(digits or 0)
                if index < len(producer.outputs):
                    return producer.outputs[index]
        raise FormatError(
            f"operation {operation.name!r} has the input {name!r}, which the graph does not have",
            url=self.source,
        )

    @property
    def outputs_left(self) -> int:
        """How many outputs its operations may still have, all together.

        A node of a few bytes may declare any number of them: altogether no more than the file has bytes.
        """
        return self._outputs_left

    def take_outputs(self, count: int, operation: str) -> None:
        """Count the outputs of one operation.

        Raises
        ------
        FormatError
            If there are more than `outputs_left`.
        """
        if count > self._outputs_left:
            raise FormatError(
                f"operation {operation!r} declares more outputs than a graph of this size can have",
                url=self.source,
                expected=f"at most {self._outputs_left}",
                actual=count,
            )
        self._outputs_left -= count

    def referenced_outputs(self, name: str) -> int:
        """Return how many outputs operation `name` must have for the inputs of the others to exist."""
        return self._referenced.get(name, 0)

    def _close_tensors(self, operation: str) -> str:
        return did_you_mean_or_known(operation, self._positions, "operations", suffix=":0")

    @functools.cached_property
    def _positions(self) -> dict[str, int]:
        nodes = self.message.graph_def.node
        positions = {node.name: position for position, node in enumerate(nodes)}
        if len(positions) != len(nodes):
            # The dict kept the last position of each name.
            twice = next(node.name for position, node in enumerate(nodes) if positions[node.name] != position)
            raise FormatError(
                "two operations of the graph have the same name", url=self.source, actual=repr(twice)
            )
        return positions

    def _operation(self, position: int) -> Operation:
        made = self._made.get(position)
        if made is None:
            # setdefault: when two threads come here at once, both get the first one's object.
            made = self._made.setdefault(position, Operation(self, self.message.graph_def.node[position]))
        return made

    def _operations_of_type(self, *types: str) -> list[Operation]:
        wanted = frozenset(types)
        nodes = self.message.graph_def.node
        return [
            self._operation(position) for position in self._positions.values() if nodes[position].op in wanted
        ]

    @functools.cached_property
    def _definitions_of_variables(self) -> VariableDefinitions:
        return VariableDefinitions(self)

    @functools.cached_property
    def _file_name_nodes(self) -> set[str]:
        """The placeholders that hand a file name to the operations that save and restore."""
        nodes = self.message.graph_def.node
        found: set[str] = set()
        pending = [node.input[0] for node in nodes if node.op in _FILE_OPS and node.input]
        while pending:
            name = pending.pop().partition(":")[0]
            position = self._positions.get(name)
            if name in found or position is None:
                continue
            node = nodes[position]
            if node.op in ("PlaceholderWithDefault", "StringJoin", "Identity"):
                found.add(name)
                pending += list(node.input)
        return found

    @functools.cached_property
    def _referenced(self) -> dict[str, int]:
        """For each operation that an input names: the highest output that one names, plus 1."""
        referenced: dict[str, int] = {}
        limit = max(1024, self.size_bytes)
        for node in self.message.graph_def.node:
            for name in node.input:
                producer, _, digits = name.partition(":")
                index = int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 10 else 0
                if name[:1] != "^" and index < limit:
                    referenced[producer] = max(referenced.get(producer, 0), index + 1)
        return referenced
