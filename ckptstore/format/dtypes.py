"""The element types of a checkpoint, and the conversion of a caller's array to the form of a file.

Format
------
Numbers and names as in TensorFlow `tensorflow/core/framework/types.proto`, as measured on TensorFlow 2.21.
Elements are contiguous in C order, little-endian. Types below one byte (int4, uint4, int2, uint2,
float4_e2m1fn) take one byte per element, whose upper bits are not defined: the bytes are copied unchanged,
never normalised.
"""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ckptstore.errors import FormatError, UnsupportedError, UsageError
from ckptstore.frameworks import foreign_value, instead_of
from ckptstore.suggest import did_you_mean
from ckptstore.types import DType

__all__ = [
    "ALL",
    "STORED_AS_IS",
    "STRING",
    "VARIANT",
    "as_bytes_view",
    "by_enum",
    "by_name",
    "check_array_shape",
    "from_numpy",
    "item_size_bytes",
    "storage_dtype",
    "swap_unit_bytes",
    "to_storage_array",
]

_RESOURCE_ENUM = 20
_FIRST_REF_ENUM = 101

_POINTER_SIZE = np.dtype(object).itemsize
_NUMPY_MAX_RANK = 64 if int(np.__version__.split(".")[0]) >= 2 else 32

# enum, name, scalar type in memory, dtype in the file, size of the unit that changes with endianness
# (1: nothing to swap; None: TensorFlow refuses to swap it, and so do we).
_TABLE: tuple[tuple[int, str, type, str | type, int | None], ...] = (
    (1, "float32", np.float32, "<f4", 4),
    (2, "float64", np.float64, "<f8", 8),
    (3, "int32", np.int32, "<i4", 4),
    (4, "uint8", np.uint8, "u1", 1),
    (5, "int16", np.int16, "<i2", 2),
    (6, "int8", np.int8, "i1", 1),
    (7, "string", object, "O", 1),
    (8, "complex64", np.complex64, "<c8", 4),
    (9, "int64", np.int64, "<i8", 8),
    (10, "bool", np.bool_, "?", 1),
    (11, "qint8", np.int8, "i1", 1),
    (12, "quint8", np.uint8, "u1", 1),
    (13, "qint32", np.int32, "<i4", 4),
    (14, "bfloat16", ml_dtypes.bfloat16, ml_dtypes.bfloat16, 2),
    (15, "qint16", np.int16, "<i2", 2),
    (16, "quint16", np.uint16, "<u2", 2),
    (17, "uint16", np.uint16, "<u2", 2),
    (18, "complex128", np.complex128, "<c16", 8),
    (19, "float16", np.float16, "<f2", 2),
    (21, "variant", object, "O", None),
    (22, "uint32", np.uint32, "<u4", 4),
    (23, "uint64", np.uint64, "<u8", 8),
    (24, "float8_e5m2", ml_dtypes.float8_e5m2, ml_dtypes.float8_e5m2, None),
    (25, "float8_e4m3fn", ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e4m3fn, None),
    (26, "float8_e4m3fnuz", ml_dtypes.float8_e4m3fnuz, ml_dtypes.float8_e4m3fnuz, None),
    (27, "float8_e4m3b11fnuz", ml_dtypes.float8_e4m3b11fnuz, ml_dtypes.float8_e4m3b11fnuz, None),
    (28, "float8_e5m2fnuz", ml_dtypes.float8_e5m2fnuz, ml_dtypes.float8_e5m2fnuz, None),
    (29, "int4", ml_dtypes.int4, ml_dtypes.int4, None),
    (30, "uint4", ml_dtypes.uint4, ml_dtypes.uint4, None),
    (31, "int2", ml_dtypes.int2, ml_dtypes.int2, None),
    (32, "uint2", ml_dtypes.uint2, ml_dtypes.uint2, None),
    (33, "float4_e2m1fn", ml_dtypes.float4_e2m1fn, ml_dtypes.float4_e2m1fn, None),
)

ALL: tuple[DType, ...] = tuple(DType(name, scalar, enum) for enum, name, scalar, _, _ in _TABLE)
"""Every storable type, by ascending enum."""

