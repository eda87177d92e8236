"""Serving the newest good step: loaded beside, accepted, switched at once, closed by the last user."""

from __future__ import annotations

import gc
import logging
import random
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.directory.follow import Follower
from ckptstore.storage import registry

FAST_S = 0.02
SOON_S = 60.0


class Model:
    """What is served: an array full of its step."""

    def __init__(self, w: np.ndarray[Any, Any]) -> None:
        self.w = w
        self.is_closed = False

    def close(self) -> None:
        assert not self.is_closed
        self.is_closed = True


def load(checkpoint: ck.OpenCheckpoint, previous: Model | None) -> Model:
    assert previous is None or not previous.is_closed
    return Model(checkpoint.read("w"))


def save(directory: Path, step: int, saver: ck.Saver) -> None:
    saver.save({"w": np.full(1000, float(step))}, f"{directory}/model", step)


def until(holds: Callable[[], bool]) -> None:
    ends_s = time.monotonic() + SOON_S
    while not holds():
        assert time.monotonic() < ends_s
        time.sleep(FAST_S)


def step_of(live: ck.Live[Any]) -> int | None:
    return None if live.step is None else live.step.step


@pytest.fixture
def saver() -> ck.Saver:
    return ck.Saver(run="job", max_to_keep=3)


def damage(directory: Path, step: int) -> None:
    data = next(directory.glob(f"model-{step}.data-*"))
    content = bytearray(data.read_bytes())
    content[100] ^= 1
    data.write_bytes(content)


def test_a_new_step_takes_the_place_and_the_old_one_is_closed(tmp_path: Path, saver: ck.Saver) -> None:
    save(tmp_path, 1, saver)
    with ck.Live(load, tmp_path, close=Model.close, every_s=FAST_S) as live:
        assert live.wait_ready(SOON_S)
        assert live.health().is_ready
        with live.use() as first:
            assert first.w[0] == 1
            save(tmp_path, 2, saver)
            until(lambda: step_of(live) == 2)
            assert not first.is_closed
            with live.use() as second:
                assert second.w[0] == 2
        assert first.is_closed
        assert not second.is_closed
    assert second.is_closed


def test_before_the_first_step_nothing_can_be_used(tmp_path: Path, saver: ck.Saver) -> None:
    with ck.Live(load, tmp_path, every_s=FAST_S) as live:
        assert not live.wait_ready(0.1)
        with pytest.raises(ck.TransientError, match="no step was loaded yet"), live.use():
            pass
        save(tmp_path, 1, saver)
        assert live.wait_ready(SOON_S)
    with pytest.raises(ck.UsageError, match="closed"), live.use():
        pass


def test_a_damaged_step_is_not_served_and_the_next_one_is(
    tmp_path: Path, saver: ck.Saver, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1, saver)
    tried: list[str] = []

    def counted(checkpoint: ck.OpenCheckpoint, previous: Model | None) -> Model:
        tried.append(checkpoint.prefix)
        return load(checkpoint, previous)

    writer = ck.Saver(run="job", max_to_keep=3)
    with caplog.at_level(logging.ERROR, "ckptstore"), ck.Live(counted, tmp_path, every_s=FAST_S) as live:
        assert live.wait_ready(SOON_S)
        # Damaged before the record names it, as bytes that rot would be found.
        writer.save({"w": np.full(1000, 2.0)}, f"{tmp_path}/model", 2, write_state=False)
        damage(tmp_path, 2)
        ck.update_checkpoint_state(tmp_path, f"{tmp_path}/model-2", [f"{tmp_path}/model-1"])
        until(lambda: live.health().failed is not None)
        health = live.health()
        assert health.failed is not None
        assert health.failed.step == 2
        assert "'w'" in str(health.error)
        assert step_of(live) == 1
        time.sleep(5 * FAST_S)
        assert tried.count(f"{tmp_path}/model-2") == 1
        assert len([one for one in caplog.records if "is not served" in one.message]) == 1
        save(tmp_path, 3, saver)
        until(lambda: step_of(live) == 3)
        assert live.health().error is None


def test_what_is_not_accepted_is_closed_and_tried_again_when_asked(tmp_path: Path, saver: ck.Saver) -> None:
    save(tmp_path, 1, saver)
    refused: list[Model] = []
    is_strict = True

    def accept(model: Model) -> bool:
        if is_strict:
            refused.append(model)
        return not is_strict

    with ck.Live(load, tmp_path, accept=accept, close=Model.close, every_s=FAST_S) as live:
        until(lambda: live.health().failed is not None)
        assert not live.wait_ready(0.05)
        assert [model.is_closed for model in refused] == [True]
        is_strict = False
        live.retry()
        assert live.wait_ready(SOON_S)
        assert step_of(live) == 1


