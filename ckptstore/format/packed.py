"""Repeated numbers of a proto field as numpy arrays, packed or one by one.

Format
------
protobuf "Encoding": a repeated number may come as one length-delimited run, as single fields, or as any
mixture of both.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptstore.errors import FormatError
from ckptstore.format.coding import (
    MAX_VARINT_BYTES,
    WIRE_BYTES,
    WIRE_FIXED32,
    WIRE_FIXED64,
    WIRE_VARINT,
    BytesLike,
    iter_fields,
    wire_type_error,
)

__all__ = ["repeated_bytes", "repeated_fixed", "repeated_varints"]

# Decoding takes some dozen bytes of memory per byte of input; a window keeps that from growing with the
# tensor.
_WINDOW_BYTES = 1 << 20


def repeated_bytes(data: BytesLike, field_number: int, *, source: str) -> list[bytes]:
    """Return every value of a repeated bytes field."""
    values = []
    for number, wire_type, value in iter_fields(data, source=source):
        if number == field_number:
            if isinstance(value, int):
                raise wire_type_error("the tensor", number, wire_type, source=source)
            values.append(bytes(value))
    return values


def repeated_fixed(
    data: BytesLike, field_number: int, dtype: np.dtype[Any], *, source: str
) -> npt.NDArray[Any]:
    """Return every value of a repeated field of 4 or 8 bytes per value.

    Parameters
    ----------
    data : bytes-like
        The message.
    field_number : int
    dtype : numpy dtype
        Little-endian, of 4 or 8 bytes.
    source : str
        URL for error messages.

    Raises
    ------
    FormatError
        If the message is malformed or the field has another width.
    """
    size = dtype.itemsize
    single = WIRE_FIXED32 if size == 4 else WIRE_FIXED64
    parts: list[BytesLike] = []
    for number, wire_type, value in iter_fields(data, source=source):
        if number != field_number:
            continue
        if isinstance(value, int):
            if wire_type != single:
                raise wire_type_error("the tensor", number, wire_type, source=source)
            parts.append(value.to_bytes(size, "little"))
        elif len(value) % size:
            raise FormatError(
                f"packed field {number} of the tensor is cut off",
                url=source,
                expected=f"a multiple of {size} bytes",
                actual=len(value),
            )
        else:
            parts.append(value)
    joined = parts[0] if len(parts) == 1 else b"".join(parts)
    return np.frombuffer(joined, dtype)


def repeated_varints(data: BytesLike, field_number: int, *, source: str) -> Iterable[npt.NDArray[np.uint64]]:
    """Yield the values of a repeated varint field, in arrays of bounded size.

    Raises
    ------
    FormatError
        If the message is malformed, or a varint is cut off or does not fit into 64 bits.
    """
    singles: list[int] = []
    for number, wire_type, value in iter_fields(data, source=source):
        if number != field_number:
            continue
        if isinstance(value, int):
            if wire_type != WIRE_VARINT:
                raise wire_type_error("the tensor", number, wire_type, source=source)
            singles.append(value)
            if len(singles) < _WINDOW_BYTES // 16:
                continue
        if singles:
            yield np.array(singles, np.uint64)
            singles = []
        if wire_type == WIRE_BYTES and not isinstance(value, int):
            yield from _unpack(np.frombuffer(value, np.uint8), source)
    if singles:
        yield np.array(singles, np.uint64)


def _unpack(packed: npt.NDArray[np.uint8], source: str) -> Iterable[npt.NDArray[np.uint64]]:
    pos = 0
    while pos < len(packed):
        window = packed[pos : pos + _WINDOW_BYTES]
        last_bytes = np.flatnonzero(window < 128)
        if not len(last_bytes):
            raise FormatError("a varint of the tensor is cut off or too long", url=source)
        first_bytes = np.empty_like(last_bytes)
        first_bytes[0] = 0
        first_bytes[1:] = last_bytes[:-1] + 1
        more = last_bytes - first_bytes
        longest = int(more.max())
        if longest >= MAX_VARINT_BYTES or (
            longest == MAX_VARINT_BYTES - 1 and (window[last_bytes[more == longest]] > 1).any()
        ):
            raise FormatError("a varint of the tensor does not fit into 64 bits", url=source)
        values = (window[first_bytes] & 127).astype(np.uint64)
        for place in range(1, longest + 1):
            has = more >= place
            group = (window[first_bytes[has] + place] & 127).astype(np.uint64)
            values[has] |= group << np.uint64(7 * place)
        yield values
        pos += int(last_bytes[-1]) + 1
