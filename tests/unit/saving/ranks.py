"""The ranks of a job as threads of this process, each with a Saver of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pytest

import ckptstore as ck
from ckptstore.distributed import rounds
from ckptstore.saving.rank_task import base
from ckptstore.testing.local_coordinators import LocalCoordinator, make_local_coordinators

_T = TypeVar("_T")


def shorten_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let members wait hardly longer than the chief; for tests in which it does not come."""
    for module in (rounds, base):
        monkeypatch.setattr(module, "grace_s", lambda deadline_s: 0.1)


class Job:
    """Some ranks, and a Saver for each."""

    def __init__(self, size: int, **options: Any) -> None:
        self.coordinators: list[LocalCoordinator] = make_local_coordinators(size)
        self.savers = [ck.Saver(coordinator=each, **options) for each in self.coordinators]

    def each(self, call: Callable[[int, ck.Saver], _T], ranks: Sequence[int] | None = None) -> list[Any]:
        """Return what `call` returned or raised, by rank, run at once for all of them."""
        chosen = range(len(self.savers)) if ranks is None else ranks
        results: dict[int, Any] = {}

        def run(rank: int) -> None:
            try:
                results[rank] = call(rank, self.savers[rank])
            except BaseException as error:  # noqa: BLE001 - the test looks at it
                results[rank] = error

        threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in chosen]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60.0)
            assert not thread.is_alive(), "a rank hangs"
        return [results[rank] for rank in chosen]
