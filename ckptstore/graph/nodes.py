"""Operations and tensors of a `Graph`: views that read its message on access."""

from __future__ import annotations

from typing import Any, Protocol

import numpy.typing as npt

from ckptstore.errors import UsageError
from ckptstore.format.protos import Proto
from ckptstore.format.tensor_proto import dtype_of, shape_of, value_of
from ckptstore.graph.attributes import read_attribute
from ckptstore.graph.graph_file import GraphFile
from ckptstore.graph.op_defs import argument_types
from ckptstore.suggest import did_you_mean_or_known
from ckptstore.types import DType

__all__ = [
    "REFERENCE_VARIABLE_OPS",
    "RESOURCE_VARIABLE_OPS",
    "NodeContext",
    "Operation",
    "Tensor",
    "Variable",
]

REFERENCE_VARIABLE_OPS = frozenset({"Variable", "VariableV2"})
"""Operations whose output is the value of a variable."""

RESOURCE_VARIABLE_OPS = frozenset({"VarHandleOp"})
"""Operations whose output is a handle to a variable."""

# The attribute "shape" of these is the shape of their output; others have _output_shapes, or nothing.
_SHAPE_ATTRIBUTE_OPS = REFERENCE_VARIABLE_OPS | {"Placeholder", "PlaceholderV2", "PlaceholderWithDefault"}


class NodeContext(Protocol):
    """What an operation needs of the graph that it is in; `ckptstore.graph.node_table.NodeTable` is one."""

    @property
    def file(self) -> GraphFile:
        """The file with the node: source for messages, size, definitions."""

    @property
    def outputs_left(self) -> int:
        """How many outputs the operations that were not asked yet may have, all together."""

    def count_outputs(self, count: int, operation: str) -> None:
        """Take the outputs of one operation from `outputs_left`; FormatError if there are too many."""

    def referenced_outputs(self, name: str) -> int:
        """Return how many outputs operation `name` must have for the inputs of the others to exist."""

    def input_tensor(self, operation: Operation, name: str) -> Tensor:
        """Return the input `name` of `operation`; FormatError if the graph does not have it."""


class Operation:
    """One node of the graph; looking up a name twice gives the same object.

    Parameters
    ----------
    context : NodeContext
    node : NodeDef

    Attributes
    ----------
    name : str
        The node's name, e.g. ``"dense/MatMul"``.
    type : str
        What it does, e.g. ``"MatMul"``.

    Threads
    -------
    Safe for concurrent use.
    """

    __slots__ = ("_context", "_node", "_outputs", "name", "type")

    name: str
    type: str

    def __init__(self, context: NodeContext, node: Proto) -> None:
        self._context = context
        self._node = node
        self._outputs: tuple[Tensor, ...] | None = None
        self.name = node.name
        self.type = node.op

    @property
    def device(self) -> str:
        """The requested device; empty if none is."""
        return str(self._node.device)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The tensors it takes, in order.

        Raises
        ------
        FormatError
            If the graph does not have one of them.
        """
        return tuple(self._context.input_tensor(self, name) for name in self._node.input if name[:1] != "^")

    @property
    def control_inputs(self) -> tuple[Operation, ...]:
        """The operations that must run before it.

        Raises
        ------
        FormatError
            If the graph does not have one of them.
        """
        return tuple(
            self._context.input_tensor(self, name).op for name in self._node.input if name[:1] == "^"
        )

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """The tensors it produces.

        If neither the graph nor the catalogue defines this type of operation, their number is the least that
        fits its shapes and the graph's other nodes, and their type is None.

        Raises
        ------
        FormatError
            If its attributes declare an impossible number.
        """
        if self._outputs is None:
            self._outputs = self._make_outputs()
        return self._outputs

    def get_attr(self, name: str) -> Any:
        """Return an attribute, or its default from the operation's definition.

        Returns
        -------
        object
            bytes for a string, int, float, bool, `DType`, a shape as a tuple (None if the rank is unknown),
            ndarray for a tensor, the name of a function, or a list of these.

        Raises
        ------
        UsageError
            If it does not exist; the hint lists close names.
        """
        proto = self._attribute(name)
        if proto is None:
            known = [*self._node.attr, *(attr.name for attr in self._attribute_definitions())]
            raise UsageError(
                f"operation {self.name!r} ({self.type}) has no attribute {name!r}",
                url=self._context.file.source,
                hint=did_you_mean_or_known(name, known, "attributes"),
            )
        return read_attribute(
            proto, source=self._context.file.source, size_limit=self._context.file.size_bytes
        )

    def __repr__(self) -> str:
        return f"<ckptstore.graph.Operation {self.name!r} type={self.type}>"

    def _attribute(self, name: str) -> Proto | None:
        if name in self._node.attr:
            return self._node.attr[name]
        for attr in self._attribute_definitions():
            if attr.name == name and attr.HasField("default_value"):
                return attr.default_value
        return None

    def _attribute_definitions(self) -> Any:
        op_def = self._context.file.definitions.find(self.type)
        return op_def.attr if op_def is not None else ()

    def _make_outputs(self) -> tuple[Tensor, ...]:
        node = self._node
        shapes = node.attr["_output_shapes"].list.shape if "_output_shapes" in node.attr else ()
        op_def = self._context.file.definitions.find(self.type)
        types = None
        if op_def is not None:
            types = argument_types(
                op_def.output_arg,
                node.attr,
                op_def,
                limit=self._context.outputs_left,
                source=self._context.file.source,
                operation=self.name,
            )
        count = (
            max(1, len(shapes), self._context.referenced_outputs(self.name)) if types is None else len(types)
        )
        self._context.count_outputs(count, self.name)
        if types is None:
            types = [0] * count
        # Outside the loop: a hostile shape has as many dimensions as the file has bytes.
        usual_shape = self._shape_from_attributes()
        outputs = []
        for index, number in enumerate(types):
            shape = shape_of(shapes[index]) if index < len(shapes) else usual_shape
            outputs.append(
                Tensor(
                    self, index, dtype_of(number, source=self._context.file.source, tensor=self.name), shape
                )
            )
        return tuple(outputs)

    def _shape_from_attributes(self) -> tuple[int | None, ...] | None:
        attributes = self._node.attr
        if self.type in _SHAPE_ATTRIBUTE_OPS and "shape" in attributes:
            return shape_of(attributes["shape"].shape)
        if self.type == "Const" and "value" in attributes:
            return shape_of(attributes["value"].tensor.tensor_shape)
        return () if self.type in RESOURCE_VARIABLE_OPS else None

    def _value_type(self) -> tuple[DType | None, tuple[int | None, ...] | None]:
        """Return the type and shape of the value behind a variable's operation."""
        dtype, shape = self._attribute("dtype"), self._attribute("shape")
        source = self._context.file.source
        return (
            None if dtype is None else dtype_of(dtype.type, source=source, tensor=self.name),
            None if shape is None else shape_of(shape.shape),
        )

    def _constant_value(self) -> npt.NDArray[Any] | None:
        if self.type != "Const" or "value" not in self._node.attr:
            return None
        return value_of(
            self._node.attr["value"].tensor,
            source=self._context.file.source,
            size_limit=self._context.file.size_bytes,
            tensor=self.name,
        )


