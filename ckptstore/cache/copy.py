"""One version of one checkpoint in the cache: a directory, which holds it under TensorFlow's names.

Format
------
``DIR/v1/<digest of server and index>/<digest of the index's version>/`` contains

* ``NAME.index``: the bytes of the storage.
* ``NAME.data-00000-of-00001`` …: as long as in the storage; what was not fetched is a hole.
* ``origin``: where it comes from, and the checksum of the index; for people, and for `Copy`.
* ``used``: its time is that of the last use.
* ``.part-…``: a large tensor that is not verified yet, with a lock while somebody fetches it.
* ``lock``: byte 0 is locked by whoever uses the checkpoint, shared, and by whoever removes it; the others
  stand for parts of the data files, see `turns`.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from ckptstore.format.crc32c import crc32c
from ckptstore.format.naming import data_name, index_name, step_in
from ckptstore.storage.local.private_directory import PrivateDirectory
from ckptstore.storage.local.range_locks import RangeLocks
from ckptstore.storage.local.sparse_file import SparseFile
from ckptstore.storage.values import GetResult

__all__ = [
    "RECORDS",
    "Copy",
    "Part",
    "copies_in",
    "copies_of",
    "digest",
    "remains_in",
    "remove",
    "remove_parts",
    "use",
]

RECORDS = "records"
"""The name beside the directories of checkpoints that is none; see `last_seen`."""

_ORIGIN = "origin"
_USED = "used"
_LOCK = "lock"

_PART = ".part-"

_IN_USE = 0  # the byte of the lock file

_MOST_ENTRIES = 5


class Part:
    """A file for a tensor that is not verified yet; it counts as all others do.

    Attributes
    ----------
    file : SparseFile

    Raises
    ------
    OSError
        If it cannot be made.

    Threads
    -------
    Safe for concurrent use.
    """

    def __init__(self, directory: PrivateDirectory) -> None:
        self._directory = directory
        self._name = f"{_PART}{os.getpid()}-{secrets.token_hex(8)}"
        self.file = SparseFile(directory.at(self._name))
        # Says that it is no remains. Where locks are worth nothing it loses its name early, which is no harm.
        self._locks = RangeLocks(directory.at(self._name))
        self._locks.acquire(0)

    def remove(self) -> None:
        """Remove it; what is open stays readable."""
        self._directory.unlink(self._name)
        self._locks.close()


def digest(*texts: str) -> str:
    """Return a name for a directory or file that depends on these texts."""
    return hashlib.blake2b("\n".join(texts).encode(), digest_size=16).hexdigest()


class Copy:
    """A checkpoint in the cache, of one version.

    Parameters
    ----------
    directory : PrivateDirectory
    facts : mapping
        What ``origin`` says.

    Attributes
    ----------
    url : str
        The prefix in the storage, as somebody named it.
    key : str
        The same, as the storage calls it.
    source : str
        The directory that it lies in there.
    version : str
        Of its index there.
    ends : dict of int to int
        Shard → where the last of its tensors ends.

    Raises
    ------
    OSError
        Every method.

    Threads
    -------
    Safe for concurrent use.
    """

    def __init__(self, directory: PrivateDirectory, facts: Mapping[str, Any]) -> None:
        self.directory = directory
        self.url = str(facts["url"])
        self.key = str(facts["key"])
        self.source = str(facts["source"])
        self.version = str(facts["version"])
        self.num_shards = int(facts["num_shards"])
        self.ends = {int(shard): int(end) for shard, end in facts["ends"]}
        self._name = str(facts["name"])
        self._index_crc32c = int(facts["index_crc32c"])

    @classmethod
    def make(cls, directory: PrivateDirectory, index: GetResult, facts: Mapping[str, Any]) -> Copy:
        """Write index and origin; `facts` has what is not in `index`."""
        facts = {**facts, "version": index.version, "index_crc32c": crc32c(index.data)}
        copy = cls(directory, facts)
        directory.replace(index_name(copy._name), index.data)
        directory.keep_facts(_ORIGIN, facts)
        return copy

    @classmethod
    def find(cls, directory: PrivateDirectory) -> Copy | None:
        """Return what is in a directory; None if that is not a checkpoint, or damaged."""
        with suppress(KeyError, ValueError, TypeError):
            facts = directory.facts(_ORIGIN)
            if facts is not None:
                return cls(directory, facts)
        return None

    @property
    def step(self) -> int:
        """The step in its name; −1 without one."""
        step = step_in(self._name)
        return -1 if step is None else step

    @property
    def used_s(self) -> float:
        """When it was used last, in seconds since 1970."""
        return self.directory.touched_s(_USED)

    def index(self) -> GetResult | None:
        """Return its index; None if that is damaged."""
        data = self.directory.read(index_name(self._name))
        if data is None or crc32c(data) != self._index_crc32c:
            return None
        return GetResult(data, self.version, len(data))

    @property
    def index_path(self) -> str:
        """The path of its index."""
        return self.directory.at(index_name(self._name))

    def data_path(self, shard_id: int) -> str:
        """Return the path of a data file."""
        return self.directory.at(data_name(self._name, shard_id, self.num_shards))

    def is_complete(self) -> bool:
        """Return whether every byte was fetched, as far as that shows without reading it."""
        return not any(True for _ in self.missing())

    def missing(self) -> Iterator[tuple[int, int, int]]:
        """Yield shard, start and end of the ranges that were not fetched."""
        for shard_id, end in self.ends.items():
            try:
                file = SparseFile.existing(self.data_path(shard_id))
            except FileNotFoundError:
                yield shard_id, 0, end
                continue
            if file.size_bytes < end:
                yield shard_id, 0, end
            else:
                yield from ((shard_id, *hole) for hole in file.holes(0, end))

    def locks(self) -> RangeLocks:
        """Return a new holder of locks."""
        return RangeLocks(self.directory.at(_LOCK))

    def remove(self) -> bool:
        """Remove it, unless somebody uses it; return whether it was removed."""
        return remove(self.directory)


def remove(directory: PrivateDirectory) -> bool:
    """Remove the directory of a checkpoint, unless somebody uses it; return whether it was removed."""
    try:
        locks = RangeLocks(directory.at(_LOCK))
    except FileNotFoundError:
        return False
    try:
        if not locks.acquire(_IN_USE):
            return False
        directory.remove(last=_LOCK)
        return True
    finally:
        locks.close()


def use(directory: PrivateDirectory) -> RangeLocks | None:
    """Make a directory if it is missing, and hold it until the result is closed.

    None if it is being removed all the time.
    """
    for _ in range(_MOST_ENTRIES):
        directory.make_below()
        with suppress(FileNotFoundError):
            locks = RangeLocks(directory.at(_LOCK))
            # It may have been removed between the two, or be about to be.
            if locks.acquire(_IN_USE, shared=True) and locks.is_at(directory.at(_LOCK)):
                directory.touch(_USED)
                return locks
            locks.close()
    return None


def copies_of(checkpoint: PrivateDirectory) -> list[Copy]:
    """Return the versions of one checkpoint, the one that was used last first."""
    found = [Copy.find(checkpoint / name) for name in checkpoint.names()]
    return sorted([copy for copy in found if copy is not None], key=lambda copy: copy.used_s, reverse=True)


def copies_in(root: PrivateDirectory) -> list[Copy]:
    """Return every checkpoint of a cache."""
    return [copy for name in root.names() for copy in copies_of(root / name)]


def remove_parts(root: PrivateDirectory) -> Iterator[str]:
    """Remove what killed processes were fetching, yield each path."""
    for name in root.names():
        if name == RECORDS:
            continue
        for version in (root / name).names():
            directory = root / name / version
            for part in directory.names():
                if part.startswith(_PART) and _remove_part(directory, part):
                    yield directory.at(part)


def _remove_part(directory: PrivateDirectory, name: str) -> bool:
    try:
        locks = RangeLocks(directory.at(name))
    except FileNotFoundError:
        return False
    try:
        if not locks.acquire(0):
            return False
        directory.unlink(name)
        return True
    finally:
        locks.close()


def remains_in(root: PrivateDirectory) -> Iterator[PrivateDirectory]:
    """Yield the directories that say nothing of a checkpoint: a process was killed, or a file is damaged."""
    for name in root.names():
        if name != RECORDS:
            checkpoint = root / name
            yield from (
                directory
                for version in checkpoint.names()
                if Copy.find(directory := checkpoint / version) is None
            )
