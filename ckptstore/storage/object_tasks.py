"""Several requests of one operation at a time: the first failure ends the others."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait

from ckptstore.storage.retry import Cancellation

__all__ = ["run_tasks"]


def run_tasks(pool: Executor, tasks: Sequence[Callable[[Cancellation], object]], parallel: int) -> None:
    """Run all of `tasks`, up to `parallel` at the same time; when it returns or raises, none is running.

    Raises
    ------
    CkptStoreError
        What the first task that failed raised.
    """
    cancellation = Cancellation()
    waiting = deque(tasks)
    running: set[Future[object]] = set()
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                running.add(pool.submit(waiting.popleft(), cancellation))
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
    finally:
        # Also on Ctrl-C: nobody may write into the caller's memory after this.
        if running:
            cancellation.cancel()
            wait(running)
