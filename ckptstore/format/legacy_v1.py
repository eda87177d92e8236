"""Checkpoints of the first format (TensorFlow before 0.12, and ``write_version=V1`` since): reading.

Format
------
Mirrors TensorFlow `tensorflow/core/util/saved_tensor_slice.proto`, `tensor_slice_reader.cc` and
`tensor_slice_writer.h`, as measured on TensorFlow 2.21. The file is a table whose values are
SavedTensorSlices messages: key "" holds the meta data, a slice key (see `slices`) the values of one slice. A
tensor in one piece has one slice with the full extent of every dimension.

    SavedTensorSlices     meta = 1 SavedTensorSliceMeta, data = 2 SavedSlice
    SavedTensorSliceMeta  tensor = 1 repeated SavedSliceMeta, versions = 2
    SavedSliceMeta        name = 1, shape = 2, type = 3, slice = 4 repeated
    SavedSlice            name = 1, slice = 2, data = 3 TensorProto: one typed field, no dtype, no shape

Numbers are varints or packed, so this is decoded by hand with bounds taken from the bytes at hand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptstore.errors import FormatError, UnsupportedError
from ckptstore.format import dtypes
from ckptstore.format.coding import BytesLike, as_int32, iter_fields, wire_type_error
from ckptstore.format.entry import key_to_name
from ckptstore.format.packed import repeated_bytes, repeated_fixed, repeated_varints
from ckptstore.format.shape_proto import check_slice, decode_shape, decode_slice
from ckptstore.format.slices import encode_slice_key, format_slice
from ckptstore.format.table import Table
from ckptstore.types import DType, Slice

__all__ = ["V1Tensor", "parse_v1_table", "read_v1_slice"]

_META_KEY = b""

# Which field of TensorProto holds the values. What is not here, TensorFlow could never write in V1.
_FLOAT_VAL, _DOUBLE_VAL, _INT_VAL, _STRING_VAL, _SCOMPLEX_VAL = 5, 6, 7, 8, 9
_INT64_VAL, _BOOL_VAL, _DCOMPLEX_VAL, _HALF_VAL = 10, 11, 12, 13
_FIXED_FIELDS: dict[str, tuple[int, np.dtype[Any], int]] = {
    "float32": (_FLOAT_VAL, np.dtype("<f4"), 1),
    "float64": (_DOUBLE_VAL, np.dtype("<f8"), 1),
    "complex64": (_SCOMPLEX_VAL, np.dtype("<f4"), 2),
    "complex128": (_DCOMPLEX_VAL, np.dtype("<f8"), 2),
}
_VARINT_FIELDS = {
    **dict.fromkeys(("int32", "uint8", "int16", "int8", "uint16", "qint8", "quint8", "qint32"), _INT_VAL),
    "int64": _INT64_VAL,
    "bool": _BOOL_VAL,
    "float16": _HALF_VAL,
}


@dataclass(frozen=True, slots=True)
class V1Tensor:
    """A tensor as the meta data of one V1 file describes it.

    Attributes
    ----------
    shape : tuple of int
        Of the whole tensor.
    dtype_enum : int
        TensorFlow's number, see `dtypes.by_enum`.
    slices : tuple of Slice
        The boxes in this file, in save order; of a sharded checkpoint other files may hold more.
    """

    name: str
    shape: tuple[int, ...]
    dtype_enum: int
    slices: tuple[Slice, ...]


def parse_v1_table(table: Table, *, source: str) -> dict[str, V1Tensor]:
    """Return the tensors of a V1 file by name, in the order in which they were saved.

    Parameters
    ----------
    table : Table
    source : str
        URL for error messages.

    Raises
    ------
    FormatError
        If the table is not a V1 checkpoint (the index of a V2 one included, which TensorFlow takes for an
        empty checkpoint), or its meta data is malformed.
    """
    value = table.get(_META_KEY)
    if value is None:
        raise FormatError("the table is not a checkpoint: it has no meta data", url=source)
    tensors: dict[str, V1Tensor] = {}
    found = False
    for number, _, meta in iter_fields(memoryview(value), source=source):
        if number != 1:
            continue
        if isinstance(meta, int):
            raise FormatError(
                "this is not a V1 checkpoint",
                url=source,
                hint="It looks like the .index of a V2 checkpoint: pass the prefix, without .index.",
            )
        found = True
        for sub_number, sub_type, raw in iter_fields(meta, source=source):
            if sub_number != 1:
                continue
            if isinstance(raw, int):
                raise wire_type_error("the meta data", sub_number, sub_type, source=source)
            tensor = _parse_tensor(raw, source)
            if tensor.name in tensors:
                raise FormatError("the meta data names a tensor twice", url=source, tensor=tensor.name)
            tensors[tensor.name] = tensor
    if not found:
        raise FormatError("the table is not a V1 checkpoint: its first value holds no meta data", url=source)
    return tensors


def _parse_tensor(data: BytesLike, source: str) -> V1Tensor:
    name, dtype_enum = b"", 0
    shape: tuple[int, ...] = ()
    slices = []
    for number, wire_type, value in iter_fields(data, source=source):
        if number > 4:
            continue
        if isinstance(value, int) != (number == 3):
            raise wire_type_error("a tensor's meta data", number, wire_type, source=source)
        if isinstance(value, int):
            dtype_enum = as_int32(value)
        elif number == 1:
            name = bytes(value)
        elif number == 2:
            shape = decode_shape(value, source=source)
        else:
            slices.append(decode_slice(value, source=source))
    text = key_to_name(name)
    for box in slices:
        check_slice(box, shape, source=source, tensor=text)
    return V1Tensor(text, shape, dtype_enum, tuple(slices))


def read_v1_slice(table: Table, tensor: V1Tensor, box: Slice, *, source: str) -> npt.NDArray[Any]:
    """Return the values of one stored slice, in the shape of the slice.

    Parameters
    ----------
    table : Table
        The file that holds it.
    tensor : V1Tensor
    box : Slice
        One of ``tensor.slices``.
    source : str
        URL for error messages.

    Returns
    -------
    ndarray
        Native byte order; quantized types as plain integers, strings as an object array of bytes.

    Raises
    ------
    FormatError
        If the slice is not in the table, or its values are not those of its shape and type.
    UnsupportedError
        If the type could never be written in this format, or numpy has no array of that shape.
    """
    dtype = dtypes.by_enum(tensor.dtype_enum, source=source, tensor=tensor.name)
    value = table.get(encode_slice_key(tensor.name, box)) if tensor.name else None
    if value is None:
        raise FormatError(
            "the file lacks a slice that its meta data names",
            url=source,
            tensor=tensor.name,
            expected=format_slice(box),
        )
    shape = box.shape_within(tensor.shape)
    dtypes.check_array_shape(shape, dtype, source=source, tensor=tensor.name)
    try:
        proto = _tensor_proto(value, tensor.name, source)
        # Every element takes a byte or more: whatever the shape says, nothing is allocated beyond eight times
        # that.
        if math.prod(shape) > len(proto):
            raise _wrong_count(math.prod(shape), f"{len(proto)} bytes")
        return _decode_values(proto, dtype, math.prod(shape), source).reshape(shape)
    except (FormatError, UnsupportedError) as error:
        error.url, error.tensor = source, tensor.name
        raise


def _tensor_proto(value: bytes, name: str, source: str) -> memoryview:
    """Return the TensorProto inside a SavedTensorSlices message; empty if it has none."""
    result = memoryview(b"")
    for number, wire_type, data in iter_fields(memoryview(value), source=source):
        if number != 2:
            continue
        if isinstance(data, int):
            raise wire_type_error("the saved slice", number, wire_type, source=source)
        for sub_number, sub_type, sub_value in iter_fields(data, source=source):
            if sub_number not in (1, 3):
                continue
            if isinstance(sub_value, int):
                raise wire_type_error("the saved slice", sub_number, sub_type, source=source)
            if sub_number == 3:
                result = memoryview(sub_value)
            elif key_to_name(bytes(sub_value)) != name:
                raise FormatError("a slice belongs to another tensor", actual=key_to_name(bytes(sub_value)))
    return result


def _decode_values(proto: memoryview, dtype: DType, count: int, source: str) -> npt.NDArray[Any]:
    name = dtype.name
    if name == "string":
        strings = repeated_bytes(proto, _STRING_VAL, source=source)
        if len(strings) != count:
            raise _wrong_count(count, len(strings))
        array = np.empty(count, object)
        array[:] = strings
        return array
    if name in _FIXED_FIELDS:
        number, part, parts = _FIXED_FIELDS[name]
        numbers = repeated_fixed(proto, number, part, source=source)
        if len(numbers) != count * parts:
            raise _wrong_count(count, len(numbers) / parts)
        return numbers.view(dtypes.storage_dtype(dtype)).astype(dtype.as_numpy_dtype)
    if name in _VARINT_FIELDS:
        return _decode_varints(proto, dtype, count, source)
    raise UnsupportedError(f"a V1 checkpoint cannot hold {name}")


def _decode_varints(proto: memoryview, dtype: DType, count: int, source: str) -> npt.NDArray[Any]:
    # Half precision comes as the bit pattern.
    target = np.dtype(np.uint16 if dtype.name == "float16" else dtype.as_numpy_dtype)
    result = np.empty(count, target)
    filled = 0
    for numbers in repeated_varints(proto, _VARINT_FIELDS[dtype.name], source=source):
        stop = filled + len(numbers)
        if stop > count:
            raise _wrong_count(count, f"more than {count}")
        signed = numbers.view(np.int64)
        if dtype.name != "int64":
            signed = signed.astype(np.int32)
        converted = signed.astype(target)
        if not np.array_equal(converted, signed):
            raise FormatError(f"a value does not fit into {dtype.name}")
        result[filled:stop] = converted
        filled = stop
    if filled != count:
        raise _wrong_count(count, filled)
    return result.view(np.float16) if dtype.name == "float16" else result


def _wrong_count(expected: object, actual: object) -> FormatError:
    return FormatError(
        "a slice has another number of values than its shape", expected=expected, actual=actual
    )
