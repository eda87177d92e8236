"""Which checkpoint of a directory was the latest when the storage could be asked last."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ckptstore.cache.copy import RECORDS, Copy, copies_in, digest
from ckptstore.cache.troubles import Troubles
from ckptstore.errors import TransientError, UnsupportedError
from ckptstore.storage.base import Location
from ckptstore.storage.local.private_directory import PrivateDirectory
from ckptstore.warn import warn

__all__ = ["PATIENCE_S", "LastSeen", "source_of"]

PATIENCE_S = 5.0
"""How long the storage is waited for if the cache can answer."""


class LastSeen:
    """What the cache knows of the directories in storages.

    Parameters
    ----------
    root : PrivateDirectory
    troubles : Troubles
    is_answering : bool
        False: `recall` knows nothing.

    Attributes
    ----------
    patience_s : float
        How long the storage is waited for if something is known.

    Threads
    -------
    Safe for concurrent use.
    """

    patience_s = PATIENCE_S

    def __init__(self, root: PrivateDirectory, troubles: Troubles, *, is_answering: bool) -> None:
        self._root = root
        self._records = root / RECORDS
        self._troubles = troubles
        self._is_answering = is_answering

    def remember(self, directory: Location, latest_filename: str | None, latest: Location) -> None:
        """Note what the latest checkpoint of a directory is."""
        with self._troubled():
            name, facts = (
                _name_of(directory, latest_filename),
                {"directory": directory.url, "key": latest.key, "source": source_of(latest.parent)},
            )
            if self._records.facts(name) != facts:
                self._records.make_below()
                self._records.keep_facts(name, facts)

    def knows(self, directory: Location, latest_filename: str | None) -> bool:
        """Return whether something was noted, so that the storage need not be waited for very long."""
        found = None
        with self._troubled():
            found = self._records.facts(_name_of(directory, latest_filename))
        return self._is_answering and found is not None

    def recall(self, directory: Location, latest_filename: str | None) -> tuple[Location, str] | None:
        """Return the checkpoint to answer with, and the version of its index; None if there is none.

        What was noted last if all of it is there, else the newest complete one, else what was noted if its
        index is there.
        """
        if not self._is_answering:
            return None
        with self._troubled():
            facts = self._records.facts(_name_of(directory, latest_filename)) or {}
            noted, sources = facts.get("key"), {source_of(directory), facts.get("source")}
            copies = [copy for copy in copies_in(self._root) if copy.source in sources]
            copies.sort(key=lambda copy: (copy.key == noted, copy.step, copy.used_s), reverse=True)
            usable = [copy for copy in copies if copy.index() is not None]
            for copy in usable:
                if copy.is_complete():
                    return _place(directory, copy), copy.version
            if usable and usable[0].key == noted:
                return _place(directory, usable[0]), usable[0].version
        return None

    def instead_of(
        self, error: TransientError, directory: Location, latest_filename: str | None
    ) -> tuple[Location, str] | None:
        """Return what to answer with in place of an error of the storage, as `recall` does, and warn."""
        known = self.recall(directory, latest_filename)
        if known is not None:
            url = known[0].url
            warn(f"{url} is what was seen last; that is the answer until the storage gives one: {error}")
        return known

    @contextmanager
    def _troubled(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._troubles.add(error)
            self._troubles.tell()


def source_of(directory: Location) -> str:
    """Return what tells a directory from all others, on whatever server.

    Raises
    ------
    UnsupportedError
        If the storage cannot tell its servers apart.
    """
    server, url = directory.storage.server, directory.storage.url_of(directory.key)
    if server is None:
        raise UnsupportedError(
            "this storage cannot be cached: two servers of its kind may have the same URLs",
            url=url,
            hint="Leave cache= out; S3, Google Cloud Storage and local directories can be cached.",
        )
    return f"{server} {url}"


def _name_of(directory: Location, latest_filename: str | None) -> str:
    return digest(source_of(directory), latest_filename or "")


def _place(directory: Location, copy: Copy) -> Location:
    """Return a checkpoint as the caller would name it."""
    inside = f"{directory.key}/"
    if copy.key.startswith(inside):
        return directory.child(copy.key.removeprefix(inside))
    return Location(directory.storage, copy.key, copy.url)