class Tensor:
    """One output of an operation. Equal to another of the same operation and index.

    Attributes
    ----------
    op : Operation
    index : int
        Which of the operation's outputs.
    dtype : DType or None
        A reference counts as the type it refers to. None where the graph does not define the operation.
    shape : tuple of (int or None), or None
        None for an unknown size, or for a shape of unknown rank.
    """

    __slots__ = ("dtype", "index", "op", "shape")

    def __init__(
        self, op: Operation, index: int, dtype: DType | None, shape: tuple[int | None, ...] | None
    ) -> None:
        self.op = op
        self.index = index
        self.dtype = dtype
        self.shape = shape

    @property
    def name(self) -> str:
        """The name to look it up by: ``"operation:index"``."""
        return f"{self.op.name}:{self.index}"

    @property
    def value(self) -> npt.NDArray[Any] | None:
        """The value of a constant, read-only; None for every other tensor.

        Raises
        ------
        FormatError
            If the stored value is damaged.
        UnsupportedError
            If it declares far more elements than it stores, unless all are equal.
        """
        return self.op._constant_value()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tensor):
            return NotImplemented
        return self.op is other.op and self.index == other.index

    def __hash__(self) -> int:
        return hash((id(self.op), self.index))

    def __repr__(self) -> str:
        kind = type(self).__name__
        return f"<ckptstore.graph.{kind} {self.name!r} shape={self.shape} dtype={self.dtype}>"


class Variable(Tensor):
    """A variable: its tensor, with the type and shape of its value.

    The tensor of a resource variable (``VarHandleOp``) is a handle: ``get_tensor_by_name`` gives it the type
    ``resource``, but here `dtype` and `shape` are those of the value. `initializer_name` and the other names
    come from the graph's collections; they are empty if those do not contain them.
    """

    __slots__ = ("_definition", "_in_trainable")

    def __init__(self, op: Operation, definition: Proto | None, *, in_trainable: bool) -> None:
        super().__init__(op, 0, *op._value_type())
        self._definition = definition
        self._in_trainable = in_trainable

    @property
    def variable_name(self) -> str:
        """The tensor's name, as in TensorFlow's ``VariableDef``."""
        return self.name

    @property
    def initializer_name(self) -> str:
        """The operation that initializes it."""
        return self._text("initializer_name")

    @property
    def snapshot_name(self) -> str:
        """The tensor that reads it."""
        return self._text("snapshot_name")

    @property
    def initial_value_name(self) -> str:
        """The tensor with its initial value."""
        return self._text("initial_value_name")

    @property
    def is_resource(self) -> bool:
        """Whether its tensor is a handle instead of the value."""
        return self.op.type in RESOURCE_VARIABLE_OPS

    @property
    def trainable(self) -> bool:
        """Whether training changes it; TensorFlow before 1.9 states this only in ``trainable_variables``."""
        return self._in_trainable or (self._definition is not None and bool(self._definition.trainable))

    @property
    def save_slice(self) -> tuple[str, tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None:
        """``(full name, full shape, offset, shape)`` for a part of a partitioned variable, else None."""
        if self._definition is None or not self._definition.HasField("save_slice_info_def"):
            return None
        info = self._definition.save_slice_info_def
        return info.full_name, tuple(info.full_shape), tuple(info.var_offset), tuple(info.var_shape)

    def _text(self, field: str) -> str:
        return str(getattr(self._definition, field)) if self._definition is not None else ""
