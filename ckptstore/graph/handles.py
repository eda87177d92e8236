"""The handles that a `GraphBuilder` returns, and the items of its collections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from ckptstore.errors import UsageError
from ckptstore.types import DType

__all__ = ["BuiltOperation", "BuiltTensor", "Input", "collection_kind", "collection_value"]


@dataclass(frozen=True, slots=True)
class BuiltTensor:
    """An output of an operation in a `GraphBuilder`.

    Attributes
    ----------
    name : str
        ``"operation:index"``.
    dtype : DType or None
    shape : tuple of (int or None), or None
        As given to the builder; it is not inferred for operations.
    """

    name: str
    dtype: DType | None = None
    shape: tuple[int | None, ...] | None = None


@dataclass(frozen=True, slots=True)
class BuiltOperation:
    """An operation in a `GraphBuilder`. As an input of another one it means its first output.

    Attributes
    ----------
    name, type : str
    outputs : tuple of BuiltTensor
        Also empty if the catalogue does not have the type: use names (``"name:1"``) instead.
    """

    name: str
    type: str
    outputs: tuple[BuiltTensor, ...] = ()


Input: TypeAlias = BuiltTensor | BuiltOperation | str
"""A handle, or a name: ``"a"``, ``"a:1"``, ``"^a"`` for an operation that must run before."""


def collection_kind(item: Any, collection: str) -> str:
    """Return the field of ``CollectionDef`` that holds `item`, by TensorFlow's rules.

    Raises
    ------
    UsageError
        If no field can hold it.
    """
    for types, kind in (
        ((BuiltTensor, BuiltOperation), "node_list"),
        ((str, bytes), "bytes_list"),
        ((int, np.integer), "int64_list"),
        ((float, np.floating), "float_list"),
    ):
        if isinstance(item, types):
            return kind
    raise UsageError(f"the collection {collection!r} cannot list this", actual=type(item).__name__)


def collection_value(item: Any) -> Any:
    """Return `item` in the form of the field that `collection_kind` names."""
    if isinstance(item, (BuiltTensor, BuiltOperation)):
        return item.name
    if isinstance(item, (int, np.integer)):
        return int(item)
    if isinstance(item, (float, np.floating)):
        return float(item)
    return item.encode("utf-8") if isinstance(item, str) else item
