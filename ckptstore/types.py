"""Plain data that several rooms share. No behaviour beyond what describes the data."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, SupportsIndex, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from ckptstore.errors import UsageError

__all__ = ["ByteRange", "DType", "Options", "PathText", "Piece", "Slice", "TensorSpec", "as_pieces"]

PathText: TypeAlias = str | os.PathLike[str]
"""A path or URL as callers write it."""

Options: TypeAlias = Mapping[str, Any] | None
"""Storage options as callers write them."""


class DType:
    """A tensor's element type, shaped like ``tf.DType``.

    Equal to another `DType`, to its TensorFlow name and to its numpy dtype (in any spelling that ``np.dtype``
    takes). Two types that share a numpy dtype (``qint8`` and ``int8``) are not equal to each other.

    Attributes
    ----------
    name : str
        TensorFlow's name, e.g. ``"float32"``, ``"qint8"``, ``"string"``.
    as_numpy_dtype : type
        The numpy (or ml_dtypes) scalar type in which values are returned; ``object`` for strings and
        variants.
    as_datatype_enum : int
        The number in TensorFlow's ``types.proto``.
    """

    __slots__ = ("as_datatype_enum", "as_numpy_dtype", "name")

    def __init__(self, name: str, as_numpy_dtype: type, as_datatype_enum: int) -> None:
        self.name = name
        self.as_numpy_dtype = as_numpy_dtype
        self.as_datatype_enum = as_datatype_enum

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy dtype, so that ``np.dtype(this)`` works."""
        return np.dtype(self.as_numpy_dtype)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, DType):
            return self.as_datatype_enum == other.as_datatype_enum
        if other is None:
            # np.dtype(None) is float64.
            return False
        if isinstance(other, str) and other == self.name:
            return True
        try:
            return np.dtype(other) == self.dtype  # type: ignore[call-overload,no-any-return]
        except (TypeError, ValueError):
            return NotImplemented

    def __hash__(self) -> int:
        return hash(self.name)

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"ckptstore.DType({self.name!r})"


@dataclass(frozen=True, slots=True, order=True)
class ByteRange:
    """Half-open range of bytes ``[start, stop)`` in one file."""

    start: int
    stop: int

    @property
    def size_bytes(self) -> int:
        return self.stop - self.start


class Slice(NamedTuple):
    """A box of a partitioned tensor: one ``(start, length)`` per dimension; length -1 = the full extent."""

    # A tuple, because a large index has a million of them, which are hashed and compared.

    extents: tuple[tuple[int, int], ...]

    def resolve(self, shape: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Return the extents with every -1 replaced by the dimension's size."""
        return tuple(
            (0, size) if length == -1 else (start, length)
            for (start, length), size in zip(self.extents, shape, strict=True)
        )

    def shape_within(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of this box inside a tensor of shape `shape`."""
        return tuple(length for _, length in self.resolve(shape))


_INT64_MAX = (1 << 63) - 1


@dataclass(frozen=True, slots=True, eq=False, init=False)
class Piece:
    """A box of a tensor: what one process holds of it, or wants of it.

    A save or a restore takes one, or a sequence of them, in the place of an array.

    Parameters
    ----------
    array : array-like
        The elements of the box. What shares its memory with numpy is not copied. A restore fills it, so it
        must be writable then.
    shape : sequence of int
        Of the whole tensor.
    start : sequence of int
        Where the box begins, one number per dimension.

    Attributes
    ----------
    array : ndarray
        May have no elements: a process that holds nothing of a tensor may say so.
    shape, start : tuple of int

    Raises
    ------
    UsageError
        If there is no array, or the box does not lie inside the shape.

    Threads
    -------
    Safe for concurrent use, as far as the array is.

    Examples
    --------
    >>> import numpy as np
    >>> Piece(np.zeros((2, 3)), shape=(4, 3), start=(2, 0)).box
    Slice(extents=((2, 2), (0, 3)))
    """

    array: npt.NDArray[Any]
    shape: tuple[int, ...]
    start: tuple[int, ...]

    def __init__(
        self, array: npt.ArrayLike, shape: Sequence[SupportsIndex], start: Sequence[SupportsIndex]
    ) -> None:
        given = array if isinstance(array, np.ndarray) else _to_array(array)
        try:
            sizes = tuple([operator.index(size) for size in shape])
            begins = tuple([operator.index(number) for number in start])
        except TypeError as error:
            raise UsageError(
                "shape and start of a piece are sequences of integers",
                actual=f"shape {shape!r}, start {start!r}"[:200],
            ) from error
        if not (
            len(sizes) == len(begins) == given.ndim
            and all(
                begin >= 0 and begin + length <= size
                for begin, length, size in zip(begins, given.shape, sizes, strict=True)
            )
            and math.prod(sizes) <= _INT64_MAX
        ):
            raise UsageError(
                "a piece does not lie inside its tensor",
                expected=f"one start and one length per dimension, inside shape {list(sizes)}",
                actual=f"start {list(begins)}, an array of shape {list(given.shape)}",
                hint="`shape` is that of the whole tensor, `start` the place of the array's first element.",
            )
        object.__setattr__(self, "array", given)
        object.__setattr__(self, "shape", sizes)
        object.__setattr__(self, "start", begins)

    def __repr__(self) -> str:
        return f"Piece({list(self.array.shape)} of {list(self.shape)} at {list(self.start)})"

    @property
    def box(self) -> Slice:
        """Where the array lies in the tensor, every extent spelled out."""
        return Slice(tuple(zip(self.start, self.array.shape, strict=True)))

    @property
    def covers_whole(self) -> bool:
        """Whether this is the whole tensor."""
        return self.array.shape == self.shape


def _to_array(value: Any) -> npt.NDArray[Any]:
    try:
        if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
            return np.from_dlpack(value)
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise UsageError(
            "a piece needs an array that numpy can look at", actual=type(value).__name__
        ) from error


_ONLY_PIECES = frozenset((Piece,))


def as_pieces(value: Any, *, tensor: str) -> Sequence[Piece] | None:
    """Return the pieces that a caller gives in the place of an array; None if `value` is something else.

    Raises
    ------
    UsageError
        If only some elements of a sequence are pieces.
    """
    if isinstance(value, Piece):
        return (value,)
    if not isinstance(value, list | tuple) or not value:
        return None
    kinds = set(map(type, value))
    if kinds == _ONLY_PIECES:
        return cast("Sequence[Piece]", value)
    if not any(issubclass(kind, Piece) for kind in kinds):
        return None
    other = next((kind for kind in kinds if not issubclass(kind, Piece)), None)
    if other is not None:
        raise UsageError(
            "pieces of a tensor and other things are mixed",
            tensor=tensor,
            expected="Piece",
            actual=other.__name__,
        )
    return cast("Sequence[Piece]", value)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """The description of one tensor in the index.

    Attributes
    ----------
    name : str
    shape : tuple of int
    dtype : DType
    nbytes : int
        Bytes in the data files, all slices together.
    shards : tuple of int
        Numbers of the shards that hold its bytes, ascending.
    slices : tuple of Slice
        The stored boxes in save order; empty for a tensor stored in one piece.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType
    nbytes: int
    shards: tuple[int, ...]
    slices: tuple[Slice, ...] = ()
