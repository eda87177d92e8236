"""One save, checked and planned: what is left is to bring the bytes and to publish them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import Enum
from typing import Protocol

from ckptstore.bundle.write.plan import SavePlan
from ckptstore.bundle.write.stage import Stage
from ckptstore.bundle.write.unchanged import split_unchanged, stored_shards
from ckptstore.directory.bare_write import write_checkpoint
from ckptstore.directory.checkpoint_writer import CheckpointWriter
from ckptstore.directory.publish import put_meta
from ckptstore.errors import CorruptError, SaveCancelledError
from ckptstore.format.naming import index_name
from ckptstore.saving.options import SaveOptions
from ckptstore.storage.base import Location
from ckptstore.transfer.budget import MemoryBudget
from ckptstore.transfer.transfer import Transfer

__all__ = [
    "SaveTask",
    "Write",
    "save_graph",
    "save_with_record",
    "save_without_record",
    "split_by_change",
]


class Write(Protocol):
    """Write a checkpoint: its data, its graph, its index, the record."""

    def __call__(
        self,
        plan: SavePlan,
        *,
        before_commit: Callable[[], None],
        transfer: Transfer,
        stage: Stage | None,
    ) -> str | None:
        """Write `plan` as part of `transfer`, and return its prefix; None if there was nothing to save.

        `before_commit` is to be called when all that is left is to make it visible. With `stage` the bytes
        come from there, and not from the arrays.
        """


class _Phase(Enum):
    WAITING = 1
    RUNNING = 2
    CANCELLED = 3
    COMMITTING = 4


class SaveTask:
    """One save on its way.

    Calls
    -----
    `run` in the thread that saves. For a snapshot, `begin_snapshot` before, and `stage` meanwhile in the
    thread that owns the arrays.

    Parameters
    ----------
    url : str
        The prefix of the checkpoint.
    plan : SavePlan
    write : Write
    options : SaveOptions
    step : int, optional
        Of the checkpoint.
    arrange : callable, optional
        From `plan` to the one that is written. Called once, in the thread that may read the arrays then.

    Attributes
    ----------
    staged : threading.Event
        Set when the arrays may be changed again.

    Threads
    -------
    Safe for concurrent use.
    """

    def __init__(
        self,
        url: str,
        plan: SavePlan,
        write: Write,
        options: SaveOptions,
        step: int | None = None,
        arrange: Callable[[SavePlan], SavePlan] | None = None,
    ) -> None:
        self.url = url
        self.staged = threading.Event()
        self._plan = plan
        self._write = write
        self._options = options
        # Reentrant: a signal handler that cancels may interrupt the thread that holds it.
        self._lock = threading.RLock()
        self._phase = _Phase.WAITING
        self._step = step
        self._transfer: Transfer | None = None
        self._arrange = arrange
        self._stage: Stage | None = None
        self._budget = MemoryBudget()
        self._may_begin = threading.Event()
        self._is_over = False

    @property
    def size_bytes(self) -> int:
        """Bytes in all data files."""
        return self._plan.size_bytes

    @property
    def memory_budget(self) -> int | None:
        """Most bytes that it may hold beyond the caller's arrays."""
        return self._options.memory_budget

    @property
    def done_bytes(self) -> int:
        """Bytes of data files that are stored already."""
        return 0 if self._transfer is None else self._transfer.done_bytes

    @property
    def is_cancelled(self) -> bool:
        """Whether it was cancelled in time."""
        return self._phase is _Phase.CANCELLED

    def begin_snapshot(self) -> None:
        """Have `run` take the bytes that `stage` copies."""
        self._arrange_plan()
        self._budget = MemoryBudget(self.memory_budget)
        self._stage = Stage(self._plan, self._budget, url=self.url)

    @property
    def is_staged_whole(self) -> bool:
        """Whether `stage` can copy everything before anything is saved."""
        return self._stage is None or self._stage.is_whole

    def skip_snapshot(self) -> None:
        """Forget `begin_snapshot`: the thread that owns the arrays is the one that saves."""
        self._stage = None

    def stage(self) -> None:
        """Copy the arrays; returns when they may be changed again, or when the save is over."""
        stage = self._stage
        if stage is None:
            return
        try:
            stage.copy()
        except Exception:
            # What the save failed with is told by its handle.
            if not self._is_over:
                raise
        self.staged.set()
        self._may_begin.set()

    def _arrange_plan(self) -> None:
        if self._arrange is not None:
            self._plan = self._arrange(self._plan)
            self._arrange = None

    def run(self) -> str | None:
        """Save, and return the prefix; None if there was nothing to save.

        Raises
        ------
        SaveCancelledError
            If it was cancelled before it began.
        CkptStoreError
            Whatever kept it from being saved.
        """
        if self._stage is not None and self._stage.is_whole:
            # Both at a time would fight for the memory's bandwidth, and somebody waits for the copy.
            self._may_begin.wait()
        with self._lock:
            if self._phase is _Phase.CANCELLED:
                raise SaveCancelledError("the save was cancelled", url=self.url)
            self._phase = _Phase.RUNNING
            transfer = self._transfer = self._options.transfer(self.url, self._step)
            if self._stage is not None:
                # What was copied so far is taken from it.
                transfer.budget = self._budget
        with transfer:
            self._arrange_plan()
            return self._write(
                self._plan, before_commit=self._begin_commit, transfer=transfer, stage=self._stage
            )

    def _begin_commit(self) -> None:
        """Pass the point from which on nobody can cancel: a commit cut short leaves the outcome open."""
        assert self._transfer is not None
        with self._lock:
            self._transfer.scope.check()
            self._phase = _Phase.COMMITTING
        self.staged.set()

    def cancel(self) -> bool:
        """Give it up, if it is not being published yet; tell whether that is so."""
        with self._lock:
            if self._phase is _Phase.COMMITTING:
                return False
            self._phase = _Phase.CANCELLED
            transfer = self._transfer
        self._may_begin.set()
        if transfer is not None:
            transfer.cancel()
        return True

    def release(self, error: BaseException | None = None) -> None:
        """Let go of what it holds; it is over, because of `error` if there is one."""
        self._is_over = True
        self._plan = SavePlan(())
        if self._stage is None:
            self.staged.set()
        else:
            # A copy under way ends; then the arrays may be changed again.
            self._stage.close(error)


