"""What a Saver keeps over time: restarts, other programs, other basenames, the last graph."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.storage.registry import use_wrapper
from ckptstore.storage.wrappers import StorageWrapper
from ckptstore.testing import CountingStorage, ManualClock
from tests.own_warnings import own_warnings
from tests.unit.directory.helpers import (
    checkpoints_in,
    die_before_the_record,
    files_of,
    listed,
    names_in,
    save_steps,
    stamp_of,
    values,
)
from tests.unit.directory.repairing import record_of

HOUR = 3600.0


def tensorflow_record(directory: Path, latest: str, *paths: str) -> None:
    """Write the record as TensorFlow's Saver does: no comments, no times."""
    lines = [f'model_checkpoint_path: "{latest}"\n']
    lines += [f'all_model_checkpoint_paths: "{path}"\n' for path in paths or (latest,)]
    (directory / "checkpoint").write_text("".join(lines))


@pytest.fixture
def base(tmp_path: Path) -> str:
    return f"{tmp_path}/model"


class TestWindow:
    def test_the_surplus_goes_at_once_when_the_limit_is_lowered(self, base: str, tmp_path: Path) -> None:
        save_steps(ck.Saver(max_to_keep=6, run="a"), base, range(1, 7))
        lower = ck.Saver(max_to_keep=2, run="b")
        save_steps(lower, base, [7])
        assert listed(lower) == checkpoints_in(str(tmp_path)) == ["model-6", "model-7"]

    @pytest.mark.parametrize("keep", [None, 0])
    def test_without_a_limit_nothing_goes_and_the_newest_is_listed(
        self, keep: int | None, base: str, tmp_path: Path
    ) -> None:
        saver = ck.Saver(max_to_keep=keep)
        save_steps(saver, base, range(1, 8))
        assert saver.last_checkpoints == []
        assert len(checkpoints_in(str(tmp_path))) == 7
        state = ck.get_checkpoint_state(tmp_path)
        assert state is not None
        assert list(state.all_model_checkpoint_paths) == [f"{base}-7"]

    def test_keep_one(self, base: str, tmp_path: Path) -> None:
        save_steps(ck.Saver(max_to_keep=1), base, range(1, 4))
        assert names_in(str(tmp_path)) == ["checkpoint", *files_of("model-3")]

    def test_a_name_saved_again_moves_to_the_end(self, base: str) -> None:
        saver = ck.Saver(max_to_keep=3)
        save_steps(saver, base, [1, 2, 3, 1, 4])
        assert listed(saver) == ["model-3", "model-1", "model-4"]

    def test_numbers_in_the_prefix_are_not_steps(self, base: str, tmp_path: Path) -> None:
        # As in TensorFlow a Saver counts what it saves itself, whatever the names are; another one does not.
        for run in ("a", "b"):
            saver = ck.Saver(max_to_keep=2, run=run)
            for step in (1, 2, 3):
                saver.save(values(step), f"{base}-{step if run == 'a' else 10 * step}")
        assert listed(saver) == ["model-20", "model-30"]
        assert checkpoints_in(str(tmp_path)) == ["model-2", "model-20", "model-3", "model-30"]

    def test_one_saver_has_one_window_over_two_basenames(self, tmp_path: Path) -> None:
        saver = ck.Saver(max_to_keep=3)
        for step in range(1, 4):
            save_steps(saver, f"{tmp_path}/a", [step])
            save_steps(saver, f"{tmp_path}/b", [step])
        assert listed(saver) == ["b-2", "a-3", "b-3"]
        assert checkpoints_in(str(tmp_path)) == ["a-3", "b-2", "b-3"]

    def test_two_savers_keep_to_their_own_basenames(self, tmp_path: Path) -> None:
        one, two = ck.Saver(max_to_keep=2), ck.Saver(max_to_keep=1)
        for step in range(1, 5):
            save_steps(one, f"{tmp_path}/a", [step])
            save_steps(two, f"{tmp_path}/b", [step])
        assert checkpoints_in(str(tmp_path)) == ["a-3", "a-4", "b-4"]
        state = ck.get_checkpoint_state(tmp_path)
        assert state is not None
        assert {os.path.basename(p) for p in state.all_model_checkpoint_paths} == {"a-3", "a-4", "b-4"}

    def test_two_savers_of_a_process_share_one_basename(self, base: str, tmp_path: Path) -> None:
        one, two = ck.Saver(max_to_keep=3), ck.Saver(max_to_keep=3)
        for step in range(1, 7):
            save_steps(one if step % 2 else two, base, [step])
        assert checkpoints_in(str(tmp_path)) == ["model-4", "model-5", "model-6"]

    def test_a_record_without_times_does_not_make_old_checkpoints_new(
        self, base: str, tmp_path: Path
    ) -> None:
        clock = ManualClock()
        saver = ck.Saver(clock=clock)
        save_steps(saver, base, [1, 2])
        saved_s = clock()
        ck.update_checkpoint_state(tmp_path, f"{base}-2", [f"{base}-1", f"{base}-2"])
        clock.advance(HOUR)
        save_steps(saver, base, [3])
        state = ck.get_checkpoint_state(tmp_path)
        assert state is not None
        assert state.all_model_checkpoint_timestamps == (saved_s, saved_s, saved_s + HOUR)

    def test_what_another_saver_has_saved_and_this_one_saves_again_is_listed_once(self, base: str) -> None:
        save_steps(ck.Saver(max_to_keep=3), base, [1])
        saver = ck.Saver(max_to_keep=5)
        save_steps(saver, base, [2, 1])
        assert listed(saver) == ["model-2", "model-1"]
        state = ck.get_checkpoint_state(base.rpartition("/")[0])
        assert state is not None
        assert state.all_model_checkpoint_paths == (f"{base}-2", f"{base}-1")

    def test_a_line_that_another_saver_dropped_is_no_foreign_rewrite(self, tmp_path: Path) -> None:
        one, two = ck.Saver(max_to_keep=0), ck.Saver(max_to_keep=0)
        one.save(values(1), f"{tmp_path}/a")
        two.save(values(2), f"{tmp_path}/a")
        two.save(values(3), f"{tmp_path}/b")
        two.save(values(4), f"{tmp_path}/b")
        assert 'owner "a"' not in (tmp_path / "checkpoint").read_text()
        with own_warnings() as caught:
            one.save(values(5), f"{tmp_path}/b")
        assert [str(warning.message) for warning in caught] == []
        state = ck.get_checkpoint_state(tmp_path)
        assert state is not None
        assert state.all_model_checkpoint_paths == (f"{tmp_path}/b",)

    def test_what_the_user_set_is_deleted_also_where_no_line_says_whose_it_is(self, tmp_path: Path) -> None:
        ck.Saver().save(values(1), f"{tmp_path}/a", latest_filename="best")
        saver = ck.Saver(max_to_keep=2)
        saver.recover_last_checkpoints([f"{tmp_path}/a"])
        save_steps(saver, f"{tmp_path}/b", [1])
        assert listed(saver) == ["a", "b-1"]
        save_steps(saver, f"{tmp_path}/b", [2])
        assert listed(saver) == checkpoints_in(str(tmp_path)) == ["b-1", "b-2"]

    def test_what_the_user_set_is_not_listed_after_its_delete_whoever_saved_it(self, tmp_path: Path) -> None:
        one, two = ck.Saver(max_to_keep=2), ck.Saver(max_to_keep=1)
        save_steps(one, f"{tmp_path}/a", [1])
        two.recover_last_checkpoints([f"{tmp_path}/a-1"])
        save_steps(two, f"{tmp_path}/a", [2])
        assert checkpoints_in(str(tmp_path)) == ["a-2"]
        state = ck.get_checkpoint_state(tmp_path)
        assert state is not None
        assert state.all_model_checkpoint_paths == (f"{tmp_path}/a-2",)

    def test_what_the_user_set_is_counted_although_another_saver_saved_it_since(self, tmp_path: Path) -> None:
        one, two = ck.Saver(), ck.Saver(max_to_keep=0)
        save_steps(two, f"{tmp_path}/a", [1])
        one.save(values(2), f"{tmp_path}/b-1")
        two.set_last_checkpoints([f"{tmp_path}/b-1"])
        save_steps(two, f"{tmp_path}/a", [2])
        state = ck.get_checkpoint_state(tmp_path)
        assert state is not None
        assert state.all_model_checkpoint_paths == (f"{tmp_path}/a-2",)

    def test_a_saver_that_did_not_see_an_overwrite_deletes_no_live_data(self, base: str) -> None:
        # `two` takes step 10 for new and would use the name that `one` wrote down to be deleted.
        one, two = ck.Saver(run="job"), ck.Saver(run="job")
        save_steps(two, base, [1])
        for stamp in (10, 11, 12):
            one.save(values(stamp), base, 10)
        two.save(values(13), base, 10)
        assert stamp_of(f"{base}-10") == 13
        save_steps(one, base, [20, 21])
        assert stamp_of(f"{base}-10") == 13

    def test_superseded_names_that_tensorflow_took_again_stay(self, base: str, tmp_path: Path) -> None:
        saver = ck.Saver(run="job")
        saver.save(values(1), base)
        saver.save(values(2), base)  # The record says that model.data-00000-of-00001 is to go.
        # TensorFlow writes its canonical name in place, and leaves the record as it is.
        with ck.BundleWriter(tmp_path / "elsewhere" / "model") as writer:
            for name, array in sorted(values(3).items()):
                writer.add(name, array)
        for path in (tmp_path / "elsewhere").iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        saver.save(values(4), base, 4)
        assert stamp_of(base) == 3


