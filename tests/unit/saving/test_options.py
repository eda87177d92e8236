"""The options of a save: what is refused, what they change, and that nothing else changes with them."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.directory.repair import repair_record
from ckptstore.storage.base import Storage
from ckptstore.storage.local.storage import LocalStorage
from ckptstore.storage.registry import locate, use_wrapper
from ckptstore.storage.scope import current_scope
from ckptstore.storage.wrappers import StorageWrapper
from ckptstore.testing import CountingStorage
from tests.unit.blocking_storage import WATCHDOG_S, blocking
from tests.unit.directory.helpers import fresh_memory, listed, names_in, stamp_of, values

_T = TypeVar("_T")


WRONG = [
    {"deadline_s": 0},
    {"deadline_s": -1},
    {"deadline_s": float("nan")},
    {"deadline_s": float("inf")},
    {"deadline_s": "5"},
    {"deadline_s": True},
    {"memory_budget": 0},
    {"memory_budget": -5},
    {"memory_budget": 1.5},
    {"memory_budget": "1G"},
    {"durability": "ram"},
    {"durability": None},
    {"progress": "bar"},
    {"progress": 3},
]
WRONG_OF_SAVERS = [{"queue": "drop"}, {"queue": None}]
WRONG_OF_BOTH = [{"reuse_unchanged": "yes"}, {"reuse_unchanged": None}]


class TestWrongOnes:
    @pytest.mark.parametrize("options", [*WRONG, *WRONG_OF_SAVERS, *WRONG_OF_BOTH], ids=repr)
    def test_a_saver_refuses_them_at_once(self, options: dict) -> None:
        with pytest.raises(ck.UsageError, match=next(iter(options))):
            ck.Saver(**options)

    @pytest.mark.parametrize("options", [*WRONG, *WRONG_OF_BOTH], ids=repr)
    def test_a_manager_refuses_them_before_anything_is_made(self, options: dict, tmp_path: Path) -> None:
        with pytest.raises(ck.UsageError, match=next(iter(options))):
            ck.CheckpointManager(ck.Checkpoint(w=np.ones(2)), tmp_path / "run", 3, **options)
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("options", WRONG, ids=repr)
    @pytest.mark.parametrize("method", ["write", "save"])
    def test_a_checkpoint_refuses_them_before_anything_is_written(
        self, method: str, options: dict, tmp_path: Path
    ) -> None:
        checkpoint = ck.Checkpoint(w=np.ones(2))
        with pytest.raises(ck.UsageError, match=next(iter(options))):
            getattr(checkpoint, method)(tmp_path / "run" / "c", **options)
        assert not (tmp_path / "run").exists()
        assert int(checkpoint.save_counter) == 0

    def test_they_are_keywords_only(self) -> None:
        import inspect

        parameters = inspect.signature(ck.Saver).parameters
        for name in ("deadline_s", "memory_budget", "durability", "progress", "reuse_unchanged", "queue"):
            assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY

    def test_numbers_of_numpy_will_do(self) -> None:
        prefix = f"{fresh_memory()}/m"
        numbers: dict[str, Any] = {"deadline_s": np.float32(60), "memory_budget": np.int64(1 << 20)}
        saver = ck.Saver(**numbers)
        saver.save(values(1), prefix)
        assert stamp_of(prefix) == 1


class LateForTheRecord(StorageWrapper):
    """The time is up when the record is to be written, the index being there."""

    is_published = False

    def intercept(self, primitive: str, keys: Sequence[str], call: Callable[[], _T]) -> _T:
        is_put = primitive in ("put_new", "put_if")
        self.is_published |= is_put and keys[0].endswith(".index")
        if is_put and keys[0].endswith("/checkpoint") and self.is_published:
            scope = current_scope()
            assert scope is not None
            scope._ends_s = 0.0
            scope.check()
        return call()


class TestDeadline:
    def test_a_save_that_takes_too_long_leaves_nothing(self, tmp_path: Path) -> None:
        with blocking("upload.commit") as gate, ck.Saver(deadline_s=0.05) as saver:
            threading.Timer(0.2, gate.open).start()
            with pytest.raises(ck.DeadlineError, match="cannot save") as caught:
                saver.save(values(1), tmp_path / "run" / "m", 1)
            assert caught.value.url == str(tmp_path / "run" / "m-1")
        assert names_in(str(tmp_path / "run")) == []

    def test_also_in_the_background(self, tmp_path: Path) -> None:
        with blocking("upload.commit") as gate, ck.Saver(deadline_s=0.05) as saver:
            handle = saver.save_async(values(1), tmp_path / "run" / "m", 1)
            threading.Timer(0.2, gate.open).start()
            with pytest.raises(ck.DeadlineError, match="cannot save"):
                handle.result()
        assert names_in(str(tmp_path / "run")) == []

    @pytest.mark.parametrize("is_first", [True, False])
    def test_one_that_ends_before_the_record_says_what_is_there_and_what_to_do(
        self, is_first: bool, tmp_path: Path
    ) -> None:
        directory = tmp_path / "run"
        if not is_first:
            ck.Saver(run="r").save(values(1), directory / "m", 1)
        saver = ck.Saver(deadline_s=60, run="r")
        with use_wrapper(LateForTheRecord), pytest.raises(ck.DeadlineError) as caught:
            saver.save(values(2), directory / "m", 2)
        text = str(caught.value)
        assert "'m-2' is published, but the record does not name it" in text
        assert f"ckptstore repair {directory}" in text
        # What the message says is so.
        assert stamp_of(directory / "m-2") == 2
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ck.CkptStoreWarning)
            assert ck.latest_checkpoint(directory) == str(directory / ("m-2" if is_first else "m-1"))
        assert repair_record(locate(directory), locate(directory / "checkpoint")).latest == "m-2"
        assert ck.latest_checkpoint(directory) == str(directory / "m-2")

    def test_the_next_save_names_it_too(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        saver = ck.Saver(deadline_s=60)
        with use_wrapper(LateForTheRecord), monkeypatch.context() as patch:
            with pytest.raises(ck.DeadlineError, match="next save"):
                saver.save(values(1), tmp_path / "m", 1)
            patch.setattr(LateForTheRecord, "intercept", StorageWrapper.intercept)
            saver.save(values(2), tmp_path / "m", 2)
        assert listed(saver) == ["m-1", "m-2"]
        assert stamp_of(tmp_path / "m-1") == 1

    def test_it_counts_for_each_save_anew(self, tmp_path: Path) -> None:
        with ck.Saver(deadline_s=30) as saver:
            for step in (1, 2, 3):
                saver.save(values(step), tmp_path / "m", step)
            assert len(saver.last_checkpoints) == 3


class TestDurability:
    @pytest.mark.parametrize("save", ["save", "save_async"])
    def test_cache_does_not_wait_for_the_disk(
        self, save: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        synced: list[int] = []
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, synced.append)
        with ck.Saver(durability="cache") as saver:
            getattr(saver, save)(values(1), tmp_path / "cache" / "m", 1)
        assert synced == []
        assert stamp_of(tmp_path / "cache" / "m-1") == 1
        with ck.Saver(durability="disk") as saver:
            getattr(saver, save)(values(2), tmp_path / "disk" / "m", 2)
        assert synced != []

    def test_a_graph_that_somebody_wrote_without_waiting_is_on_the_disk_too(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        synced: list[int] = []
        sync = os.fsync

        def watched(fd: int) -> None:
            synced.append(os.fstat(fd).st_ino)
            sync(fd)

        ck.Saver(durability="cache", run="r").save(values(1), tmp_path / "m", 1)
        graph = (tmp_path / "m-1.meta").stat().st_ino
        monkeypatch.setattr(os, "fsync", watched)
        ck.Saver(durability="cache", run="r").save(values(2), tmp_path / "m", 1)
        assert synced == []
        ck.Saver(run="r").save(values(3), tmp_path / "m", 1)
        assert (tmp_path / "m-1.meta").stat().st_ino == graph
        assert synced[synced.index(graph) + 1] == tmp_path.stat().st_ino

    def test_both_see_the_same_directory(self, tmp_path: Path) -> None:
        ck.Saver(durability="cache", run="one", max_to_keep=1).save(values(1), tmp_path / "m", 1)
        saver = ck.Saver(durability="disk", run="one", max_to_keep=1)
        saver.save(values(2), tmp_path / "m", 2)
        assert ck.latest_checkpoint(tmp_path) == str(tmp_path / "m-2")
        assert not (tmp_path / "m-1.index").exists()

    def test_of_a_manager_and_a_checkpoint_too(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        synced: list[int] = []
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, synced.append)
        checkpoint = ck.Checkpoint(w=np.ones(2))
        ck.CheckpointManager(checkpoint, tmp_path / "a", 3, durability="cache").save()
        checkpoint.write(tmp_path / "b", durability="cache")
        checkpoint.save(tmp_path / "c", durability="cache")
        assert synced == []

    def test_where_it_makes_no_difference_it_is_the_same_place(self) -> None:
        prefix = f"{fresh_memory()}/m"
        ck.Saver(durability="cache").save(values(1), prefix)
        assert stamp_of(prefix) == 1


class TestProgress:
    @pytest.mark.parametrize("save", ["save", "save_async"])
    def test_events_lead_from_nothing_to_everything(self, save: str, tmp_path: Path) -> None:
        events: list = []
        arrays = {"w": np.ones(3_000_000), "b": np.ones(10)}
        with ck.Saver(progress=events.append) as saver:
            getattr(saver, save)(arrays, tmp_path / "m", 7)
        size = sum(array.nbytes for array in arrays.values())
        assert {(event.kind, event.url, event.step) for event in events} == {
            ("save", str(tmp_path / "m-7"), 7)
        }
        done = [event.done_bytes for event in events]
        assert done == sorted(done)
        assert (done[0], done[-1]) == (0, size)
        assert events[-1].total_bytes == size
        assert [event.is_over for event in events] == [False] * (len(events) - 1) + [True]

    def test_a_report_that_raises_does_not_break_the_save(self, tmp_path: Path) -> None:
        def report(event: object) -> None:
            raise ZeroDivisionError

        with pytest.warns(ck.CkptStoreWarning, match="report of progress"):
            ck.Saver(progress=report).save(values(1), tmp_path / "m")
        assert stamp_of(tmp_path / "m") == 1

    @pytest.mark.parametrize("save", ["save", "save_async"])
    def test_one_line_in_the_log(self, save: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO, "ckptstore"), ck.Saver() as saver:
            getattr(saver, save)(values(1), tmp_path / "m", 7)
        lines = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
        assert len(lines) == 1
        assert lines[0].startswith(f"save of step 7 ({tmp_path}/m-7): 32 bytes in ")
        assert "MB/s" in lines[0]
        assert "requests" in lines[0]

    def test_of_a_manager_and_a_checkpoint_too(self, tmp_path: Path) -> None:
        events: list = []
        checkpoint = ck.Checkpoint(w=np.ones(2))
        ck.CheckpointManager(checkpoint, tmp_path / "a", 3, progress=events.append).save()
        checkpoint.write(tmp_path / "b", progress=events.append)
        checkpoint.save(tmp_path / "c", progress=events.append)
        assert [event.url for event in events if event.is_over] == [
            str(tmp_path / "a" / "ckpt-1"),
            str(tmp_path / "b"),
            str(tmp_path / "c-2"),
        ]


class TestMemoryBudget:
    @pytest.mark.parametrize("budget", [1, 1 << 20, 20 << 20])
    @pytest.mark.parametrize("snapshot", [True, False])
    def test_any_budget_saves_the_same_bytes(self, budget: int, snapshot: bool, tmp_path: Path) -> None:
        generator = np.random.default_rng(0)
        arrays = {
            "large": generator.random(5_000_000),
            "strided": generator.random((2000, 700)).T,
            "text": np.array([b"x" * 1000] * 300, object),
            **{f"small/{number:03}": generator.random(number) for number in range(200)},
        }
        ck.Saver().save(arrays, tmp_path / "free" / "m")
        with ck.Saver(memory_budget=budget) as saver:
            saver.save_async(arrays, tmp_path / "bound" / "m", snapshot=snapshot)
        for end in (".index", ".data-00000-of-00001"):
            assert (tmp_path / "bound" / f"m{end}").read_bytes() == (
                tmp_path / "free" / f"m{end}"
            ).read_bytes()

    def test_with_less_than_the_size_it_returns_when_the_last_array_is_copied(self, tmp_path: Path) -> None:
        arrays = {f"w{number}": np.zeros(2_000_000) for number in range(4)}
        handles: list[ck.SaveHandle] = []
        with blocking("upload.send") as gate, ck.Saver(memory_budget=16 << 20) as saver:
            thread = threading.Thread(target=lambda: handles.append(saver.save_async(arrays, tmp_path / "m")))
            thread.start()
            gate.wait_reached()
            # The memory is full of what cannot leave yet: the rest is still to be copied.
            thread.join(0.2)
            assert thread.is_alive()
            arrays["w3"][...] = 3
            gate.open()
            thread.join(WATCHDOG_S)
            assert handles[0].staged
            for array in arrays.values():
                array[...] = 9
        with ck.open_checkpoint(tmp_path / "m") as checkpoint:
            assert [float(checkpoint[name].max()) for name in sorted(checkpoint)] == [0, 0, 0, 3]

    def test_a_failure_ends_the_copy_that_waits_for_memory(self, tmp_path: Path) -> None:
        arrays = {f"w{number}": np.ones(2_000_000) for number in range(4)}
        with blocking("upload.commit") as gate, ck.Saver(memory_budget=1) as saver:
            gate.open(ck.StorageFullError("no room"))
            handle = saver.save_async(arrays, tmp_path / "m")
            with pytest.raises(ck.StorageFullError):
                handle.result(WATCHDOG_S)
            assert handle.staged
            gate.open()
            saver.save(arrays, tmp_path / "m")
        assert names_in(str(tmp_path))

    def test_close_gives_the_memory_of_snapshots_back(self, tmp_path: Path) -> None:
        from ckptstore.transfer.blocks import release_blocks

        saver = ck.Saver()
        saver.save_async({"w": np.ones(3_000_000)}, tmp_path / "m").result()
        saver.close()
        assert release_blocks() == 0


class TestReuseUnchanged:
    @pytest.fixture
    def counting(self) -> object:
        made: list[CountingStorage] = []

        def wrap(inner: Storage) -> CountingStorage:
            made.append(CountingStorage(inner))
            return made[-1]

        with use_wrapper(wrap):
            yield made

    @staticmethod
    def step(number: int) -> dict[str, np.ndarray]:
        return {"frozen": np.arange(1000.0), "w": np.full(10, float(number)), "x": np.full(3, float(number))}

    @pytest.mark.parametrize("save", ["save", "save_async"])
    def test_what_did_not_change_is_linked_from_the_third_save_on(self, save: str, tmp_path: Path) -> None:
        if not supports_links(tmp_path):
            pytest.skip("the file system keeps no extended attributes")
        with ck.Saver(reuse_unchanged=True) as saver:
            for number in (1, 2, 3, 4):
                getattr(saver, save)(self.step(number), tmp_path / "m", number)
        assert files_of_step(tmp_path, 1) == {"m-1.data-00000-of-00001": 8104}
        for number in (2, 3, 4):
            assert files_of_step(tmp_path, number) == {
                f"m-{number}.data-00000-of-00002": 104,
                f"m-{number}.data-00001-of-00002": 8000,
            }
        inodes = {(tmp_path / f"m-{number}.data-00001-of-00002").stat().st_ino for number in (2, 3, 4)}
        assert len(inodes) == 1 or is_cloning(tmp_path)
        for number in (1, 2, 3, 4):
            self.check(tmp_path / f"m-{number}", number)

    def check(self, prefix: Path, number: int) -> None:
        with ck.open_checkpoint(prefix) as checkpoint:
            assert {name: array.tolist() for name, array in checkpoint.items()} == {
                name: array.tolist() for name, array in self.step(number).items()
            }

    def test_the_newer_outlives_the_older(self, tmp_path: Path) -> None:
        saver = ck.Saver(reuse_unchanged=True, max_to_keep=1)
        for number in (1, 2, 3, 4):
            saver.save(self.step(number), tmp_path / "m", number)
        assert {name.split(".")[0] for name in names_in(str(tmp_path))} == {"checkpoint", "m-4"}
        self.check(tmp_path / "m-4", 4)

    def test_it_goes_on_after_a_restart(self, tmp_path: Path, counting: list[CountingStorage]) -> None:
        ck.Saver(reuse_unchanged=True).save(self.step(1), tmp_path / "m", 1)
        ck.Saver(reuse_unchanged=True, run="next").save(self.step(2), tmp_path / "m", 2)
        ck.Saver(reuse_unchanged=True, run="third").save(self.step(3), tmp_path / "m", 3)
        assert counting[0].counts["copy_from"] == 1
        self.check(tmp_path / "m-3", 3)

    @pytest.mark.parametrize("save", ["save", "save_async"])
    def test_where_nothing_can_be_copied_it_travels(
        self, save: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(LocalStorage, "copy_from", lambda *_: None)
        with ck.Saver(reuse_unchanged=True) as saver:
            for number in (1, 2, 3):
                getattr(saver, save)(self.step(number), tmp_path / "m", number)
        assert (tmp_path / "m-3.data-00001-of-00002").stat().st_nlink == 1
        self.check(tmp_path / "m-3", 3)

    def test_a_file_that_somebody_else_replaced_is_not_taken(self, tmp_path: Path) -> None:
        saver = ck.Saver(reuse_unchanged=True)
        for number in (1, 2):
            saver.save(self.step(number), tmp_path / "m", number)
        victim = tmp_path / "m-2.data-00001-of-00002"
        victim.unlink()
        victim.write_bytes(bytes(8000))
        saver.save(self.step(3), tmp_path / "m", 3)
        self.check(tmp_path / "m-3", 3)

    def test_a_file_that_is_gone_is_written_anew(self, tmp_path: Path) -> None:
        saver = ck.Saver(reuse_unchanged=True)
        for number in (1, 2):
            saver.save(self.step(number), tmp_path / "m", number)
        (tmp_path / "m-2.data-00001-of-00002").unlink()
        saver.save(self.step(3), tmp_path / "m", 3)
        self.check(tmp_path / "m-3", 3)

    def test_a_name_that_is_taken_moves_the_whole_save(self, tmp_path: Path) -> None:
        saver = ck.Saver(reuse_unchanged=True)
        for number in (1, 2):
            saver.save(self.step(number), tmp_path / "m", number)
        (tmp_path / "m-3.data-00001-of-00002").write_bytes(b"a stranger's")
        saver.save(self.step(3), tmp_path / "m", 3)
        assert (tmp_path / "m-3.data-00001-of-00002").read_bytes() == b"a stranger's"
        self.check(tmp_path / "m-3", 3)

    def test_within_a_budget_below_the_size(self, tmp_path: Path) -> None:
        def big(number: int) -> dict[str, np.ndarray]:
            return {"frozen": np.arange(4_000_000.0), "w": np.full(2_000_000, float(number))}

        with ck.Saver(reuse_unchanged=True, memory_budget=9 << 20) as saver:
            for number in (1, 2, 3):
                saver.save_async(big(number), tmp_path / "m", number)
        with ck.open_checkpoint(tmp_path / "m-3") as checkpoint:
            assert all(np.array_equal(checkpoint[name], array) for name, array in big(3).items())

    def test_an_overwrite_takes_from_what_it_replaces(self, tmp_path: Path) -> None:
        saver = ck.Saver(reuse_unchanged=True)
        for number in (1, 2, 3, 4):
            saver.save(self.step(number), tmp_path / "m")
            self.check(tmp_path / "m", number)

    def test_of_a_manager(self, tmp_path: Path, counting: list[CountingStorage]) -> None:
        tree = {"frozen": np.arange(1000.0), "w": np.zeros(10)}
        manager = ck.CheckpointManager(ck.Checkpoint(net=tree), tmp_path, 1, reuse_unchanged=True)
        for number in (1, 2, 3):
            tree["w"][...] = number
            manager.save()
        assert counting[0].counts["copy_from"] == 1
        tree["w"][...] = tree["frozen"][...] = -1
        ck.Checkpoint(net=tree).restore(manager.latest_checkpoint).assert_existing_objects_matched()
        assert tree["w"].tolist() == [3] * 10
        assert tree["frozen"].tolist() == list(range(1000))

    def test_a_cancelled_save_takes_nothing_along(self, tmp_path: Path) -> None:
        with blocking("put_new", ".meta", is_open=True) as gate, ck.Saver(reuse_unchanged=True) as saver:
            for number in (1, 2):
                saver.save(self.step(number), tmp_path / "m", number)
            gate.close()
            handle = saver.save_async(self.step(3), tmp_path / "m", 3)
            gate.wait_reached()
            assert handle.cancel()
            gate.open()
            with pytest.raises(ck.SaveCancelledError):
                handle.result()
            assert files_of_step(tmp_path, 3) == {}
            saver.save(self.step(4), tmp_path / "m", 4)
        self.check(tmp_path / "m-2", 2)
        self.check(tmp_path / "m-4", 4)


def files_of_step(directory: Path, number: int) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(directory.glob(f"m-{number}.data-*"))}


def supports_links(directory: Path) -> bool:
    probe = directory / "probe"
    probe.touch()
    try:
        os.setxattr(probe, "user.ckptstore.probe", b"")
    except OSError:
        return False
    finally:
        probe.unlink()
    return True


def is_cloning(directory: Path) -> bool:
    """Whether the file system clones files, so that nothing has to be linked."""
    from ckptstore.storage.local.mounts import file_system_type

    fd = os.open(directory, os.O_RDONLY)
    try:
        return file_system_type(fd) in ("btrfs", "xfs", "bcachefs")
    finally:
        os.close(fd)
