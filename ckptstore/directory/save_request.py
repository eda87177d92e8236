"""What one save is asked to do, and what carries it out.

``Saver.save`` makes a `SaveRequest`; a `SaveTask` starts the transfer and hands both to a `CheckpointSink`.
There are two sinks: `CheckpointWriter` keeps a record, `BareSink` does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from ckptstore.bundle.write.index_memory import IndexMemory
from ckptstore.bundle.write.plan import SavePlan
from ckptstore.bundle.write.stage import Stage
from ckptstore.directory.open_save import OpenSave, write_here
from ckptstore.directory.owner_names import owner_of_save
from ckptstore.format.record_facts import OwnerName
from ckptstore.storage.base import Location
from ckptstore.transfer.transfer import Transfer

__all__ = ["CheckpointSink", "LastSaved", "RunningSave", "SaveRequest", "save"]


@dataclass(frozen=True, slots=True)
class SaveRequest:
    """One checkpoint to write.

    Attributes
    ----------
    run : str
        Identity for fencing; a sink without a record ignores it.
    meta : bytes or None
        The graph; None writes none.
    suffix : str
        Of the graph's file.
    step : int or None
        That the user gave; it is at the end of the prefix then.
    fresh_start : bool
        Save although there are checkpoints of the basename and none of them can be restored.
    shards : int or None
        How many data files the checkpoint has, where other processes write some of them; None: those of
        `plan`.
    metrics : mapping
        What the record says of it: name → value.
    indexes : IndexMemory or None
        What was reported of the data files of the save before, where other processes write some of them.
    """

    prefix: Location
    plan: SavePlan
    run: str = ""
    meta: bytes | None = None
    suffix: str = "meta"
    step: int | None = None
    fresh_start: bool = False
    shards: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    indexes: IndexMemory | None = None

    @property
    def shard_count(self) -> int:
        """How many data files the checkpoint has."""
        return len(self.plan.shards) if self.shards is None else self.shards

    @property
    def owner(self) -> OwnerName:
        """Who owns the checkpoint."""
        return owner_of_save(self.prefix.name, self.step)

    @property
    def has_tensors(self) -> bool:
        """Whether a checkpoint is written; without tensors only the graph is."""
        return self.shards is not None or any(shard.items for shard in self.plan.shards)


def _nothing() -> None: ...


@dataclass(frozen=True, slots=True)
class RunningSave:
    """The save that carries out a request.

    Attributes
    ----------
    transfer : Transfer
        Entered by the caller: threads, memory budget, deadline, progress.
    stage : Stage or None
        A copy of the plan's bytes, written instead of the arrays.
    before_commit : callable
        Called when everything but the index is written; what it raises ends the save.
    when_saved : callable
        Called when the checkpoint exists, and is the latest where there is a record; what retention drops is
        deleted afterwards.
    """

    transfer: Transfer
    stage: Stage | None = None
    before_commit: Callable[[], None] = _nothing
    when_saved: Callable[[], None] = _nothing


class LastSaved(NamedTuple):
    """The checkpoint that was saved last.

    Attributes
    ----------
    prefix : str
        Without the directory.
    versions : dict
        Number of the data file → its version, where that is known.
    """

    prefix: str
    index_bytes: bytes
    versions: dict[int, str]


class CheckpointSink(Protocol):
    """Writes checkpoints."""

    @property
    def lock(self) -> AbstractContextManager[object]:
        """Held by the caller while a save is open."""

    def open(self, request: SaveRequest, running: RunningSave) -> OpenSave:
        """Return a save that publishes what others write, and does whatever else this sink does.

        It ends with `CkptStoreError` as `save`.

        Guarantees
        ----------
        A crash at any point leaves the complete old or the complete new checkpoint.
        """

    def last_saved(self) -> LastSaved | None:
        """Return the checkpoint whose data files the next one may reuse; None if there is none."""


def save(sink: CheckpointSink, request: SaveRequest, running: RunningSave) -> None:
    """Save a checkpoint whose data files this process writes.

    Raises
    ------
    FencedError
        A newer run owns this basename; nothing of this save stays.
    AmbiguousOutcomeError
        An answer was lost for good; nothing was cleaned up.
    CkptStoreError
        The checkpoint was not published, and the previous one still restores. Or it was published, and the
        record does not name it; the message says so.

    Guarantees
    ----------
    When it returns, the checkpoint exists; with a record, it is the latest.
    """

    def run() -> None:
        with sink.lock, sink.open(request, running) as phases:
            write_here(phases, request.plan, restart=running.transfer.restart)

    # In a context of its own: Ctrl-C leaves nothing set, whatever it interrupts.
    copy_context().run(run)
