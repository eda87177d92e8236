"""One checkpoint and nothing else: no record, no retention, no owner.

A Saver keeps the names of data files that it replaced in the record. Here there is no record, so this process
remembers them and its next overwrite deletes them: a loop that writes one prefix again and again holds two
generations of data. What a process that ended did not delete waits for ``gc``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from ckptstore.bundle.write.plan import SavePlan
from ckptstore.bundle.write.stage import Stage
from ckptstore.directory.collect import collect_shards
from ckptstore.directory.publish import publish_index
from ckptstore.directory.published_index import PublishedIndex, read_published_index
from ckptstore.directory.shard_set import ShardSet
from ckptstore.errors import CkptStoreError, CkptStoreWarning, ConflictError
from ckptstore.format.naming import split_step
from ckptstore.format.record_protocol import ShardName
from ckptstore.storage.base import Location, Storage
from ckptstore.storage.values import Committed
from ckptstore.transfer.transfer import Transfer

__all__ = ["collect_replaced", "entered", "write_checkpoint"]

_replaced: dict[tuple[Storage, str], tuple[ShardName, ...]] = {}


def write_checkpoint(
    directory: Location,
    prefix: str,
    plan: SavePlan,
    *,
    meta: bytes | None = None,
    suffix: str = "meta",
    before_commit: Callable[[], None] | None = None,
    transfer: Transfer | None = None,
    stage: Stage | None = None,
) -> None:
    """Write one checkpoint and nothing else: no record, no retention, no owner.

    The data files that it replaces go with the next overwrite by this process, so that readers in flight
    finish; those of processes that are gone wait for ``gc``.

    Raises
    ------
    ConflictError
        If another writer saves the same prefix at the same time.
    """
    published = read_published_index(directory, prefix)
    with (
        entered(transfer, directory, prefix) as transfer,
        ShardSet(directory, prefix, transfer=transfer, stage=stage) as files,
    ):
        files.write(plan, None if published is None else published.counts)
        if meta is not None:
            files.put_graph(meta, suffix, is_there=published is not None)
        if before_commit is not None:
            before_commit()
        outcome = publish_index(files, published)
        if not isinstance(outcome, Committed):
            raise ConflictError(
                "another writer saved the same checkpoint at the same time",
                url=directory.child(prefix).url,
                hint="Its checkpoint is complete; save under another name, or let only one job save here.",
            )
    collect_replaced(files, published)


def entered(transfer: Transfer | None, directory: Location, prefix: str) -> AbstractContextManager[Transfer]:
    """Return a context with `transfer`, which whoever began it has entered, or one of its own."""
    if transfer is not None:
        return nullcontext(transfer)
    return Transfer("save", directory.child(prefix).url, step=split_step(prefix)[1])


def collect_replaced(files: ShardSet, published: PublishedIndex | None) -> None:
    """Delete what the previous overwrite by this process replaced, and remember what this one replaced.

    Parameters
    ----------
    files : ShardSet
        The files of the checkpoint that was just published.
    published : PublishedIndex or None
        The index that this checkpoint replaced.
    """
    place = (files.directory.storage, files.directory.child(files.prefix).key)
    earlier = _replaced.pop(place, ())
    if published is None:
        # The checkpoint was removed meanwhile: its names may be in use again.
        return
    _replaced[place] = published.shards
    gone = [shard for shard in earlier if shard not in published.shards and shard not in files.shards]
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
