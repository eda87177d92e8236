"""From the paths in a record to places: what leads out of its directory is never followed by a delete."""

from __future__ import annotations

import posixpath

from ckptstore.errors import UsageError
from ckptstore.format.naming import split_step
from ckptstore.storage.base import Location
from ckptstore.storage.url import parse_url

__all__ = ["inside", "owner_of", "relative_prefix", "resolve"]


def owner_of(prefix: str) -> str:
    """Return the basename that owns `prefix`: ``model`` for ``model`` and for ``model-12``."""
    return split_step(prefix)[0]


def relative_prefix(directory: Location, path: str) -> str | None:
    """Return `path` of a record relative to `directory`, or None if it lies outside.

    Parameters
    ----------
    directory : Location
        Of the record.
    path : str
        As written in the record: relative to its directory, absolute, or a URL.
    """
    if "/" not in path and path not in ("", ".", ".."):
        return path  # nearly all of them, of which a record may list ten thousand
    if "://" in path:
        key = _key_of_url(directory, path)
        if key is None:
            return None
    elif path.startswith("/"):
        key = path
    else:
        key = f"{directory.key}/{path}"
    # Dot segments are resolved in the text and never by the file system, so that "a/../../x" cannot slip
    # through.
    key = posixpath.normpath(key)
    root = posixpath.normpath(directory.key or "/").rstrip("/") + "/"
    return key[len(root) :] if key.startswith(root) else None


def inside(directory: Location, path: str) -> str | None:
    """Return the name of a direct child of `directory` that `path` means, or None."""
    relative = relative_prefix(directory, path)
    return relative if relative and "/" not in relative else None


def resolve(directory: Location, path: str, *, allow_external_paths: bool = False) -> list[Location]:
    """Return the places where the checkpoint `path` of a record may lie, best first.

    A path outside the directory means that the directory was moved: the same basename beside the record is
    tried, and the outside place only when that was allowed.
    """
    relative = relative_prefix(directory, path)
    if relative is not None:
        return [directory.child(relative)] if relative else []
    beside = posixpath.basename(path.rstrip("/"))
    places = [directory.child(beside)] if beside not in ("", ".", "..") else []
    if allow_external_paths:
        if "://" in path:
            key = _key_of_url(directory, path)
            if key is not None:
                places.insert(0, Location(directory.storage, key, path))
        elif path.startswith("/"):
            places.insert(0, Location(directory.storage, posixpath.normpath(path), path))
        else:
            joined = directory.child(path)
            places.insert(0, Location(directory.storage, posixpath.normpath(joined.key), joined.url))
    return places


def _key_of_url(directory: Location, url: str) -> str | None:
    """Return the key of a URL in a record; None if it is not a URL, or of another kind of storage."""
    try:
        scheme, key, _ = parse_url(url)
    except UsageError:
        return None
    return key if scheme == parse_url(directory.url).scheme else None
