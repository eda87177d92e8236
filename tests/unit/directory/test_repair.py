"""A record rebuilt from what is complete: nothing deleted, and nothing handed to retention by it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import ckptstore as ck
from ckptstore.directory.paths import owner_of
from ckptstore.directory.record_update import read_record, update_record
from ckptstore.directory.repair import RepairReport, repair_record
from ckptstore.errors import (
    AccessError,
    CorruptError,
    FormatError,
    NotFoundError,
    UnsupportedError,
    UsageError,
)
from ckptstore.format.record_facts import OwnerName
from ckptstore.format.record_protocol import format_record
from ckptstore.storage.base import Location
from ckptstore.storage.registry import locate, use_wrapper
from ckptstore.storage.wrappers import StorageWrapper
from tests.unit.directory.helpers import checkpoints_in, die_before_the_record, save_steps, stamp_of, values
from tests.unit.directory.repairing import (
    actions,
    latest_in,
    listed_in,
    make_run,
    mtime_of,
    owned_in,
    put,
    put_record,
    record_of,
    repair,
    tear,
    tree,
)

MODEL = OwnerName("model", "steps")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


class TestReadable:
    """A record that can be read keeps what it says, but for what is gone or torn."""

    def test_one_in_order_is_not_touched(self, run: Path) -> None:
        before = tree(run)
        status = (run / "checkpoint").stat()
        report = repair(run)
        assert (report.is_changed, report.is_written) == (False, False)
        assert tree(run) == before
        assert (run / "checkpoint").stat().st_mtime_ns == status.st_mtime_ns

    def test_what_is_gone_or_torn_leaves_the_list(self, run: Path) -> None:
        before = record_of(run)
        ck.remove_checkpoint(run / "model-3")
        tear(run, "model-5")
        report = repair(run)
        assert actions(report) == {"model-3": "dropped", "model-4": "stays", "model-5": "dropped"}
        faults = {item.prefix: item.fault for item in report.items}
        assert isinstance(faults["model-3"], NotFoundError)
        assert getattr(faults["model-5"], "code", "") == "truncated"
        assert report.latest_before == "model-5"
        assert latest_in(run) == "model-4"
        after = record_of(run)
        assert after.state is not None
        assert before.state is not None
        assert after.state.all_model_checkpoint_paths == ("model-4",)
        assert after.state.all_model_checkpoint_timestamps == (
            before.state.all_model_checkpoint_timestamps[1],
        )
        assert (after.pending, after.superseded, after.kept) == (before.pending, before.superseded, ())
        owner = after.owners[MODEL]
        assert (owner.epoch, owner.run, owner.highest_step, owner.next_keep_s) == (
            before.owners[MODEL].epoch,
            "before",
            5,
            before.owners[MODEL].next_keep_s,
        )
        assert (run / "model-5.index").exists()

    def test_a_save_that_died_between_index_and_record_is_adopted_and_owned(self, run: Path) -> None:
        for step in (6, 7):
            die_before_the_record(f"{run}/model", step, max_to_keep=9, run=f"dies {step}")
        report = repair(run)
        assert actions(report) == {
            **dict.fromkeys(["model-3", "model-4", "model-5"], "stays"),
            "model-6": "added",
            "model-7": "added",
        }
        assert latest_in(run) == "model-7"
        assert owned_in(run) == ["model-3", "model-4", "model-5", "model-6", "model-7"]
        state = record_of(run).state
        assert state is not None
        assert state.all_model_checkpoint_timestamps[-1] == mtime_of(run, "model-7")

    def test_a_torn_save_that_was_announced_is_not_taken_in(self, run: Path) -> None:
        die_before_the_record(f"{run}/model", 6, max_to_keep=9)
        tear(run, "model-6")
        report = repair(run)
        assert "model-6" not in actions(report)
        assert not report.is_changed

    def test_what_nobody_announced_is_not_taken_in(self, run: Path) -> None:
        save_steps(ck.Saver(), f"{run}/model", [6], write_state=False)
        report = repair(run)
        assert not report.is_changed
        assert latest_in(run) == "model-5"

    def test_what_retention_preserved_is_not_adopted(self, run: Path) -> None:
        tear(run, "model-5")
        repair(run)
        assert listed_in(run) == ["model-3", "model-4"]

    def test_where_nothing_listed_is_left_the_newest_there_is_the_latest_and_kept(self, run: Path) -> None:
        for step in (3, 4, 5):
            tear(run, f"model-{step}")
        # Newer by the clock, and another model.
        os.utime(run / "milestone.index", (4e9, 4e9))
        report = repair(run)
        assert latest_in(run) == "model-1"
        assert (listed_in(run), record_of(run).kept) == (["model-1"], ("model-1",))
        assert [item.is_kept for item in report.items if item.prefix == "model-1"] == [True]
        # The highest step is still known: 4 would be no new name.
        assert record_of(run).owners[MODEL].highest_step == 5

    def test_a_step_that_was_gone_back_to_stays_the_latest(self, run: Path) -> None:
        ck.update_checkpoint_state(run, f"{run}/model-3", [f"{run}/model-{step}" for step in (3, 4, 5)])
        tear(run, "model-4")
        repair(run)
        assert latest_in(run) == "model-3"

    def test_what_is_about_to_be_deleted_is_not_brought_back(self, run: Path) -> None:
        class NoDeletes(StorageWrapper):
            def intercept(self, primitive, keys, call):
                if primitive in ("delete_if", "delete_many"):
                    raise AccessError("no", url=keys[0])
                return call()

        with use_wrapper(NoDeletes), pytest.warns(ck.CkptStoreWarning, match="not deleted yet"):
            save_steps(ck.Saver(max_to_keep=3, run="after"), f"{run}/model", [6])
        pending = record_of(run).pending
        assert pending[-1].prefix == "model-3"
        tear(run, "model-6")
        repair(run)
        assert listed_in(run) == ["model-4", "model-5"]
        assert record_of(run).pending == pending
        save_steps(ck.Saver(max_to_keep=3, run="after"), f"{run}/model", [7])
        assert "model-3" not in checkpoints_in(str(run))

    def test_a_directory_that_moved(self, tmp_path: Path, run: Path) -> None:
        put_record(
            run,
            b'model_checkpoint_path: "/gone/run/model-5"\n'
            b'all_model_checkpoint_paths: "/gone/run/model-4"\n'
            b'all_model_checkpoint_paths: "/gone/run/model-5"\n'
            b'all_model_checkpoint_paths: "/elsewhere/other-7"\n',
        )
        report = repair(run)
        assert actions(report) == {"model-4": "moved", "model-5": "moved", "/elsewhere/other-7": "stays"}
        assert [item.is_elsewhere for item in report.items] == [False, False, True]
        assert listed_in(run) == ["model-4", "model-5", "/elsewhere/other-7"]
        assert latest_in(run) == "model-5"

    def test_absolute_paths_into_the_directory_stay_as_they_are(self, run: Path) -> None:
        record = f'model_checkpoint_path: "{run}/model-5"\nall_model_checkpoint_paths: "{run}/model-5"\n'
        put_record(run, record.encode())
        assert not repair(run).is_changed
        tear(run, "model-5")
        assert repair(run).latest == "model-4"

    def test_a_path_that_leads_nowhere_is_dropped(self, run: Path) -> None:
        put_record(run, b'model_checkpoint_path: "model-5"\nall_model_checkpoint_paths: "."\n')
        assert actions(repair(run)) == {".": "dropped", "model-5": "stays"}

    def test_other_basenames_keep_their_place(self, run: Path) -> None:
        save_steps(ck.Saver(run="best"), f"{run}/best", [2])
        tear(run, "best-2")
        repair(run)
        assert listed_in(run) == ["model-3", "model-4", "model-5"]
        assert latest_in(run) == "model-5"
        assert set(record_of(run).owners) == {MODEL, OwnerName("best", "steps")}

    def test_unknown_times_become_those_of_the_files(self, run: Path) -> None:
        put_record(
            run,
            b'model_checkpoint_path: "model-5"\n'
            b'all_model_checkpoint_paths: "model-2"\n'
            b'all_model_checkpoint_paths: "model-4"\n'
            b'all_model_checkpoint_paths: "model-5"\n',
        )
        os.utime(run / "model-4.index", (1234.0, 1234.0))
        # In the future: retention would preserve it for good.
        os.utime(run / "model-5.index", (9e9, 9e9))
        repair(run)
        state = record_of(run).state
        assert state is not None
        first, second = state.all_model_checkpoint_timestamps
        assert first == 1234.0
        assert second < 8e9

    def test_v1_checkpoints_and_those_below_stay_listed(
        self, tmp_path: Path, fixtures_dir: Path, run: Path
    ) -> None:
        for path in (fixtures_dir / "05_v1_format").glob("v1sh.ckpt-8*"):
            shutil.copy(path, run)
        shutil.copytree(fixtures_dir / "01_single_shard", run / "sub")
        name = next((run / "sub").glob("*.index")).stem
        lines = ["v1sh.ckpt-8-?????-of-00003", f"sub/{name}", "model-9"]
        record = f'model_checkpoint_path: "{lines[0]}"\n'
        put_record(run, (record + "".join(f'all_model_checkpoint_paths: "{n}"\n' for n in lines)).encode())
        report = repair(run)
        assert list(actions(report).values()) == ["stays", "stays", "dropped"]
        assert listed_in(run) == lines[:2]
        assert latest_in(run) == "v1sh.ckpt-8-?????-of-00003"

    def test_one_damaged_line_of_ours_costs_only_what_it_said(self, run: Path) -> None:
        data = (run / "checkpoint").read_bytes()
        put_record(run, data.replace(b"epoch=1 ", b"epoch=x "))
        report = repair(run)
        assert isinstance(report.fault, FormatError)
        assert len(report.lost) == 1
        assert (owned_in(run), latest_in(run)) == (["model-3", "model-4", "model-5"], "model-5")
        assert record_of(run).owners == {}

    def test_a_number_that_was_cut_off_is_not_believed(self, run: Path) -> None:
        data = (run / "checkpoint").read_bytes()
        put_record(run, data.rstrip()[:-9])
        assert repair(run).is_changed
        state = record_of(run).state
        assert state is not None
        mtimes = [mtime_of(run, f"model-{step}") for step in (3, 4, 5)]
        assert list(state.all_model_checkpoint_timestamps) == mtimes


DAMAGE = {
    "missing": None,
    "empty": b"",
    "blank": b"\n  \n",
    "zeros": bytes(500),
    "random": os.urandom(300).replace(b"#", b"x"),
    "no latest": b'all_model_checkpoint_paths: "model-5"\n',
    "unknown field": b'model_checkpoint_path: "model-5"\nmodel_checkpoint_size: 3\n',
    "another file": b"<html>404</html>",
}


class TestUnreadable:
    """In the place of a record that is missing or cannot be read, everything complete is listed and kept."""

    @pytest.fixture
    def broken(self, run: Path) -> Path:
        tear(run, "model-4")
        (run / "model-9.data-00000-of-00001").write_bytes(b"x")  # a save that died
        return run

    @pytest.mark.parametrize("damage", DAMAGE)
    def test_all_complete_ones_are_listed_and_none_is_owned(self, broken: Path, damage: str) -> None:
        data = DAMAGE[damage]
        (broken / "checkpoint").unlink() if data is None else put_record(broken, data)
        before = tree(broken)
        report = repair(broken)
        assert actions(report) == {
            "model-1": "added",
            "model-3": "added",
            "model-4": "left out",
            "model-5": "added",
            "milestone": "added",
        }
        assert (report.was_missing, report.fault is None) == (data is None, data is None)
        assert set(record_of(broken).kept) == {"model-1", "model-3", "model-5", "milestone"}
        assert owned_in(broken) == owned_in(broken, "milestone") == []
        state = record_of(broken).state
        assert state is not None
        for path, time_s in zip(
            state.all_model_checkpoint_paths, state.all_model_checkpoint_timestamps, strict=True
        ):
            assert time_s == mtime_of(broken, path)
        after = tree(broken)
        after.pop("checkpoint")
        before.pop("checkpoint", None)
        assert after == before

    def test_the_newest_is_the_latest(self, broken: Path) -> None:
        (broken / "checkpoint").unlink()
        # Times do not survive a copy; steps do.
        for step, mtime_s in ((1, 3e9), (3, 2e9), (5, 1e9)):
            os.utime(broken / f"model-{step}.index", (mtime_s, mtime_s))
        os.utime(broken / "milestone.index", (5e8, 5e8))
        assert repair(broken).latest == latest_in(broken) == "model-5"

    def test_a_second_repair_changes_nothing(self, broken: Path) -> None:
        (broken / "checkpoint").unlink()
        assert repair(broken).is_written
        before = tree(broken)
        assert not repair(broken).is_changed
        assert tree(broken) == before

    def test_retention_never_deletes_what_was_kept(self, broken: Path) -> None:
        (broken / "checkpoint").unlink()
        repair(broken)
        saver = ck.Saver(max_to_keep=2, run="after")
        save_steps(saver, f"{broken}/model", [6, 7, 8, 9, 10])
        assert saver.last_checkpoints == [f"{broken}/model-9", f"{broken}/model-10"]
        save_steps(ck.Saver(max_to_keep=1, run="later"), f"{broken}/model", [11])
        names = set(checkpoints_in(str(broken)))
        assert names == {"milestone", "model-1", "model-3", "model-4", "model-5", "model-11"}
        assert set(listed_in(broken)) == names - {"model-4"}
        assert latest_in(broken) == "model-11"
        assert record_of(broken).owners[MODEL].epoch == 2

    def test_saving_a_kept_one_again_takes_it_over(self, broken: Path) -> None:
        (broken / "checkpoint").unlink()
        repair(broken)
        saver = ck.Saver(max_to_keep=1, run="after")
        save_steps(saver, f"{broken}/model", [3])
        assert "model-3" not in record_of(broken).kept
        assert listed_in(broken).count("model-3") == 1
        save_steps(saver, f"{broken}/model", [6])
        assert "model-3" not in checkpoints_in(str(broken))
        assert "model-5" in checkpoints_in(str(broken))

    def test_the_user_may_hand_kept_ones_over(self, broken: Path) -> None:
        (broken / "checkpoint").unlink()
        repair(broken)
        saver = ck.Saver(max_to_keep=2, run="after")
        saver.recover_last_checkpoints([f"{broken}/model-1", f"{broken}/model-3"])
        save_steps(saver, f"{broken}/model", [6])
        assert "model-1" not in checkpoints_in(str(broken))
        assert set(record_of(broken).kept) == {"model-5", "milestone"}

    def test_other_functions_keep_the_lines(self, broken: Path) -> None:
        (broken / "checkpoint").unlink()
        repair(broken)
        kept = record_of(broken).kept
        ck.update_checkpoint_state(broken, f"{broken}/model-5", [f"{broken}/model-{n}" for n in (1, 3, 5)])
        assert record_of(broken).kept == kept

    def test_a_damaged_kept_line_gives_nothing_away(self, broken: Path) -> None:
        (broken / "checkpoint").unlink()
        repair(broken)
        data = (broken / "checkpoint").read_bytes()
        put_record(broken, data.replace(b'# kept "model-1"', b'# kept "model-1'))
        with pytest.warns(ck.CkptStoreWarning):
            save_steps(ck.Saver(max_to_keep=1, run="after"), f"{broken}/model", [6])
        save_steps(ck.Saver(max_to_keep=1, run="later"), f"{broken}/model", [7])
        assert {"model-1", "model-3", "model-5"} <= set(checkpoints_in(str(broken)))

    def test_a_manager_finds_the_latest_and_deletes_none(self, broken: Path, tmp_path: Path) -> None:
        directory = tmp_path / "managed"
        net = {"w": values(1)["w"]}
        manager = ck.CheckpointManager(ck.Checkpoint(net), directory, 2, run="a")
        for _ in range(3):
            manager.save()
        (directory / "checkpoint").unlink()
        repair(directory)
        manager = ck.CheckpointManager(ck.Checkpoint(net), directory, 1, run="b")
        assert manager.latest_checkpoint == f"{directory}/ckpt-3"
        assert manager.checkpoints == []
        assert manager.restore_or_initialize() == f"{directory}/ckpt-3"
        for _ in range(2):
            manager.save()
        assert checkpoints_in(str(directory)) == ["ckpt-2", "ckpt-3", "ckpt-5"]

    def test_a_frozen_run_stays_fenced(self, run: Path) -> None:
        frozen = ck.Saver(run="frozen")
        save_steps(frozen, f"{run}/model", [6])
        save_steps(ck.Saver(run="newer"), f"{run}/model", [7])
        data = (run / "checkpoint").read_bytes()
        put_record(run, data[: data.index(b"model_checkpoint_path") + 30])
        repair(run)
        owner = record_of(run).owners[MODEL]
        assert (owner.epoch, owner.run) == (3, "newer")
        with pytest.raises(ck.FencedError, match="newer"):
            save_steps(frozen, f"{run}/model", [8])
        assert latest_in(run) == "model-7"

    def test_the_run_that_is_alive_takes_its_own_back(self, tmp_path: Path) -> None:
        ck.Saver().save(values(1), f"{tmp_path}/model", 1, write_state=False)
        alive = ck.Saver(max_to_keep=2, run="alive")
        save_steps(alive, f"{tmp_path}/model", [5, 6, 7])
        (tmp_path / "checkpoint").unlink()
        repair(tmp_path)
        with pytest.warns(ck.CkptStoreWarning, match="another program rewrote"):
            save_steps(alive, f"{tmp_path}/model", [8])
        assert checkpoints_in(str(tmp_path)) == ["model-1", "model-6", "model-7", "model-8"]
        save_steps(alive, f"{tmp_path}/model", [9])
        assert checkpoints_in(str(tmp_path)) == ["model-1", "model-8", "model-9"]

    def test_no_complete_checkpoint(self, tmp_path: Path) -> None:
        save_steps(ck.Saver(), f"{tmp_path}/model", [1])
        tear(tmp_path, "model-1")
        for data in (None, b"", (tmp_path / "checkpoint").read_bytes()):
            (tmp_path / "checkpoint").unlink(missing_ok=True)
            if data is not None:
                put_record(tmp_path, data)
            before = tree(tmp_path)
            with pytest.raises(NotFoundError, match="no complete checkpoint"):
                repair(tmp_path)
            assert tree(tmp_path) == before

    def test_what_all_was_to_go_is_better_than_nothing(self, run: Path) -> None:
        place = locate(str(run))
        lines = [
            f'# pending "{prefix}" version="{place.storage.head(place.child(prefix + ".index").key).version}"'
            ' shards="00000-of-00001"\n'
            for prefix in checkpoints_in(str(run))
        ]
        put_record(run, f"# ckptstore 1\n{''.join(lines)}".encode())
        repair(run)
        assert latest_in(run) is not None
        assert record_of(run).pending == ()

    def test_a_pending_line_of_a_damaged_record_still_holds(self, run: Path) -> None:
        place = locate(str(run))
        version = place.storage.head(place.child("model-3.index").key).version
        put_record(
            run,
            f'# ckptstore 1\n# pending "model-3" version="{version}" shards="00000-of-00001"\n'
            '# pending "model-4" version="another" shards="00000-of-00001"\n'.encode(),
        )
        repair(run)
        # The one that was saved again since is another checkpoint.
        assert set(listed_in(run)) == {"model-1", "model-4", "model-5", "milestone"}


class TestTroubles:
    def test_dry_run_writes_nothing(self, run: Path) -> None:
        (run / "checkpoint").unlink()
        before = tree(run)
        report = repair(run, dry_run=True)
        assert (report.is_changed, report.is_written) == (True, False)
        assert tree(run) == before

    def test_a_checkpoint_that_cannot_be_looked_at_is_not_dropped(self, run: Path) -> None:
        class Locked(StorageWrapper):
            def intercept(self, primitive, keys, call):
                if keys[0].endswith("model-4.index"):
                    raise AccessError("cannot read", url=keys[0])
                return call()

        tear(run, "model-5")
        before = tree(run)
        with use_wrapper(Locked), pytest.raises(AccessError):
            repair(run)
        assert tree(run) == before

    def test_a_record_of_a_newer_ckptstore_is_left_alone(self, run: Path) -> None:
        for data in (b'# ckptstore 2\nmodel_checkpoint_path: "model-5"\n', b"# ckptstore 2\n"):
            put_record(run, data)
            with pytest.raises(UnsupportedError):
                repair(run)

    def test_a_directory_in_its_place_is_left_alone(self, run: Path) -> None:
        (run / "checkpoint").unlink()
        (run / "checkpoint").mkdir()
        with pytest.raises(UsageError):
            repair(run)

    def test_a_file_too_large_to_be_a_record_is_left_alone(self, run: Path) -> None:
        with (run / "checkpoint").open("wb") as file:
            file.truncate(1 << 30)
        with pytest.raises(CorruptError, match="too large"):
            repair(run)
        assert (run / "checkpoint").stat().st_size == 1 << 30

    def test_hostile_paths_lead_nowhere(self, run: Path, tmp_path: Path) -> None:
        shutil.copytree(run, tmp_path / "other")
        put_record(
            run,
            b'model_checkpoint_path: "../other/model-5"\n'
            b'all_model_checkpoint_paths: "a/../../other/model-4"\n'
            b'all_model_checkpoint_paths: "\\033]0;x\\007"\n',
        )
        before = tree(tmp_path / "other")
        repair(run)
        assert latest_in(run) == "model-5"
        assert tree(tmp_path / "other") == before

    def test_a_saver_that_comes_in_between_is_not_written_over(self, run: Path) -> None:
        saver = ck.Saver(max_to_keep=2, run="busy")
        steps = iter([6])

        class Busy(StorageWrapper):
            def intercept(self, primitive, keys, call):
                if primitive == "put_if" and (step := next(steps, None)) is not None:
                    save_steps(saver, f"{run}/model", [step])
                return call()

        ck.remove_checkpoint(run / "model-3")
        place = locate(str(run))
        busy = Location(Busy(place.storage), place.key, place.url)
        report = repair_record(busy, busy.child("checkpoint"))
        # The save let go of the one that was gone, so nothing was left to do.
        assert not report.is_written
        assert listed_in(run) == ["model-5", "model-6"]
        assert stamp_of(f"{run}/model-6") == 6

    def test_it_is_written_by_compare_and_swap(self, run: Path) -> None:
        saver = ck.Saver(max_to_keep=9, run="busy")
        steps = iter([6])

        class Busy(StorageWrapper):
            def intercept(self, primitive, keys, call):
                if primitive == "put_if" and (step := next(steps, None)) is not None:
                    save_steps(saver, f"{run}/model", [step])
                    tear(run, "model-6")
                return call()

        tear(run, "model-5")
        place = locate(str(run))
        busy = Location(Busy(place.storage), place.key, place.url)
        report = repair_record(busy, busy.child("checkpoint"))
        assert report.is_written
        assert (listed_in(run), latest_in(run)) == (["model-3", "model-4"], "model-4")
        assert record_of(run).owners[MODEL].run == "busy"

    def test_two_repairs_at_once(self, run: Path) -> None:
        place = locate(str(run))
        nested: list[RepairReport] = []

        class Racing(StorageWrapper):
            def intercept(self, primitive, keys, call):
                if primitive == "put_new" and not nested:
                    nested.append(repair(run))
                return call()

        (run / "checkpoint").unlink()
        racing = Location(Racing(place.storage), place.key, place.url)
        assert not repair_record(racing, racing.child("checkpoint")).is_written
        assert nested[0].is_written

    def test_another_record(self, run: Path) -> None:
        saver = ck.Saver(run="b")
        saver.save(values(2), f"{run}/best", 2, latest_filename="best_record")
        put(run, "best_record", b"")
        before = (run / "checkpoint").read_bytes()
        place = locate(str(run))
        repair_record(place, place.child("best_record"))
        assert ck.latest_checkpoint(run, "best_record") is not None
        assert (run / "checkpoint").read_bytes() == before


class TestTensorFlowsDirectories:
    @pytest.mark.parametrize(
        ("name", "latest"),
        [
            ("02_sharded_devices", "sh"),
            ("05_v1_format", "v1sh.ckpt-8-?????-of-00003"),
            ("10_checkpoint_record/manager", "ck-5"),
            ("10_checkpoint_record/saver", "model.ckpt-00000379"),
        ],
    )
    def test_a_healthy_one_is_not_touched(
        self, tmp_path: Path, fixtures_dir: Path, name: str, latest: str
    ) -> None:
        shutil.copytree(fixtures_dir / name, tmp_path / "run")
        report = repair(tmp_path / "run")
        assert (report.is_changed, report.latest) == (False, latest)

    def test_without_its_record(self, tmp_path: Path, fixtures_dir: Path) -> None:
        run = tmp_path / "run"
        shutil.copytree(fixtures_dir / "10_checkpoint_record" / "saver", run)
        (run / "checkpoint").unlink()
        repair(run)
        assert listed_in(run) == ["model.ckpt-00000268", "model.ckpt-00000379"]
        assert latest_in(run) == "model.ckpt-00000379"
        assert {owner_of(path) for path in listed_in(run)} == {"model.ckpt"}


def test_no_two_records_have_the_same_bytes(run: Path) -> None:
    place = locate(str(run)).child("checkpoint")
    good = read_record(place).record
    seen = {format_record(good)}
    for _ in range(2):
        update_record(place, lambda snapshot: good, timeout_s=1.0)
        tear(run, "model-5")
        repair(run)
        data = (run / "checkpoint").read_bytes()
        assert data not in seen
        seen.add(data)
