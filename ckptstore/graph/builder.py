"""Describe a network without TensorFlow, for TensorFlow to import and run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptstore.errors import UsageError
from ckptstore.format import dtypes
from ckptstore.format.metagraph import COLLECTION_MESSAGES
from ckptstore.format.protos import message_class
from ckptstore.format.tensor_proto import dtype_of, fill_tensor_proto, shape_of
from ckptstore.graph.arrays import GRAPH_PRODUCER, is_trainable
from ckptstore.graph.attributes import as_dtype, fill_shape
from ckptstore.graph.graph import Graph
from ckptstore.graph.graph_file import GraphFile
from ckptstore.graph.handles import BuiltOperation, BuiltTensor, Input, collection_kind, collection_value
from ckptstore.graph.node_encoding import variable_def
from ckptstore.graph.nodes import REFERENCE_VARIABLE_OPS
from ckptstore.graph.op_defs import argument_types, builtin_definition
from ckptstore.graph.operation_names import check_name
from ckptstore.graph.type_inference import fill_attributes
from ckptstore.suggest import did_you_mean_or_known
from ckptstore.types import DType

__all__ = ["GraphBuilder"]

_SOURCE = "<graph>"
_MAX_OUTPUTS = 1 << 20


class GraphBuilder:
    """A network under construction.

    Examples
    --------
    >>> from ckptstore.graph import GraphBuilder
    >>> builder = GraphBuilder()
    >>> x = builder.placeholder("x", "float32", (None, 3))
    >>> w = builder.variable("w", "float32", (3, 2))
    >>> y = builder.operation("y", "MatMul", [x, w])
    >>> builder.collection("outputs", [y])
    >>> builder.build().get_tensor_by_name("y:0").dtype
    ckptstore.DType('float32')

    Threads
    -------
    One thread only.
    """

    def __init__(self) -> None:
        self._meta = message_class("MetaGraphDef")()
        self._meta.graph_def.versions.producer = GRAPH_PRODUCER
        # Output types of each operation; None if the catalogue does not have the operation.
        self._outputs: dict[str, list[int] | None] = {}
        self._variables: dict[str, tuple[DType, bool]] = {}
        self._collections: dict[str, list[Any]] = {}

    def placeholder(
        self, name: str, dtype: DType | str | npt.DTypeLike, shape: Sequence[int | None] | None
    ) -> BuiltTensor:
        """Add a tensor that is fed from outside.

        Parameters
        ----------
        name : str
        dtype : DType, str or numpy dtype
        shape : sequence of (int or None), or None
            None for an unknown size, or for a shape of any rank.

        Raises
        ------
        UsageError
            If the name is illegal or taken, or another argument is not valid.
        """
        return self._add(name, "Placeholder", {"dtype": as_dtype(dtype), "shape": _shape(name, shape)})

    def constant(self, name: str, value: npt.ArrayLike, dtype: DType | str | None = None) -> BuiltTensor:
        """Add a tensor with a fixed value.

        Parameters
        ----------
        name : str
        value : array-like
            Python numbers become float32 and int32 (int64 where they do not fit), as in TensorFlow; arrays
            keep their type.
        dtype : DType or str, optional

        Raises
        ------
        UsageError
            If the name is illegal or taken, or TensorFlow has no such value.
        """
        if dtype is None and not hasattr(value, "dtype"):
            dtype = _tensorflow_default(value)
        array, found = dtypes.to_storage_array(value, dtype, tensor=name)
        if found == dtypes.VARIANT:
            raise UsageError("a constant cannot be a variant", tensor=name)
        self._check_new(name)
        node = self._meta.graph_def.node.add(name=name, op="Const")
        node.attr["dtype"].type = found.as_datatype_enum
        fill_tensor_proto(node.attr["value"].tensor, array, found)
        self._outputs[name] = [found.as_datatype_enum]
        return BuiltTensor(f"{name}:0", found, array.shape)

    def variable(
        self,
        name: str,
        dtype: DType | str | npt.DTypeLike,
        shape: Sequence[int],
        *,
        trainable: bool | None = None,
    ) -> BuiltTensor:
        """Add a variable: a ``VariableV2``, whose tensor is its value.

        It is listed in the collection ``variables`` and, if it is trainable, in ``trainable_variables``. It
        has no initializer: restoring a checkpoint gives it its value.

        Parameters
        ----------
        name : str
        dtype : DType, str or numpy dtype
        shape : sequence of int
        trainable : bool, optional
            Whether training changes it; by default for floating-point and complex types.

        Raises
        ------
        UsageError
            If the name is illegal or taken, or another argument is not valid.
        """
        found = as_dtype(dtype)
        complete = _shape(name, shape)
        if complete is None or None in complete:
            raise UsageError("a variable needs a complete shape", tensor=name, actual=shape)
        tensor = self._add(name, "VariableV2", {"dtype": found, "shape": complete})
        self._variables[name] = (found, is_trainable(found) if trainable is None else trainable)
        return tensor

    def operation(
        self,
        name: str,
        type: str,
        inputs: Iterable[Input],
        attrs: Mapping[str, Any] | None = None,
        device: str = "",
    ) -> BuiltOperation:
        """Add any operation.

        Parameters
        ----------
        name : str
        type : str
            As TensorFlow calls it, e.g. ``"MatMul"``.
        inputs : iterable of handles and names
            Lists of tensors are given one by one. Control inputs (``"^a"``) may be anywhere.
        attrs : mapping, optional
            Attribute name → value: bool, int, float, text, `DType` or numpy dtype (text too) for a type, a
            tuple for a shape, an ndarray for a tensor, lists of these. For the types in the catalogue,
            attributes that follow from the inputs may be omitted. For others all attributes are needed, and
            text is a string: pass a `DType` for a type.
        device : str
            Where it should run, e.g. ``"/device:GPU:0"``.

        Raises
        ------
        UsageError
            If the name is illegal or taken, an input does not exist, or inputs or attributes do not fit the
            operation.
        """
        self._check_new(name)
        if not isinstance(type, str) or not type:
            raise UsageError(
                f"operation {name!r} needs a type", actual=repr(type), hint='For example "MatMul".'
            )
        items = (inputs,) if isinstance(inputs, (str, BuiltTensor, BuiltOperation)) else inputs
        data: list[str] = []
        control: list[str] = []
        types: list[int] = []
        for item in items:
            input_name, number = self._resolve(name, item)
            if input_name.startswith("^"):
                control.append(input_name)
            else:
                data.append(input_name)
                types.append(number)
        try:
            node = message_class("NodeDef")(name=name, op=type, input=[*data, *control], device=device)
        except (TypeError, ValueError) as error:
            raise UsageError(f"operation {name!r} has an unsuitable type or device: {error}") from error
        op_def = builtin_definition(type)
        fill_attributes(node, op_def, dict(attrs or {}), types)
        outputs = None
        if op_def is not None:
            outputs = argument_types(
                op_def.output_arg, node.attr, op_def, limit=_MAX_OUTPUTS, source=_SOURCE, operation=name
            )
        self._meta.graph_def.node.append(node)
        self._outputs[name] = outputs
        if type in REFERENCE_VARIABLE_OPS:
            found = as_dtype(dtype_of(node.attr["dtype"].type, source=_SOURCE))
            self._variables[name] = (found, is_trainable(found))
        shape = (
            shape_of(node.attr["shape"].shape)
            if "shape" in node.attr and type.startswith("Placeholder")
            else None
        )
        return BuiltOperation(
            name,
            type,
            tuple(
                BuiltTensor(f"{name}:{index}", dtype_of(number, source=_SOURCE), shape)
                for index, number in enumerate(outputs or ())
            ),
        )

    def collection(self, name: str, items: Iterable[Any]) -> None:
        """Set what a collection lists.

        Parameters
        ----------
        name : str
        items : iterable
            All of one kind: handles, text or bytes, integers, or floats. Text that is the name of an
            operation or tensor means that operation or tensor. In a collection of variables (``variables``,
            ``trainable_variables``, ``global_step``, …) variables only.

        Raises
        ------
        UsageError
            If the kinds are mixed or cannot be listed.
        """
        if not isinstance(name, str) or not name:
            raise UsageError("a collection needs a name", actual=repr(name))
        listed = [self._named(item) for item in items]
        kinds = {collection_kind(item, name) for item in listed}
        if len(kinds) > 1:
            raise UsageError(f"the collection {name!r} mixes kinds", actual=", ".join(sorted(kinds)))
        if COLLECTION_MESSAGES.get(name) == "VariableDef":
            for item in listed:
                variable = getattr(item, "name", "").removesuffix(":0")
                if variable not in self._variables:
                    raise UsageError(
                        f"the collection {name!r} lists variables only",
                        actual=repr(item)[:80],
                        hint=did_you_mean_or_known(variable, self._variables, "variables"),
                    )
        elif name in COLLECTION_MESSAGES:
            raise UsageError(f"the collection {name!r} cannot be made here", hint="Choose another name.")
        self._collections[name] = listed

    def _named(self, item: Any) -> Any:
        """Return a handle if `item` is the name of something in the graph, else `item` itself."""
        if not isinstance(item, str):
            return item
        operation, colon, digits = item.partition(":")
        outputs = self._outputs.get(operation)
        if not colon and operation in self._outputs:
            return BuiltOperation(item, "")
        if outputs is not None and digits in map(str, range(len(outputs))):
            return BuiltTensor(item)
        return item

    def build(self) -> Graph:
        """Return the graph described so far; more can be added afterwards."""
        meta = message_class("MetaGraphDef")()
        meta.CopyFrom(self._meta)
        listed: dict[str, list[Any]] = {
            "variables": [BuiltTensor(f"{name}:0") for name in self._variables],
            "trainable_variables": [
                BuiltTensor(f"{name}:0") for name, (_, trainable) in self._variables.items() if trainable
            ],
        } | self._collections
        for name, items in listed.items():
            if not items:
                continue
            entry = meta.collection_def[name]
            if COLLECTION_MESSAGES.get(name) == "VariableDef":
                entry.bytes_list.value.extend(
                    self._variable_def(item.name.removesuffix(":0")) for item in items
                )
            else:
                kind = collection_kind(items[0], name)
                getattr(entry, kind).value.extend(collection_value(item) for item in items)
        return Graph(GraphFile.of_message(meta, source=_SOURCE))

    def _variable_def(self, name: str) -> bytes:
        return variable_def(name, name, is_resource=False, trainable=self._variables[name][1])

    def _add(self, name: str, op: str, attrs: dict[str, Any]) -> BuiltTensor:
        added = self.operation(name, op, (), attrs).outputs[0]
        return BuiltTensor(added.name, added.dtype, attrs["shape"])

    def _check_new(self, name: str) -> None:
        check_name(name)
        if name in self._outputs:
            raise UsageError(f"the operation {name!r} already exists")

    def _resolve(self, operation: str, item: Input) -> tuple[str, int]:
        """Return an input in the form of a node's input, and its type's number (0 if unknown)."""
        name = item.name if isinstance(item, (BuiltTensor, BuiltOperation)) else item
        if not isinstance(name, str):
            raise UsageError(
                f"operation {operation!r} has an input that is neither a handle nor a name",
                actual=repr(item)[:80],
            )
        producer, colon, digits = name.removeprefix("^").partition(":")
        if producer not in self._outputs:
            raise UsageError(
                f"operation {operation!r} has the input {name!r}, which does not exist",
                hint=did_you_mean_or_known(producer, self._outputs, "operations"),
            )
        if name.startswith("^") and not colon:
            return name, 0
        index = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 10 else 0
        outputs = self._outputs[producer]
        if (
            name.startswith("^")
            or (colon and str(index) != digits)
            or (outputs is not None and index >= len(outputs))
        ):
            raise UsageError(
                f"operation {operation!r} has the input {name!r}, which does not exist",
                expected=f"an output of {producer!r}"
                if outputs is None
                else f"one of its {len(outputs)} outputs",
            )
        canonical = f"{producer}:{index}" if index else producer
        return canonical, outputs[index] if outputs is not None else 0


def _shape(name: str, shape: Sequence[int | None] | None) -> tuple[int | None, ...] | None:
    try:
        proto = message_class("TensorShapeProto")()
        fill_shape(proto, shape)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{shape!r} is not a shape: {error}", tensor=name) from error
    return shape_of(proto)


def _tensorflow_default(value: Any) -> str | None:
    """Return the type that TensorFlow gives Python numbers."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError):
        return None
    if array.dtype == np.float64 and array.size:
        return "float32"
    limits = np.iinfo(np.int32)
    if array.dtype == np.int64 and array.size and array.min() >= limits.min and array.max() <= limits.max:
        return "int32"
    return None