class TestRestart:
    def test_the_window_goes_on(self, base: str, tmp_path: Path) -> None:
        for step in range(1, 6):
            save_steps(ck.Saver(max_to_keep=2, run=f"run {step}"), base, [step])
        assert checkpoints_in(str(tmp_path)) == ["model-4", "model-5"]

    def test_the_clock_goes_on(self, base: str, tmp_path: Path) -> None:
        clock = ManualClock()
        for step in range(1, 15):
            clock.advance(HOUR / 2)
            saver = ck.Saver(max_to_keep=2, keep_checkpoint_every_n_hours=2, clock=clock, run=f"r{step}")
            save_steps(saver, base, [step])
        # TensorFlow, whose clock starts anew, would have kept 13 and 14 only.
        assert sorted(int(n[6:]) for n in checkpoints_in(str(tmp_path))) == [6, 10, 13, 14]

    def test_without_a_restart_it_is_tensorflows_timeline(self, base: str, tmp_path: Path) -> None:
        clock = ManualClock()
        saver = ck.Saver(max_to_keep=2, keep_checkpoint_every_n_hours=2, clock=clock)
        for step in range(1, 15):
            clock.advance(HOUR / 2)
            save_steps(saver, base, [step])
        assert sorted(int(n[6:]) for n in checkpoints_in(str(tmp_path))) == [5, 9, 13, 14]
        assert listed(saver) == ["model-13", "model-14"]

    def test_a_preserved_checkpoint_leaves_the_list_for_good(self, base: str, tmp_path: Path) -> None:
        clock = ManualClock()
        saver = ck.Saver(max_to_keep=1, keep_checkpoint_every_n_hours=1, clock=clock, run="a")
        clock.advance(1.5 * HOUR)
        save_steps(saver, base, [1])
        clock.advance(0.1 * HOUR)
        save_steps(saver, base, [2])
        save_steps(ck.Saver(max_to_keep=1, clock=clock, run="b"), base, [3, 4])
        assert checkpoints_in(str(tmp_path)) == ["model-1", "model-4"]

    def test_two_basenames_of_one_saver_have_one_clock(self, tmp_path: Path) -> None:
        clock = ManualClock()
        saver = ck.Saver(max_to_keep=1, keep_checkpoint_every_n_hours=2, clock=clock)
        for step in range(1, 13):
            clock.advance(HOUR / 2)
            save_steps(saver, f"{tmp_path}/{'ab'[step % 2]}", [step])
        # As for one basename: the first after 2 h, 4 h, …, and the newest.
        assert sorted(int(n[2:]) for n in checkpoints_in(str(tmp_path))) == [5, 9, 12]

    def test_a_checkpoint_deleted_by_hand_and_saved_again_counts(self, base: str) -> None:
        save_steps(ck.Saver(run="a"), base, [1, 2, 3])
        ck.remove_checkpoint(f"{base}-3")
        saver = ck.Saver(run="b", max_to_keep=3)
        save_steps(saver, base, [3, 4])
        assert listed(saver) == ["model-2", "model-3", "model-4"]
        save_steps(saver, base, [5, 6, 7])
        assert listed(saver) == ["model-5", "model-6", "model-7"]

    def test_a_checkpoint_deleted_by_hand_takes_no_place(self, base: str, tmp_path: Path) -> None:
        save_steps(ck.Saver(run="a"), base, [1, 2, 3])
        ck.remove_checkpoint(f"{base}-2")
        saver = ck.Saver(run="b", max_to_keep=3)
        save_steps(saver, base, [4])
        assert listed(saver) == checkpoints_in(str(tmp_path)) == ["model-1", "model-3", "model-4"]

    @pytest.mark.parametrize("has_times", [True, False])
    def test_nor_do_those_of_a_run_that_is_begun_anew(
        self, base: str, tmp_path: Path, has_times: bool
    ) -> None:
        # As a Saver of TensorFlow, which writes no times, lists them; only the record is there yet.
        names = ["model-10", "model-20"]
        times = [1.0, 2.0] if has_times else None
        ck.update_checkpoint_state(tmp_path, names[-1], names, all_model_checkpoint_timestamps=times)
        saver = ck.Saver(max_to_keep=2, fresh_start=True)
        save_steps(saver, base, [1])
        assert saver.last_checkpoints == [f"{base}-1"]
        state = ck.get_checkpoint_state(tmp_path)
        assert state is not None
        assert state.all_model_checkpoint_paths == (f"{base}-1",)
        save_steps(saver, base, [2])
        assert checkpoints_in(str(tmp_path)) == ["model-1", "model-2"]

    def test_files_deleted_in_the_middle_of_a_run_are_no_trouble(self, base: str, tmp_path: Path) -> None:
        saver = ck.Saver(max_to_keep=2)
        save_steps(saver, base, [1, 2])
        for path in tmp_path.glob("model-1.*"):
            path.unlink()
        (tmp_path / "model-2.index").unlink()
        save_steps(saver, base, [3, 4, 5])
        assert listed(saver) == checkpoints_in(str(tmp_path)) == ["model-4", "model-5"]