_BY_ENUM = {dtype.as_datatype_enum: dtype for dtype in ALL}
_BY_NAME = {dtype.name: dtype for dtype in ALL} | {"half": _BY_ENUM[19]}
_STORAGE = {enum: np.dtype(storage) for enum, _, _, storage, _ in _TABLE}
_SWAP_UNIT = {enum: unit for enum, _, _, _, unit in _TABLE}
_SIZE = {enum: 0 if storage.hasobject else storage.itemsize for enum, storage in _STORAGE.items()}

STRING = _BY_ENUM[7]
VARIANT = _BY_ENUM[21]

_QUANTIZED = {dtype.name for dtype in ALL if dtype.name.startswith(("qint", "quint"))}
# An int8 array is int8: a quantized type must be requested by name.
_BY_NUMPY: dict[np.dtype[Any], DType] = {
    np.dtype(d.as_numpy_dtype): d for d in ALL if d.name not in _QUANTIZED and d != VARIANT
}

STORED_AS_IS: dict[np.dtype[Any], DType] = {
    _STORAGE[dtype.as_datatype_enum]: dtype for dtype in _BY_NUMPY.values() if dtype != STRING
}
"""numpy dtype → type, for arrays whose bytes in memory are those of the file."""


def by_enum(number: int, *, source: str, tensor: str | None = None) -> DType:
    """Return the type with TensorFlow's `number`, as read from a file.

    Raises
    ------
    UnsupportedError
        For ``resource`` (20), which names an object of a running process and has no value.
    FormatError
        For any other number that no checkpoint holds, the reference types (101 and above) included.
    """
    dtype = _BY_ENUM.get(number)
    if dtype is not None:
        return dtype
    if number == _RESOURCE_ENUM:
        raise UnsupportedError("a resource handle has no value to read", url=source, tensor=tensor)
    kind = "a reference type" if number >= _FIRST_REF_ENUM else "an unknown element type"
    raise FormatError(f"the entry has {kind}", url=source, tensor=tensor, expected="1 to 33", actual=number)


def by_name(name: str) -> DType:
    """Return the type that TensorFlow calls `name`; ``"half"`` is ``"float16"``.

    Raises
    ------
    UsageError
        If it does not exist; the hint lists close names.
    """
    dtype = _BY_NAME.get(name) if isinstance(name, str) else None
    if dtype is None:
        hint = did_you_mean(name, _BY_NAME) or f"Known: {', '.join(sorted(_BY_NAME))}."
        raise UsageError(f"unknown element type {name!r}", hint=hint)
    return dtype


def from_numpy(dtype: npt.DTypeLike, *, tensor: str | None = None) -> DType:
    """Return the type for a numpy or ml_dtypes `dtype`, in either byte order.

    Text and bytes (``O``, ``S``, ``U`` and numpy's StringDType) are ``string``. TensorFlow's own numpy form
    of a quantized type, a record with one field named after it, is that type.

    Raises
    ------
    UsageError
        If no TensorFlow type corresponds (datetime64, long double, records, …).
    """
    given = np.dtype(dtype)
    if given.kind in "OSUT":
        return STRING
    found = _BY_NUMPY.get(given if given.isnative else given.newbyteorder("="))
    if found is not None:
        return found
    if given.names is not None and len(given.names) == 1 and given.names[0] in _QUANTIZED:
        quantized = _BY_NAME[given.names[0]]
        if given[0] == _STORAGE[quantized.as_datatype_enum]:
            return quantized
    raise UsageError(
        "TensorFlow has no element type for this numpy dtype",
        tensor=tensor,
        actual=given,
        hint="Convert the array first, e.g. with .astype(np.float32) or .astype(np.int64).",
    )


def item_size_bytes(dtype: DType) -> int:
    """Return the bytes an element takes in the file; 0 for strings and variants, whose elements differ."""
    return _SIZE[dtype.as_datatype_enum]


def swap_unit_bytes(dtype: DType) -> int | None:
    """Return the bytes of the unit that a big-endian file holds in reverse.

    Returns
    -------
    int or None
        4 for complex64, whose halves are swapped one by one; 1 when there is nothing to swap; None when
        TensorFlow does not define it (float8, types below one byte, variants). Strings have their own rule,
        see `strings`.
    """
    return _SWAP_UNIT[dtype.as_datatype_enum]


def storage_dtype(dtype: DType) -> np.dtype[Any]:
    """Return the little-endian numpy dtype of the file; quantized types are plain integers of their width."""
    return _STORAGE[dtype.as_datatype_enum]


