"""A save in phases: names are assigned, the data files are written, the checkpoint is published.

Whoever writes the data files need not be the one that keeps the record: the files of one checkpoint may come
from many processes. A sink (`save_request.CheckpointSink`) yields an `Assignment` and is sent what was
written elsewhere under its names.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, TypeAlias

from ckptstore.bundle.write.index_memory import IndexPart
from ckptstore.bundle.write.plan import SavePlan
from ckptstore.format.record_facts import ShardName

__all__ = ["Assignment", "OpenSave", "SaveSteps", "ShardReport", "WritesShards", "write_here"]


@dataclass(frozen=True, slots=True)
class ShardReport:
    """A data file that another process wrote for this save.

    Attributes
    ----------
    name : (int, int)
        Shard number and count.
    version : str
        Of the file, as its storage reported it.
    index : bytes or ndarray
        An index of this file alone, deflated, whatever shard number it has in it; or its checksums, if the
        rest is as the `IndexMemory` of the save has it.
    """

    name: ShardName
    version: str
    index: IndexPart


class WritesShards(Protocol):
    """Writes data files of a save in this process.

    Attributes
    ----------
    may_be_published : bool
        Whether an index may name the files of the save, whoever wrote them: none may be deleted.
    """

    may_be_published: bool

    def write(self, plan: SavePlan, count: int, numbers: Sequence[int] | None = None) -> bool:
        """Write the shards of `plan` under these numbers; False if one of the names is taken."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """The names under which the data files of a save are to be written.

    Attributes
    ----------
    files : WritesShards
        For those of this process.
    count : int
        The shard count in the names.
    """

    files: WritesShards
    count: int


SaveSteps: TypeAlias = Generator[Assignment, Sequence[ShardReport] | None, None]
"""The steps of a save; closing them before their end deletes what this process wrote."""


class OpenSave:
    """One save in phases.

    Calls
    -----
    `begin`, then write the data files of the assignment, then `commit`, or `refuse` if one of the names was
    taken: both return the next assignment, None when the checkpoint is published. `abort`, or leaving the
    ``with`` block before that, deletes what this process wrote, unless an index may name it.

    Parameters
    ----------
    steps : generator
        See `SaveSteps`.

    Threads
    -------
    One thread.
    """

    def __init__(self, steps: SaveSteps) -> None:
        self._steps = steps

    def begin(self) -> Assignment | None:
        """Become the owner of what is saved, and return the names to write; None if there is nothing to.

        Raises
        ------
        CkptStoreError
            As `CheckpointSink.open`.
        """
        return next(self._steps, None)

    def commit(self, reports: Sequence[ShardReport] = ()) -> Assignment | None:
        """Publish the checkpoint: the files written here, and those that others report.

        Returns
        -------
        Assignment or None
            None when it is published. Otherwise one of the names must not be used: write everything again
            under these.

        Raises
        ------
        CkptStoreError
            As `CheckpointSink.open`.
        """
        return self._send(tuple(reports))

    def refuse(self) -> Assignment:
        """Say that one of the names was taken, and return others.

        Raises
        ------
        ConflictError
            If no name is left.
        """
        assignment = self._send(None)
        assert assignment is not None
        return assignment

    def _send(self, reports: Sequence[ShardReport] | None) -> Assignment | None:
        try:
            return self._steps.send(reports)
        except StopIteration:
            return None

    def abort(self, error: BaseException | None = None) -> None:
        """Give the save up: because of `error`, or for no reason of its own.

        What the clean-up fails with becomes a note of `error`.
        """
        if error is None:
            self._steps.close()
            return
        try:
            self._steps.throw(error)
        except BaseException as raised:
            # The steps end with the error they were given.
            if raised is not error:
                raise

    def __enter__(self) -> OpenSave:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Nothing happens to steps that have ended, or failed by themselves.
        self.abort(error)


def write_here(save: OpenSave, plan: SavePlan, *, restart: Callable[[int], object]) -> None:
    """Write all data files of `plan` in this process, and publish the checkpoint.

    Parameters
    ----------
    restart : callable
        Called with the bytes to write before each attempt.
    """
    assignment = save.begin()
    while assignment is not None:
        restart(plan.size_bytes)
        is_new = assignment.files.write(plan, assignment.count)
        assignment = save.commit() if is_new else save.refuse()
