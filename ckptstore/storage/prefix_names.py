"""Which names a checkpoint may have, so that every client finds it again."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ckptstore.errors import UsageError

if TYPE_CHECKING:
    from ckptstore.storage.base import Location

__all__ = ["check_prefix_name"]

# Most disks and some object stores take 255 bytes for a name, and ".data-00000-of-00001" and the mark of an
# unfinished file follow that of the prefix.
_MAX_NAME_BYTES = 200
_MAX_SEGMENT_BYTES = 255
_MAX_KEY_BYTES = 1000  # S3 and GCS: 1024, suffixes included
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def check_prefix_name(location: Location) -> None:
    """Check that a checkpoint can be saved under this prefix, and found again by every client.

    Object stores are stricter than disks: some servers refuse a name like ``a//b``, others store it under
    another key without a word. Glob characters are legal everywhere; two spellings of a letter are two names.

    Raises
    ------
    UsageError
        If it cannot.
    """
    # By the user's text: the key of "run/.." is that of another directory, with a good name.
    problem = _fault_in_name(location.url.rpartition("/")[2])
    if problem is None and location.storage.capabilities.backend != "local":
        problem = _fault_in_key(location.key.removeprefix("/"))
    if problem is not None:
        raise UsageError(
            f"a checkpoint cannot be saved under this name: {problem}",
            url=ascii(location.url) if _CONTROL.search(location.url) else location.url,
            hint="Choose a prefix such as 'directory/model'.",
        )


def _fault_in_name(name: str) -> str | None:
    if name in ("", ".", ".."):
        return "the prefix has no name of its own"
    if _CONTROL.search(name):
        return "it holds a control character"
    try:
        size_bytes = len(name.encode())
    except UnicodeEncodeError:
        return "it is not Unicode text, and the record could not name it"
    if size_bytes > _MAX_NAME_BYTES:
        return (
            f"it is {size_bytes} bytes long, and at most {_MAX_NAME_BYTES} leave room for the files' suffixes"
        )
    return None


def _fault_in_key(key: str) -> str | None:
    segments = key.split("/")
    if "" in segments:
        return "it has an empty segment (two slashes in a row)"
    if "." in segments or ".." in segments:
        return "it has a dot segment"
    if _CONTROL.search(key):
        return "it holds a control character"
    for text in ("\\", "::", "?versionId="):
        if text in key:
            return f"it holds {text!r}, which clients of object stores take for something else"
    try:
        longest_bytes = max(len(segment.encode()) for segment in segments)
        key_bytes = len(key.encode())
    except UnicodeEncodeError:
        return "it is not Unicode text"
    if longest_bytes > _MAX_SEGMENT_BYTES:
        return f"a segment is {longest_bytes} bytes long, and some stores take at most {_MAX_SEGMENT_BYTES}"
    if key_bytes > _MAX_KEY_BYTES:
        return (
            f"it is {key_bytes} bytes long, and at most {_MAX_KEY_BYTES} leave room for the files' suffixes"
        )
    return None
