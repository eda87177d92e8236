"""Callbacks and reports of progress that misbehave, interrupts at bad moments: no save hangs after them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.storage.scope import current_scope
from ckptstore.transfer.progress import Event
from ckptstore.transfer.transfer import Transfer
from tests.own_warnings import own_warnings
from tests.unit.blocking_storage import WATCHDOG_S, blocking
from tests.unit.directory.helpers import stamp_of, values


def caught_in(call: Callable[[], object], errors: list[BaseException]) -> None:
    try:
        call()
    except ck.CkptStoreError as error:
        errors.append(error)


def test_a_callback_that_ends_its_thread_ends_no_other_save(tmp_path: Path) -> None:
    def leave(_: ck.SaveHandle) -> None:
        raise SystemExit(3)

    saver = ck.Saver()
    with blocking("upload") as gate:
        first = saver.save_async(values(1), tmp_path / "m", 1, snapshot=False)
        second = saver.save_async(values(2), tmp_path / "m", 2, snapshot=False)
        called = threading.Event()
        first.add_done_callback(leave)
        first.add_done_callback(lambda _: called.set())
        gate.open()
        assert second.result(WATCHDOG_S) == str(tmp_path / "m-2")
        assert called.is_set()
    assert saver.save_async(values(3), tmp_path / "m", 3).result(WATCHDOG_S) == str(tmp_path / "m-3")


def test_a_callback_of_a_save_that_is_over_may_end_its_caller(tmp_path: Path) -> None:
    def leave(_: ck.SaveHandle) -> None:
        raise SystemExit(3)

    handle = ck.Saver().save_async(values(1), tmp_path / "m", 1)
    handle.result()
    with pytest.raises(SystemExit):
        handle.add_done_callback(leave)


def test_a_callback_that_would_wait_for_the_next_save_is_told(tmp_path: Path) -> None:
    saver = ck.Saver()
    errors: list[BaseException] = []
    with blocking("upload") as gate:
        first = saver.save_async(values(1), tmp_path / "m", 1, snapshot=False)
        second = saver.save_async(values(2), tmp_path / "m", 2, snapshot=False)
        first.add_done_callback(lambda _: caught_in(saver.close, errors))
        first.add_done_callback(lambda _: caught_in(second.result, errors))
        first.add_done_callback(lambda _: caught_in(lambda: saver.save(values(3), tmp_path / "m", 3), errors))
        gate.open()
        second.result(WATCHDOG_S)
    assert [type(error) for error in errors] == [ck.UsageError] * 3


def test_a_callback_may_begin_another_save(tmp_path: Path) -> None:
    saver = ck.Saver()
    later: list[ck.SaveHandle] = []
    done = threading.Event()

    def begin(_: ck.SaveHandle) -> None:
        later.append(saver.save_async(values(2), tmp_path / "m", 2))
        done.set()

    with blocking("upload") as gate:
        handle = saver.save_async(values(1), tmp_path / "m", 1)
        handle.add_done_callback(begin)
        gate.open()
        assert done.wait(WATCHDOG_S)
    assert later[0].result(WATCHDOG_S) == str(tmp_path / "m-2")
    assert stamp_of(str(tmp_path / "m-2")) == 2


def test_not_one_whose_copy_would_wait_for_this_thread(tmp_path: Path) -> None:
    big = {"w": np.ones(3 << 20)}
    saver = ck.Saver(memory_budget=8 << 20)
    errors: list[BaseException] = []
    done = threading.Event()

    def begin(_: ck.SaveHandle) -> None:
        caught_in(lambda: saver.save_async(big, tmp_path / "m", 2), errors)
        done.set()

    with blocking("upload") as gate:
        handle = saver.save_async(values(1), tmp_path / "m", 1)
        handle.add_done_callback(begin)
        gate.open()
        assert done.wait(WATCHDOG_S)
    assert [type(error) for error in errors] == [ck.UsageError]
    assert saver.save_async(big, tmp_path / "m", 3).result(WATCHDOG_S) == str(tmp_path / "m-3")


@pytest.mark.parametrize("call", ["save", "save_async", "close", "result"])
@pytest.mark.parametrize("size", [3, 3 << 20])
def test_a_report_cannot_wait_for_the_save_that_it_is_of(call: str, size: int, tmp_path: Path) -> None:
    errors: list[BaseException] = []
    handles: list[ck.SaveHandle] = []

    def report(event: Event) -> None:
        calls: dict[str, Callable[[], object]] = {
            "save": lambda: saver.save(values(2), tmp_path / "m", 2),
            "save_async": lambda: saver.save_async(values(2), tmp_path / "m", 2),
            "close": saver.close,
            "result": lambda: handles[0].result(),  # noqa: PLW0108 (the handle comes later)
        }
        if event.done_bytes:
            caught_in(calls[call], errors)

    saver = ck.Saver(progress=report)
    with blocking("upload") as gate:
        handles.append(saver.save_async({"w": np.ones(size)}, tmp_path / "m", 1))
        gate.open()
        assert handles[0].result(WATCHDOG_S) == str(tmp_path / "m-1")
    assert errors
    assert {type(error) for error in errors} == {ck.UsageError}


def test_nor_can_that_of_a_save_in_the_foreground_begin_another_one(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def report(event: Event) -> None:
        if event.done_bytes and not event.is_over:
            caught_in(lambda: saver.save(values(2), tmp_path / "m", 2), errors)

    saver = ck.Saver(progress=report)
    assert saver.save(values(1), tmp_path / "m", 1) == str(tmp_path / "m-1")
    assert {type(error) for error in errors} == {ck.UsageError}
    assert ck.latest_checkpoint(tmp_path) == str(tmp_path / "m-1")


def test_a_warning_that_is_an_error_does_not_keep_other_saves_from_being_made(tmp_path: Path) -> None:
    with own_warnings("error"), blocking("upload", "m-1.data") as gate:
        saver = ck.Saver()
        saver.save_async(values(1), tmp_path / "m", 1, snapshot=False)
        second = saver.save_async(values(2), tmp_path / "m", 2, snapshot=False)
        del saver
        gate.open(ck.StorageFullError("no room", url="memory://somewhere"))
        assert second.result(WATCHDOG_S) == str(tmp_path / "m-2")


@pytest.mark.parametrize("starts", [False, True])
@pytest.mark.parametrize("snapshot", [False, True])
def test_ctrl_c_while_the_thread_starts_leaves_nobody_waiting(
    *, starts: bool, snapshot: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        if thread.name == "ckptstore-save":
            if starts:
                start(thread)
            raise KeyboardInterrupt
        start(thread)

    saver = ck.Saver()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            saver.save_async(values(1), tmp_path / "m", 1, snapshot=snapshot)
    saver.close()
    assert saver.save_async(values(2), tmp_path / "m", 2).result(WATCHDOG_S) == str(tmp_path / "m-2")
    assert ck.latest_checkpoint(tmp_path) == str(tmp_path / "m-2")


def test_a_signal_handler_may_cancel_in_the_middle_of_a_cancel(tmp_path: Path) -> None:
    with blocking("upload") as gate:
        handle = ck.Saver().save_async(values(1), tmp_path / "m", 1)
        gate.wait_reached()
        task: Any = handle._save.task
        with task._lock:
            assert handle.cancel()
        gate.open()
        with pytest.raises(ck.SaveCancelledError):
            handle.result(WATCHDOG_S)


def test_ctrl_c_in_the_first_report_leaves_no_scope_behind() -> None:
    def report(_: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Transfer("save", "memory://x", report=report):
        pass
    assert current_scope() is None
