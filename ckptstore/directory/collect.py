"""Deleting: the only module that does, always by exact name, never by a listing's pattern.

The index goes first and only in the version that was judged: a reader that finds an index finds its data.
"""

from __future__ import annotations

from collections.abc import Iterable

from ckptstore.format.naming import (
    data_name,
    index_name,
    meta_name,
    parse_file_name,
    parse_v1_pattern,
    v1_shard_name,
)
from ckptstore.format.record_facts import Pending, ShardName
from ckptstore.storage.abilities import DeletesOnce
from ckptstore.storage.base import Location

__all__ = [
    "collect_graph",
    "collect_pending",
    "collect_shards",
    "collect_unpublished",
    "drop_leftovers",
    "drop_stale_uploads",
    "remove_checkpoint_files",
    "remove_v1_files",
]


def _data_keys(directory: Location, prefix: str, shards: Iterable[ShardName]) -> list[str]:
    return [directory.child(data_name(prefix, shard, count)).key for shard, count in shards]


def collect_pending(directory: Location, pending: Pending, *, with_graph: bool) -> None:
    """Delete the files of one checkpoint that left the record; what is gone already counts as done.

    Parameters
    ----------
    directory : Location
    pending : Pending
        Its prefix is a direct child of `directory`; the caller made sure.
    with_graph : bool
        Whether its suffix is one of a graph that the owner writes.
    """
    storage = directory.storage
    # DELETES: the index, in the version that retention judged; a checkpoint saved anew under the name is not
    # touched.
    if not storage.delete_if(directory.child(index_name(pending.prefix)).key, pending.version):
        return
    keys = _data_keys(directory, pending.prefix, pending.shards)
    if with_graph:
        keys.append(directory.child(meta_name(pending.prefix, pending.suffix)).key)
    # DELETES: its data and graph; no index names them any more.
    storage.delete_many(keys)


def collect_shards(directory: Location, prefix: str, shards: Iterable[ShardName]) -> None:
    """Delete exactly these data files of `prefix`, which no index names, and whose names stay unused."""
    if keys := _data_keys(directory, prefix, shards):
        # DELETES: data files that are superseded, or were never published.
        directory.storage.delete_many(keys)


def collect_unpublished(directory: Location, prefix: str, shards: Iterable[ShardName]) -> None:
    """Delete data files that this save has made, no index names, and another job may make anew.

    It may do so as soon as they are gone. Of two deletes the first one, which was given up, may arrive last,
    and hit the files of that job: each is sent once (docs/design/021-many-ranks.md).
    """
    storage, keys = directory.storage, _data_keys(directory, prefix, shards)
    if not keys:
        return
    if isinstance(storage, DeletesOnce):
        # DELETES: data files that were never published.
        storage.delete_once(keys)
    else:
        # DELETES: the same; nothing arrives late there.
        storage.delete_many(keys)


def collect_graph(graph: Location, version: str) -> None:
    """Delete the graph of a save that failed; the caller made sure that no index stands beside it."""
    # DELETES: a graph without a checkpoint, unless it was replaced.
    graph.storage.delete_if(graph.key, version)


def drop_leftovers(directory: Location, names: Iterable[str]) -> None:
    """Delete files of a save that died before its index; the caller proved that their writer is dead."""
    # DELETES: leftovers of a dead writer.
    directory.storage.delete_many([directory.child(name).key for name in names])


def remove_checkpoint_files(directory: Location, prefix: str, suffix: str | None) -> None:
    """Delete the files of one checkpoint because the user asked for just that; missing ones count as done.

    The index goes first, then every data file of exactly this prefix, and the graph if its `suffix` is given.
    """
    storage = directory.storage
    index = directory.child(index_name(prefix)).key
    rest = [directory.child(meta_name(prefix, suffix)).key] if suffix else []
    for info in storage.list(directory.child(prefix).key + "."):
        parsed = parse_file_name(info.key.rpartition("/")[2])
        if parsed is not None and parsed.kind == "data" and parsed.prefix == prefix:
            rest.append(info.key)
    # DELETES: the index before what it names, so that no reader finds half a checkpoint.
    storage.delete_many([index])
    # DELETES: data files and graph of exactly this prefix.
    storage.delete_many(rest)


def remove_v1_files(directory: Location, name: str, suffix: str) -> None:
    """Delete one V1 checkpoint because the user asked for just that: its file, or its shards, and the graph.

    Parameters
    ----------
    name : str
        Of the file, or TensorFlow's text for the shards, ``PREFIX-?????-of-00003``.
    """
    pattern = parse_v1_pattern(name)
    if pattern is None:
        names = [name, meta_name(name, suffix)]
    else:
        prefix, count = pattern
        names = [v1_shard_name(prefix, shard, count) for shard in range(count)]
        names.append(meta_name(prefix, suffix))
    # DELETES: exactly the files that were asked for.
    directory.storage.delete_many([directory.child(each).key for each in names])


def drop_stale_uploads(place: Location, min_age_s: float) -> int:
    """Drop unfinished uploads whose key begins with that of `place`; return how many.

    Those that are older than `min_age_s`, and those of a writer that is provably dead.
    """
    return place.storage.abort_stale_uploads(place.key, min_age_s)
