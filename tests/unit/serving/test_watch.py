"""Following a directory on a local disk and in memory."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import pickle
import platform
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.directory import follow
from ckptstore.serving import watch as watch_module
from ckptstore.serving.schedule import Schedule
from ckptstore.storage.base import Location
from ckptstore.storage.registry import locate
from ckptstore.storage.scope import current_scope
from ckptstore.storage.wrappers import StorageWrapper

_T = TypeVar("_T")
FAST_S = 0.02
SOON_S = 30.0


def save(directory: Path, step: int, saver: ck.Saver | None = None) -> None:
    own = saver or ck.Saver(run="job")
    own.save({"w": np.full(3, float(step))}, f"{directory}/model", step)


def steps_in(found: Sequence[ck.Step | None]) -> list[int | None]:
    return [None if step is None else step.step for step in found]


def wait_until(watcher: ck.Watcher, holds: Callable[[ck.WatchHealth], bool]) -> None:
    """Follow a directory in which nothing new is seen until its health is as wanted."""
    deadline = time.monotonic() + SOON_S
    while not holds(watcher.health()):
        assert time.monotonic() < deadline, watcher.health()
        assert watcher.next(0.05) is None


class Recording(StorageWrapper):
    """Notes each call; fails while `error` is set."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.calls: list[str] = []
        self.error: Exception | None = None
        self.hook: Callable[[], object] = lambda: None

    def intercept(self, primitive: str, keys: Sequence[str], call: Callable[[], _T]) -> _T:
        self.calls.append(primitive)
        self.hook()
        if self.error is not None:
            raise self.error
        return call()


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recording:
    place = locate(tmp_path)
    recording = Recording(place.storage)
    monkeypatch.setattr(
        watch_module, "locate", lambda path, _options: Location(recording, str(path), str(path))
    )
    return recording


def test_the_latest_step_comes_first_then_each_new_one_once(tmp_path: Path) -> None:
    saver = ck.Saver(run="job")
    save(tmp_path, 1, saver)
    with ck.watch(tmp_path, every_s=FAST_S) as watcher:
        first = watcher.next(SOON_S)
        assert first is not None
        assert first == watcher.current
        assert (first.prefix, first.step) == (f"{tmp_path}/model-1", 1)
        assert abs(first.seen_s - time.time()) < SOON_S
        assert watcher.next(0.1) is None
        save(tmp_path, 2, saver)
        save(tmp_path, 3, saver)
        assert steps_in([watcher.next(SOON_S), watcher.next(0.1)]) in ([3, None], [2, 3])


def test_start_next_leaves_out_what_is_there(tmp_path: Path) -> None:
    save(tmp_path, 1)
    watcher = ck.watch(tmp_path, every_s=FAST_S, start="next")
    assert watcher.next(0.1) is None
    save(tmp_path, 2)
    assert steps_in([watcher.next(SOON_S)]) == [2]


def test_an_empty_directory_is_waited_for(tmp_path: Path) -> None:
    run = tmp_path / "run"
    watcher = ck.watch(run, every_s=FAST_S)
    assert watcher.next(0.1) is None
    assert watcher.health().error is None
    save(run, 1)
    assert steps_in([watcher.next(SOON_S)]) == [1]


def test_a_step_saved_again_is_a_new_version(tmp_path: Path) -> None:
    saver = ck.Saver(run="job")
    save(tmp_path, 1, saver)
    watcher = ck.watch(tmp_path, every_s=FAST_S)
    before = watcher.next(SOON_S)
    saver.save({"w": np.zeros(5)}, f"{tmp_path}/model", 1)
    after = watcher.next(SOON_S)
    assert before is not None
    assert after is not None
    assert (before.prefix, before.step) == (after.prefix, after.step)
    assert before.version != after.version
    with after.open() as checkpoint:
        assert checkpoint["w"].shape == (5,)
    with pytest.raises(ck.NotFoundError, match="another checkpoint was saved under this name"):
        before.open()


