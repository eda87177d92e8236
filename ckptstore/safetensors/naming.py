"""Which tensors are taken, and what they are called on the other side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ckptstore.errors import TensorNotFoundError, UsageError
from ckptstore.format.object_graph import OBJECT_GRAPH_KEY

__all__ = ["chosen_names", "is_own"]


def is_own(name: str) -> bool:
    """Return whether ckptstore or TensorFlow write a tensor of this name for themselves."""
    return name == OBJECT_GRAPH_KEY or name.startswith("_CKPTSTORE_")


def chosen_names(
    there: Iterable[str],
    names: Iterable[str] | None,
    rename: Mapping[str, str] | None,
    *,
    reserved: str | None,
    url: str,
) -> dict[str, str]:
    """Return name in the source → name in the result.

    Parameters
    ----------
    names : iterable of str, optional
        As the source calls them. None: all but what is written for ckptstore and TensorFlow themselves.
    rename : mapping, optional
        Name in the source → name in the result; the others keep theirs.
    reserved : str, optional
        A name that the result cannot have; None: those that `is_own` knows.

    Raises
    ------
    TensorNotFoundError
        If the source lacks a name of `names` or `rename`.
    UsageError
        If two tensors would have one name, or one has a name that is not possible.
    """
    known = dict.fromkeys(there)
    if isinstance(names, str):
        raise UsageError("names must be a list of names, not one text", actual=repr(names))
    wanted = [name for name in known if not is_own(name)] if names is None else list(dict.fromkeys(names))
    new = dict(rename or {})
    for name in (*wanted, *new):
        if name not in known:
            raise TensorNotFoundError.among("there is no such tensor", name, known, "tensors")
    found = {name: new.get(name, name) for name in wanted}
    taken: dict[str, str] = {}
    for name, to in found.items():
        if not isinstance(to, str) or not to or to == reserved or (reserved is None and is_own(to)):
            raise UsageError(
                "the result cannot have a tensor of this name", url=url, tensor=name, actual=repr(to)
            )
        if taken.setdefault(to, name) != name:
            raise UsageError(
                "two tensors would have the same name",
                url=url,
                tensor=to,
                actual=f"{taken[to]!r} and {name!r}",
                hint="Change rename=.",
            )
    return found