class TestAdoption:
    def test_a_save_that_died_before_the_record_is_counted(self, base: str, tmp_path: Path) -> None:
        save_steps(ck.Saver(run="a"), base, [1, 2])
        die_before_the_record(base, 3)
        saver = ck.Saver(run="b", max_to_keep=2)
        save_steps(saver, base, [4])
        assert listed(saver) == checkpoints_in(str(tmp_path)) == ["model-3", "model-4"]

    def test_so_are_several_in_a_row(self, base: str, tmp_path: Path) -> None:
        save_steps(ck.Saver(run="a"), base, [1])
        for step in (2, 3, 4):
            die_before_the_record(base, step, run=f"dies at {step}")
        saver = ck.Saver(run="b", max_to_keep=3)
        save_steps(saver, base, [5])
        assert listed(saver) == checkpoints_in(str(tmp_path)) == ["model-3", "model-4", "model-5"]
        assert record_of(tmp_path).intents == ()

    def test_a_torn_one_is_not(self, base: str, tmp_path: Path) -> None:
        save_steps(ck.Saver(run="a"), base, [1, 2])
        die_before_the_record(base, 3)
        (tmp_path / "model-3.data-00000-of-00001").write_bytes(b"")
        saver = ck.Saver(run="b")
        save_steps(saver, base, [4])
        assert listed(saver) == ["model-1", "model-2", "model-4"]

    def test_what_was_only_announced_is_not(self, base: str, tmp_path: Path) -> None:
        save_steps(ck.Saver(run="a"), base, [1, 2])

        class NoIndex(StorageWrapper):
            def put_new(self, key, data):
                if key.endswith(".index"):
                    raise ck.StorageFullError("full", url=key)
                return super().put_new(key, data)

        with use_wrapper(NoIndex), pytest.raises(ck.StorageFullError):
            save_steps(ck.Saver(run="b"), base, [3])
        assert [intent.prefix for intent in record_of(tmp_path).intents] == ["model-3"]
        # Another program puts its own checkpoint there.
        ck.Saver().save(values(33), base, 3, write_state=False)
        saver = ck.Saver(run="c", max_to_keep=1)
        save_steps(saver, base, [4, 5])
        assert listed(saver) == ["model-5"]
        assert checkpoints_in(str(tmp_path)) == ["model-3", "model-5"]
        assert record_of(tmp_path).intents == ()

    def test_what_the_record_never_knew_is_not_adopted(self, base: str, tmp_path: Path) -> None:
        # Milestones of one basename, kept on purpose; the record belongs to another one so far.
        save_steps(ck.Saver(run="a"), f"{tmp_path}/other", [1])
        save_steps(ck.Saver(run="a"), base, range(1, 9), write_state=False)
        for run in ("b", "c"):
            saver = ck.Saver(run=run, max_to_keep=1)
            save_steps(saver, base, [9])
        assert listed(saver) == ["model-9"]
        assert len(checkpoints_in(str(tmp_path))) == 10

    def test_a_run_that_died_after_acquiring_changes_nothing_about_that(
        self, base: str, tmp_path: Path
    ) -> None:
        save_steps(ck.Saver(run="a"), f"{tmp_path}/other", [1])
        save_steps(ck.Saver(run="a"), base, range(1, 5), write_state=False)
        with pytest.raises(ck.UsageError), use_wrapper(_NoUpload):
            save_steps(ck.Saver(run="b"), base, [5])
        save_steps(ck.Saver(run="c", max_to_keep=1), base, [6])
        assert len(checkpoints_in(str(tmp_path))) == 6

    def test_a_corrupt_index_does_not_cost_its_data(self, base: str, tmp_path: Path) -> None:
        save_steps(ck.Saver(run="a"), base, [1, 2])
        index = tmp_path / "model-2.index"
        good = index.read_bytes()
        index.write_bytes(b"\xff" * len(good))
        (tmp_path / "model-2.data-00000-of-00777").write_bytes(b"another set of files")
        with pytest.warns(ck.CkptStoreWarning):
            assert ck.latest_checkpoint(tmp_path) == f"{base}-1"
        save_steps(ck.Saver(run="b"), base, [3])
        index.write_bytes(good)
        assert stamp_of(f"{base}-2") == 2


