"""One checkpoint and nothing else: no record, no retention, no owner.

A Saver keeps the names of data files that it replaced in the record. Here there is no record, so this process
remembers them and its next overwrite deletes them: a loop that writes one prefix again and again holds two
generations of data. What a process that ended did not delete waits for ``gc``.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from ckptstore.directory.collect import collect_shards
from ckptstore.directory.open_save import OpenSave, SaveSteps
from ckptstore.directory.publish import put_graph
from ckptstore.directory.published_index import PublishedIndex, read_published_index
from ckptstore.directory.save_request import RunningSave, SaveRequest
from ckptstore.directory.shard_set import ShardSet, have_written, shards_of_save
from ckptstore.errors import CkptStoreError, ConflictError
from ckptstore.format.naming import meta_name
from ckptstore.format.record_facts import ShardName
from ckptstore.storage.base import Storage
from ckptstore.storage.values import Committed
from ckptstore.warn import warn

__all__ = ["BareSink", "collect_replaced"]

_replaced: dict[tuple[Storage, str], tuple[ShardName, ...]] = {}


class BareSink:
    """Writes one checkpoint and nothing else: no record, no retention, no owner.

    A request without tensors writes the graph only. The data files that a checkpoint replaces are deleted by
    the next overwrite by this process, so that readers in flight finish.

    Threads
    -------
    Safe for concurrent use.
    """

    @property
    def lock(self) -> AbstractContextManager[object]:
        """Nothing: several saves may be open at once."""
        return nullcontext()

    def open(self, request: SaveRequest, running: RunningSave) -> OpenSave:
        """Return a save that writes the checkpoint of `request`.

        It ends with `ConflictError` if another writer saves the same prefix at the same time.
        """
        return OpenSave(_steps(request, running))

    def last_saved(self) -> None:
        """Return None: without a record there is no checkpoint before this one."""


def _steps(request: SaveRequest, running: RunningSave) -> SaveSteps:
    directory, prefix = request.prefix.parent, request.prefix.name
    if not request.has_tensors:
        running.before_commit()
        if request.meta is not None:
            put_graph(directory.child(meta_name(prefix, request.suffix)), request.meta)
        return
    published = read_published_index(directory, prefix)
    with shards_of_save(request, running) as files:
        yield from have_written(files, request, running, None if published is None else published.counts)
        if request.meta is not None:
            files.put_graph(request.meta, request.suffix, is_there=published is not None)
        running.before_commit()
        if not isinstance(files.publish(published), Committed):
            raise ConflictError(
                "another writer saved the same checkpoint at the same time",
                url=request.prefix.url,
                hint="Its checkpoint is complete; save under another name, or let one job save here.",
            )
    running.when_saved()
    collect_replaced(files, published)


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
        warn(f"the checkpoint is saved, but old data of {files.prefix!r} could not be deleted: {error}")
