"""Two starts of a job of four ranks on one directory: the older one is frozen, and wakes up too late."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import ckptstore as ck
from tests.ranks.conftest import Place
from tests.ranks.group import SIZE, Group

# Nothing here is to fail by it.
LONG_S = 250.0
KEPT = 3


class Reader:
    """Reads the newest checkpoint again and again: all of it is of one save, and not older than promised."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._failure: BaseException | None = None
        # What was acknowledged to a job.
        self.promised = 0
        self.looks = 0

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                self._look()
                self.looks += 1
        except BaseException as error:  # noqa: BLE001 - raised again in the test
            self._failure = error

    def _look(self) -> None:
        promised = self.promised
        latest = self._place.latest()
        assert latest is not None
        assert int(latest.rpartition("-")[2]) >= promised, f"{latest} came after {promised} was promised"
        try:
            with ck.open_checkpoint(latest, storage_options=self._place.options) as checkpoint:
                found = {int(value) for name in checkpoint for value in np.unique(checkpoint[name])}
        except ck.CkptStoreError:
            # A checkpoint that is replaced or deleted meanwhile is no mixture.
            return
        assert len(found) == 1, f"{latest} holds parts of {found}"

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(LONG_S)
        if self._failure is not None:
            raise self._failure
        assert self.looks


@contextmanager
def two_readers(place: Place) -> Iterator[Callable[[int], None]]:
    with Reader(place) as first, Reader(place) as second:

        def promise(step: int) -> None:
            first.promised = second.promised = step

        yield promise


def save(group: Group, place: Place, step: int, job: int) -> list[Any]:
    return group.each("save", url=place.url, step=step, options=place.options, fill=100 * step + job)


def saved(found: list[Any]) -> bool:
    """Whether a save of all ranks has succeeded; if not, it failed on all with one class of error."""
    assert len({one and (one.get("prefix"), one.get("error")) for one in found}) == 1, found
    return found[0] is not None and "prefix" in found[0]


def holds(place: Place, step: int) -> set[int]:
    with ck.open_checkpoint(f"{place.url}/m-{step}", storage_options=place.options) as checkpoint:
        assert set(checkpoint) == {"shared", *(f"own/{rank}" for rank in range(SIZE))}
        return {int(value) for name in checkpoint for value in np.unique(checkpoint[name])}


@pytest.mark.timeout(900)
def test_a_newer_job_fences_one_that_stands_still_at_any_storage_call(
    make_group: Callable[[], Group], place: Place
) -> None:
    groups = [make_group(), make_group()]
    groups[0].make_savers(deadline_s=LONG_S, run="job-0", max_to_keep=KEPT)
    step = 0
    for _ in range(KEPT):
        step += 1
        assert saved(save(groups[0], place, step, job=0))
    calls: list[str] = []
    with two_readers(place) as promise:
        for number in range(1, 100):
            # The job that took over in the last round is the one that is frozen in this one.
            older, newer = groups[(number - 1) % 2], groups[number % 2]
            step += 1
            promised = {step - 1: number - 1}
            fill = 100 * step + number - 1
            at = f"call {number}"
            older.begin(
                "save",
                {0: {"at": at, "how": "freeze"}},
                url=place.url,
                step=step,
                options=place.options,
                fill=fill,
            )
            said = older.hear(0)
            if said != {"at": at}:
                # There is no such call.
                assert said is not None
                calls = said["calls"]
                break
            older.wait_until_frozen(0)
            newer.make_savers(deadline_s=LONG_S, run=f"job-{number}", max_to_keep=KEPT)
            # The older one may have published this step, and not said so.
            if saved(save(newer, place, step, job=number)):
                promised[step] = number
            assert saved(save(newer, place, step + 1, job=number)), at
            promised[step + 1] = number
            promise(step + 1)
            older.thaw(0)
            if saved([older.hear(rank) for rank in range(SIZE)]):
                promised.setdefault(step, number - 1)
            found = save(older, place, step + 2, job=number - 1)
            assert [one["error"] for one in found] == ["FencedError"] * SIZE, (at, found)
            for promised_step, job in promised.items():
                assert holds(place, promised_step) == {100 * promised_step + job}, at
            assert place.latest() == f"{place.url}/m-{step + 1}"
            step += 1
    kinds = [call.partition(" ")[0] for call in calls]
    assert len(calls) == number - 1
    assert {"upload.commit", "put_new", "put_if"} <= set(kinds), calls
    assert any(kind.startswith("delete") for kind in kinds), calls
