"""Attributes of operations: ``AttrValue`` messages as Python values, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ckptstore.errors import UsageError
from ckptstore.format import dtypes
from ckptstore.format.protos import Proto
from ckptstore.format.tensor_proto import RESOURCE, dtype_of, fill_tensor_proto, shape_of, value_of
from ckptstore.types import DType

__all__ = ["as_dtype", "fill_attribute", "fill_shape", "read_attribute"]


def read_attribute(proto: Proto, *, source: str, size_limit: int) -> Any:
    """Return the value of an ``AttrValue``.

    Returns
    -------
    object
        bytes for a string, int, float, bool, `DType` (None if not set) for a type, a tuple (or None) for a
        shape, a read-only ndarray for a tensor, the name for a function; a list of one of these for a list;
        None for a value that is not set.

    Raises
    ------
    FormatError, UnsupportedError
        If a tensor is damaged, see `ckptstore.format.tensor_proto.value_of`.
    """
    kind = proto.WhichOneof("value")
    if kind is None:
        return None
    if kind != "list":
        return _reader(kind, source, size_limit)(getattr(proto, kind))
    for descriptor, values in proto.list.ListFields():
        return list(map(_reader(descriptor.name, source, size_limit), values))
    return []


def _reader(kind: str, source: str, size_limit: int) -> Callable[[Any], Any]:
    if kind == "type":
        return lambda value: dtype_of(value, source=source)
    if kind == "shape":
        return shape_of
    if kind == "tensor":
        return lambda value: value_of(value, source=source, size_limit=size_limit)
    if kind == "func":
        return lambda value: value.name
    return lambda value: value


def fill_attribute(proto: Proto, value: Any, kind: str | None, *, attribute: str, operation: str) -> None:
    """Write a Python value into an empty ``AttrValue``.

    Parameters
    ----------
    proto : AttrValue
    value : object
        What `read_attribute` returns, or what converts to it unambiguously: text for bytes, names and numpy
        dtypes for types, array-likes for tensors.
    kind : str, optional
        The attribute's kind as its operation's definition has it: ``"type"``, ``"list(int)"``, …. Without it
        the Python type decides: a list is a list, a tuple a shape, text a string.
    attribute, operation : str
        Names for error messages.

    Raises
    ------
    UsageError
        If `value` is not of that kind.
    """
    if kind is None:
        kind = _guess_kind(value, attribute, operation)
    try:
        if kind.startswith("list("):
            if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
                raise TypeError("a list is needed")
            _fill_list(proto.list, value, kind[5:-1])
        else:
            _FILL[kind](proto, value)
    except (TypeError, ValueError, KeyError) as error:
        what = error.what if isinstance(error, UsageError) else str(error)
        raise UsageError(
            f"attribute {attribute!r} of operation {operation!r} has an unsuitable value: {what}",
            expected=kind,
            actual=repr(value)[:80],
        ) from error


def _guess_kind(value: Any, attribute: str, operation: str) -> str:
    if isinstance(value, list):
        kinds = {_guess_kind(item, attribute, operation) for item in value}
        if len(kinds) > 1:
            raise UsageError(
                f"attribute {attribute!r} of operation {operation!r} mixes kinds",
                actual=", ".join(sorted(kinds)),
            )
        return f"list({kinds.pop() if kinds else 'int'})"
    if isinstance(value, (bool, np.bool_)):
        return "bool"
    if isinstance(value, (DType, np.dtype, type)):
        return "type"
    for types, kind in (
        ((str, bytes), "string"),
        ((int, np.integer), "int"),
        ((float, np.floating), "float"),
        ((tuple, type(None)), "shape"),
        ((np.ndarray,), "tensor"),
    ):
        if isinstance(value, types):
            return kind
    raise UsageError(
        f"attribute {attribute!r} of operation {operation!r} has a value of an unknown kind",
        actual=type(value).__name__,
    )


def as_dtype(value: Any) -> DType:
    """Return the `DType` for a `DType`, TensorFlow's name of one, or a numpy dtype or scalar type.

    Raises
    ------
    UsageError
        If it is not an element type.
    """
    if isinstance(value, DType):
        return value
    if isinstance(value, str):
        return RESOURCE if value == RESOURCE.name else dtypes.by_name(value)
    try:
        return dtypes.from_numpy(value)
    except TypeError as error:
        raise UsageError("this is not an element type", actual=repr(value)[:80]) from error


def fill_shape(proto: Proto, shape: Sequence[int | None] | None) -> None:
    """Write a shape into an empty ``TensorShapeProto``; None is an unknown size, or a shape of unknown rank.

    Raises
    ------
    TypeError, ValueError
        If it is not a shape.
    """
    if shape is None:
        proto.unknown_rank = True
        return
    if isinstance(shape, (str, bytes)):
        raise TypeError("text is not a shape")
    proto.SetInParent()
    for size in shape:
        if size is None:
            proto.dim.add(size=-1)
        elif isinstance(size, (bool, np.bool_)) or not isinstance(size, (int, np.integer)) or size < 0:
            raise ValueError(f"{size!r} is not the size of a dimension")
        else:
            proto.dim.add(size=int(size))


def _text(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8")
    if isinstance(value, bytes):
        return value
    raise TypeError("text or bytes are needed")


def _integer(value: Any) -> int:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError("a whole number is needed")
    return int(value)


def _real(value: Any) -> float:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError("a number is needed")
    return float(value)


def _truth(value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError("True or False is needed")
    return bool(value)


def _function_name(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("the name of a function is needed")
    return value


def _fill_tensor(proto: Proto, value: Any) -> None:
    array, dtype = dtypes.to_storage_array(value)
    fill_tensor_proto(proto, array, dtype)


def _set(field: str, convert: Callable[[Any], Any]) -> Callable[[Proto, Any], None]:
    def fill(proto: Proto, value: Any) -> None:
        setattr(proto, field, convert(value))

    return fill


_FILL: dict[str, Callable[[Proto, Any], None]] = {
    "string": _set("s", _text),
    "int": _set("i", _integer),
    "float": _set("f", _real),
    "bool": _set("b", _truth),
    "type": _set("type", lambda value: as_dtype(value).as_datatype_enum),
    "shape": lambda proto, value: fill_shape(proto.shape, value),
    "tensor": lambda proto, value: _fill_tensor(proto.tensor, value),
    "func": lambda proto, value: setattr(proto.func, "name", _function_name(value)),
}


def _fill_list(proto: Proto, values: Sequence[Any], kind: str) -> None:
    proto.SetInParent()
    if kind == "string":
        proto.s.extend(map(_text, values))
    elif kind == "int":
        proto.i.extend(map(_integer, values))
    elif kind == "float":
        proto.f.extend(map(_real, values))
    elif kind == "bool":
        proto.b.extend(map(_truth, values))
    elif kind == "type":
        proto.type.extend(as_dtype(value).as_datatype_enum for value in values)
    else:
        for value in values:
            if kind == "shape":
                fill_shape(proto.shape.add(), value)
            elif kind == "tensor":
                _fill_tensor(proto.tensor.add(), value)
            else:
                proto.func.add(name=_function_name(value))
