"""Data files that overwrites without a record replaced: deleted by the next overwrite in the same process.

A Saver keeps such names in the record. Here there is none, so they are only remembered: a loop that writes
one prefix again and again holds two generations of data, and what a process did not live to delete waits for
``gc``.
"""

from __future__ import annotations

import warnings

from ckptstore.directory.collect import collect_shards
from ckptstore.directory.published_index import Standing
from ckptstore.directory.shard_set import ShardSet
from ckptstore.errors import CkptStoreError, CkptStoreWarning
from ckptstore.format.record_protocol import ShardName
from ckptstore.storage.base import Storage

__all__ = ["collect_replaced"]

_replaced: dict[tuple[Storage, str], tuple[ShardName, ...]] = {}


def collect_replaced(files: ShardSet, standing: Standing | None) -> None:
    """Delete what the overwrite before this one replaced, and remember what this one did.

    Parameters
    ----------
    files : ShardSet
        Just published.
    standing : Standing or None
        The index that it replaced.
    """
    place = (files.directory.storage, files.directory.child(files.prefix).key)
    earlier = _replaced.pop(place, ())
    if standing is None:
        # The checkpoint was removed in between: its names may be in use again.
        return
    _replaced[place] = standing.shards
    gone = [shard for shard in earlier if shard not in standing.shards and shard not in files.shards]
    if not gone:
        return
    try:
        collect_shards(files.directory, files.prefix, gone)
    except CkptStoreError as error:
        warnings.warn(
            f"the checkpoint is saved, but old data of {files.prefix!r} could not be deleted: {error}",
            CkptStoreWarning,
            stacklevel=5,
        )