def test_a_pinned_handle_never_takes_what_was_saved_meanwhile(tmp_path: Path) -> None:
    saver = ck.Saver(run="job")
    save(tmp_path, 1, saver)
    step = ck.watch(tmp_path).check()
    assert step is not None
    checkpoint = step.open()
    for value in (7.0, 8.0):
        saver.save({"w": np.full(3, value)}, f"{tmp_path}/model", 1)
    with pytest.raises(ck.NotFoundError):
        checkpoint.restore()


def test_a_rollback_of_the_record_is_followed(tmp_path: Path) -> None:
    saver = ck.Saver(run="job")
    for step in (1, 2):
        save(tmp_path, step, saver)
    watcher = ck.watch(tmp_path, every_s=FAST_S)
    assert steps_in([watcher.next(SOON_S)]) == [2]
    ck.update_checkpoint_state(tmp_path, f"{tmp_path}/model-1", [f"{tmp_path}/model-1"])
    assert steps_in([watcher.next(SOON_S)]) == [1]


def test_a_rewritten_record_that_names_the_same_checkpoint_is_not_a_step(tmp_path: Path) -> None:
    saver = ck.Saver(run="job")
    for step in (1, 2):
        save(tmp_path, step, saver)
    watcher = ck.watch(tmp_path, every_s=FAST_S)
    watcher.next(SOON_S)
    ck.update_checkpoint_state(tmp_path, f"{tmp_path}/model-2", [f"{tmp_path}/model-2"])
    assert watcher.next(0.2) is None


def test_while_nothing_changes_a_look_is_one_conditional_request(tmp_path: Path, storage: Recording) -> None:
    save(tmp_path, 1)
    watcher = ck.watch(tmp_path, every_s=FAST_S)
    watcher.next(SOON_S)
    storage.calls.clear()
    assert watcher.next(0.3) is None
    # For a storage without conditional reads these are two of its primitives.
    assert set(storage.calls) == {"get_unless"}


def test_an_outage_is_absorbed_and_reported_once(
    tmp_path: Path, storage: Recording, caplog: pytest.LogCaptureFixture
) -> None:
    saver = ck.Saver(run="job")
    save(tmp_path, 1, saver)
    watcher = ck.watch(tmp_path, every_s=FAST_S)
    first = watcher.next(SOON_S)
    storage.error = ck.TransientError("the store is away")
    with caplog.at_level(logging.WARNING, "ckptstore"):
        wait_until(watcher, lambda health: health.is_stale and health.failures_in_a_row >= 3)
        assert "the store is away" in str(watcher.health().error)
        assert watcher.current == first
        assert len([one for one in caplog.records if "store is away" in one.message]) == 1
        storage.error = ck.AccessError("the credentials have expired")
        wait_until(watcher, lambda health: "have expired" in str(health.error))
        assert watcher.next(0.5) is None
        assert len([one for one in caplog.records if "have expired" in one.message]) == 1
        save(tmp_path, 2, saver)
        storage.error = None
        assert steps_in([watcher.next(SOON_S)]) == [2]
    health = watcher.health()
    assert (health.failures_in_a_row, health.error, health.is_stale) == (0, None, False)


@pytest.mark.parametrize("error", [ck.TransientError("away"), ck.AccessError("denied")])
def test_the_first_look_and_check_raise(tmp_path: Path, storage: Recording, error: Exception) -> None:
    save(tmp_path, 1)
    watcher = ck.watch(tmp_path, every_s=FAST_S)
    storage.error = error
    with pytest.raises(type(error)):
        watcher.next(SOON_S)
    assert watcher.health().is_stale
    storage.error = None
    assert steps_in([watcher.next(SOON_S)]) == [1]
    storage.error = error
    with pytest.raises(type(error)):
        watcher.check()


@pytest.mark.parametrize("damage", ["missing", "torn"])
def test_a_record_that_goes_away_leaves_the_last_step(tmp_path: Path, damage: str) -> None:
    saver = ck.Saver(run="job")
    for step in (1, 2):
        save(tmp_path, step, saver)
    watcher = ck.watch(tmp_path, every_s=FAST_S)
    second = watcher.next(SOON_S)
    record = tmp_path / "checkpoint"
    content = record.read_bytes()
    if damage == "missing":
        record.unlink()
    else:
        record.write_bytes(b'model_checkpoint_path: "mod')
    wait_until(watcher, lambda health: health.error is not None)
    assert watcher.current == second
    record.write_bytes(content)
    wait_until(watcher, lambda health: health.error is None)


