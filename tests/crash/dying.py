"""Runs that die at a chosen call of the storage."""

from __future__ import annotations

from collections.abc import Callable

from ckptstore.storage.registry import use_wrapper
from ckptstore.testing import FaultyStorage, SimulatedCrash


def run_until_death(run: Callable[[str], object], directory: str, **crash: int) -> FaultyStorage:
    """Run `run` in `directory`; return the storage that saw it, with what a dead process held let go."""
    storages: list[FaultyStorage] = []

    def wrap(inner):  # type: ignore[no-untyped-def]
        storages.append(FaultyStorage(inner, **crash))
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
