"""One verified copy of checkpoints on the disk of a host, for all of its processes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from ckptstore.bundle.read.open_bundle import Opener
from ckptstore.cache.copy import copies_in
from ckptstore.cache.damage import damage_in
from ckptstore.cache.last_seen import LastSeen
from ckptstore.cache.opening import CachedOpener
from ckptstore.cache.room import Room
from ckptstore.cache.troubles import Troubles
from ckptstore.errors import UsageError
from ckptstore.storage.local.directory import translate_errors
from ckptstore.storage.local.private_directory import PrivateDirectory
from ckptstore.storage.url import parse_url
from ckptstore.types import PathText

__all__ = ["Cache", "CachedCheckpoint", "as_cache"]

_LAYOUT = "v1"
_BOUND = "bound"


@dataclass(frozen=True, slots=True)
class CachedCheckpoint:
    """A checkpoint in a `Cache`, of one version.

    Attributes
    ----------
    prefix : str
        Its URL in the storage.
    version : str
        Of the index there.
    size_bytes : int
        What it takes of the disk.
    is_complete : bool
        Whether every byte was fetched, so that it can be restored without its storage.
    used_s : float
        When it was opened last, in seconds since 1970.
    """

    prefix: str
    version: str
    size_bytes: int
    is_complete: bool
    used_s: float


class Cache:
    """One copy of checkpoints on this host's disk, for all of its processes.

    Pass it to `open_checkpoint` and its neighbours. What is read is fetched once, by one of the processes,
    verified, and kept; later it is memory-mapped, and verified again by each process. A damaged or
    half-written part is never returned: it is fetched again. Neither locks nor a list of what is there are
    relied on, only the checksums in the checkpoint's index.

    While the storage is away, the last version that was seen is opened, with a warning. If the cache itself
    fails, or is full, reads go around it, with one warning.

    Parameters
    ----------
    directory : str or PathLike
        On a local disk; made for this user alone if it is missing.
    max_bytes : int
        What its files may take of the disk. Beyond it those that were used least recently are removed, but
        never what is in use, and the newest complete checkpoint of a directory only if nothing else is left
        to remove, and another directory is read.
    stale : {"on-outage", "never"}
        Whether to open what was seen last if the storage cannot be asked.

    Attributes
    ----------
    max_bytes : int
    last_seen : LastSeen
        Which checkpoints were the latest ones; for `latest_checkpoint` and `watch`.

    Raises
    ------
    UsageError
        If an option is wrong, or the directory is not on a local file system.
    AccessError
        If it belongs to another user, or others may write to it.

    Threads
    -------
    Safe for concurrent use, by any number of processes, also after a fork.

    Examples
    --------
    >>> import tempfile
    >>> from ckptstore import BundleWriter, open_checkpoint
    >>> with BundleWriter("memory://docs/cache/model") as writer:
    ...     writer.add("w", [1.0, 2.0])
    >>> cache = Cache(tempfile.mkdtemp(), max_bytes=1 << 30)
    >>> with open_checkpoint("memory://docs/cache/model", cache=cache) as checkpoint:
    ...     checkpoint["w"]
    array([1., 2.])
    >>> [found.is_complete for found in cache.contents()]
    [True]
    """

    def __init__(
        self,
        directory: PathText,
        *,
        max_bytes: int,
        stale: Literal["on-outage", "never"] = "on-outage",
    ) -> None:
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes <= 0:
            raise UsageError("max_bytes must be a whole number of bytes above 0", actual=repr(max_bytes))
        if stale not in ("on-outage", "never"):
            raise UsageError("stale must be 'on-outage' or 'never'", actual=repr(stale))
        self._top = PrivateDirectory(_local_path(directory))
        self._root = self._top / _LAYOUT
        self._stale: Literal["on-outage", "never"] = stale
        self.max_bytes = max_bytes
        self._top.make()
        self._root.make()
        with translate_errors("cannot write to the cache", self._top.path):
            options = {"max_bytes": max_bytes, "stale": stale}
            if self._root.facts(_BOUND) != options:
                self._root.keep_facts(_BOUND, options)
        self._room = Room(self._root, max_bytes)
        self._troubles = Troubles(self._top.path)
        self.last_seen = LastSeen(self._root, self._troubles, is_answering=stale == "on-outage")

    def __repr__(self) -> str:
        return f"<Cache {self._top.path}, at most {self.max_bytes} bytes>"

    def __reduce__(self) -> tuple[object, ...]:
        return _again, (self._top.path, self.max_bytes, self._stale)

    def contents(self) -> list[CachedCheckpoint]:
        """Return what is in it, the one that was used last first; reads no data file.

        Raises
        ------
        CkptStoreError
            If the directory cannot be read.
        """
        with translate_errors("cannot read the cache", self._top.path):
            found = [
                CachedCheckpoint(
                    copy.url, copy.version, copy.directory.used_bytes(), copy.is_complete(), copy.used_s
                )
                for copy in copies_in(self._root)
            ]
        return sorted(found, key=lambda checkpoint: checkpoint.used_s, reverse=True)

    def trim(self) -> int:
        """Remove what is above the bound, if it was lowered or files were left by a killed process.

        Returns
        -------
        int
            Bytes that were freed.

        Raises
        ------
        CkptStoreError
            If the directory cannot be changed.
        """
        with translate_errors("cannot change the cache", self._top.path):
            return self._room.trim()

    def verify(self) -> list[str]:
        """Read all that is there, and return what is damaged: it is fetched again when it is read.

        Returns
        -------
        list of str
            Paths of files, with the tensor.

        Raises
        ------
        CkptStoreError
            If the directory cannot be read.
        """
        with translate_errors("cannot read the cache", self._top.path):
            return [text for copy in copies_in(self._root) for text in damage_in(copy)]

    def remove(self, prefix: PathText) -> int:
        """Remove all versions of a checkpoint that nobody uses.

        Parameters
        ----------
        prefix : str or PathLike
            As `contents` names it.

        Returns
        -------
        int
            How many versions were removed.

        Raises
        ------
        CkptStoreError
            If the directory cannot be changed.
        """
        url = os.fspath(prefix)
        with translate_errors("cannot change the cache", self._top.path):
            return sum([copy.remove() for copy in copies_in(self._root) if copy.url == url])

    def opener(self, version: str | None = None) -> Opener:
        """Return what opens checkpoints for `open_checkpoint`; `version` is that of the index it wants."""
        return CachedOpener(
            self._root, self._room, self._troubles, version, is_stale_allowed=self._stale == "on-outage"
        )


def as_cache(cache: Cache | PathText) -> Cache:
    """Return a cache, or that in a directory, with the options that it was made with last.

    Raises
    ------
    UsageError
        If there is none.
    """
    if isinstance(cache, Cache):
        return cache
    path = _local_path(cache)
    found = (PrivateDirectory(path) / _LAYOUT).facts(_BOUND)
    if found is None:
        raise UsageError(
            "there is no cache in this directory, or what it says about itself is damaged",
            url=path,
            hint="Call Cache(directory, max_bytes=…) once: the bound is kept there. What is there stays.",
        )
    return Cache(path, max_bytes=int(found["max_bytes"]), stale=found.get("stale", "on-outage"))


def _again(path: str, max_bytes: int, stale: Literal["on-outage", "never"]) -> Cache:
    return Cache(path, max_bytes=max_bytes, stale=stale)


def _local_path(directory: PathText) -> str:
    scheme, path, text = parse_url(directory)
    if scheme != "file":
        raise UsageError("a cache is a directory on a local disk", url=text, hint="Pass a local path.")
    return path
