"""The ways to call a network: its signatures and its functions."""

from __future__ import annotations

from dataclasses import dataclass

from ckptstore.format.protos import Proto
from ckptstore.format.tensor_proto import dtype_of, shape_of
from ckptstore.types import DType

__all__ = ["Argument", "Function", "Signature", "TensorInfo", "read_function", "read_signature"]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One input or output of a signature.

    Attributes
    ----------
    name : str or None
        The tensor's name in the graph; None if it consists of several tensors, which `parts` lists.
    dtype : DType or None
    shape : tuple of (int or None), or None
        None for an unknown size, or for a shape of unknown rank.
    parts : tuple of TensorInfo
        For a sparse tensor its values, indices and dense shape; for another composite one its components.
    """

    name: str | None
    dtype: DType | None
    shape: tuple[int | None, ...] | None
    parts: tuple[TensorInfo, ...] = ()


@dataclass(frozen=True, slots=True)
class Signature:
    """One way to call the network, as in a ``SignatureDef``."""

    inputs: dict[str, TensorInfo]
    outputs: dict[str, TensorInfo]
    method_name: str


@dataclass(frozen=True, slots=True)
class Argument:
    """One input or output of a function.

    Attributes
    ----------
    name : str
    dtype : DType or None
        None if the call determines the type.
    """

    name: str
    dtype: DType | None


@dataclass(frozen=True, slots=True)
class Function:
    """A function of the graph, as in a ``FunctionDef``.

    Attributes
    ----------
    name : str
    inputs, outputs : tuple of Argument
    operations : tuple of (name, type)
        Its body, in the order of the file.
    """

    name: str
    inputs: tuple[Argument, ...]
    outputs: tuple[Argument, ...]
    operations: tuple[tuple[str, str], ...]


def read_signature(proto: Proto, *, source: str) -> Signature:
    """Return a ``SignatureDef`` as plain data."""
    return Signature(
        {key: _tensor_info(proto.inputs[key], source) for key in sorted(proto.inputs)},
        {key: _tensor_info(proto.outputs[key], source) for key in sorted(proto.outputs)},
        proto.method_name,
    )


def read_function(proto: Proto, *, source: str) -> Function:
    """Return a ``FunctionDef`` as plain data."""
    signature = proto.signature
    return Function(
        signature.name,
        _arguments(signature.input_arg, source),
        _arguments(signature.output_arg, source),
        tuple((node.name, node.op) for node in proto.node_def),
    )


def _arguments(arguments: Proto, source: str) -> tuple[Argument, ...]:
    return tuple(
        Argument(argument.name, dtype_of(argument.type, source=source, tensor=argument.name))
        for argument in arguments
    )


def _tensor_info(proto: Proto, source: str) -> TensorInfo:
    encoding = proto.WhichOneof("encoding")
    parts: tuple[TensorInfo, ...] = ()
    if encoding == "coo_sparse":
        sparse = proto.coo_sparse
        parts = tuple(
            TensorInfo(name, None, None)
            for name in (
                sparse.values_tensor_name,
                sparse.indices_tensor_name,
                sparse.dense_shape_tensor_name,
            )
        )
    elif encoding == "composite_tensor":
        parts = tuple(_tensor_info(component, source) for component in proto.composite_tensor.components)
    return TensorInfo(
        proto.name if encoding == "name" else None,
        dtype_of(proto.dtype, source=source, tensor=proto.name or None),
        shape_of(proto.tensor_shape),
        parts,
    )