def test_without_a_record_the_listing_never_leads_back(tmp_path: Path, storage: Recording) -> None:
    saver = ck.Saver(run="job")
    for step in (1, 2):
        save(tmp_path, step, saver)
    ck.update_checkpoint_state(tmp_path, f"{tmp_path}/model-2", [f"{tmp_path}/model-1"])
    watcher = ck.watch(tmp_path, every_s=FAST_S)
    assert steps_in([watcher.next(SOON_S)]) == [2]
    (tmp_path / "checkpoint").unlink()
    for path in tmp_path.glob("model-2.*"):
        path.unlink()
    storage.calls.clear()
    started_s = time.monotonic()
    assert watcher.next(1.0) is None
    lists = storage.calls.count("list")
    # A look for the newest lists once, or a few times where a directory proves empty.
    assert 1 <= lists <= 3 * (1 + (time.monotonic() - started_s) / (10 * FAST_S))
    save(tmp_path, 3, ck.Saver(run="other"))
    assert steps_in([watcher.next(SOON_S)]) == [3]


def test_checkpoints_without_a_record_are_found_at_the_start(tmp_path: Path) -> None:
    save(tmp_path, 4)
    (tmp_path / "checkpoint").unlink()
    watcher = ck.watch(tmp_path, every_s=FAST_S)
    assert steps_in([watcher.next(SOON_S), watcher.next(0.2)]) == [4, None]
    assert watcher.health().error is None


def test_a_torn_step_is_never_returned(tmp_path: Path) -> None:
    saver = ck.Saver(run="job")
    save(tmp_path, 1, saver)
    watcher = ck.watch(tmp_path, every_s=FAST_S)
    assert steps_in([watcher.next(SOON_S)]) == [1]
    save(tmp_path, 2, saver)
    data = next(tmp_path.glob("model-2.data-*"))
    content = data.read_bytes()
    data.write_bytes(content[:-1])
    wait_until(watcher, lambda health: "model-2" in str(health.error))
    data.write_bytes(content)
    assert steps_in([watcher.next(SOON_S)]) == [2]


def test_retention_that_is_faster_than_a_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saver = ck.Saver(max_to_keep=1, run="job")
    save(tmp_path, 1, saver)
    watcher = ck.watch(tmp_path)
    assert steps_in([watcher.check()]) == [1]
    save(tmp_path, 2, saver)
    whole = follow.published_at

    def late(place: Location) -> follow.Published | None:
        if place.name == "model-2":
            save(tmp_path, 3, saver)
        return whole(place)

    monkeypatch.setattr(follow, "published_at", late)
    assert steps_in([watcher.check()]) == [3]


def test_spread_returns_a_step_later_and_always_the_newest(tmp_path: Path) -> None:
    saver = ck.Saver(run="job")
    save(tmp_path, 1, saver)
    share = Schedule(1.0, 1.0, platform.node(), str(tmp_path), 0.0).delay_s
    watcher = ck.watch(tmp_path, every_s=FAST_S, spread_s=0.6 / share)
    assert steps_in([watcher.next(SOON_S)]) == [1]
    save(tmp_path, 2, saver)
    assert watcher.next(0.3) is None
    save(tmp_path, 3, saver)
    assert steps_in([watcher.next(SOON_S), watcher.next(0.8)]) == [3, None]
    save(tmp_path, 4, saver)
    assert steps_in([watcher.check()]) == [4]


def test_every_s_0_looks_once(tmp_path: Path, storage: Recording) -> None:
    assert list(ck.watch(tmp_path, every_s=0)) == []
    save(tmp_path, 1)
    assert steps_in(list(ck.watch(tmp_path, every_s=0))) == [1]


@pytest.mark.parametrize(
    "options", [{"every_s": -1}, {"spread_s": float("nan")}, {"start": "now"}, {"every_s": float("inf")}]
)
def test_wrong_options_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ck.UsageError):
        ck.watch(tmp_path, **options)


