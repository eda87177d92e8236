"""What an adapter knows of its framework: which values are arrays, and how their names are made."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ckptstore.format.object_graph import escape

__all__ = ["FieldKey", "Habit", "Json", "Key", "Path", "TreeMember", "is_numpy", "shown"]

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


class FieldKey(str):
    """The name of an attribute, where `str` is a key of a mapping."""

    __slots__ = ()


# Keys of mappings may be anything that can be written as one: text, bytes, numbers, None, tuples of them.
Key: TypeAlias = Any
Path: TypeAlias = tuple[Key, ...]


class TreeMember(NamedTuple):
    """One member of a container of the framework."""

    key: Key
    value: Any


class Habit:
    """How one framework names and holds its values; adapters override what differs.

    Attributes
    ----------
    separator : str
        Between the keys of a name.
    escapes : bool
        Whether a separator inside a key is escaped as in TensorFlow's object graph. Otherwise keys are
        joined as they are, and two values of one name are refused.
    """

    separator = "."
    escapes = False

    def name_of(self, path: Path) -> str:
        """Return the name of the tensor at `path`."""
        return self.separator.join(self._key_text(key) for key in path)

    def array_kind(self, value: Any) -> str | None:
        """Return the kind of an array of the framework; ``""`` is the usual one, None is no array."""
        del value
        return None

    def identity(self, value: Any) -> Hashable | None:
        """Return what two arrays have in common that are the same memory; None: not to be told."""
        del value
        return None

    def plain_of(self, value: Any) -> tuple[str, Json] | None:
        """Return the tag and the text of a value of the framework that is no array; None: not known."""
        del value
        return None

    def plain_from(self, tag: str, content: Json) -> Any:
        """Return the value that `plain_of` gave as `tag` and `content`.

        Raises
        ------
        KeyError
            If the tag is not this framework's.
        ValueError, TypeError
            If the content cannot be right.
        """
        raise KeyError(tag)

    def children(self, value: Any) -> Sequence[TreeMember] | None:
        """Return the members of a container that only the framework knows; None: it is none.

        It comes back only in the caller's own tree, because the document names no classes.
        """
        del value
        return None

    def _key_text(self, key: Key) -> str:
        text = key.decode("utf-8", "backslashreplace") if isinstance(key, bytes) else str(key)
        return escape(text) if self.escapes else text


def is_numpy(value: Any) -> bool:
    """Return whether a value is an array or a scalar of numpy, which every adapter takes."""
    return isinstance(value, np.ndarray | np.generic)


def shown(path: Path) -> str:
    """Return a path for messages: what stands behind the name of the tree in Python."""
    return "".join(f".{key}" if isinstance(key, FieldKey) else f"[{key!r}]" for key in path) or "the root"