def check_array_shape(
    shape: tuple[int, ...], dtype: DType, *, source: str, tensor: str | None = None
) -> None:
    """Raise UnsupportedError if numpy has no array of that shape: too many dimensions or elements.

    TensorFlow allows 254 dimensions, numpy 64 (32 before 2.0); and numpy leaves zeros out of the product.
    """
    size_bytes = math.prod(n or 1 for n in shape) * (item_size_bytes(dtype) or _POINTER_SIZE)
    if len(shape) > _NUMPY_MAX_RANK or size_bytes >= 1 << 63:
        raise UnsupportedError(
            "numpy has no array of this shape",
            url=source,
            tensor=tensor,
            expected=f"at most {_NUMPY_MAX_RANK} dimensions and 2**63 bytes",
            actual=f"{len(shape)} dimensions, {size_bytes} bytes",
        )


def as_bytes_view(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return the memory of a C-contiguous array as bytes, without a copy.

    ml_dtypes arrays do not export the buffer protocol, a view as uint8 does.

    Returns
    -------
    ndarray of uint8, shape (nbytes,)

    Raises
    ------
    UsageError
        If `array` is not C-contiguous or holds objects.
    """
    if array.dtype.hasobject or not array.flags.c_contiguous:
        raise UsageError("only a C-contiguous array of plain numbers has a view as bytes", actual=array.dtype)
    return array.reshape(-1).view(np.uint8)


def to_storage_array(
    value: npt.ArrayLike,
    dtype: DType | str | None = None,
    *,
    tensor: str | None = None,
    most_bytes: int | None = None,
) -> tuple[npt.NDArray[Any], DType]:
    """Return `value` in the form in which it is written, and its type.

    Parameters
    ----------
    value : array-like
        numpy or ml_dtypes arrays of any strides and byte order, numpy scalars, Python numbers, text, bytes
        and (nested) lists of them. Python numbers get the type that numpy gives them (int64, float64).
    dtype : DType or str, optional
        TensorFlow's type. An array must already have the dtype that the type is stored in (int8 for qint8);
        Python numbers are converted if that keeps their values. Variants are object arrays of serialized
        ``VariantTensorDataProto`` and must be asked for.
    tensor : str, optional
        Name for error messages.
    most_bytes : int, optional
        A larger array keeps its strides and byte order: the writer converts it piece by piece.

    Returns
    -------
    array : ndarray
        C-contiguous, little-endian (without a copy if it is so already); for strings and variants an object
        array of bytes. Text is encoded as UTF-8. An ``S`` array has lost trailing NULs before: numpy cannot
        distinguish them from padding. Pass a list or an object array of bytes to keep them.
    dtype : DType

    Raises
    ------
    UsageError
        If numpy cannot make an array of it, it is masked, TensorFlow has no such type, or `dtype` does not
        fit.
    """
    wanted = by_name(dtype) if isinstance(dtype, str) else dtype
    array = _as_array(value, tensor)
    found = (
        VARIANT if wanted == VARIANT and array.dtype.kind == "O" else from_numpy(array.dtype, tensor=tensor)
    )
    if wanted is not None and wanted.as_datatype_enum != found.as_datatype_enum:
        if not hasattr(value, "dtype"):
            array = _convert_python_numbers(array, wanted, tensor)
        elif storage_dtype(wanted).hasobject or storage_dtype(found) != storage_dtype(wanted):
            raise UsageError(
                f"the array cannot be stored as {wanted.name}",
                tensor=tensor,
                expected=f"an array of {storage_dtype(wanted)}",
                actual=array.dtype,
                hint="Convert the array first, or leave the type out.",
            )
        found = wanted
    if storage_dtype(found).hasobject:
        return _as_bytes_objects(array, tensor, text_allowed=found == STRING), found
    stored = storage_dtype(found)
    if array.dtype.names is not None:
        array = array.view(stored)
    if most_bytes is not None and array.nbytes > most_bytes:
        return array, found
    if array.dtype != stored:
        array = array.astype(stored)
    return np.asarray(array, order="C"), found


def _as_array(value: npt.ArrayLike, tensor: str | None) -> npt.NDArray[Any]:
    if isinstance(value, np.ma.MaskedArray) or (isinstance(value, list | tuple) and _has_masked(value)):
        raise UsageError(
            "a masked array would lose its mask",
            tensor=tensor,
            hint="Save x.filled(value), and np.ma.getmaskarray(x) under a name of its own.",
        )
    if isinstance(value, np.ndarray):
        return np.asarray(value)
    try:
        if isinstance(value, (str, bytes)):
            array = np.empty((), object)
            array[()] = value
            return array
        try:
            array = np.asarray(value)
            mixes_up_text = array.dtype.kind in "SU" and not hasattr(value, "dtype")
        except UnicodeError:
            mixes_up_text = True
        if mixes_up_text:
            # numpy drops trailing NULs of bytes in a list, turns the number in ["a", 1] into text, and reads
            # bytes beside text as ASCII.
            array = np.array(value, dtype=object)
    except (ValueError, TypeError, OverflowError) as error:
        raise _no_array(value, tensor, error) from error
    except Exception as error:
        # Frameworks raise what they like: RuntimeError, NotImplementedError.
        if foreign_value(value) is None:
            raise
        raise _no_array(value, tensor, error) from error
    if array.dtype.hasobject and foreign_value(value) is not None:
        raise _no_array(value, tensor, None)
    return array


def _no_array(value: object, tensor: str | None, error: Exception | None) -> UsageError:
    what = "numpy cannot make an array of this value"
    foreign = foreign_value(value)
    return UsageError(
        what if error is None else f"{what}: {error}",
        tensor=tensor,
        actual=None if foreign is None else type(foreign).__name__,
        hint=None if foreign is None else instead_of(foreign),
    )


def _has_masked(values: list[Any] | tuple[Any, ...]) -> bool:
    return any(
        isinstance(value, np.ma.MaskedArray) or (isinstance(value, list | tuple) and _has_masked(value))
        for value in values
    )


def _convert_python_numbers(array: npt.NDArray[Any], wanted: DType, tensor: str | None) -> npt.NDArray[Any]:
    """Return Python numbers as the wanted type; refuse to change a value by more than rounding."""
    stored = storage_dtype(wanted)
    refusal = UsageError(f"the values do not fit into {wanted.name}", tensor=tensor, actual=array.dtype)
    if stored.hasobject or array.dtype.kind not in "biufc":
        raise refusal
    if array.size == 0:
        return array.astype(stored)
    if array.dtype.kind == "c" and stored.kind != "c":
        raise refusal
    if (array.dtype.kind == "b") != (stored.kind == "b"):
        raise refusal
    with np.errstate(all="ignore"):
        converted = array.astype(stored)
        if _is_whole(stored):
            if array.dtype.kind not in "iub" or not np.array_equal(converted.astype(array.dtype), array):
                raise refusal
        elif not np.array_equal(np.isfinite(converted.astype(np.complex128)), np.isfinite(array)):
            raise refusal
    return converted


def _is_whole(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "iub" or "int" in dtype.name


def _as_bytes_objects(array: npt.NDArray[Any], tensor: str | None, *, text_allowed: bool) -> npt.NDArray[Any]:
    """Return an object array of bytes, C-contiguous; a fresh one only if an element has to change."""
    elements = array.ravel().tolist() if array.dtype.kind != "O" else array.ravel()
    result = np.empty(array.size, object)
    for index, element in enumerate(elements):
        if isinstance(element, bytes):
            # bytes(…) turns np.bytes_ and other subclasses into what readers return.
            result[index] = element if type(element) is bytes else bytes(element)
        elif text_allowed and isinstance(element, str):
            try:
                result[index] = element.encode()
            except UnicodeEncodeError as error:
                raise UsageError(
                    f"element {_where(index, array.shape)} holds half a surrogate pair, which is not UTF-8",
                    tensor=tensor,
                ) from error
        else:
            raise UsageError(
                f"element {_where(index, array.shape)} of an object array is neither text nor bytes"
                if text_allowed
                else f"element {_where(index, array.shape)} of a variant is not a serialized proto (bytes)",
                tensor=tensor,
                actual=type(element).__name__,
            )
    return result.reshape(array.shape)


def _where(index: int, shape: tuple[int, ...]) -> str:
    return str([int(i) for i in np.unravel_index(index, shape)]) if shape else "[]"
