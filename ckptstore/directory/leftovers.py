"""What a killed writer left on a local disk: removed when the next run begins to save.

Elsewhere nothing proves that a writer is dead, and `garbage` removes what it left by age.
"""

from __future__ import annotations

from collections.abc import Mapping

from ckptstore.directory.catalog import PrefixFiles
from ckptstore.directory.collect import drop_leftovers, drop_stale_uploads
from ckptstore.directory.published_index import read_published_index
from ckptstore.errors import CkptStoreError
from ckptstore.format.naming import data_name, meta_name
from ckptstore.format.record_facts import Record
from ckptstore.storage.abilities import KnowsWriters
from ckptstore.storage.base import Location
from ckptstore.warn import warn

__all__ = ["remove_leftovers"]


def remove_leftovers(
    directory: Location, record: Location, basename: str, found: Mapping[str, PrefixFiles], content: Record
) -> None:
    """Remove leftovers of writers that are provably dead; only a local disk can prove it.

    Parameters
    ----------
    directory : Location
    record : Location
        Of the record, which may have unfinished files too.
    basename : str
    found : mapping
        Prefix → the files that the listing of `basename` showed.
    content : Record
        What it names in pending and superseded lines is not a leftover.
    """
    names: list[str] = []
    needed: list[str] = []
    for item in found.values():
        if item.index is not None and len({count for _, count in item.data}) <= 1:
            # They belong together, no need to open the index.
            needed += [info.key for info in item.data.values()]
        else:
            names += _leftovers_of(directory, item, content)
    try:
        if needed and isinstance(directory.storage, KnowsWriters):
            # Those of a save that died right after the index, or of an older version, are not marked yet.
            directory.storage.mark_needed(needed)
        if names:
            drop_leftovers(directory, names)
        for place in (directory.child(basename), record):
            # However old: only those of provably dead writers.
            drop_stale_uploads(place, float("inf"))
    except CkptStoreError as error:
        warn(f"leftovers of a dead writer could not be removed: {error}")


def _leftovers_of(directory: Location, item: PrefixFiles, record: Record) -> list[str]:
    storage = directory.storage
    if not isinstance(storage, KnowsWriters):
        return []
    named = record.shards_named(item.prefix)
    dead = [
        shard for shard, info in item.data.items() if shard not in named and storage.is_abandoned(info.key)
    ]
    if not dead:
        return []
    # Read now, whatever the listing showed: a writer that is gone published its index before, or never will.
    published = read_published_index(directory, item.prefix)
    if published is None:
        names = [data_name(item.prefix, *shard) for shard in dead]
        if len(dead) == len(item.data) and item.meta is not None:
            names.append(meta_name(item.prefix))
        return names
    if not published.shards:
        # An index that cannot be read: the files it names are not known.
        return []
    storage.mark_needed([info.key for shard, info in item.data.items() if shard in published.shards])
    return [data_name(item.prefix, *shard) for shard in dead if shard not in published.shards]
