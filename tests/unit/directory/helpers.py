"""Small checkpoints that tell which save they belong to, and a storage that fails once and then works."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.bundle.write.plan import SavePlan
from ckptstore.bundle.write.stage import Stage
from ckptstore.directory.bare_write import BareSink
from ckptstore.directory.save_request import RunningSave, SaveRequest, save
from ckptstore.storage.base import Location, Storage
from ckptstore.storage.registry import locate, use_wrapper
from ckptstore.storage.wrappers import StorageWrapper
from ckptstore.testing import FaultyStorage, SimulatedCrash
from ckptstore.transfer.transfer import Transfer

_T = TypeVar("_T")
_fresh = itertools.count()


def values(stamp: float) -> dict[str, np.ndarray]:
    return {"w": np.full(3, float(stamp)), "b": np.array(-float(stamp))}


def stamp_of(prefix: str | os.PathLike[str]) -> float:
    """Return which save a checkpoint is, after checking that all of it belongs to that one."""
    restored: dict[str, np.ndarray] = {}
    ck.Saver().restore(restored, prefix)
    stamps = {*restored["w"].tolist(), -float(restored["b"])}
    assert len(stamps) == 1, f"{prefix} mixes {sorted(stamps)}"
    return stamps.pop()


def save_steps(saver: ck.Saver, base: str, steps: Iterable[int], **options: object) -> None:
    for step in steps:
        saver.save(values(step), base, step, **options)  # type: ignore[arg-type]


def die_before_the_record(
    base: str, step: int | None, *, run: str = "dies", stamp: float | None = None, **options: object
) -> None:
    """Save in a process that dies between index and record."""
    is_published = False

    def counted(primitive: str, keys: Sequence[str]) -> bool:
        nonlocal is_published
        is_index = bool(keys) and keys[0].endswith(".index")
        is_put = primitive in ("put_new", "put_if")
        is_published = is_published or (is_put and is_index)
        return is_published and is_put and not is_index

    storages: list[FaultyStorage] = []

    def wrap(inner: Storage) -> Storage:
        storages.append(FaultyStorage(inner, crash_before=1, counted=counted))
        return storages[-1]

    saver = ck.Saver(run=run, **options)  # type: ignore[arg-type]
    with use_wrapper(wrap), pytest.raises(SimulatedCrash):
        saver.save(values(0.0 if stamp is None else stamp), base, step, write_meta_graph=False)
    for storage in storages:
        storage.release_holds()


def listed(saver: ck.Saver) -> list[str]:
    """Return the names in the window, without their directory."""
    return [path.rpartition("/")[2] for path in saver.last_checkpoints]


def names_in(directory: str) -> list[str]:
    """Return all names in a directory, the lock left out."""
    if "://" in directory:
        place = locate(directory)
        return [info.key.rpartition("/")[2] for info in place.storage.list(place.child("").key)]
    if not os.path.isdir(directory):
        return []
    return sorted(name for name in os.listdir(directory) if name != ".ckptstore.lock")


def checkpoints_in(directory: str) -> list[str]:
    return [name.removesuffix(".index") for name in names_in(directory) if name.endswith(".index")]


def files_of(prefix: str, *, graph: bool = True) -> list[str]:
    return [f"{prefix}.data-00000-of-00001", f"{prefix}.index", *([f"{prefix}.meta"] if graph else [])]


def fresh_memory() -> str:
    return f"memory://directory-{next(_fresh)}/run"


class FailingOnce(StorageWrapper):
    """Raise `error` before or after the n-th call, and work again from then on."""

    def __init__(self, inner: Storage, number: int, side: str, error: Callable[[], BaseException]) -> None:
        super().__init__(inner)
        self._number = number
        self._side = side
        self._error = error
        self.calls: list[tuple[str, str]] = []

    def begin(self, number: int) -> None:
        """Count from here; call `number` fails, none if it is 0."""
        self.calls.clear()
        self._number = number

    def intercept(self, primitive: str, keys: Sequence[str], call: Callable[[], _T]) -> _T:
        self.calls.append((primitive, keys[0] if keys else ""))
        now = len(self.calls) == self._number
        if now and self._side == "before":
            raise self._error()
        try:
            return call()
        finally:
            # Also when the call itself failed, such as the read of a record that is not there.
            if now:
                raise self._error()


def write_checkpoint(
    directory: Location,
    name: str,
    plan: SavePlan,
    *,
    transfer: Transfer | None = None,
    stage: Stage | None = None,
) -> None:
    """Write one checkpoint without a record; as part of `transfer`, if that is given and entered."""
    request = SaveRequest(directory.child(name), plan)
    if transfer is not None:
        save(BareSink(), request, RunningSave(transfer, stage))
        return
    with Transfer("save", request.prefix.url) as own:
        save(BareSink(), request, RunningSave(own, stage))