class _NoUpload(CountingStorage):
    def upload(self, key: str, size_bytes: int | None = None):
        raise ck.UsageError("no more uploads")


class TestOtherProgram:
    def test_a_record_without_our_lines_stops_deleting_once(self, base: str, tmp_path: Path) -> None:
        saver = ck.Saver(max_to_keep=2)
        save_steps(saver, base, [1, 2, 3])
        save_steps(ck.Saver(), f"{tmp_path}/tf", [7], write_state=False)
        tensorflow_record(tmp_path, "tf-7")
        before = checkpoints_in(str(tmp_path))
        with own_warnings() as caught:
            save_steps(saver, base, [4])
        assert len(caught) == 1
        assert "another program rewrote" in str(caught[0].message)
        assert checkpoints_in(str(tmp_path)) == sorted([*before, "model-4"])
        state = ck.get_checkpoint_state(tmp_path)
        assert state is not None
        assert [os.path.basename(p) for p in state.all_model_checkpoint_paths] == [
            "tf-7",
            "model-2",
            "model-3",
            "model-4",
        ]
        with own_warnings("error"):
            # The save before deleted nothing.
            warnings.filterwarnings("ignore", "this save of 'model-5' deletes 2 checkpoints")
            save_steps(saver, base, [5])
        assert checkpoints_in(str(tmp_path)) == ["model-4", "model-5", "tf-7"]

    @pytest.mark.parametrize(
        "content",
        [None, b"", b"\x00\xff garbage", b"model_checkpoint_path: 7", b'model_checkpoint_path: ""'],
        ids=["deleted", "empty", "garbage", "not text", "no path"],
    )
    def test_a_record_lost_in_the_middle_of_a_run_is_written_anew(
        self, content: bytes | None, base: str, tmp_path: Path
    ) -> None:
        saver = ck.Saver(max_to_keep=2)
        save_steps(saver, base, [1, 2, 3])
        if content is None:
            (tmp_path / "checkpoint").unlink()
        else:
            (tmp_path / "checkpoint").write_bytes(content)
        with pytest.warns(ck.CkptStoreWarning, match="another program"):
            save_steps(saver, base, [4])
        assert checkpoints_in(str(tmp_path)) == ["model-2", "model-3", "model-4"]
        save_steps(saver, base, [5])
        assert listed(saver) == checkpoints_in(str(tmp_path)) == ["model-4", "model-5"]

    def test_one_damaged_line_of_ours_does_not_cost_the_list(self, base: str, tmp_path: Path) -> None:
        save_steps(ck.Saver(), f"{tmp_path}/other", [1, 2])
        saver = ck.Saver(max_to_keep=2)
        save_steps(saver, base, [1, 2, 3])
        record = tmp_path / "checkpoint"
        record.write_text(record.read_text().replace("epoch=1", "epoch=one"))
        assert ck.latest_checkpoint(tmp_path) == f"{base}-3"
        with pytest.warns(ck.CkptStoreWarning, match="another program"):
            save_steps(saver, base, [4])
        state = ck.get_checkpoint_state(tmp_path)
        assert state is not None
        names = [os.path.basename(p) for p in state.all_model_checkpoint_paths]
        assert names == ["other-1", "other-2", "model-2", "model-3", "model-4"]

    def test_a_rare_second_basename_does_not_stop_retention_for_ever(self, base: str, tmp_path: Path) -> None:
        saver = ck.Saver(max_to_keep=2)
        save_steps(saver, f"{tmp_path}/best", [1])
        save_steps(saver, base, [1, 2, 3])
        tensorflow_record(tmp_path, "model-3")
        with pytest.warns(ck.CkptStoreWarning, match="another program"):
            save_steps(saver, base, [4])
        with own_warnings("error"):
            warnings.filterwarnings("ignore", "this save of 'model-5' deletes 2 checkpoints")
            save_steps(saver, base, [5, 6])
        assert listed(saver) == ["model-5", "model-6"]

    def test_the_clock_survives_a_foreign_record(self, base: str, tmp_path: Path) -> None:
        clock = ManualClock()
        saver = ck.Saver(max_to_keep=1, keep_checkpoint_every_n_hours=2, clock=clock)
        for step in range(1, 13):
            clock.advance(HOUR / 2)
            if step == 10:
                tensorflow_record(tmp_path, "model-9")
                with pytest.warns(ck.CkptStoreWarning):
                    save_steps(saver, base, [step])
            else:
                save_steps(saver, base, [step])
        assert sorted(int(n[6:]) for n in checkpoints_in(str(tmp_path))) == [5, 9, 12]

    def test_a_fence_is_seen_after_a_foreign_record(self, base: str, tmp_path: Path) -> None:
        old, new = ck.Saver(run="old"), ck.Saver(run="new")
        save_steps(old, base, [1])
        tensorflow_record(tmp_path, "model-1")
        save_steps(new, base, [2])
        with pytest.raises(ck.FencedError):
            save_steps(old, base, [3])

    def test_a_hostile_record_deletes_nothing_outside(self, base: str, tmp_path: Path) -> None:
        precious = tmp_path / "precious"
        precious.write_text("keep")
        directory = tmp_path / "run"
        save_steps(ck.Saver(run="a"), f"{directory}/model", [1])
        (directory / "model-0.x").mkdir()
        record = directory / "checkpoint"
        evil = (
            '# pending "model-0" version="1" shards="" suffix="x/../../precious"\n'
            '# pending "../model-0" version="1" shards="" suffix="meta"\n'
            '# superseded "model-1" shards="00000-of-00001"\n'
            '# superseded "other-1" shards="00000-of-00001"\n'
        )
        other = directory / "other-1.data-00000-of-00001"
        other.write_text("not of this owner")
        lines = record.read_text().splitlines(keepends=True)
        record.write_text("".join([*lines[:2], evil, *lines[2:]]))
        save_steps(ck.Saver(run="b"), f"{directory}/model", [2])
        assert precious.exists()
        assert other.exists()
        assert stamp_of(f"{directory}/model-1") == 1


