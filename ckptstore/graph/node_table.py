"""The operations and tensors of one graph, found by name."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from ckptstore.errors import FormatError, TensorNotFoundError, UsageError
from ckptstore.graph.graph_file import GraphFile
from ckptstore.graph.nodes import Operation, Tensor
from ckptstore.suggest import did_you_mean_or_known

__all__ = ["NodeTable"]

_MAX_INDEX_DIGITS = 10

_MIN_OUTPUT_LIMIT = 65_536

# Operations whose first input is a file name: the placeholders behind it belong to the Saver, not to the
# network.
_FILE_OPS = frozenset(
    {"Save", "SaveSlices", "SaveV2", "Restore", "RestoreSlice", "RestoreV2", "ShardedFilename"}
)


class NodeTable:
    """The nodes of a ``.meta``, each made into an `Operation` when it is first asked for.

    It is the `ckptstore.graph.nodes.NodeContext` of its operations.

    Threads
    -------
    Safe for concurrent use.
    """

    def __init__(self, file: GraphFile) -> None:
        self._file = file
        self._made: dict[int, Operation] = {}
        # A node of a few bytes may declare any number of outputs: altogether no more than the file has bytes.
        self._outputs_left = max(_MIN_OUTPUT_LIMIT, file.size_bytes)

    @property
    def file(self) -> GraphFile:
        """The file that the nodes stand in."""
        return self._file

    def operation(self, name: str) -> Operation:
        """Return the operation called `name`; see `Graph.get_operation_by_name`."""
        if not isinstance(name, str):
            raise UsageError("an operation's name is text", actual=type(name).__name__)
        position = self._positions.get(name)
        if position is None:
            operation, colon, _ = name.partition(":")
            hint = did_you_mean_or_known(name, self._positions, "operations")
            if colon and operation in self._positions:
                hint = (
                    f"{name!r} names a tensor: call get_tensor_by_name, or ask for operation {operation!r}."
                )
            raise TensorNotFoundError(
                f"the graph has no operation {name!r}", url=self._file.source, hint=hint
            )
        return self._at(position)

    def tensor(self, name: str) -> Tensor:
        """Return the tensor called `name`; see `Graph.get_tensor_by_name`."""
        if not isinstance(name, str):
            raise UsageError("a tensor's name is text", actual=type(name).__name__)
        operation, colon, digits = name.rpartition(":")
        if not colon:
            is_operation = name in self._positions
            raise TensorNotFoundError(
                f"{name!r} is not the name of a tensor",
                url=self._file.source,
                expected="operation:output, e.g. 'w:0'",
                hint=f"Did you mean {name + ':0'!r}?" if is_operation else self._close_tensors(name),
            )
        if not (_is_index(digits) and operation):
            raise TensorNotFoundError(
                f"{name!r} is not the name of a tensor",
                url=self._file.source,
                expected="operation:output, e.g. 'w:0'",
                hint="The part after the colon is the number of the operation's output, from 0.",
            )
        position = self._positions.get(operation)
        if position is None:
            raise TensorNotFoundError(
                f"the graph has no tensor {name!r}",
                url=self._file.source,
                hint=self._close_tensors(operation),
            )
        outputs = self._at(position).outputs
        if int(digits) >= len(outputs):
            raise TensorNotFoundError(
                f"operation {operation!r} has no output {digits}",
                url=self._file.source,
                expected=f"0 to {len(outputs) - 1}" if outputs else "no outputs at all",
                hint=f"Its outputs are {', '.join(repr(t.name) for t in outputs[:5])}." if outputs else None,
            )
        return outputs[int(digits)]

    def element(self, name: str) -> Tensor | Operation:
        """Return the tensor or operation called `name`: a colon makes it a tensor's name."""
        return self.tensor(name) if ":" in name else self.operation(name)

    def operations(self, *types: str) -> Iterator[Operation]:
        """Yield the operations of these types, or all of them, in the order of the file."""
        nodes = self._file.message.graph_def.node
        for position in self._positions.values():
            if not types or nodes[position].op in types:
                yield self._at(position)

    def input_tensor(self, operation: Operation, name: str) -> Tensor:
        """Return the input `name` of `operation`; ``a`` is ``a:0``, and ``^a`` gives any output of ``a``.

        Raises
        ------
        FormatError
            If the graph does not have it.
        """
        producer_name, _, digits = name.removeprefix("^").partition(":")
        position = self._positions.get(producer_name)
        if position is not None:
            producer = self._at(position)
            if name.startswith("^"):
                return Tensor(producer, 0, None, None)
            if not digits or _is_index(digits):
                index = int(digits or 0)
                if index < len(producer.outputs):
                    return producer.outputs[index]
        raise FormatError(
            f"operation {operation.name!r} has the input {name!r}, which the graph does not have",
            url=self._file.source,
        )

    @property
    def outputs_left(self) -> int:
        """How many outputs the operations that were not asked yet may have, all together."""
        return self._outputs_left

    def count_outputs(self, count: int, operation: str) -> None:
        """Take the outputs of one operation from `outputs_left`.

        Raises
        ------
        FormatError
            If there are more than that.
        """
        if count > self._outputs_left:
            raise FormatError(
                f"operation {operation!r} declares more outputs than a graph of this size can have",
                url=self._file.source,
                expected=f"at most {self._outputs_left}",
                actual=count,
            )
        self._outputs_left -= count

    def referenced_outputs(self, name: str) -> int:
        """Return how many outputs operation `name` must have for the inputs of the others to exist."""
        return self._referenced.get(name, 0)

    @functools.cached_property
    def file_name_nodes(self) -> set[str]:
        """The placeholders that pass a file name to the operations that save and restore."""
        nodes = self._file.message.graph_def.node
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

    def _close_tensors(self, operation: str) -> str:
        return did_you_mean_or_known(operation, self._positions, "operations", suffix=":0")

    @functools.cached_property
    def _positions(self) -> dict[str, int]:
        nodes = self._file.message.graph_def.node
        positions = {node.name: position for position, node in enumerate(nodes)}
        if len(positions) != len(nodes):
            # The dict kept the last position of each name.
            twice = next(node.name for position, node in enumerate(nodes) if positions[node.name] != position)
            raise FormatError(
                "two operations of the graph have the same name", url=self._file.source, actual=repr(twice)
            )
        return positions

    def _at(self, position: int) -> Operation:
        made = self._made.get(position)
        if made is None:
            # setdefault: when two threads come here at once, both get the first one's object.
            node = self._file.message.graph_def.node[position]
            made = self._made.setdefault(position, Operation(self, node))
        return made

    @functools.cached_property
    def _referenced(self) -> dict[str, int]:
        """Operation → the number of the highest output that an input names, plus 1."""
        referenced: dict[str, int] = {}
        limit = max(1024, self._file.size_bytes)
        for node in self._file.message.graph_def.node:
            for name in node.input:
                producer, _, digits = name.partition(":")
                index = int(digits) if _is_index(digits) else 0
                if name[:1] != "^" and index < limit:
                    referenced[producer] = max(referenced.get(producer, 0), index + 1)
        return referenced


def _is_index(digits: str) -> bool:
    return digits.isascii() and digits.isdigit() and len(digits) <= _MAX_INDEX_DIGITS
