"""Plain data that several rooms share. No behaviour beyond what describes the data."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

__all__ = ["ByteRange", "DType", "Options", "PathText", "Slice", "TensorSpec"]

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


@dataclass(frozen=True, slots=True)
class Slice:
    """A box of a partitioned tensor: one ``(start, length)`` per dimension; length -1 = the full extent."""

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