def save_with_record(
    writer: CheckpointWriter,
    run: str,
    meta: bytes | None,
    suffix: str,
    prefix: Location,
    plan: SavePlan,
    *,
    before_commit: Callable[[], None],
    transfer: Transfer,
    stage: Stage | None,
) -> str:
    """Write a checkpoint, make it the latest, and collect what retention lets go."""
    writer.save(
        prefix.name,
        plan,
        run=run,
        meta=meta,
        suffix=suffix,
        before_commit=before_commit,
        transfer=transfer,
        stage=stage,
    )
    return prefix.url


def save_without_record(
    meta: bytes | None,
    suffix: str,
    prefix: Location,
    plan: SavePlan,
    *,
    before_commit: Callable[[], None],
    transfer: Transfer,
    stage: Stage | None,
) -> str:
    """Write a checkpoint and nothing else."""
    write_checkpoint(
        prefix.parent,
        prefix.name,
        plan,
        meta=meta,
        suffix=suffix,
        before_commit=before_commit,
        transfer=transfer,
        stage=stage,
    )
    return prefix.url


def save_graph(
    meta: bytes | None,
    suffix: str,
    prefix: Location,
    plan: SavePlan,
    *,
    before_commit: Callable[[], None],
    transfer: Transfer,
    stage: Stage | None,
) -> None:
    """Write a graph without a checkpoint."""
    before_commit()
    if meta is not None:
        put_meta(prefix.parent, prefix.name, meta, suffix=suffix)


def split_by_change(writer: CheckpointWriter, plan: SavePlan) -> SavePlan:
    """Return `plan` with what has not changed since the last checkpoint in data files of their own."""
    last = writer.last_saved()
    if last is None:
        return plan
    url = writer.directory.child(index_name(last.prefix)).url
    try:
        return split_unchanged(plan, stored_shards(last.index_bytes, last.prefix, last.versions, source=url))
    except CorruptError:
        # Everything travels then.
        return plan
