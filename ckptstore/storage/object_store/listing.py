"""Listing a directory of an object store."""

from __future__ import annotations

from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING

from ckptstore.errors import UsageError
from ckptstore.storage.object_store.errors import error_of
from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.object_store.transport import ObjectName
from ckptstore.storage.values import ObjectInfo

if TYPE_CHECKING:
    from ckptstore.storage.object_store.storage import ObjectStorage

__all__ = ["list_objects"]


def list_objects(storage: ObjectStorage, bucket: str, start: str) -> list[ObjectInfo]:
    """Return the objects whose name begins with `start` and has no slash behind it, ascending by key.

    Raises
    ------
    UsageError
        If nothing is listed because an object has the directory's own name.
    """
    url = storage.url_of(f"{bucket}/{start}")
    found: list[ObjectInfo] = []
    token: str | None = ""
    while token is not None:
        request = partial(storage.transport.list_page, bucket, start, token or None)
        page = storage.run(request, "cannot list the directory", url)
        token = page.token
        # A name that ends with a slash is what consoles make for an empty directory.
        found.extend(info for info in page.objects if not info.key.endswith("/"))
    directory = start.rpartition("/")[0]
    if not found and directory and storage.transport.object_hides_directory:
        _check_directory(storage, ObjectName(bucket, directory))
    # Some servers list as their disks do.
    found.sort(key=attrgetter("key"))
    return found


def _check_directory(storage: ObjectStorage, directory: ObjectName) -> None:
    """Raise if an empty listing may be a lie."""
    url = storage.url_of(directory.key)
    attempts = storage.new_attempts()
    try:
        attempts.run(partial(storage.transport.head, directory))
    except Fault as fault:
        # The bucket answered the listing, so a 404 is about this name.
        if fault.kind in (Kind.ABSENT, Kind.UNPROVED, Kind.FORBIDDEN):
            return
        raise error_of(fault, "cannot look at the directory", url, attempts) from None
    raise UsageError(
        "an object has the directory's own name, and some servers then list nothing below it",
        url=url,
        hint="Remove that object, or choose another directory.",
    )