class TestSetByHand:
    def test_set_last_checkpoints_are_never_deleted(self, base: str, tmp_path: Path) -> None:
        save_steps(ck.Saver(run="a"), base, [1, 2])
        saver = ck.Saver(max_to_keep=1, run="b")
        saver.set_last_checkpoints([f"{base}-1", f"{base}-2"])
        assert listed(saver) == ["model-1", "model-2"]
        save_steps(saver, base, [3, 4])
        assert checkpoints_in(str(tmp_path)) == ["model-1", "model-2", "model-4"]

    def test_with_times_they_are_counted_and_nothing_else(self, base: str, tmp_path: Path) -> None:
        save_steps(ck.Saver(run="a"), base, [1, 2, 3])
        saver = ck.Saver(max_to_keep=2, run="b")
        saver.set_last_checkpoints_with_time([(f"{base}-2", 5.0)])
        save_steps(saver, base, [4, 5])
        assert listed(saver) == ["model-4", "model-5"]
        assert checkpoints_in(str(tmp_path)) == ["model-1", "model-3", "model-4", "model-5"]

    def test_what_another_saver_has_saved_since_is_deleted_in_its_turn(
        self, base: str, tmp_path: Path
    ) -> None:
        one, other = ck.Saver(max_to_keep=1, run="job"), ck.Saver(max_to_keep=5, run="job")
        save_steps(one, base, [1])
        one.recover_last_checkpoints([f"{base}-1"])
        save_steps(other, base, [1])
        save_steps(one, base, [2])
        assert checkpoints_in(str(tmp_path)) == ["model-2"]

    def test_those_of_another_basename_are_counted_too(self, base: str, tmp_path: Path) -> None:
        save_steps(ck.Saver(run="a"), f"{tmp_path}/old", [1, 2])
        saver = ck.Saver(max_to_keep=2, run="b")
        saver.recover_last_checkpoints([f"{tmp_path}/old-1", f"{tmp_path}/old-2", f"{tmp_path}/gone-3"])
        save_steps(saver, base, [3])
        assert listed(saver) == checkpoints_in(str(tmp_path)) == ["model-3", "old-2"] or (
            listed(saver) == ["old-2", "model-3"]
        )
        save_steps(saver, base, [4])
        assert checkpoints_in(str(tmp_path)) == ["model-3", "model-4"]
        assert '"old' not in (tmp_path / "checkpoint").read_text().replace('owner "old"', "").replace(
            'pending "old', ""
        )

    @pytest.mark.parametrize("method", ["set_last_checkpoints", "set_last_checkpoints_with_time"])
    @pytest.mark.parametrize("wrong", ["model-1", ("model-1",), None])
    def test_only_a_list_will_do(self, method: str, wrong: object) -> None:
        with pytest.raises(ck.UsageError, match="list"):
            getattr(ck.Saver(), method)(wrong)
        with pytest.raises(ck.UsageError, match="list"):
            ck.Saver().recover_last_checkpoints("model-1")
        with pytest.raises(ck.UsageError, match="list"):
            ck.Saver().recover_last_checkpoints(None)  # type: ignore[arg-type]

    def test_what_a_record_lists_is_recovered_as_it_comes(self, base: str, tmp_path: Path) -> None:
        save_steps(ck.Saver(run="a"), base, [1, 2])
        state = ck.get_checkpoint_state(tmp_path)
        assert state is not None
        saver = ck.Saver(max_to_keep=2, run="b")
        saver.recover_last_checkpoints(state.all_model_checkpoint_paths)
        assert listed(saver) == ["model-1", "model-2"]


