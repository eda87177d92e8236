"""Run code in a process that crashes at a chosen call of the storage."""

from __future__ import annotations

from collections.abc import Callable

from ckptstore.storage.base import Storage
from ckptstore.storage.registry import use_wrapper
from ckptstore.testing import FaultyStorage, SimulatedCrash


def run_until_crash(run: Callable[[str], object], directory: str, **crash: int) -> FaultyStorage:
    """Run `run` in `directory`; return the storage that saw its calls.

    ``crash_before=n`` or ``crash_after=n`` chooses the call, counted from 1; without either, `run` completes
    and its calls can be counted. Locks are released as the system releases those of a dead process.
    """
    storages: list[FaultyStorage] = []

    def wrap(inner: Storage) -> Storage:
        storages.append(FaultyStorage(inner, **crash))  # type: ignore[arg-type]
        return storages[-1]

    with use_wrapper(wrap):
        try:
            run(directory)
        except SimulatedCrash:
            assert crash
        else:
            assert not crash or storages[0].crashed, "the chosen call was never made"
    storages[0].release_holds()
    return storages[0]


def every_state(calls: int) -> list[dict[str, int]]:
    """Return crashes that leave each state that so many calls, one after the other, lead a storage through.

    What a death after call n leaves, one before call n + 1 leaves too. The lane `crash` dies on both sides of
    each all the same; where a case takes a server, once is enough.
    """
    return [*({"crash_before": number} for number in range(1, calls + 1)), {"crash_after": calls}]
