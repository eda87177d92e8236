"""Two saves of one run at one prefix: one after the other is allowed, at the same time one is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

import pytest

import ckptstore as ck
from ckptstore.storage.base import Storage
from ckptstore.storage.registry import use_wrapper
from ckptstore.storage.wrappers import StorageWrapper
from ckptstore.testing import FaultyStorage, SimulatedCrash
from tests.unit.directory.helpers import (
    die_before_the_record,
    fresh_memory,
    save_steps,
    stamp_of,
    values,
)

_T = TypeVar("_T")
_WAIT_S = 30

# What was there before, and the step that both save: nothing at all, another step, the same one.
BEFORE: dict[str, tuple[list[int], int]] = {"nothing": ([], 1), "another step": ([1], 2), "it": ([1, 2], 2)}


class Stops(StorageWrapper):
    """Counts the calls of each thread, and makes it wait before a certain one."""

    def __init__(self, inner: Storage, stops: dict[str, tuple[int, Callable[[], None]]]) -> None:
        super().__init__(inner)
        self._stops = stops
        self.calls: dict[str, int] = {}

    def intercept(self, primitive: str, keys: Sequence[str], call: Callable[[], _T]) -> _T:
        name = threading.current_thread().name
        if name in self._stops:
            self.calls[name] = self.calls.get(name, 0) + 1
            number, deed = self._stops[name]
            if self.calls[name] == number:
                deed()
        return call()


def two_saves(
    directory: str, step: int, first_stop: int, second_stop: int, savers: list[ck.Saver]
) -> tuple[dict[str, BaseException | None], bool]:
    """Begin a save in the middle of another one; it waits in its own middle until the other one is over.

    Returns
    -------
    dict
        Name of the thread → what it raised, or None.
    bool
        Whether the second one was over before its stop.
    """
    outcome: dict[str, BaseException | None] = {}
    may_go_on, is_waiting, has_stopped = threading.Event(), threading.Event(), threading.Event()

    def run(name: str, saver: ck.Saver, stamp: float) -> None:
        try:
            saver.save(values(stamp), f"{directory}/model", step, write_meta_graph=False)
            outcome[name] = None
        except ck.CkptStoreError as error:
            outcome[name] = error
        finally:
            is_waiting.set() if name == "second" else may_go_on.set()

    second = threading.Thread(target=run, args=("second", savers[1], 20.0), name="second")

    def begin_the_other() -> None:
        second.start()
        assert is_waiting.wait(_WAIT_S)

    def wait() -> None:
        has_stopped.set()
        is_waiting.set()
        assert may_go_on.wait(_WAIT_S)

    stops = {"first": (first_stop, begin_the_other), "second": (second_stop, wait)}
    with use_wrapper(lambda inner: Stops(inner, stops)):
        first = threading.Thread(target=run, args=("first", savers[0], 10.0), name="first")
        first.start()
        first.join(_WAIT_S)
        with suppress(RuntimeError):
            second.join(_WAIT_S)
    return outcome, not has_stopped.is_set()


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("is_known", [False, True], ids=["new savers", "savers that have saved"])
def test_of_two_at_the_same_time_one_is_refused(before: str, is_known: bool) -> None:
    steps, step = BEFORE[before]
    seen = set()
    for first_stop in range(2, 40):
        # Every third one, another one each time.
        for second_stop in range(2 + first_stop % 3, 40, 3):
            directory = fresh_memory()
            savers = [ck.Saver(run="job", max_to_keep=5) for _ in range(2)]
            save_steps(ck.Saver(run="job", max_to_keep=5), f"{directory}/model", steps)
            if is_known:
                for number, saver in enumerate(savers):
                    save_steps(saver, f"{directory}/model", [step - 10 + number] if steps else [])
            outcome, is_last = two_saves(directory, step, first_stop, second_stop, savers)
            if "second" not in outcome:
                # The first one was over before.
                break
            where = f"{before}, call {first_stop} of the first, {second_stop} of the second: {outcome}"
            refused = [name for name, error in outcome.items() if isinstance(error, ck.ConflictError)]
            if is_known and not refused and outcome["second"] is None:
                # The first one had only to publish what it had announced, and was done when the other one
                # looked: as if that had begun after it.
                assert first_stop > 3, where
                assert stamp_of(f"{directory}/model-{step}") == 20, where
                if is_last:
                    break
                continue
            assert len(refused) == 1, where
            assert set(outcome.values()) == {None, outcome[refused[0]]}, where
            # What stands there is the one that was told so, it is listed, and the other can save again.
            stamp = 20.0 if refused == ["first"] else 10.0
            assert stamp_of(f"{directory}/model-{step}") == stamp, where
            assert ck.latest_checkpoint(directory) == f"{directory}/model-{step}", where
            again = savers[0 if refused == ["first"] else 1]
            again.save(values(30.0), f"{directory}/model", step, write_meta_graph=False)
            seen.add(refused[0])
            if is_last:
                break
    assert seen == {"first", "second"}


@pytest.mark.parametrize("dies", ["before its index", "before the record"])
@pytest.mark.parametrize("step", [2, None])
def test_a_run_that_died_in_a_save_saves_that_prefix_again(step: int | None, dies: str) -> None:
    directory = fresh_memory()
    save_steps(ck.Saver(run="job"), f"{directory}/model", [1])
    for _ in range(3):
        if dies == "before the record":
            die_before_the_record(f"{directory}/model", step, run="job")
        else:
            storages: list[FaultyStorage] = []

            def wrap(inner: Storage, storages: list[FaultyStorage] = storages) -> Storage:
                storages.append(FaultyStorage(inner, crash_before=1, counted=is_index))
                return storages[-1]

            with use_wrapper(wrap), pytest.raises(SimulatedCrash):
                ck.Saver(run="job").save(values(3), f"{directory}/model", step, write_meta_graph=False)
            for storage in storages:
                storage.release_holds()
    path = ck.Saver(run="job").save(values(4), f"{directory}/model", step, write_meta_graph=False) or ""
    assert (ck.latest_checkpoint(directory), stamp_of(path)) == (path, 4)


def is_index(primitive: str, keys: Sequence[str]) -> bool:
    return primitive in ("put_new", "put_if") and keys[0].endswith(".index")


def test_one_after_the_other_replaces_what_is_there() -> None:
    directory = fresh_memory()
    savers = [ck.Saver(run="job") for _ in range(3)]
    for stamp, saver in enumerate([*savers, *reversed(savers), *savers]):
        for step in (7, None):
            assert stamp_of(saver.save(values(stamp), f"{directory}/model", step) or "") == stamp
