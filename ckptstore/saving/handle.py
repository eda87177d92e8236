"""The handle that `Saver.save_async` returns: progress and outcome of a background save."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING

from ckptstore.errors import DeadlineError, UsageError
from ckptstore.storage.reentry import refuse_reentry

if TYPE_CHECKING:
    from ckptstore.saving.report import SaveReport
    from ckptstore.saving.save_queue import QueuedSave

__all__ = ["SaveHandle"]

_LOG = logging.getLogger("ckptstore")


class SaveHandle:
    """A save in the background, returned by `Saver.save_async`.

    ``await handle`` waits for it without blocking the event loop and returns what `result` does. If the
    coroutine that waits is cancelled, the save goes on.

    In a forked child the parent's saves do not run: methods raise `UsageError` unless the save was over
    before the fork.

    Threads
    -------
    Safe for concurrent use.
    """

    def __init__(self, save: QueuedSave) -> None:
        self._save = save

    @property
    def prefix(self) -> str:
        """The URL of the checkpoint."""
        return self._save.prefix

    @property
    def staged(self) -> bool:
        """Whether the arrays may be changed again."""
        return self._save.task.staged.is_set()

    @property
    def committed(self) -> bool:
        """Whether the checkpoint is saved and is the latest."""
        return self._save.is_over and self._save.error is None

    @property
    def done_bytes(self) -> int:
        """Bytes of data files that are stored already."""
        return self._save.done_bytes

    def wait_staged(self, timeout_s: float | None = None) -> None:
        """Wait until the arrays may be changed again; also when the save has failed.

        Raises
        ------
        DeadlineError
            If that takes longer than `timeout_s`. The save goes on.
        """
        self._check_process()
        if not self._save.task.staged.wait(timeout_s):
            raise self._not_yet("the arrays are still being read", timeout_s)

    def result(self, timeout_s: float | None = None) -> str | None:
        """Wait for the save, and return the prefix of the checkpoint; None if there was nothing to save.

        Ctrl-C while waiting leaves the save running.

        Raises
        ------
        DeadlineError
            If it is still under way after `timeout_s`; it goes on. Or if it took longer than the Saver's
            `deadline_s`; as for `Saver.save`.
        SaveCancelledError
            If it was cancelled, or a newer save took its place (``queue="skip"``). Nothing of it stays.
        UsageError
            In a callback or a report of progress: the save could not go on until the caller returns.
        CkptStoreError
            The reason of the failure, as `Saver.save`; each call raises it again.
        """
        self._check_process()
        refuse_reentry(self.prefix)
        save = self._save
        if save.is_of_this_process:
            if not save.is_over:
                save.queue.check_may_wait(self.prefix)
            if not wait([save.future], timeout_s).done:
                raise self._not_yet("the save is still under way", timeout_s)
            save.queue.mark_reported(save)
            save.queue.join_idle()
        if save.error is not None:
            raise save.error
        return save.answer

    def report(self) -> SaveReport | None:
        """Return what the save took, rank by rank; waits for it, and raises, as `result`.

        None if it is not known: the chief was lost after it had published the checkpoint.
        """
        self.result()
        return self._save.task.report

    def cancel(self) -> bool:
        """Cancel the save unless it is being published already. Does not wait.

        Returns
        -------
        bool
            True: the checkpoint will not exist, `result` raises `SaveCancelledError` once everything written
            so far is removed. False: too late, the save is being published, or it is over.
        """
        self._check_process()
        return self._save.cancel()

    def add_done_callback(self, fn: Callable[[SaveHandle], object]) -> None:
        """Call `fn` with this handle when the save is over; at once if it is.

        `fn` runs in the thread that saves, and cannot wait for another save of this Saver: that raises
        `UsageError`. Its exceptions are logged.
        """
        self._check_process()

        def call(_: Future[None]) -> None:
            try:
                fn(self)
            except BaseException as error:
                # Not even SystemExit may end the thread: other saves wait for it.
                if not isinstance(error, Exception) and not self._save.queue.is_own_thread:
                    raise
                _LOG.exception("a callback of the save of %s failed", self.prefix)

        self._save.future.add_done_callback(call)

    def __await__(self) -> Generator[object, None, str | None]:
        import asyncio

        self._check_process()
        loop = asyncio.get_running_loop()
        woken = loop.create_future()

        def wake() -> None:
            if not woken.done():
                woken.set_result(None)

        def over(_: Future[None]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(wake)

        self._save.future.add_done_callback(over)
        yield from woken
        return self.result()

    def __repr__(self) -> str:
        state = "running"
        error = self._save.error
        if self._save.is_over:
            state = "committed" if error is None else f"failed: {type(error).__name__}"
        elif not self._save.is_of_this_process:
            state = "of the parent process"
        return f"<SaveHandle {self.prefix} {state}>"

    def _not_yet(self, what: str, timeout_s: float | None) -> DeadlineError:
        return DeadlineError(
            what,
            url=self.prefix,
            expected=f"no longer than {timeout_s} s",
            hint="It goes on in the background; wait longer, or cancel it.",
        )

    def _check_process(self) -> None:
        # Before any lock is taken: a thread of the parent may have held it at the fork.
        if not self._save.is_over and not self._save.is_of_this_process:
            raise UsageError(
                "this save runs in the process that began it, not in its forked child",
                url=self.prefix,
                hint="Wait for it in the parent, or before forking.",
            )