def test_a_prefix_is_not_a_directory(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(ck.UsageError, match="not a directory"):
        ck.watch(tmp_path / "model-1").check()


def test_what_is_saved_under_one_name_with_one_record_is_seen_in_time(tmp_path: Path) -> None:
    saver = ck.Saver(run="job")
    save(tmp_path, 1, saver)
    record = (tmp_path / "checkpoint").read_bytes()
    watcher = ck.watch(tmp_path, every_s=FAST_S)
    first = watcher.next(SOON_S)
    wait_until(watcher, lambda health: (health.looked_s_ago or 1) < 1)
    version = locate(tmp_path / "checkpoint").storage.head(str(tmp_path / "checkpoint")).version
    stamp = (tmp_path / "checkpoint").stat()
    saver.save({"w": np.zeros(7)}, f"{tmp_path}/model", 1, write_state=False)
    # The very same record, as a store shows it whose versions are hashes.
    assert (tmp_path / "checkpoint").read_bytes() == record
    assert (tmp_path / "checkpoint").stat() == stamp
    assert version
    second = watcher.next(SOON_S)
    assert first is not None
    assert second is not None
    assert (second.prefix, second.version != first.version) == (first.prefix, True)


def test_a_look_of_a_signal_handler_inside_a_look_comes_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = ck.Saver(run="job", max_to_keep=0)
    save(tmp_path, 1, saver)
    watcher = ck.watch(tmp_path, every_s=3600.0)
    assert steps_in([watcher.check()]) == [1]
    save(tmp_path, 2, saver)
    whole = follow.published_at
    inner: list[ck.Step | None] = []

    def interrupted(place: Location) -> follow.Published | None:
        if not inner:
            inner.append(watcher.check())
            save(tmp_path, 3, saver)
        return whole(place)

    monkeypatch.setattr(follow, "published_at", interrupted)
    assert steps_in([watcher.check()]) == [2]
    assert inner == [None]
    monkeypatch.setattr(follow, "published_at", whole)
    assert steps_in([watcher.check(), watcher.check()]) == [3, None]


def test_next_keeps_its_time_while_another_thread_looks(tmp_path: Path, storage: Recording) -> None:
    save(tmp_path, 1)
    watcher = ck.watch(tmp_path, every_s=FAST_S)
    watcher.next(SOON_S)
    go_on = threading.Event()
    storage.hook = lambda: go_on.wait(SOON_S)
    with ThreadPoolExecutor(1) as threads:
        checking = threads.submit(watcher.check)
        assert watcher.next(0.2) is None
        assert not checking.done()
        with pytest.raises(ck.DeadlineError, match="under way"):
            watcher.check(timeout_s=0.01)
        go_on.set()
        assert checking.result(SOON_S) is None


@pytest.mark.parametrize("timeout_s", [7.0, None])
def test_a_look_that_is_asked_for_ends_in_time(
    tmp_path: Path, storage: Recording, timeout_s: float | None
) -> None:
    save(tmp_path, 1)
    left_s: list[float] = []

    def note() -> None:
        scope = current_scope()
        assert scope is not None
        left_s.append(scope.remaining_s())

    storage.hook = note
    assert steps_in([ck.watch(tmp_path).check(timeout_s)]) == [1]
    # Of the record and of the index.
    assert len(left_s) > 1
    assert all(left == math.inf if timeout_s is None else 0.0 < left <= timeout_s for left in left_s)


@pytest.mark.parametrize("error", [ck.UnsupportedError("a proxy in between"), RuntimeError("no threads")])
def test_any_failure_of_a_look_counts(tmp_path: Path, storage: Recording, error: Exception) -> None:
    save(tmp_path, 1)
    watcher = ck.watch(tmp_path, every_s=60.0)
    watcher.check()
    storage.error = error
    with pytest.raises(type(error)):
        watcher.check()
    assert watcher.health().failures_in_a_row == 1
    assert watcher.next(0.05) is None


def test_after_a_first_look_that_failed_start_next_leaves_nothing_out(
    tmp_path: Path, storage: Recording
) -> None:
    save(tmp_path, 1)
    watcher = ck.watch(tmp_path, every_s=FAST_S, start="next")
    storage.error = ck.TransientError("away")
    with pytest.raises(ck.TransientError):
        watcher.check()
    storage.error = None
    assert steps_in([watcher.check()]) == [1]


class TestStop:
    def test_from_another_thread(self, tmp_path: Path) -> None:
        watcher = ck.watch(tmp_path, every_s=3600.0)
        assert watcher.next(0.0) is None
        timer = threading.Timer(0.2, watcher.stop)
        timer.start()
        assert list(watcher) == []
        timer.join()
        assert watcher.next() is None

    def test_from_a_signal_handler(self, tmp_path: Path) -> None:
        watcher = ck.watch(tmp_path, every_s=3600.0)
        before = signal.signal(signal.SIGALRM, lambda *_: watcher.stop())
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            assert list(watcher) == []
        finally:
            signal.signal(signal.SIGALRM, before)

    def test_leaving_the_block_stops(self, tmp_path: Path) -> None:
        save(tmp_path, 1)
        with ck.watch(tmp_path) as watcher:
            pass
        assert watcher.next() is None


class TestAsync:
    def test_it_iterates(self, tmp_path: Path) -> None:
        saver = ck.Saver(run="job")
        save(tmp_path, 1, saver)

        async def follow_two() -> list[int | None]:
            found = []
            watcher = ck.watch(tmp_path, every_s=FAST_S)
            async for step in watcher:
                found.append(step.step)
                if len(found) == 2:
                    watcher.stop()
                else:
                    await asyncio.to_thread(save, tmp_path, 2, saver)
            return found

        assert asyncio.run(asyncio.wait_for(follow_two(), SOON_S)) == [1, 2]

    def test_a_step_is_not_lost_when_waiting_is_cancelled(self, tmp_path: Path) -> None:
        async def give_up_and_wait_again() -> int | None:
            watcher = ck.watch(tmp_path, every_s=FAST_S)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(watcher), 0.2)
            await asyncio.to_thread(save, tmp_path, 1)
            step = await asyncio.wait_for(anext(watcher), SOON_S)
            return step.step

        assert asyncio.run(give_up_and_wait_again()) == 1