@pytest.mark.parametrize("at", ["load", "accept", "close"])
def test_an_exception_of_the_user_stops_nothing(tmp_path: Path, saver: ck.Saver, at: str) -> None:
    def fail_at(place: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            model = args[0] if place != "load" else load(*args)
            if place == at and model.w[0] == 1:
                raise RuntimeError("out of luck")
            return model if place == "load" else True

        return call

    save(tmp_path, 1, saver)
    with ck.Live(
        fail_at("load"), tmp_path, accept=fail_at("accept"), close=fail_at("close"), every_s=FAST_S
    ) as live:
        if at == "close":
            assert live.wait_ready(SOON_S)
        else:
            until(lambda: "out of luck" in str(live.health().error))
        save(tmp_path, 2, saver)
        until(lambda: step_of(live) == 2)


def test_a_storage_that_fails_while_loading_is_tried_again(tmp_path: Path, saver: ck.Saver) -> None:
    save(tmp_path, 1, saver)
    failures = iter([ck.TransientError("the store is away"), ck.AccessError("the token expired")])

    def unlucky(checkpoint: ck.OpenCheckpoint, previous: Model | None) -> Model:
        error = next(failures, None)
        if error is not None:
            raise error
        return load(checkpoint, previous)

    with ck.Live(unlucky, tmp_path, every_s=FAST_S) as live:
        assert live.wait_ready(SOON_S)
        assert live.health().failed is None


def test_no_access_at_the_start_is_raised_by_wait_ready(
    tmp_path: Path, saver: ck.Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, saver)
    is_denied = True
    storage_type = type(registry.locate(tmp_path).storage)
    whole = storage_type.get

    def get(self: Any, *args: Any, **options: Any) -> Any:
        if is_denied:
            raise ck.AccessError("no access")
        return whole(self, *args, **options)

    monkeypatch.setattr(storage_type, "get", get)
    with ck.Live(load, tmp_path, every_s=FAST_S) as live:
        with pytest.raises(ck.AccessError, match="no access"):
            live.wait_ready(SOON_S)
        is_denied = False
        until(lambda: step_of(live) == 1)
        assert live.wait_ready(SOON_S)


def test_many_readers_see_one_step_each_while_steps_come_and_some_are_damaged(
    tmp_path: Path,
) -> None:
    saver = ck.Saver(run="job", max_to_keep=0)
    save(tmp_path, 0, saver)
    chance = random.Random(5)
    last = 15
    bad = set(chance.sample(range(1, last), 4))
    models: list[weakref.ref[Model]] = []

    def remembered(checkpoint: ck.OpenCheckpoint, previous: Model | None) -> Model:
        model = load(checkpoint, previous)
        models.append(weakref.ref(model))
        return model

    stop = threading.Event()
    live = ck.Live(remembered, tmp_path, close=Model.close, every_s=FAST_S)
    assert live.wait_ready(SOON_S)

    def read() -> int:
        count = 0
        while not stop.is_set():
            with live.use() as model:
                assert not model.is_closed
                assert (model.w == model.w[0]).all()
                assert int(model.w[0]) not in bad
            count += 1
            time.sleep(0.001)
        return count

    with ThreadPoolExecutor(8) as threads:
        readers = [threads.submit(read) for _ in range(8)]
        for step in range(1, last + 1):
            if step in bad:
                saver.save({"w": np.full(1000, float(step))}, f"{tmp_path}/model", step, write_state=False)
                damage(tmp_path, step)
                ck.update_checkpoint_state(tmp_path, f"{tmp_path}/model-{step}")
            else:
                save(tmp_path, step, saver)
            time.sleep(2 * FAST_S)
        until(lambda: step_of(live) == last)
        stop.set()
        assert sum(reader.result(SOON_S) for reader in readers) > 100
    live.close()
    gc.collect()
    assert not [model for model in models if model() is not None]


def test_closing_does_not_wait_for_users_and_closes_what_comes_late(tmp_path: Path, saver: ck.Saver) -> None:
    save(tmp_path, 1, saver)
    loading, go_on = threading.Event(), threading.Event()
    late: list[Model] = []

    def slow(checkpoint: ck.OpenCheckpoint, previous: Model | None) -> Model:
        late.append(load(checkpoint, previous))
        loading.set()
        assert go_on.wait(SOON_S)
        return late[-1]

    live = ck.Live(slow, tmp_path, close=Model.close, every_s=FAST_S)
    assert loading.wait(SOON_S)
    closing = threading.Thread(target=live.close)
    closing.start()
    go_on.set()
    closing.join(SOON_S)
    until(lambda: late[0].is_closed)
    assert live.step is None


def test_every_s_0_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ck.UsageError):
        ck.Live(load, tmp_path, every_s=0)


