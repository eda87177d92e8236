"""One checkpoint and nothing else: no record, no retention, no owner."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from ckptstore.bundle.write.plan import SavePlan
from ckptstore.bundle.write.stage import Stage
from ckptstore.directory.publish import publish_index
from ckptstore.directory.published_index import read_standing
from ckptstore.directory.replaced import collect_replaced
from ckptstore.directory.shard_set import ShardSet
from ckptstore.errors import ConflictError
from ckptstore.format.naming import split_step
from ckptstore.storage.base import Location
from ckptstore.storage.values import Committed
from ckptstore.transfer.transfer import Transfer

__all__ = ["entered", "write_checkpoint"]


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
    standing = read_standing(directory, prefix)
    with (
        entered(transfer, directory, prefix) as transfer,
        ShardSet(directory, prefix, transfer=transfer, stage=stage) as files,
    ):
        files.write(plan, None if standing is None else standing.counts)
        if meta is not None:
            files.put_graph(meta, suffix, is_there=standing is not None)
        if before_commit is not None:
            before_commit()
        outcome = publish_index(files, standing)
        if not isinstance(outcome, Committed):
            raise ConflictError(
                "another writer saved the same checkpoint at the same time",
                url=directory.child(prefix).url,
                hint="Its checkpoint is complete; save under another name, or let only one job save here.",
            )
    collect_replaced(files, standing)


def entered(transfer: Transfer | None, directory: Location, prefix: str) -> AbstractContextManager[Transfer]:
    """Return a context with `transfer`, which whoever began it has entered, or one of its own."""
    if transfer is not None:
        return nullcontext(transfer)
    return Transfer("save", directory.child(prefix).url, step=split_step(prefix)[1])
