"""The task of a save: of this process alone, of the chief, or of another rank."""

from __future__ import annotations

from collections.abc import Callable

from ckptstore.bundle.write.plan import SavePlan
from ckptstore.directory.save_request import CheckpointSink, SaveRequest
from ckptstore.saving.options import SaveOptions
from ckptstore.saving.rank_task.chief import ChiefTask
from ckptstore.saving.rank_task.member import MemberTask
from ckptstore.saving.ranks import Ranks
from ckptstore.saving.task import SaveTask

__all__ = ["task_of"]


def task_of(
    request: SaveRequest,
    sink: CheckpointSink,
    options: SaveOptions,
    ranks: Ranks | None,
    *,
    record: str | None = None,
    make_meta: Callable[[SavePlan], bytes] | None = None,
) -> SaveTask:
    """Return the task of a save: of this process alone, of the chief, or of another rank.

    Parameters
    ----------
    request, sink, options
        As `SaveTask`.
    ranks : Ranks or None
    record, make_meta
        As `ChiefTask`.
    """
    if ranks is None:
        return SaveTask(request, sink, options)
    if ranks.is_chief:
        return ChiefTask(request, sink, options, ranks, record, make_meta)
    return MemberTask(request, sink, options, ranks, record)
