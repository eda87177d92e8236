"""What stands at a prefix already: the index and the data files it names, and which names are free.

Data files are never overwritten. A shard count is part of their names and of the index, and readers open only
the shards that entries name, so a save over an existing prefix writes its shards under another count
(`choose_count`): whoever holds the old index reads the old data until nobody can need it.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass

from ckptstore.errors import CkptStoreError, ConflictError, NotFoundError
from ckptstore.format.entry_columns import shards_of
from ckptstore.format.naming import data_name, index_name
from ckptstore.format.record_protocol import ShardName
from ckptstore.format.table import Table
from ckptstore.storage.base import Location

__all__ = ["LARGEST_COUNT", "PublishedIndex", "choose_count", "name_is_taken", "read_published_index"]

# TensorFlow's own deletion glob is ".data-?????-of-?????": five digits at most.
LARGEST_COUNT = 99_999

# Until then it is quicker to draw than to make a list of what is free.
_DRAWS = 100


def choose_count(shards: int, taken: Collection[int] | None) -> int:
    """Return the shard count under which a save writes its data files.

    Parameters
    ----------
    shards : int
        How many there are.
    taken : collection of int or None
        None for a prefix that was never used: the canonical count, as TensorFlow names it. Otherwise the
        counts that the prefix's index and unfinished deletes name. A random one is drawn, because with a
        predictable one the late delete of a frozen writer hits a name that came back into use.

    Raises
    ------
    ConflictError
        If no count is left: a record that somebody made up may name them all.
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
        "no name is left for the data files: every one is that of a file that is still to be deleted",
        expected=f"a free shard count from {shards + 1} to {LARGEST_COUNT}",
        hint="Look at the comment lines of the record, or save under another name.",
    )


@dataclass(frozen=True, slots=True)
class PublishedIndex:
    """An index that stands at a prefix: its version, and the data files it names."""

    version: str
    shards: tuple[ShardName, ...]

    @property
    def counts(self) -> set[int]:
        """The shard counts in use."""
        return {count for _, count in self.shards}


def read_published_index(directory: Location, prefix: str) -> PublishedIndex | None:
    """Return the index that stands at `prefix`, None if there is none.

    An index that cannot be read names no files: it may be replaced, and what it meant is left to ``gc``.
    """
    location = directory.child(index_name(prefix))
    try:
        got = location.storage.get(location.key)
    except NotFoundError:
        return None
    return PublishedIndex(got.version, _shards_of_index(got.data, source=location.url))


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