class TestStep:
    @pytest.fixture
    def step(self) -> ck.Step:
        return ck.Step("s3://bucket/run/model-1", 1, "version", 1.5, {"secret": "hush"})

    def test_it_is_pickled_without_options(self, step: ck.Step) -> None:
        data = pickle.dumps(step)
        assert b"hush" not in data
        assert "hush" not in repr(step)
        again = pickle.loads(data)
        assert again == step
        assert hash(again) == hash(step)

    def test_it_is_frozen(self, step: ck.Step) -> None:
        with pytest.raises(AttributeError):
            step.prefix = "other"  # type: ignore[misc]


def test_a_clock_that_jumps_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saver = ck.Saver(run="job", clock=time.time)
    save(tmp_path, 1, saver)
    jumps = itertools.cycle([4e9, 1.0, 2e9])
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    watcher = ck.watch(tmp_path, every_s=FAST_S)
    assert steps_in([watcher.next(SOON_S), watcher.next(0.2)]) == [1, None]
    for step in (2, 3):
        save(tmp_path, step, saver)
        assert steps_in([watcher.next(SOON_S)]) == [step]
    health = watcher.health()
    assert (health.is_stale, health.failures_in_a_row) == (False, 0)
    assert 0 <= (health.looked_s_ago or 0) < SOON_S


def test_two_threads_share_the_steps(tmp_path: Path) -> None:
    saver = ck.Saver(run="job", max_to_keep=0)
    watcher = ck.watch(tmp_path, every_s=FAST_S)
    found: list[int | None] = []

    def take() -> None:
        found.extend(step.step for step in watcher)

    with ThreadPoolExecutor(2) as threads:
        taking = [threads.submit(take) for _ in range(2)]
        for step in range(1, 21):
            save(tmp_path, step, saver)
        deadline = time.monotonic() + SOON_S
        while 20 not in found and time.monotonic() < deadline:
            time.sleep(FAST_S)
        watcher.stop()
        for one in taking:
            one.result(SOON_S)
    assert len(found) == len(set(found))
    assert 20 in found
