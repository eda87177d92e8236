"""How JAX names and holds its values: through its own registry of containers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from ckptstore.errors import UnsupportedError, UsageError
from ckptstore.format import dtypes
from ckptstore.tree.habit import FieldKey, Habit, Key, TreeMember
from ckptstore.tree.skeleton import MAPPINGS

__all__ = ["KEY_KIND", "JaxHabit", "import_jax", "key_kind", "kind_of_dtype", "member_key"]

KEY_KIND: Final = "key:"
"""Before the name of the implementation, in the kind of an array of typed PRNG keys."""


def import_jax() -> Any:
    """Return JAX.

    Raises
    ------
    UnsupportedError
        If it is not installed.
    """
    try:
        import jax
    except ImportError as error:
        raise UnsupportedError("this needs the package jax", hint="Install it: pip install jax.") from error
    return jax


class JaxHabit(Habit):
    """See `Habit`. Arrays are immutable here, so two places with one array are two values."""

    separator = "/"
    escapes = True

    def array_kind(self, value: Any) -> str | None:
        """Return the implementation of keys, a type that TensorFlow lacks, or ``""``."""
        jax = sys.modules["jax"]
        if not isinstance(value, jax.Array):
            return None
        if isinstance(value, jax.core.Tracer):
            raise UsageError(
                "a value that is being traced has no bytes",
                actual=str(value)[:200],
                hint="Save outside of jit, grad and vmap.",
            )
        if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
            return key_kind(value)
        return kind_of_dtype(value.dtype)

    def children(self, value: Any) -> Sequence[TreeMember] | None:
        """Return the members of what is registered with JAX; dictionaries and lists need no registry."""
        if value is None or type(value) in (*MAPPINGS, list, tuple):
            return None
        tree_util = sys.modules["jax"].tree_util
        found, _ = tree_util.tree_flatten_with_path(value, is_leaf=lambda one: one is not value)
        if len(found) == 1 and found[0][1] is value:
            return None
        return [TreeMember(member_key(path[0]), member) for path, member in found]


def key_kind(keys: Any) -> str:
    """Return the kind of an array of typed keys."""
    return f"{KEY_KIND}{sys.modules['jax'].random.key_impl(keys)}"


def kind_of_dtype(dtype: Any) -> str:
    """Return the name of a one-byte type that TensorFlow lacks and that is stored as uint8; else ``""``."""
    dtype = np.dtype(dtype)
    try:
        dtypes.from_numpy(dtype)
    except UsageError:
        if dtype.itemsize == 1:
            return str(dtype.name)
    return ""


def member_key(entry: Any) -> Key:
    """Return the key that stands in one entry of a path of JAX."""
    name = getattr(entry, "name", None)
    if isinstance(name, str):
        return FieldKey(name)
    for attribute in ("key", "idx"):
        if hasattr(entry, attribute):
            return getattr(entry, attribute)
    return str(entry)