class TestLastGraph:
    @pytest.mark.parametrize("restart", [False, True])
    @pytest.mark.parametrize("suffix", ["meta", "graph"])
    @pytest.mark.parametrize("keep", [1, 2])
    def test_written_once_it_stays(
        self, keep: int, suffix: str, restart: bool, base: str, tmp_path: Path
    ) -> None:
        saver = ck.Saver(max_to_keep=keep, run="0")
        for step in range(1, 7):
            if restart:
                saver = ck.Saver(max_to_keep=keep, run=str(step))
            saver.save(values(step), base, step, write_meta_graph=step == 1, meta_graph_suffix=suffix)
            graphs = [name for name in names_in(str(tmp_path)) if name.endswith(f".{suffix}")]
            assert len(graphs) == 1
        kept = checkpoints_in(str(tmp_path))
        assert graphs[0].removesuffix(f".{suffix}") in kept
        assert ck.import_meta_graph(tmp_path / graphs[0]).graph is not None

    def test_the_newest_of_those_that_go_is_carried_over(self, base: str, tmp_path: Path) -> None:
        saver = ck.Saver(max_to_keep=3)
        saver.save({"a": np.zeros(1)}, base, 1)
        saver.save({"b": np.zeros(1)}, base, 2)
        for step in (3, 4):
            saver.save({"b": np.zeros(1)}, base, step, write_meta_graph=False)
        lower = ck.Saver(max_to_keep=1, run="next")
        lower.save({"b": np.zeros(1)}, base, 5, write_meta_graph=False)
        graph = ck.import_meta_graph(f"{base}-5.meta").graph
        assert graph is not None
        assert [variable.op.name for variable in graph.variables] == ["b"]

    def test_a_preserved_checkpoint_keeps_its_own(self, base: str, tmp_path: Path) -> None:
        clock = ManualClock()
        saver = ck.Saver(max_to_keep=1, keep_checkpoint_every_n_hours=1, clock=clock)
        for step in (1, 2, 3):
            clock.advance(1.5 * HOUR if step == 1 else 1.0)
            saver.save(values(step), base, step, write_meta_graph=step == 1)
        assert checkpoints_in(str(tmp_path)) == ["model-1", "model-3"]
        assert (tmp_path / "model-1.meta").exists()

    def test_also_when_another_writer_forces_a_second_look(self, base: str, tmp_path: Path) -> None:
        # Between step 4 and step 6 another host of the job saves: more has to go than was planned.
        one, two = ck.Saver(max_to_keep=2, run="job"), ck.Saver(max_to_keep=2, run="job")
        save_steps(two, base, [1], write_meta_graph=False)
        save_steps(one, base, [2])
        save_steps(two, base, [3], write_meta_graph=False)

        class Meanwhile(CountingStorage):
            armed = True

            def put_new(self, key, data):
                if key.endswith("model-5.index") and Meanwhile.armed:
                    Meanwhile.armed = False
                    save_steps(two, base, [4], write_meta_graph=False)
                return super().put_new(key, data)

        with use_wrapper(Meanwhile):
            late = ck.Saver(max_to_keep=2, run="job")
            save_steps(late, base, [5], write_meta_graph=False)
        assert checkpoints_in(str(tmp_path)) == ["model-4", "model-5"]
        assert [name for name in names_in(str(tmp_path)) if name.endswith(".meta")] == ["model-4.meta"]
