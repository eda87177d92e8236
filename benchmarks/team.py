"""One contender as several processes, each with a part: they begin together, the slowest counts."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from benchmarks.contenders.base import Place
from benchmarks.contenders.registry import Spec
from benchmarks.sets import SetSpec
from benchmarks.workers import OPERATION_S, WorkerError, WorkerProcess

# Between the word to all ranks that they begin, and the time at which they do: it has to arrive before.
_NOTICE_S = 0.05


class Team:
    """All ranks of one contender, alive over all rounds; spoken to like one `WorkerProcess`.

    Parameters
    ----------
    spec : Spec
        With the number of ranks; others as `WorkerProcess`.
    """

    def __init__(
        self,
        spec: Spec,
        place: Place,
        data: SetSpec,
        operations: list[str],
        *,
        warm: bool,
        environments: Path,
        directory: Path,
    ) -> None:
        self._ranks: dict[int, WorkerProcess] = {}
        self._threads = ThreadPoolExecutor(spec.ranks)
        port = _free_port()

        def start(rank: int) -> None:
            self._ranks[rank] = WorkerProcess(
                spec,
                place,
                data,
                operations,
                warm=warm,
                environments=environments,
                directory=directory / f"rank{rank}",
                part={"rank": rank, "ranks": spec.ranks},
                port=port,
            )

        self._each(start, range(spec.ranks))
        self.versions = self._ranks[0].versions

    def ask(self, command: str, arguments: dict[str, Any], timeout_s: float = OPERATION_S) -> dict[str, Any]:
        """Have all ranks prepare an operation, then all perform it; return what it cost.

        Returns
        -------
        dict
            Seconds from the first rank that began to the last one that was ready; CPU seconds of all; the
            peak of the rank that took most memory.

        Raises
        ------
        WorkerError
            If one rank fails; all of them are gone then.
        """
        assert command == "run"
        workers = self._ranks.values()
        self._each(lambda worker: worker.ask("prepare", arguments, timeout_s), workers)
        begin = arguments | {"at_s": time.monotonic() + _NOTICE_S}
        self._each(lambda worker: worker.ask("perform", begin, timeout_s), workers)
        costs = self._each(lambda worker: worker.ask("finish", arguments, timeout_s), workers)
        begun_s = min(cost["begun_s"] for cost in costs)
        return {
            "seconds": max(cost["begun_s"] + cost["seconds"] for cost in costs) - begun_s,
            "cpu_s": sum(cost["cpu_s"] for cost in costs),
            "peak_bytes": max(cost["peak_bytes"] for cost in costs),
        }

    def _each(self, action: Callable[[Any], Any], items: Any) -> list[Any]:
        """Return what `action` gives for each, at the same time."""
        running = [self._threads.submit(action, item) for item in items]
        wait(running, return_when=FIRST_EXCEPTION)
        failed = next((one for one in running if one.done() and one.exception()), None)
        if failed is None:
            return [one.result() for one in running]
        # The others may wait for it.
        self.kill()
        raise _reason(failed)

    @property
    def is_alive(self) -> bool:
        return all(worker.is_alive for worker in self._ranks.values())

    def close(self) -> None:
        """Let all of them end, with force if they do not."""
        if self.is_alive:
            self._each(lambda worker: worker.close(), self._ranks.values())
        self.kill()

    def kill(self) -> None:
        for worker in list(self._ranks.values()):
            worker.kill()
        self._threads.shutdown()


def _reason(failed: Future[Any]) -> BaseException:
    error = failed.exception()
    return error if error is not None else WorkerError("failed")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
