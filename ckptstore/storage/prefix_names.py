"""Which names objects and checkpoints may have, so that every client finds them again."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ckptstore.errors import UsageError

if TYPE_CHECKING:
    from ckptstore.storage.base import Location

__all__ = ["check_prefix_name", "names_a_bucket", "object_name_problem"]

# Most disks and some object stores accept names of 255 bytes, and ".data-00000-of-00001" and the mark of an
# unfinished file follow the prefix's own.
_MAX_NAME_BYTES = 200
_MAX_SEGMENT_BYTES = 255
_MAX_OBJECT_NAME_BYTES = 1024
_MAX_KEY_BYTES = 1000  # with the suffixes at most 1024
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def check_prefix_name(location: Location) -> None:
    """Check that a checkpoint can be saved under this prefix, and found again by every client.

    Object stores are stricter than disks: some servers refuse a name like ``a//b``, others silently store it
    under another key. Glob characters are legal everywhere; two spellings of a letter are two names.

    Raises
    ------
    UsageError
        If it cannot.
    """
    # From the user's text: the key of "run/.." is that of another directory, which has a legal name.
    problem = _last_segment_problem(location.url.rpartition("/")[2])
    if problem is None and names_a_bucket(location):
        problem = "the URL names a bucket and nothing in it"
    if problem is None and location.storage.capabilities.backend != "local":
        problem = _key_problem(location.key.removeprefix("/"))
    if problem is not None:
        raise UsageError(
            f"a checkpoint cannot be saved under this name: {problem}",
            url=ascii(location.url) if _CONTROL.search(location.url) else location.url,
            hint="Choose a prefix such as 'directory/model'.",
        )


def names_a_bucket(location: Location) -> bool:
    """Return whether the key is a bucket without anything in it, so that no object has a name below it."""
    if "/" in location.key or not location.key:
        return False
    return location.storage.capabilities.backend in ("s3", "gcs")


def object_name_problem(name: str) -> str | None:
    """Return why some object store refuses `name` or takes it for another one; None if it is legal."""
    segments = name.split("/")
    if "" in segments:
        return "it has an empty segment (two slashes in a row)"
    if "." in segments or ".." in segments:
        # One server refuses these, one takes them for another name, one keeps them.
        return "it has a dot segment"
    if _CONTROL.search(name):
        return "it contains a control character"
    try:
        size_bytes = len(name.encode())
    except UnicodeEncodeError:
        return "it is not Unicode text"
    if size_bytes > _MAX_OBJECT_NAME_BYTES:
        return f"it is {size_bytes} bytes long, and S3 and GCS accept at most {_MAX_OBJECT_NAME_BYTES}"
    return None


def _last_segment_problem(name: str) -> str | None:
    if name in ("", ".", ".."):
        return "the prefix has no name of its own"
    if _CONTROL.search(name):
        return "it contains a control character"
    try:
        size_bytes = len(name.encode())
    except UnicodeEncodeError:
        return "it is not Unicode text, and the record could not name it"
    if size_bytes > _MAX_NAME_BYTES:
        return (
            f"it is {size_bytes} bytes long, and at most {_MAX_NAME_BYTES} leave room for the files' suffixes"
        )
    return None


def _key_problem(key: str) -> str | None:
    problem = object_name_problem(key)
    if problem is not None:
        return problem
    for text in ("\\", "::", "?versionId="):
        if text in key:
            return f"it contains {text!r}, which clients of object stores interpret"
    longest_bytes = max(len(segment.encode()) for segment in key.split("/"))
    if longest_bytes > _MAX_SEGMENT_BYTES:
        return f"a segment is {longest_bytes} bytes long, and some stores accept at most {_MAX_SEGMENT_BYTES}"
    key_bytes = len(key.encode())
    if key_bytes > _MAX_KEY_BYTES:
        return (
            f"it is {key_bytes} bytes long, and at most {_MAX_KEY_BYTES} leave room for the files' suffixes"
        )
    return None
