"""Saves in the background: when they return, in which order they come, who is told of a failure."""

from __future__ import annotations

import asyncio
import errno
import gc
import mmap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.transfer import blocks
from tests.own_warnings import own_warnings
from tests.unit.blocking_storage import WATCHDOG_S, blocking
from tests.unit.directory.helpers import fresh_memory, listed, names_in, stamp_of, values


@pytest.fixture(params=["memory", "local"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return fresh_memory() if request.param == "memory" else str(tmp_path / "run")


@pytest.fixture(scope="module", autouse=True)
def quick_collections() -> Iterator[None]:
    """Leave what the whole test run has allocated out of the collections below: each would take 0.3 s."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    gc.collect()
    for thread in set(threading.enumerate()) - before:
        if thread.name.startswith("ckptstore") and thread.name != "ckptstore-requests":
            thread.join(WATCHDOG_S)
            assert not thread.is_alive(), thread.name


def full() -> ck.StorageFullError:
    return ck.StorageFullError("no room", url="memory://somewhere")


def in_thread(call: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=call)
    thread.start()
    return thread


class TestHandle:
    def test_the_result_is_the_prefix_of_a_checkpoint_that_restores(self, directory: str) -> None:
        with ck.Saver() as saver:
            handle = saver.save_async(values(1), f"{directory}/m", 1)
            assert handle.prefix == f"{directory}/m-1"
            assert handle.result() == f"{directory}/m-1"
            assert handle.staged
            assert handle.committed
            assert handle.result(0) == handle.prefix
        assert stamp_of(handle.prefix) == 1
        assert ck.latest_checkpoint(directory) == handle.prefix

    def test_the_files_are_those_of_a_synchronous_save(self, directory: str) -> None:
        arrays = {
            "a": np.arange(12.0).reshape(3, 4).T,
            "big": np.arange(5, dtype=">i4"),
            "text": np.array([b"x", b"yy"], object),
            "empty": np.zeros((0, 3)),
        }
        ck.Saver().save(arrays, f"{directory}/sync/m")
        ck.Saver().save_async(arrays, f"{directory}/copied/m").result()
        ck.Saver().save_async(arrays, f"{directory}/promised/m", snapshot=False).result()
        for end in (".index", ".data-00000-of-00001", ".meta"):
            expected = content(f"{directory}/sync/m{end}")
            assert content(f"{directory}/copied/m{end}") == expected
            assert content(f"{directory}/promised/m{end}") == expected

    def test_a_snapshot_is_of_the_moment_of_the_call(self, directory: str) -> None:
        arrays = values(1)
        with blocking("upload") as gate:
            handle = ck.Saver().save_async(arrays, f"{directory}/m", 1)
            gate.wait_reached()
            assert handle.staged
            assert not handle.committed
            arrays["w"][...] = 99
            arrays["b"][...] = 99
            gate.open()
            assert stamp_of(handle.result() or "") == 1

    def test_text_in_an_object_array_is_copied_too(self, directory: str) -> None:
        arrays = {"text": np.array([b"old"], object)}
        with blocking("upload") as gate:
            handle = ck.Saver().save_async(arrays, f"{directory}/m", 1)
            arrays["text"][0] = b"new"
            gate.open()
            with ck.open_checkpoint(handle.result() or "") as checkpoint:
                assert checkpoint["text"].tolist() == [b"old"]

    def test_without_a_snapshot_the_arrays_are_staged_when_they_are_sent(self, directory: str) -> None:
        with blocking("upload.commit") as gate:
            handle = ck.Saver().save_async(values(1), f"{directory}/m", 1, snapshot=False)
            gate.wait_reached()
            assert not handle.staged
            with pytest.raises(ck.DeadlineError, match="still being read"):
                handle.wait_staged(0.01)
            gate.open()
            handle.wait_staged(WATCHDOG_S)
            handle.result()
        assert handle.staged

    def test_staged_comes_before_the_index_without_a_snapshot(self, directory: str) -> None:
        with blocking("put_new", ".index") as gate:
            handle = ck.Saver().save_async(values(1), f"{directory}/m", 1, snapshot=False)
            gate.wait_reached()
            handle.wait_staged(WATCHDOG_S)
            assert not handle.committed

    def test_the_callers_timeout_leaves_the_save_running(self, directory: str) -> None:
        with blocking("upload") as gate, ck.Saver() as saver:
            handle = saver.save_async(values(1), f"{directory}/m", 1)
            with pytest.raises(TimeoutError, match="still under way") as caught:
                handle.result(0.01)
            assert isinstance(caught.value, ck.DeadlineError)
            gate.open()
            assert handle.result() == f"{directory}/m-1"

    def test_callbacks_get_the_handle_once_it_is_over(self, directory: str) -> None:
        heard: list[tuple[ck.SaveHandle, bool]] = []
        with blocking("upload") as gate:
            handle = ck.Saver().save_async(values(1), f"{directory}/m", 1)
            handle.add_done_callback(lambda one: heard.append((one, one.committed)))
            assert heard == []
            gate.open()
            handle.result()
        handle.add_done_callback(lambda one: heard.append((one, one.committed)))
        assert heard == [(handle, True), (handle, True)]

    def test_a_callback_that_raises_harms_nobody(
        self, directory: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(handle: ck.SaveHandle) -> None:
            raise RuntimeError("callback")

        with ck.Saver() as saver, blocking("upload") as gate:
            handle = saver.save_async(values(1), f"{directory}/m", 1)
            handle.add_done_callback(fail)
            gate.open()
            handle.result()
            saver.save(values(2), f"{directory}/m", 2)
        assert "callback" in caplog.text

    def test_a_callback_may_ask_for_the_result(self, directory: str) -> None:
        heard: list[str | None] = []
        with ck.Saver() as saver:
            saver.save_async(values(1), f"{directory}/m", 1).add_done_callback(
                lambda handle: heard.append(handle.result())
            )
        assert heard == [f"{directory}/m-1"]

    def test_nothing_to_save(self, directory: str) -> None:
        graph = ck.GraphBuilder().build()
        saver = ck.Saver([], allow_empty=True, graph=graph)
        assert saver.save_async({}, f"{directory}/m").result() is None
        assert names_in(directory) == ["m.meta"]

    def test_repr_says_how_it_stands(self, directory: str) -> None:
        with blocking("upload") as gate:
            handle = ck.Saver().save_async(values(1), f"{directory}/m", 1)
            assert repr(handle) == f"<SaveHandle {directory}/m-1 running>"
            gate.open()
            handle.result()
        assert repr(handle) == f"<SaveHandle {directory}/m-1 committed>"

    @pytest.mark.parametrize(
        "call",
        [
            lambda saver, path: saver.save_async({"w": object()}, path),
            lambda saver, path: saver.save_async({3: np.ones(1)}, path),
            lambda saver, path: saver.save_async(values(1), path, "step"),
            lambda saver, path: saver.save_async(values(1), path, latest_filename="m"),
            lambda saver, path: saver.save_async(values(1), path + "/"),
            lambda saver, path: saver.save_async([], path),
        ],
    )
    def test_a_wrong_call_is_told_at_once(self, directory: str, call: Callable[..., object]) -> None:
        with ck.Saver() as saver, pytest.raises(ck.UsageError):
            call(saver, f"{directory}/m")
        assert names_in(directory) == []


def content(url: str) -> bytes:
    from ckptstore.storage.registry import locate

    place = locate(url)
    return place.storage.get(place.key).data


class TestAwait:
    def test_the_loop_goes_on_while_a_coroutine_waits(self, directory: str) -> None:
        async def main() -> tuple[int, str | None]:
            turns = 0
            with blocking("upload") as gate:
                handle = ck.Saver().save_async(values(1), f"{directory}/m", 1)
                waiting = asyncio.ensure_future(wait_for(handle))
                while turns < 50:
                    await asyncio.sleep(0)
                    turns += 1
                assert not waiting.done()
                gate.open()
                return turns, await asyncio.wait_for(waiting, WATCHDOG_S)

        assert asyncio.run(main()) == (50, f"{directory}/m-1")

    def test_it_raises_what_the_save_died_of(self, directory: str) -> None:
        async def main() -> None:
            with blocking("upload") as gate:
                saver = ck.Saver()
                handle = saver.save_async(values(1), f"{directory}/m", 1)
                gate.open(full())
                with pytest.raises(ck.StorageFullError):
                    await handle
                gate.open()
                saver.save(values(2), f"{directory}/m", 2)

        asyncio.run(main())

    def test_a_coroutine_that_is_cancelled_leaves_the_save_running(self, directory: str) -> None:
        async def main() -> str | None:
            with blocking("upload") as gate:
                handle = ck.Saver().save_async(values(1), f"{directory}/m", 1)
                waiting = asyncio.ensure_future(wait_for(handle))
                await asyncio.sleep(0)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
                gate.open()
                return await handle

        assert asyncio.run(main()) == f"{directory}/m-1"

    def test_a_loop_that_closed_meanwhile_does_no_harm(self, directory: str) -> None:
        async def begin(handle: ck.SaveHandle) -> None:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(wait_for(handle), 0.01)

        with blocking("upload") as gate:
            handle = ck.Saver().save_async(values(1), f"{directory}/m", 1)
            asyncio.run(begin(handle))
            gate.open()
            assert handle.result() == f"{directory}/m-1"


async def wait_for(handle: ck.SaveHandle) -> str | None:
    return await handle


class TestQueue:
    def test_saves_come_in_the_order_of_the_calls(self, directory: str) -> None:
        with blocking("upload") as gate, ck.Saver(max_to_keep=2) as saver:
            handles = [
                saver.save_async(values(step), f"{directory}/m", step, snapshot=False)
                for step in (1, 2, 3, 4, 5)
            ]
            assert saver.last_checkpoints == []
            gate.open()
            handles[-1].result()
            assert listed(saver) == ["m-4", "m-5"]
        assert ck.latest_checkpoint(directory) == f"{directory}/m-5"
        assert {name.split(".")[0] for name in names_in(directory)} == {"checkpoint", "m-4", "m-5"}

    def test_wait_takes_no_second_snapshot_before_the_first_save_is_over(self, directory: str) -> None:
        with blocking("upload") as gate, ck.Saver() as saver:
            first = saver.save_async(values(1), f"{directory}/m", 1)
            second: list[ck.SaveHandle] = []
            thread = in_thread(lambda: second.append(saver.save_async(values(2), f"{directory}/m", 2)))
            gate.wait_reached()
            thread.join(0.1)
            assert thread.is_alive()
            gate.open()
            thread.join(WATCHDOG_S)
            assert first.committed
            second[0].result()
            assert listed(saver) == ["m-1", "m-2"]

    def test_save_waits_for_the_one_in_flight(self, directory: str) -> None:
        with blocking("upload") as gate, ck.Saver(queue="refuse") as saver:
            handle = saver.save_async(values(1), f"{directory}/m", 1)
            thread = in_thread(lambda: saver.save(values(2), f"{directory}/m", 2))
            gate.wait_reached()
            thread.join(0.1)
            assert thread.is_alive()
            assert names_in(directory) == []
            gate.open()
            thread.join(WATCHDOG_S)
            assert handle.committed
            assert listed(saver) == ["m-1", "m-2"]

    @pytest.mark.parametrize("snapshot", [True, False])
    def test_refuse_says_so_at_once(self, directory: str, snapshot: bool) -> None:
        with blocking("upload") as gate, ck.Saver(queue="refuse") as saver:
            first = saver.save_async(values(1), f"{directory}/m", 1)
            with pytest.raises(ck.ConflictError, match="in flight"):
                saver.save_async(values(2), f"{directory}/m", 2, snapshot=snapshot)
            gate.open()
            first.result()
            saver.save_async(values(3), f"{directory}/m", 3, snapshot=snapshot).result()
            assert listed(saver) == ["m-1", "m-3"]

    @pytest.mark.parametrize("snapshot", [True, False])
    def test_skip_keeps_the_newest_of_those_that_wait(self, directory: str, snapshot: bool) -> None:
        with blocking("upload") as gate, ck.Saver(queue="skip") as saver:
            handles = []
            for step in (1, 2, 3, 4):
                handles.append(saver.save_async(values(step), f"{directory}/m", step, snapshot=snapshot))
                gate.wait_reached()
            for older in handles[1:3]:
                assert older.staged
                assert not older.committed
                with pytest.raises(ck.SaveCancelledError, match="took its place"):
                    older.result()
            gate.open()
            assert handles[3].result() == f"{directory}/m-4"
            assert handles[0].committed
            assert listed(saver) == ["m-1", "m-4"]
        assert {name.split(".")[0] for name in names_in(directory)} == {"checkpoint", "m-1", "m-4"}

    def test_what_finds_nothing_in_flight_is_never_skipped(self, directory: str) -> None:
        with ck.Saver(queue="skip") as saver:
            for step in range(0, 40, 2):
                first = saver.save_async(values(step), f"{directory}/m", step, snapshot=False)
                second = saver.save_async(values(step + 1), f"{directory}/m", step + 1, snapshot=False)
                assert first.result() == f"{directory}/m-{step}"
                second.result()

    def test_skip_within_a_budget_never_holds_two_snapshots(self, directory: str) -> None:
        size = sum(array.nbytes for array in values(1).values())
        with blocking("upload") as gate, ck.Saver(queue="skip", memory_budget=2 * size - 1) as saver:
            saver.save_async(values(1), f"{directory}/m", 1)
            thread = in_thread(lambda: saver.save_async(values(2), f"{directory}/m", 2))
            gate.wait_reached()
            thread.join(0.1)
            assert thread.is_alive()
            gate.open()
            thread.join(WATCHDOG_S)
        assert listed(saver) == ["m-1", "m-2"]

    def test_last_checkpoints_can_be_set_while_a_save_is_in_flight(self, directory: str) -> None:
        with blocking("upload") as gate, ck.Saver(max_to_keep=2) as saver:
            saver.save_async(values(1), f"{directory}/m", 1)
            thread = in_thread(lambda: saver.set_last_checkpoints([]))
            gate.wait_reached()
            gate.open()
            thread.join(WATCHDOG_S)
            assert saver.last_checkpoints == []
            saver.save(values(2), f"{directory}/m", 2)
            assert listed(saver) == ["m-2"]

    def test_restore_sees_what_was_there_before(self, directory: str) -> None:
        with blocking("upload", is_open=True) as gate, ck.Saver() as saver:
            saver.save(values(1), f"{directory}/m")
            gate.close()
            handle = saver.save_async(values(2), f"{directory}/m")
            gate.wait_reached()
            target = values(0)
            saver.restore(target, f"{directory}/m")
            assert target["w"].tolist() == [1, 1, 1]
            with pytest.raises(ck.NotFoundError):
                saver.restore(target, f"{directory}/other")
            gate.open()
            handle.result()
            saver.restore(target, f"{directory}/m")
            assert target["w"].tolist() == [2, 2, 2]


class TestFailure:
    def test_the_result_raises_it_as_often_as_it_is_asked(self, directory: str) -> None:
        with blocking("upload") as gate:
            saver = ck.Saver()
            handle = saver.save_async(values(1), f"{directory}/m", 1)
            gate.open(full())
            for _ in range(2):
                with pytest.raises(ck.StorageFullError) as caught:
                    handle.result()
            assert caught.value.__notes__ == [
                f"This failed while {directory}/m-1 was being saved in the background."
            ]
            assert not handle.committed
            assert handle.staged
            gate.open()
            # Told already.
            saver.save(values(2), f"{directory}/m", 2)
            saver.close()
        assert listed(saver) == ["m-2"]

    @pytest.mark.parametrize("method", ["save", "save_async"])
    def test_the_next_save_raises_it_once_and_saves_nothing(self, directory: str, method: str) -> None:
        with blocking("upload") as gate:
            saver = ck.Saver()
            handle = saver.save_async(values(1), f"{directory}/m", 1)
            gate.open(full())
            with pytest.raises(ck.StorageFullError):
                getattr(saver, method)(values(2), f"{directory}/m", 2)
            assert names_in(directory) == []
            gate.open()
            saver.save(values(3), f"{directory}/m", 3)
            saver.close()
            with pytest.raises(ck.StorageFullError):
                handle.result()
        assert listed(saver) == ["m-3"]

    def test_a_wrong_call_does_not_use_it_up(self, directory: str) -> None:
        with blocking("upload") as gate:
            saver = ck.Saver()
            saver.save_async(values(1), f"{directory}/m", 1)
            gate.open(full())
            with pytest.raises(ck.UsageError):
                saver.save_async({"w": object()}, f"{directory}/m", 2)
            with pytest.raises(ck.StorageFullError):
                saver.close()

    def test_leaving_the_context_raises_it(self, directory: str) -> None:
        def use(saver: ck.Saver) -> None:
            with saver:
                saver.save_async(values(1), f"{directory}/m", 1)
                gate.open(full())

        with blocking("upload") as gate:
            saver = ck.Saver()
            with pytest.raises(ck.StorageFullError):
                use(saver)
            saver.close()  # and only once

    def test_leaving_the_context_by_another_error_adds_a_note(self, directory: str) -> None:
        def use(saver: ck.Saver) -> None:
            with saver:
                saver.save_async(values(1), f"{directory}/m", 1)
                gate.open(full())
                raise ZeroDivisionError

        with blocking("upload") as gate, pytest.raises(ZeroDivisionError) as caught:
            use(ck.Saver())
        assert any("no room" in note for note in caught.value.__notes__)

    def test_leaving_the_context_waits(self, directory: str) -> None:
        with blocking("upload") as gate:
            with ck.Saver() as saver:
                handle = saver.save_async(values(1), f"{directory}/m", 1)
                threading.Timer(0.05, gate.open).start()
            assert handle.committed

    def test_several_failures_are_told_together(self, directory: str) -> None:
        with blocking("upload") as gate:
            saver = ck.Saver()
            for step in (1, 2):
                saver.save_async(values(step), f"{directory}/m", step, snapshot=False)
            gate.open(full())
            with pytest.raises(ck.StorageFullError) as caught:
                saver.close()
            saver.close()
        assert any("later save failed" in note for note in caught.value.__notes__)

    def test_a_save_that_waits_is_not_harmed_by_the_one_before_it(self, directory: str) -> None:
        with blocking("upload", "m-1") as gate:
            saver = ck.Saver()
            first = saver.save_async(values(1), f"{directory}/m", 1, snapshot=False)
            second = saver.save_async(values(2), f"{directory}/m", 2, snapshot=False)
            gate.open(full())
            with pytest.raises(ck.StorageFullError):
                first.result()
            assert second.result() == f"{directory}/m-2"
            saver.close()

    def test_a_saver_that_nobody_asked_warns(self, directory: str) -> None:
        with blocking("upload") as gate:
            saver = ck.Saver()
            handle = saver.save_async(values(1), f"{directory}/m", 1)
            gate.open(full())
            handle.add_done_callback(lambda _: None)
            over = threading.Event()
            handle.add_done_callback(lambda _: over.set())
            assert over.wait(WATCHDOG_S)
            with pytest.warns(ck.CkptStoreWarning, match="never asked for"):  # noqa: PT031
                del saver
                gc.collect()

    def test_a_saver_that_was_told_warns_of_nothing(self, directory: str) -> None:
        with blocking("upload") as gate:
            saver = ck.Saver()
            handle = saver.save_async(values(1), f"{directory}/m", 1)
            gate.open(full())
            with pytest.raises(ck.StorageFullError):
                handle.result()
            with own_warnings("error"):
                del saver, handle
                gc.collect()

    def test_a_snapshot_for_which_there_is_no_memory_is_told_at_once(
        self, directory: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def no_memory(*_: object, **__: object) -> None:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")

        blocks.release_blocks()
        with ck.Saver(memory_budget=64 << 20) as saver:
            with monkeypatch.context() as patch:
                patch.setattr(mmap, "mmap", no_memory)
                with pytest.raises(ck.TransientError, match="memory_budget=67108864") as caught:
                    saver.save_async(values(1), f"{directory}/m", 1)
            assert caught.value.url == f"{directory}/m-1"
            assert names_in(directory) == []
            saver.save_async(values(2), f"{directory}/m", 2).result(WATCHDOG_S)
        assert stamp_of(f"{directory}/m-2") == 2


class TestCancel:
    @pytest.mark.parametrize("primitive", ["upload", "upload.commit"])
    @pytest.mark.parametrize("snapshot", [True, False])
    def test_before_the_commit_point_nothing_stays(
        self, directory: str, primitive: str, snapshot: bool
    ) -> None:
        with blocking(primitive) as gate, ck.Saver() as saver:
            handle = saver.save_async(values(1), f"{directory}/m", 1, snapshot=snapshot)
            gate.wait_reached()
            assert handle.cancel()
            assert handle.cancel()
            gate.open()
            with pytest.raises(ck.SaveCancelledError, match="was cancelled"):
                handle.result()
            assert not handle.committed
            assert names_in(directory) == []
            # Whoever cancelled knows: the next save says nothing.
            saver.save(values(2), f"{directory}/m", 2)
        assert listed(saver) == ["m-2"]

    def test_of_an_overwrite_the_old_checkpoint_stays(self, directory: str) -> None:
        with blocking("upload.commit", is_open=True) as gate, ck.Saver() as saver:
            saver.save(values(1), f"{directory}/m")
            before = names_in(directory)
            gate.close()
            handle = saver.save_async(values(2), f"{directory}/m")
            gate.wait_reached()
            assert handle.cancel()
            gate.open()
            with pytest.raises(ck.SaveCancelledError):
                handle.result()
        assert names_in(directory) == before
        assert stamp_of(f"{directory}/m") == 1

    def test_from_the_commit_point_on_it_is_too_late(self, directory: str) -> None:
        with blocking("put_new", ".index") as gate, ck.Saver() as saver:
            handle = saver.save_async(values(1), f"{directory}/m", 1)
            gate.wait_reached()
            assert not handle.cancel()
            gate.open()
            assert handle.result() == f"{directory}/m-1"
            assert not handle.cancel()
        assert stamp_of(handle.prefix) == 1

    def test_one_that_waits_is_gone_at_once(self, directory: str) -> None:
        with blocking("upload") as gate, ck.Saver() as saver:
            first = saver.save_async(values(1), f"{directory}/m", 1)
            second = saver.save_async(values(2), f"{directory}/m", 2, snapshot=False)
            gate.wait_reached()
            assert second.cancel()
            with pytest.raises(ck.SaveCancelledError):
                second.result(0)
            gate.open()
            assert first.result()
        assert listed(saver) == ["m-1"]

    def test_inside_its_own_callback_of_progress(self, directory: str) -> None:
        handles: list[ck.SaveHandle] = []
        begun = threading.Event()

        def report(event: object) -> None:
            begun.wait(WATCHDOG_S)
            handles[0].cancel()

        with ck.Saver(progress=report) as saver:
            handles.append(saver.save_async(values(1), f"{directory}/m", 1, snapshot=False))
            begun.set()
            with pytest.raises(ck.SaveCancelledError):
                handles[0].result()
        assert names_in(directory) == []
