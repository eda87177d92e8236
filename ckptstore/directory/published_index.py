"""The index that is published at a prefix, the data files it names, and the names that are free.

Data files are never overwritten. A shard count is part of their names and of the index, and readers open only
the shards that entries name, so a save over an existing prefix writes its shards under another count
(`choose_count`): readers that hold the old index read the old data as long as they need it.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass, field

from ckptstore.checksums import crc32c
from ckptstore.errors import CkptStoreError, ConflictError, NotFoundError
from ckptstore.format.entry_columns import shards_of
from ckptstore.format.naming import data_name, index_name
from ckptstore.format.record_facts import ShardName
from ckptstore.format.table import Table
from ckptstore.storage.base import Location

__all__ = ["LARGEST_COUNT", "PublishedIndex", "choose_count", "name_is_taken", "read_published_index"]

# TensorFlow's own deletion glob is ".data-?????-of-?????": five digits at most.
LARGEST_COUNT = 99_999

# Drawing is quicker than listing the free counts, until nearly all are taken.
_DRAWS = 100


def choose_count(shards: int, taken: Collection[int] | None) -> int:
    """Return the shard count under which a save writes its data files.

    Parameters
    ----------
    shards : int
        How many there are.
    taken : collection of int or None
        None for a prefix that was never used: the canonical count, as TensorFlow names it. Otherwise the
        counts that the prefix's index and unfinished deletes name. A random count is drawn: with a
        predictable one the late delete of a frozen writer could hit a name that is in use again.

    Raises
    ------
    ConflictError
        If no count is left: a forged record may name them all.
    """
    if taken is None:
        return shards
    generator = random.SystemRandom()
    every = range(shards + 1, LARGEST_COUNT + 1)
    for _ in range(_DRAWS if every else 0):
        count = generator.choice(every)
        if count not in taken:
            return count
    free = [count for count in every if count not in taken]
    if free:
        return generator.choice(free)
    raise ConflictError(
        "no name is left for the data files: every possible name is waiting to be deleted",
        expected=f"a free shard count from {shards + 1} to {LARGEST_COUNT}",
        hint="Check the comment lines of the record, or save under another name.",
    )


@dataclass(frozen=True, slots=True)
class PublishedIndex:
    """The index published at a prefix: its version, the data files it names, and the CRC32C of its bytes."""

    version: str
    shards: tuple[ShardName, ...]
    crc32c: int | None = field(default=None, compare=False)

    @property
    def counts(self) -> set[int]:
        """The shard counts in use."""
        return {count for _, count in self.shards}


def read_published_index(directory: Location, prefix: str) -> PublishedIndex | None:
    """Return the index published at `prefix`, None if there is none.

    An index that cannot be read names no files: it may be replaced, and its files are left to ``gc``.
    """
    location = directory.child(index_name(prefix))
    try:
        got = location.storage.get(location.key)
    except NotFoundError:
        return None
    return PublishedIndex(got.version, _shards_of_index(got.data, source=location.url), crc32c(got.data))


def _shards_of_index(data: bytes, *, source: str) -> tuple[ShardName, ...]:
    try:
        count, numbers = shards_of(Table.from_bytes(data, source=source), source=source)
    except CkptStoreError:
        return ()
    return tuple((number, count) for number in numbers)


def name_is_taken(directory: Location, prefix: str, shards: int, count: int) -> bool:
    """Return whether one of the first `shards` data files under this shard count is there."""
    for number in range(shards):
        location = directory.child(data_name(prefix, number, count))
        try:
            location.storage.head(location.key)
        except NotFoundError:
            continue
        return True
    return False
