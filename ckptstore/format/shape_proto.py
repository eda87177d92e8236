"""The protos of shapes and slices, which the index of a bundle and V1 files share.

Format
------
Mirrors TensorFlow `tensorflow/core/framework/tensor_shape.proto` and `tensor_slice.proto`, as measured on
TensorFlow 2.21.

    TensorShapeProto   dim = 2 repeated {size = 1 int64, name = 2}, unknown_rank = 3
    TensorSliceProto   extent = 1 repeated {start = 1 int64, length = 2 int64}; no length = the full extent
"""

from __future__ import annotations

import math

from ckptstore.errors import FormatError
from ckptstore.format.coding import (
    WIRE_VARINT,
    BytesLike,
    as_int64,
    encode_bytes_field,
    encode_varint_field,
    iter_fields,
    wire_type_error,
)
from ckptstore.types import Slice

__all__ = [
    "MAX_RANK",
    "check_slice",
    "decode_shape",
    "decode_slice",
    "encode_shape",
    "encode_slice",
]

MAX_RANK = 254
"""TensorFlow's limit on the number of dimensions."""

_INT64_MAX = (1 << 63) - 1
_FULL_EXTENT = (0, -1)


def encode_shape(shape: tuple[int, ...]) -> bytes:
    """Return a serialized TensorShapeProto; a dimension of size 0 is an empty message."""
    return b"".join(encode_bytes_field(2, encode_varint_field(1, size) if size else b"") for size in shape)


def decode_shape(data: BytesLike, *, source: str) -> tuple[int, ...]:
    """Return the dimensions of a TensorShapeProto.

    Raises
    ------
    FormatError
        If the rank is unknown or above `MAX_RANK`, a dimension is negative, or the elements cannot be counted
        in 63 bits (zeros left out, so that numpy can make the empty array too).
    """
    shape = []
    for number, wire_type, value in iter_fields(data, source=source):
        if number == 2:
            if isinstance(value, int):
                raise wire_type_error("the shape", number, wire_type, source=source)
            size = 0
            for sub_number, sub_type, sub_value in iter_fields(value, source=source):
                if sub_number == 1:
                    if not isinstance(sub_value, int) or sub_type != WIRE_VARINT:
                        raise wire_type_error("a dimension", sub_number, sub_type, source=source)
                    size = as_int64(sub_value)
            shape.append(size)
            if len(shape) > MAX_RANK:
                raise FormatError(
                    "Invalid tensor shape: too many dimensions", url=source, expected=f"at most {MAX_RANK}"
                )
        elif number == 3 and value:
            raise FormatError("Invalid tensor shape: unknown rank", url=source)
    if any(size < 0 for size in shape):
        raise FormatError("Invalid tensor shape: a dimension is negative", url=source, actual=shape)
    if math.prod(size or 1 for size in shape) > _INT64_MAX:
        raise FormatError(
            "Invalid tensor shape: too many elements", url=source, expected="below 2**63", actual=shape
        )
    return tuple(shape)


def encode_slice(box: Slice) -> bytes:
    """Return a serialized TensorSliceProto; start 0 is left out."""
    extents = []
    for start, length in box.extents:
        extent = encode_varint_field(1, start) if start else b""
        if length != -1:
            # Member of a oneof: written even when it is 0.
            extent += encode_varint_field(2, length)
        extents.append(encode_bytes_field(1, extent))
    return b"".join(extents)


def decode_slice(data: BytesLike, *, source: str) -> Slice:
    """Return the box of a TensorSliceProto; FormatError if a start or length is negative."""
    extents = []
    for number, wire_type, value in iter_fields(data, source=source):
        if number != 1:
            continue
        if isinstance(value, int):
            raise wire_type_error("the slice", number, wire_type, source=source)
        start, length = 0, -1
        for sub_number, sub_type, sub_value in iter_fields(value, source=source):
            if sub_number in (1, 2):
                if not isinstance(sub_value, int) or sub_type != WIRE_VARINT:
                    raise wire_type_error("the extent", sub_number, sub_type, source=source)
                if sub_value > _INT64_MAX:
                    raise FormatError(
                        "a slice has a negative start or length", url=source, actual=as_int64(sub_value)
                    )
                if sub_number == 1:
                    start = sub_value
                else:
                    length = sub_value
        if length == -1 and start:
            raise FormatError("a slice has a start but no length", url=source, actual=start)
        # One tuple for all full extents: two bytes of the file each, they would take 30 times that in memory.
        extents.append(_FULL_EXTENT if length == -1 else (start, length))
        if len(extents) > MAX_RANK:
            raise FormatError("a slice has too many dimensions", url=source, expected=f"at most {MAX_RANK}")
    return Slice(tuple(extents))


def check_slice(box: Slice, shape: tuple[int, ...], *, source: str, tensor: str | None = None) -> None:
    """Raise FormatError unless `box`, as read from a file, lies inside `shape`."""
    if len(box.extents) != len(shape):
        raise FormatError(
            "Mismatching ranks of shape and slice",
            url=source,
            tensor=tensor,
            expected=len(shape),
            actual=len(box.extents),
        )
    for dimension, ((start, length), size) in enumerate(zip(box.extents, shape, strict=True)):
        if length != -1 and start + length > size:
            raise FormatError(
                f"Extent in dimension {dimension} out of bounds",
                url=source,
                tensor=tensor,
                expected=f"at most {size}",
                actual=f"{start} + {length}",
            )
