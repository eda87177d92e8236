"""An object store in a dictionary: what S3 promises of one request, and nothing more."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

__all__ = ["NoSuchKey", "PreconditionFailed", "SimulatedBucket", "SimulatedObject"]


class PreconditionFailed(Exception):
    """The condition of a request does not hold; nothing was changed (HTTP 412)."""


class NoSuchKey(Exception):
    """There is no such object (HTTP 404)."""


class SimulatedObject(NamedTuple):
    """One stored object.

    Attributes
    ----------
    data : bytes
    etag : str
        A hash of `data`, as on S3: the same bytes written again are the same version again.
    write_id : str or None
        What the writer put beside it; no part of the version.
    mtime_s : float
        Seconds since 1970.
    """

    data: bytes
    etag: str
    write_id: str | None
    mtime_s: float

    @property
    def version(self) -> str:
        """The version, as `Storage` calls it."""
        return self.etag

    @property
    def crc32c(self) -> None:
        """This server returns no checksums."""


class SimulatedBucket:
    """Objects by key, each request atomic, with the conditions of S3.

    Parameters
    ----------
    clock : callable
        Seconds since 1970, for modification times.
    conditional_delete : bool
        False: a delete ignores its condition, as on MinIO.
    honours_conditions : bool
        False: writes and deletes ignore theirs, as on a server that does not know them.
    on_change : callable, optional
        Called with the key after each change.

    Attributes
    ----------
    objects : dict of str to SimulatedObject
        The content; tests may look at it and change it.

    Threads
    -------
    One thread.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        conditional_delete: bool = True,
        honours_conditions: bool = True,
        on_change: Callable[[str], None] | None = None,
    ) -> None:
        self.objects: dict[str, SimulatedObject] = {}
        self.conditional_delete = conditional_delete and honours_conditions
        self.honours_conditions = honours_conditions
        self.on_change = on_change
        self.clock = clock

    def get(self, key: str) -> SimulatedObject:
        """Return the object; raises `NoSuchKey`."""
        found = self.objects.get(key)
        if found is None:
            raise NoSuchKey(key)
        return found

    def put(
        self,
        key: str,
        data: bytes,
        *,
        write_id: str | None = None,
        if_absent: bool = False,
        if_match: str | None = None,
    ) -> SimulatedObject:
        """Store an object, whole or not at all.

        Raises
        ------
        PreconditionFailed
            If something is there and `if_absent` is set, or it has another version than `if_match`.
        NoSuchKey
            If `if_match` is given and nothing is there.
        """
        if self.honours_conditions:
            found = self.objects.get(key)
            if if_absent and found is not None:
                raise PreconditionFailed(key)
            if if_match is not None:
                if found is None:
                    raise NoSuchKey(key)
                if found.etag != if_match:
                    raise PreconditionFailed(key)
        etag = f"{zlib.crc32(data):08x}-{len(data)}"
        stored = self.objects[key] = SimulatedObject(data, etag, write_id, self.clock())
        if self.on_change is not None:
            self.on_change(key)
        return stored

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        """Delete an object; a missing one is not an error.

        Raises
        ------
        PreconditionFailed
            If it has another version than `if_match`.
        """
        found = self.objects.get(key)
        if found is None:
            return
        if if_match is not None and self.conditional_delete and found.etag != if_match:
            raise PreconditionFailed(key)
        del self.objects[key]
        if self.on_change is not None:
            self.on_change(key)

    def delete_many(self, keys: Sequence[str]) -> None:
        """Delete these objects in one request, without conditions."""
        for key in keys:
            self.delete(key)

    def list(self, prefix: str) -> Iterator[tuple[str, SimulatedObject]]:
        """Return key and object of everything below `prefix`, ascending by key, as of now."""
        return iter(sorted(item for item in self.objects.items() if item[0].startswith(prefix)))
