"""One save, checked and planned: it starts the transfer and runs the sink."""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum

from ckptstore.bundle.write.plan import SavePlan
from ckptstore.bundle.write.stage import Stage
from ckptstore.bundle.write.unchanged import split_unchanged, stored_shards
from ckptstore.directory.save_request import CheckpointSink, LastSaved, RunningSave, SaveRequest, save
from ckptstore.errors import CorruptError, SaveCancelledError
from ckptstore.format.naming import index_name
from ckptstore.saving.options import SaveOptions
from ckptstore.saving.report import RankReport, SaveReport
from ckptstore.storage.latch import Latch
from ckptstore.transfer.budget import MemoryBudget
from ckptstore.transfer.transfer import Transfer

__all__ = ["SaveTask"]


class _Phase(Enum):
    WAITING = 1
    RUNNING = 2
    CANCELLED = 3
    COMMITTING = 4


class SaveTask:
    """One save that is checked and planned.

    Calls
    -----
    `run` in the thread that saves. For a snapshot, `begin_snapshot` before, and `stage` meanwhile in the
    thread that owns the arrays.

    Attributes
    ----------
    staged : Latch
        Set when the arrays may be changed again.
    report : SaveReport or None
        Set when the save has succeeded.

    Threads
    -------
    Safe for concurrent use.
    """

    def __init__(self, request: SaveRequest, sink: CheckpointSink, options: SaveOptions) -> None:
        self.url = request.prefix.url
        self.staged = Latch()
        self._sink = sink
        self._options = options
        # Reentrant: a signal handler that cancels may interrupt the thread that holds it. Guards `_phase`.
        # The thread that saves sets RUNNING, and with it `_transfer`, then COMMITTING; any thread may set
        # CANCELLED, except after COMMITTING.
        self._lock = threading.RLock()
        self._phase = _Phase.WAITING
        self._transfer: Transfer | None = None
        # Its plan is replaced once, by `_split_plan`, in the thread that may read the arrays then; `release`
        # drops the arrays.
        self._request = request
        self._is_split = False
        # Set by `begin_snapshot` before the task is queued, never afterwards; None without a snapshot.
        self._stage: Stage | None = None
        self._budget = MemoryBudget()
        # Set when a stage is copied, or the task is cancelled; `run` waits for it where the stage is whole.
        self._may_begin = Latch()
        self._is_over = False
        self.report: SaveReport | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes in all data files."""
        return self._request.plan.size_bytes

    @property
    def memory_budget(self) -> int | None:
        """Bytes that the save may hold at most beyond the caller's arrays."""
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
        """Make `run` write the bytes that `stage` copies."""
        self._split_plan()
        self._budget = MemoryBudget(self.memory_budget)
        self._stage = Stage(self._request.plan, self._budget, url=self.url)

    @property
    def is_staged_whole(self) -> bool:
        """Whether there is room to copy everything before anything is saved."""
        return self._stage is None or self._stage.is_whole

    def skip_snapshot(self) -> None:
        """Undo `begin_snapshot`: the thread that owns the arrays saves itself."""
        self._stage = None

    def stage(self) -> None:
        """Copy the arrays; return when they may be changed again, or when the save is over."""
        stage = self._stage
        if stage is None:
            return
        try:
            stage.copy()
        except Exception:
            # The handle reports why the save failed.
            if not self._is_over:
                raise
        self.staged.set()
        self._may_begin.set()

    def _split_plan(self) -> None:
        """Move the tensors that did not change into data files of their own, if the options ask for it."""
        if self._options.reuse_unchanged and self._request.has_tensors and not self._is_split:
            self._request = _split_by_change(self._request, self._sink.last_saved())
        self._is_split = True

    def run(self) -> str | None:
        """Save, and return the prefix; None if there was nothing to save.

        Raises
        ------
        SaveCancelledError
            If it was cancelled before it began.
        CkptStoreError
            Any failure of the save.
        """
        if self._stage is not None and self._stage.is_whole:
            # Copying and saving at once would share the memory bandwidth, and the caller waits for the copy.
            self._may_begin.wait()
        with self._lock:
            if self._phase is _Phase.CANCELLED:
                raise SaveCancelledError("the save was cancelled", url=self.url)
            self._phase = _Phase.RUNNING
            transfer = self._transfer = self._options.transfer(self.url, self._request.step)
            if self._stage is not None:
                # The blocks of the copy were taken from this budget.
                transfer.budget = self._budget
        with transfer:
            self._split_plan()
            self._save(RunningSave(transfer, self._stage, self._begin_commit))
            return self.url if self._request.has_tensors else None

    def _save(self, running: RunningSave) -> None:
        begun_s = time.monotonic()
        save(self._sink, self._request, running)
        seconds = time.monotonic() - begun_s
        own = RankReport(0, platform.node(), self.size_bytes, 0.0, seconds)
        self.report = SaveReport((own,), seconds)

    def _begin_commit(self) -> None:
        """Pass the last point where a save can be cancelled: an interrupted commit has an open outcome."""
        assert self._transfer is not None
        with self._lock:
            self._transfer.scope.check()
            self._phase = _Phase.COMMITTING
        self.staged.set()

    def cancel(self) -> bool:
        """Cancel the save unless it is being published already; return whether it was in time."""
        with self._lock:
            if self._phase is _Phase.COMMITTING:
                return False
            self._phase = _Phase.CANCELLED
            transfer = self._transfer
        self._may_begin.set()
        if transfer is not None:
            transfer.cancel()
        return True

    @contextmanager
    def releasing(self) -> Iterator[None]:
        """Release arrays and memory at the end of the block, however it ends."""
        try:
            yield
        except BaseException as error:
            self.release(error)
            raise
        self.release()

    def release(self, error: BaseException | None = None) -> None:
        """Release arrays and memory: the save is over, because of `error` if there is one."""
        self._is_over = True
        self._request = replace(self._request, plan=SavePlan(()), meta=None)
        if self._stage is None:
            self.staged.set()
        else:
            # A copy in progress ends; then the arrays may be changed again.
            self._stage.close(error)


def _split_by_change(request: SaveRequest, last: LastSaved | None) -> SaveRequest:
    """Return `request` with the tensors that have not changed since `last` in data files of their own."""
    if last is None:
        return request
    url = request.prefix.parent.child(index_name(last.prefix)).url
    try:
        stored = stored_shards(last.index_bytes, last.prefix, last.versions, source=url)
        return replace(request, plan=split_unchanged(request.plan, stored))
    except CorruptError:
        # All tensors are written then.
        return request
