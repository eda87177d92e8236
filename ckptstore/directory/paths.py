"""From the paths in a record to places: what leads out of its directory is never followed by a delete."""

from __future__ import annotations

import ntpath
import posixpath
import re

from ckptstore.errors import UsageError
from ckptstore.format.naming import parse_file_name, split_step
from ckptstore.storage.base import Location
from ckptstore.storage.url import parse_url

__all__ = ["UNNAMED", "basename_of", "inside", "is_of_windows", "owner_of", "relative_prefix", "resolve"]

UNNAMED = "./"
"""How a record names the checkpoint with an empty basename: TensorFlow, too, finds ``./.index`` by it."""


# An absolute path of Windows; the one of a share begins with two backslashes.
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


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

    Returns
    -------
    str or None
        `UNNAMED` if it is the directory itself, with a slash at its end.
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
    if f"{key}/" == root and path.endswith("/"):
        return UNNAMED
    return key[len(root) :] if key.startswith(root) else None


def inside(directory: Location, path: str) -> str | None:
    """Return the name of a direct child of `directory` that `path` means, or None."""
    relative = relative_prefix(directory, path)
    return relative if relative and "/" not in relative else None


def is_of_windows(path: str) -> bool:
    """Return whether `path` looks like one of Windows."""
    return "\\" in path or _DRIVE.match(path) is not None


def basename_of(path: str) -> str:
    """Return the last part of a path in a record, of any system; a file stands for its prefix."""
    is_foreign = is_of_windows(path)
    name = ntpath.basename(path.rstrip("\\/")) if is_foreign else posixpath.basename(path.rstrip("/"))
    return (_readings(name) or [name])[-1]


def resolve(directory: Location, path: str, *, allow_external_paths: bool = False) -> list[Location]:
    """Return the places where the checkpoint `path` of a record may lie, best first.

    A path outside the directory means that the directory was moved: the same basename beside the record is
    tried, and the outside place only when that was allowed. A path may be one of another system, or name a
    file of the checkpoint.
    """
    relative = relative_prefix(directory, path)
    names: list[str] = []
    if relative == UNNAMED:
        names.append("")
    elif relative is not None:
        names += _readings(relative)
        if path.endswith("/"):
            names.append(f"{relative}/")
    else:
        beside = posixpath.basename(path.rstrip("/"))
        names += _readings(beside)
        if names and path.endswith("/"):
            names.append("")
    if is_of_windows(path):
        below = relative_prefix(directory, path.replace("\\", "/"))
        names += _readings(below) if below is not None else []
        names += _readings(ntpath.basename(path.rstrip("\\/")))
    places = [directory.child(name) for name in names]
    if relative is None and allow_external_paths:
        if "://" in path:
            key = _key_of_url(directory, path)
            if key is not None:
                places.insert(0, Location(directory.storage, key, path))
        elif path.startswith("/"):
            places.insert(0, Location(directory.storage, posixpath.normpath(path), path))
        else:
            joined = directory.child(path)
            places.insert(0, Location(directory.storage, posixpath.normpath(joined.key), joined.url))
    return list({place.key: place for place in places}.values())


def _readings(name: str) -> list[str]:
    """Return the prefixes that `name` may mean: itself, or that of the file with this name."""
    if name in ("", ".", ".."):
        return []
    head, slash, last = name.rpartition("/")
    parsed = parse_file_name(last)
    if parsed is None or parsed.kind == "v1-shard" or not parsed.prefix:
        return [name]
    return [name, f"{head}{slash}{parsed.prefix}"]


def _key_of_url(directory: Location, url: str) -> str | None:
    """Return the key of a URL in a record; None if it is not a URL, or of another kind of storage."""
    try:
        scheme, key, _ = parse_url(url)
    except UsageError:
        return None
    return key if scheme == parse_url(directory.url).scheme else None
