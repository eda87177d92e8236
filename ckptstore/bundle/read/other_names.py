"""What stands beside a file that is missing: looked up for the error alone, and never a second failure."""

from __future__ import annotations

from itertools import islice
from urllib.parse import unquote

from ckptstore.errors import CkptStoreError
from ckptstore.format.naming import ParsedName, index_name, parse_file_name
from ckptstore.storage.base import Location
from ckptstore.suggest import close_names

__all__ = ["decoded_name_hint", "saved_model_hint", "similar_file_hint"]

# Ten pages of a listing; a directory with more files is not searched to its end for a hint.
_MOST_NAMES = 10_000

_VARIABLES = "variables/variables"


def similar_file_hint(missing: Location) -> str:
    """Return a sentence that names files beside `missing` with a similar name; empty without any.

    Files of other checkpoints in the directory have similar names too and are left out.
    """
    try:
        listed = islice(missing.storage.list(missing.parent.child("").key), _MOST_NAMES)
        names = {info.key.rpartition("/")[2] for info in listed}
    except CkptStoreError:
        return ""
    wanted = parse_file_name(missing.name)
    others = [name for name in names if not _is_in_place(parse_file_name(name), wanted, names)]
    close = close_names(missing.name, others)
    if not close:
        return ""
    return f" Beside it is {' and '.join(map(repr, close))}: if this is the file, give it the name above."


def _is_in_place(found: ParsedName | None, wanted: ParsedName | None, names: set[str]) -> bool:
    """Return whether a file is where it belongs: part of a checkpoint that is there, but not `wanted`."""
    if found is None:
        return False
    if wanted is None or found.kind != wanted.kind:
        return True
    if found.prefix == wanted.prefix:
        return found.num_shards == wanted.num_shards
    return index_name(found.prefix) in names or found.kind == "v1-shard"


def saved_model_hint(directory: Location) -> str | None:
    """Return which prefix to pass if `directory` holds a SavedModel, else None; one request."""
    base = Location(directory.storage, directory.key.rstrip("/"), directory.url.rstrip("/"))
    prefix = base.child(_VARIABLES)
    try:
        prefix.storage.head(index_name(prefix.key))
    except CkptStoreError:
        return None
    return f"This is a SavedModel; its variables are a checkpoint: pass {prefix.url}"


def decoded_name_hint(prefix: Location) -> str | None:
    """Return which prefix to pass if `prefix` is percent-encoded and the plain name is a checkpoint."""
    plain = Location(prefix.storage, unquote(prefix.key), unquote(prefix.url))
    if plain.key == prefix.key:
        return None
    try:
        plain.storage.head(index_name(plain.key))
    except CkptStoreError:
        return None
    return f"Names in URLs are taken as they are, percent signs included: pass {plain.url}"
