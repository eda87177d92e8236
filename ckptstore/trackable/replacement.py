"""Replace what cannot be filled in place: Python numbers, numpy scalars, text."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptstore.errors import UsageError
from ckptstore.format.dtypes import STRING
from ckptstore.trackable.tree import TreeNode
from ckptstore.types import DType

__all__ = ["check_replaceable", "check_restorable", "convert_like", "replace_value"]

# Python's type → the beginnings of the names of the element types that it can hold. bool comes first: it is
# an int, too.
_NUMBERS: tuple[tuple[type, tuple[str, ...]], ...] = (
    (bool, ("bool",)),
    (int, ("int", "uint", "qint", "quint")),
    (float, ("float", "bfloat")),
    (complex, ("complex",)),
)


def check_restorable(node: TreeNode, path: Callable[[], str]) -> None:
    """Raise `UsageError` if no restore could put a value into the place of this one.

    Parameters
    ----------
    node : TreeNode
        With a value.
    path : callable
        Returns that of the node, for messages.
    """
    value = node.value
    if isinstance(value, np.ndarray):
        if not value.flags.writeable:
            raise UsageError(
                "the array is read-only, so a restore could not fill it",
                tensor=path(),
                hint="Use a writable one: np.array(x) copies it.",
            )
        return
    for holder, _ in node.refs:
        if not isinstance(holder, MutableMapping | list):
            raise UsageError(
                f"a value of type {type(value).__name__} cannot be filled in place, and its container cannot "
                "be changed",
                tensor=path(),
                actual=f"an element of a {type(holder).__name__}",
                hint="Use a 0-d array, e.g. np.array(5), or a list.",
            )


def check_replaceable(node: TreeNode, dtype: DType, shape: tuple[int, ...], *, path: str, url: str) -> None:
    """Raise `UsageError` unless a tensor of this type and shape can replace what is in the tree.

    Parameters
    ----------
    node : TreeNode
        Its value is not a numpy array.
    dtype, shape :
        As stored in the checkpoint.
    path : str
        Of the node, for messages.
    url : str
        The checkpoint, for messages.
    """
    value = node.value
    found_shape = np.shape(value)
    if found_shape != shape or not _has_type(value, dtype):
        kind = value.dtype if isinstance(value, np.generic) else type(value).__name__
        raise UsageError(
            "the value does not have the shape and type of the tensor in the checkpoint",
            url=url,
            tensor=path,
            expected=f"{dtype.name} {list(shape)}",
            actual=f"{kind} {list(found_shape)}",
        )


def _has_type(value: Any, dtype: DType) -> bool:
    if isinstance(value, str | bytes):
        return dtype == STRING
    if isinstance(value, np.generic):
        return value.dtype.newbyteorder("=") == dtype.dtype
    names = next(names for kind, names in _NUMBERS if isinstance(value, kind))
    return dtype.name.startswith(names)


def convert_like(node: TreeNode, value: npt.NDArray[Any], *, path: str, url: str) -> Any:
    """Return `value` in the type of what is in the tree now.

    Parameters
    ----------
    node : TreeNode
        Checked with `check_replaceable`.
    value : ndarray
        As read.

    Raises
    ------
    UsageError
        If there is text now, and the bytes in the checkpoint are not UTF-8.
    """
    old = node.value
    if isinstance(old, bytes):
        return type(old)(value.item())
    if isinstance(old, str):
        try:
            return type(old)(value.item().decode())
        except UnicodeDecodeError as error:
            raise UsageError(
                "the value in the checkpoint is not UTF-8 text",
                url=url,
                tensor=path,
                hint="Put bytes into the tree.",
            ) from error
    if isinstance(old, np.generic):
        return value[()]
    return next(kind for kind, _ in _NUMBERS if isinstance(old, kind))(value[()])


def replace_value(node: TreeNode, value: Any) -> None:
    """Put `value` into the tree, everywhere the old value is."""
    for holder, key in node.refs:
        holder[key] = value
