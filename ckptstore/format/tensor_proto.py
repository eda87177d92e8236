"""Tensor values in protos: the constants of a graph.

Format
------
Mirrors TensorFlow `tensorflow/core/framework/tensor.proto` and `tensor.cc`, Tensor::FromProto. The elements
are either in ``tensor_content``, in the form of a data file (strings: all lengths as varints, then all
bytes), or in the repeated field of their type. If that field has fewer elements than the shape, the last one
is repeated; an empty field means zeros. So a few bytes may declare any number of elements.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptstore.errors import FormatError, UnsupportedError
from ckptstore.format import dtypes
from ckptstore.format.coding import decode_varint
from ckptstore.format.protos import Proto
from ckptstore.types import DType

__all__ = ["RESOURCE", "dtype_of", "fill_tensor_proto", "shape_of", "value_of"]

RESOURCE = DType("resource", np.object_, 20)
"""A handle to an object of a running process; in graphs only, never in checkpoints."""

_REF_OFFSET = 100
_MAX_ELEMENTS = (1 << 63) - 1
_MAX_DIMENSIONS = 254

_ALWAYS_ALLOWED_BYTES = 1 << 20
"""A value that repeats its last element may take this much, or as much as its file if that is more."""

# TensorFlow's type number → the field with its elements, and the numpy type of that field.
_FIELDS: dict[int, tuple[str, Any]] = {
    1: ("float_val", np.float32),
    2: ("double_val", np.float64),
    8: ("scomplex_val", np.float32),
    9: ("int64_val", np.int64),
    10: ("bool_val", np.bool_),
    14: ("half_val", np.int32),
    18: ("dcomplex_val", np.float64),
    19: ("half_val", np.int32),
    22: ("uint32_val", np.uint32),
    23: ("uint64_val", np.uint64),
} | dict.fromkeys((3, 4, 5, 6, 11, 12, 13, 15, 16, 17, 29, 30, 31, 32, 33), ("int_val", np.int32))
_FLOAT8 = range(24, 29)
_BELOW_ONE_BYTE = range(29, 34)
_OBJECT_FIELDS = {7: "string_val", 20: "resource_handle_val", 21: "variant_val"}


def dtype_of(number: int, *, source: str, tensor: str | None = None) -> DType | None:
    """Return the type with TensorFlow's `number` as graphs use it.

    A reference type counts as the type it refers to, ``resource`` is allowed, and 0 (not set) is None.

    Raises
    ------
    FormatError
        For a number that TensorFlow does not define.
    """
    if number > _REF_OFFSET:
        number -= _REF_OFFSET
    if number == RESOURCE.as_datatype_enum:
        return RESOURCE
    return dtypes.by_enum(number, source=source, tensor=tensor) if number else None


def shape_of(proto: Proto) -> tuple[int | None, ...] | None:
    """Return a ``TensorShapeProto`` as a tuple, None for an unknown size; None if the rank is unknown."""
    if proto.unknown_rank:
        return None
    return tuple(dim.size if dim.size >= 0 else None for dim in proto.dim)


def value_of(proto: Proto, *, source: str, size_limit: int, tensor: str | None = None) -> npt.NDArray[Any]:
    """Return the elements of a ``TensorProto``.

    Parameters
    ----------
    proto : TensorProto
    source : str
        URL for error messages.
    size_limit : int, bytes
        The size of the file. A larger value is refused, unless it is one element repeated.
    tensor : str, optional
        Name for error messages.

    Returns
    -------
    ndarray, read-only
        Native-endian. One element repeated is a broadcast view and takes no memory. Strings are an object
        array of bytes, variants and resources one of serialized protos.

    Raises
    ------
    FormatError
        If type, shape and content do not agree.
    UnsupportedError
        If the value would take more memory than `size_limit` (at least 1 MiB), or has more dimensions than
        numpy can.
    """
    dtype = dtype_of(proto.dtype, source=source, tensor=tensor)
    if dtype is None:
        raise FormatError("a constant has no element type", url=source, tensor=tensor)
    shape = _complete_shape(proto.tensor_shape, source, tensor)
    count = math.prod(shape)
    if count > _MAX_ELEMENTS:
        raise FormatError(
            "a constant has too many elements",
            url=source,
            tensor=tensor,
            expected="less than 2**63",
            actual=shape,
        )
    elements = _elements(proto, dtype, count, source, tensor)
    if len(elements) > count:
        elements = elements[:count]
    allowed = max(size_limit, _ALWAYS_ALLOWED_BYTES)
    if 1 < len(elements) < count and count * elements.itemsize > allowed:
        raise UnsupportedError(
            "a constant repeats its last value so often that it would take more memory than its file",
            url=source,
            tensor=tensor,
            expected=f"at most {allowed} bytes",
            actual=count * elements.itemsize,
        )
    try:
        if len(elements) == 1 and count != 1:
            # TensorFlow writes a tensor of equal elements like this; it may be huge.
            return np.broadcast_to(elements.reshape(()), shape)
        if len(elements) < count:
            elements = np.concatenate((elements, np.broadcast_to(elements[-1:], (count - len(elements),))))
        array = elements.reshape(shape)
    except ValueError as error:
        raise UnsupportedError(
            f"numpy cannot hold a constant of this shape: {error}", url=source, tensor=tensor
        ) from error
    array.flags.writeable = False
    return array


def _complete_shape(proto: Proto, source: str, tensor: str | None) -> tuple[int, ...]:
    if len(proto.dim) > _MAX_DIMENSIONS:
        raise FormatError(
            "a constant has too many dimensions",
            url=source,
            tensor=tensor,
            expected=f"at most {_MAX_DIMENSIONS}",
            actual=len(proto.dim),
        )
    shape = shape_of(proto)
    if shape is None or None in shape:
        raise FormatError("a constant has no complete shape", url=source, tensor=tensor, actual=shape)
    return tuple(size for size in shape if size is not None)


def _elements(proto: Proto, dtype: DType, count: int, source: str, tensor: str | None) -> npt.NDArray[Any]:
    """Return the stored elements, flat: `count` of them, or fewer, of which the last one repeats."""
    enum = dtype.as_datatype_enum
    if enum in _OBJECT_FIELDS:
        return _object_elements(proto, enum, count, source, tensor)
    stored = dtypes.storage_dtype(dtype)
    native = stored.newbyteorder("=")
    content = proto.tensor_content
    if not content and enum in _FLOAT8:
        content = proto.float8_val
        count = len(content)
    if content:
        if len(content) != count * stored.itemsize:
            raise FormatError(
                "the content of a constant does not fit its shape",
                url=source,
                tensor=tensor,
                expected=f"{count * stored.itemsize} bytes",
                actual=len(content),
            )
        return np.frombuffer(content, stored).astype(native, copy=False)
    if enum in _FLOAT8:
        return np.zeros(1, native)
    field, scalar = _FIELDS[enum]
    values = np.array(getattr(proto, field), scalar)
    if enum in (14, 19):
        # The bit patterns, one uint16 per element.
        values = values.astype(np.uint16).view(native)
    elif enum in (8, 18):
        values = values[: len(values) // 2 * 2].view(native)
    elif enum in _BELOW_ONE_BYTE:
        # The low bits count.
        values = values.astype(np.uint8).view(native)
    elif values.dtype != native:
        values = values.astype(native)
    return values if len(values) else np.zeros(1, native)


def _object_elements(
    proto: Proto, enum: int, count: int, source: str, tensor: str | None
) -> npt.NDArray[Any]:
    if proto.tensor_content and enum == 7:
        values = _split_strings(proto.tensor_content, count, source, tensor)
    elif enum == 7:
        values = list(proto.string_val)
    else:
        values = [
            message.SerializeToString(deterministic=True) for message in getattr(proto, _OBJECT_FIELDS[enum])
        ]
    elements = np.empty(len(values) or 1, object)
    elements[:] = values or [b""]
    return elements


def _split_strings(content: bytes, count: int, source: str, tensor: str | None) -> list[bytes]:
    """Split ``length_0 … length_n-1 bytes_0 … bytes_n-1``; each length takes at least a byte."""
    if count > len(content):
        raise FormatError(
            "the content of a string constant is too short for its shape",
            url=source,
            tensor=tensor,
            expected=f"at least {count} bytes",
            actual=len(content),
        )
    lengths = []
    position = 0
    for _ in range(count):
        length, position = decode_varint(content, position, source=source)
        lengths.append(length)
    if position + sum(lengths) != len(content):
        raise FormatError(
            "the content of a string constant does not fit its lengths",
            url=source,
            tensor=tensor,
            expected=f"{position + sum(lengths)} bytes",
            actual=len(content),
        )
    values = []
    for length in lengths:
        values.append(content[position : position + length])
        position += length
    return values


def fill_tensor_proto(proto: Proto, array: npt.NDArray[Any], dtype: DType) -> None:
    """Write a value into an empty ``TensorProto``.

    Parameters
    ----------
    proto : TensorProto
    array : ndarray
        As `ckptstore.format.dtypes.to_storage_array` returns it.
    dtype : DType
        Any except variant and resource.
    """
    proto.dtype = dtype.as_datatype_enum
    proto.tensor_shape.SetInParent()
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    if dtype == dtypes.STRING:
        proto.string_val.extend(array.ravel().tolist())
    else:
        proto.tensor_content = array.tobytes()
