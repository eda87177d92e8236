"""What one save is asked to do, and what carries it out.

``Saver.save`` makes a `SaveRequest`; a `SaveTask` starts the transfer and hands both to a `CheckpointSink`.
There are two sinks: `CheckpointWriter` keeps a record, `BareSink` does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from ckptstore.bundle.write.plan import SavePlan
from ckptstore.bundle.write.stage import Stage
from ckptstore.directory.owner_names import owner_of_save
from ckptstore.format.record_facts import OwnerName
from ckptstore.storage.base import Location
from ckptstore.transfer.transfer import Transfer

__all__ = ["CheckpointSink", "LastSaved", "RunningSave", "SaveRequest"]


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
    """

    prefix: Location
    plan: SavePlan
    run: str = ""
    meta: bytes | None = None
    suffix: str = "meta"
    step: int | None = None
    fresh_start: bool = False

    @property
    def owner(self) -> OwnerName:
        """Who owns the checkpoint."""
        return owner_of_save(self.prefix.name, self.step)

    @property
    def has_tensors(self) -> bool:
        """Whether a checkpoint is written; without tensors only the graph is."""
        return any(shard.items for shard in self.plan.shards)


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
    """

    transfer: Transfer
    stage: Stage | None = None
    before_commit: Callable[[], None] = _nothing


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

    def save(self, request: SaveRequest, running: RunningSave) -> None:
        """Write data, graph and index, and whatever else this sink keeps.

        Guarantees
        ----------
        A crash at any point leaves the complete old or the complete new checkpoint.
        """

    def last_saved(self) -> LastSaved | None:
        """Return the checkpoint whose data files the next one may reuse; None if there is none."""