def test_retry_makes_no_looks_and_may_come_while_a_load_fails(
    tmp_path: Path, saver: ck.Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, saver)
    looks: list[None] = []
    whole = Follower.changed_record
    monkeypatch.setattr(Follower, "changed_record", lambda self: (looks.append(None), whole(self))[1])
    loading, go_on = threading.Event(), threading.Event()
    fails = True

    def once_bad(checkpoint: ck.OpenCheckpoint, previous: Model | None) -> Model:
        if fails:
            loading.set()
            assert go_on.wait(SOON_S)
            raise ValueError("not yet")
        return load(checkpoint, previous)

    with ck.Live(once_bad, tmp_path, every_s=60.0) as live:
        assert loading.wait(SOON_S)
        live.retry()
        fails = False
        go_on.set()
        assert live.wait_ready(SOON_S)
        before = len(looks)
        live.retry()
        time.sleep(0.2)
        assert len(looks) - before <= 1


def test_a_long_load_does_not_look_stale(tmp_path: Path, saver: ck.Saver) -> None:
    save(tmp_path, 1, saver)
    go_on = threading.Event()

    def slow(checkpoint: ck.OpenCheckpoint, previous: Model | None) -> Model:
        assert go_on.wait(SOON_S)
        return load(checkpoint, previous)

    with ck.Live(slow, tmp_path, every_s=0.1) as live:
        first = live.health().watch
        until(lambda: (live.health().watch.looked_s_ago or 0) < 0.05 and not live.health().watch.is_stale)
        time.sleep(0.5)
        until(lambda: not live.health().watch.is_stale)
        assert first.error is None
        go_on.set()
        assert live.wait_ready(SOON_S)


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), ValueError("bad")])
def test_nothing_that_load_raises_ends_the_thread(
    tmp_path: Path, saver: ck.Saver, error: BaseException
) -> None:
    save(tmp_path, 1, saver)
    errors = iter([error])

    def unlucky(checkpoint: ck.OpenCheckpoint, previous: Model | None) -> Model:
        for one in errors:
            raise one
        return load(checkpoint, previous)

    with ck.Live(unlucky, tmp_path, every_s=FAST_S) as live:
        until(lambda: type(error).__name__ in str(live.health().error))
        save(tmp_path, 2, saver)
        assert live.wait_ready(SOON_S)
        assert step_of(live) == 2


def test_a_missing_tensor_is_a_refusal(tmp_path: Path, saver: ck.Saver) -> None:
    saver.save({"v": np.zeros(3)}, f"{tmp_path}/model", 1)
    with ck.Live(load, tmp_path, every_s=FAST_S) as live:
        until(lambda: live.health().failed is not None)
        assert "'w'" in str(live.health().error)


def test_a_step_that_is_overwritten_before_it_is_opened_is_served_all_the_same(
    tmp_path: Path, saver: ck.Saver
) -> None:
    save(tmp_path, 1, saver)
    record = (tmp_path / "checkpoint").read_bytes()
    is_first = True

    def overtaken(checkpoint: ck.OpenCheckpoint, previous: Model | None) -> Model:
        nonlocal is_first
        if is_first:
            is_first = False
            other = ck.Saver(run="job")
            for value in (7.0, 8.0):
                other.save({"w": np.full(1000, value)}, f"{tmp_path}/model", 1)
            (tmp_path / "checkpoint").write_bytes(record)
        return load(checkpoint, previous)

    with ck.Live(overtaken, tmp_path, every_s=FAST_S) as live:
        assert live.wait_ready(SOON_S)
        with live.use() as model:
            assert model.w[0] == 8.0


def test_a_rollback_to_a_refused_step_is_named_and_one_to_the_served_step_loads_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saver = ck.Saver(run="job", max_to_keep=0)
    loads: list[str] = []

    def picky(checkpoint: ck.OpenCheckpoint, previous: Model | None) -> Model:
        loads.append(checkpoint.prefix.rpartition("-")[2])
        if loads[-1] == "2":
            raise ValueError("two is bad")
        return load(checkpoint, previous)

    def set_to(step: int) -> None:
        ck.update_checkpoint_state(tmp_path, f"{tmp_path}/model-{step}")

    save(tmp_path, 1, saver)
    with ck.Live(picky, tmp_path, every_s=FAST_S) as live:
        assert live.wait_ready(SOON_S)
        save(tmp_path, 2, saver)
        until(lambda: live.health().failed is not None)
        set_to(1)
        until(lambda: live.health().failed is None)
        assert loads == ["1", "2"]
        set_to(2)
        with caplog.at_level(logging.ERROR, "ckptstore"):
            until(lambda: live.health().failed is not None)
        assert "two is bad" in str(live.health().error)
        assert any("has failed before" in one.message for one in caplog.records)
        assert loads == ["1", "2"]
        assert step_of(live) == 1
