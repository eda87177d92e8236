"""What is collected, what never is, and that nobody who is alive is hurt."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.directory.garbage import collect_garbage
from ckptstore.directory.garbage_search import find_garbage
from ckptstore.errors import AccessError, CkptStoreError, CorruptError
from ckptstore.storage.abilities import KnowsServerTime, KnowsWriters
from ckptstore.storage.base import Location
from ckptstore.storage.local.storage import LocalStorage
from ckptstore.storage.memory import MemoryStorage
from ckptstore.storage.registry import locate, use_wrapper
from ckptstore.storage.wrappers import StorageWrapper
from tests.unit.directory.collecting import age, collect, leftovers, look, needed, reasons
from tests.unit.directory.helpers import (
    fresh_memory,
    names_in,
    save_steps,
    stamp_of,
    values,
)

HOUR = 3600.0
DAY = 24 * HOUR
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    directory = tmp_path / "run"
    save_steps(ck.Saver(max_to_keep=2), f"{directory}/model", [1, 2, 3])
    return directory


class TestWhatGoes:
    def test_a_healthy_directory_has_none(self, run: Path) -> None:
        before = names_in(str(run))
        report = collect(run)
        assert (report.removed, report.uploads_dropped, report.error) == ((), 0, None)
        assert names_in(str(run)) == before

    def test_data_and_graph_of_a_save_that_died(self, run: Path) -> None:
        before = names_in(str(run))
        left = leftovers(
            run,
            "model-9.data-00000-of-00002",
            "model-9.data-00001-of-00002",
            "model-9.meta",
            "x.data-00000-of-00001",
        )
        assert reasons(look(run)) == dict.fromkeys(left, "unpublished")
        report = collect(run)
        assert [file.name for file in report.removed] == sorted(left)
        assert names_in(str(run)) == before

    def test_superseded_data(self, run: Path) -> None:
        saver = ck.Saver(max_to_keep=2, run="again")
        saver.save(values(20), f"{run}/model", 2)
        saver.save(values(21), f"{run}/model", 2)
        garbage = look(run)
        # What the first one replaced, the second one has deleted.
        assert list(reasons(garbage).values()) == ["replaced"]
        collect(run)
        assert stamp_of(f"{run}/model-2") == 21
        assert set(names_in(str(run))) == needed(str(run))
        # The saver deletes by name what is gone already.
        saver.save(values(22), f"{run}/model", 2)
        assert stamp_of(f"{run}/model-2") == 22

    def test_what_an_overwrite_without_a_record_left(self, tmp_path: Path) -> None:
        for stamp in (1, 2, 3):
            ck.Saver().save(values(stamp), f"{tmp_path}/model", write_state=False)
        collect(tmp_path)
        assert set(names_in(str(tmp_path))) == needed(str(tmp_path))
        assert stamp_of(f"{tmp_path}/model") == 3

    def test_other_shard_counts_that_tensorflow_left(self, run: Path) -> None:
        # "re-saving with another shard count leaves the old .data-*-of-00003 files behind"
        left = leftovers(run, *(f"model-3.data-{shard:05d}-of-00003" for shard in range(3)))
        assert reasons(look(run)) == dict.fromkeys(left, "replaced")
        collect(run)
        assert stamp_of(f"{run}/model-3") == 3

    def test_data_beside_an_index_of_a_save_that_died_elsewhere(self, run: Path) -> None:
        # A create that was sent again late put the index back, when its own data had been deleted.
        os.rename(run / "model-2.data-00000-of-00001", run / "model-2.data-00000-of-48213")
        age(run / "model-2.data-00000-of-48213", 2 * DAY)
        # The index may be one that a copy under way has just brought.
        assert reasons(look(run, min_age_s=DAY)) == {}
        age(run / "model-2.index", 2 * DAY)
        assert reasons(look(run, min_age_s=DAY)) == {"model-2.data-00000-of-48213": "replaced"}

    def parts(self, run: Path) -> list[str]:
        for number in range(2):
            with ck.BundleWriter(ck.part_prefix(run / "model-4", number, 2)) as writer:
                writer.add(f"t{number}", np.zeros(3))
        return [name for name in names_in(str(run)) if ".part-" in name]

    def test_parts_that_were_never_merged(self, run: Path) -> None:
        before = names_in(str(run))
        left = self.parts(run)
        assert len(left) == 4
        assert reasons(look(run, min_age_s=DAY)) == {}
        for name in left:
            age(run / name, 2 * DAY)
        assert reasons(look(run, min_age_s=DAY)) == dict.fromkeys(left, "unmerged")
        # The job that writes the others is slow.
        age(run / left[-1], HOUR)
        garbage = look(run, min_age_s=DAY)
        assert reasons(garbage) == {}
        assert {file.name for file in garbage.young} == set(left)
        report = collect(run)
        assert [file.name for file in report.removed] == left
        assert names_in(str(run)) == before

    def test_not_what_a_record_lists_under_such_a_name(self, run: Path) -> None:
        ck.Saver().save(values(7), f"{run}/x.part-00000-of-00002", latest_filename="other")
        garbage = find_garbage(
            locate(str(run)), [locate(f"{run}/checkpoint"), locate(f"{run}/other")], min_age_s=0.0
        )
        assert reasons(garbage) == {}

    def test_temporary_files_of_tensorflow_by_exact_names(self, run: Path) -> None:
        left = leftovers(
            run,
            "model-7.index.tempstate15304986823948572",
            "model-7.data-00000-of-00001.tempstate1",
            f"checkpoint.tmp{'0a' * 16}",
            f"model-7.meta.tmp{'f' * 32}",
            ".ckptstore-probe-0123456789ab",
            ".ckptstore-probe-0123456789ab-absent",
            ".ckptstore-doctor-0123456789ab-upload",
        )
        others = leftovers(
            run,
            "model-7.index.tempstate",
            "model-7.index.tempstate12x",
            "notes.tempstate12",
            f"checkpoint.tmp{'0A' * 16}",
            f"checkpoint.tmp{'0' * 31}",
            f"notes.tmp{'0' * 32}",
            f"model-7.txt.tmp{'0' * 32}",
            ".ckptstore-probe-0123456789",
        )
        assert reasons(look(run)) == dict.fromkeys(left, "temporary")
        collect(run)
        assert set(others) <= set(names_in(str(run)))

    def test_a_graph_whose_checkpoint_is_gone(self, run: Path) -> None:
        leftovers(run, "model-0.meta")
        assert reasons(look(run)) == {"model-0.meta": "graph alone"}
        collect(run)
        assert "model-0.meta" not in names_in(str(run))

    def test_unfinished_uploads_of_the_dead(self, run: Path) -> None:
        storage = LocalStorage()
        upload = storage.upload(f"{run}/model-9.data-00000-of-00001")
        upload.write(b"x")
        upload.close()
        assert any(".tmp-" in name for name in os.listdir(run))
        assert collect(run).uploads_dropped == 1
        assert not any(".tmp-" in name for name in os.listdir(run))


class TestWhatStays:
    def test_data_that_may_be_a_checkpoint_copied_in_part(self, tmp_path: Path) -> None:
        parts = [f"{tmp_path}/parts/{name}" for name in "abc"]
        for part in parts:
            with ck.BundleWriter(part) as writer:
                writer.add(part, [1.0, 2.0])
        ck.merge_bundles(parts, f"{tmp_path}/wide")
        os.remove(tmp_path / "wide.data-00001-of-00003")
        assert reasons(look(tmp_path)) == {}
        # Whole by their names: no index is opened for these, whatever it names.
        ck.Saver().save(values(1), f"{tmp_path}/model", write_state=False)
        ck.Saver().save(values(2), f"{tmp_path}/model", write_state=False)
        collect(tmp_path)
        data = next(name for name in names_in(str(tmp_path)) if name.startswith("model.data"))
        os.rename(tmp_path / data, tmp_path / "model.data-00000-of-00001")
        assert reasons(look(tmp_path)) == {}

    def test_an_index_is_never_removed(self, run: Path) -> None:
        # Preserved, unlisted, torn, not readable, and without data.
        ck.Saver().save(values(9), f"{run}/other", write_state=False)
        leftovers(run, "torn.index", "model-9.index")
        age(run / "torn.index", 9 * DAY)
        indexes = sorted(run.glob("*.index"))
        collect(run)
        assert sorted(run.glob("*.index")) == indexes

    def test_files_of_an_index_that_cannot_be_read(self, run: Path) -> None:
        left = leftovers(
            run,
            "torn.index",
            "torn.data-00000-of-00001",
            "torn.data-00000-of-00777",
            "torn.meta",
            age_s=9 * DAY,
        )
        garbage = look(run)
        assert garbage.files == ()
        assert [prefix for prefix, _ in garbage.unreadable] == ["torn"]
        assert garbage.failure is None
        collect(run)
        assert set(left) <= set(names_in(str(run)))

    def test_what_other_people_put_there(self, run: Path) -> None:
        others = leftovers(
            run,
            "events.out.tfevents.1",
            "graph.pbtxt",
            "model-3.txt",
            "model-9.data",
            "model-9.data-0-of-1",
            "model-9.data-00002-of-00001",
            "train.tfrecord-00000-of-00003",
            "checkpoint2",
            age_s=9 * DAY,
        )
        (run / "model-9_temp").mkdir()
        leftovers(run / "model-9_temp", "part-00000-of-00001.data-00000-of-00001", age_s=9 * DAY)
        (run / "model-8.data-00000-of-00001").mkdir()
        assert collect(run).removed == ()
        assert set(others) <= set(names_in(str(run)))

    def test_exported_graphs(self, run: Path) -> None:
        others = leftovers(run, "exported.meta", "model.meta", "unknown-7.meta", age_s=9 * DAY)
        assert set(look(run).graphs) == set(others)
        collect(run)
        assert set(others) <= set(names_in(str(run)))

    def test_an_exported_graph_of_a_prefix_whose_save_died(self, run: Path) -> None:
        leftovers(run, "plain.meta", age_s=9 * DAY)
        leftovers(run, "plain.data-00000-of-00001", age_s=8 * DAY)
        collect(run)
        assert "plain.meta" in names_in(str(run))
        assert "plain.data-00000-of-00001" not in names_in(str(run))

    def test_the_last_graph_of_its_checkpoints(self, tmp_path: Path) -> None:
        save_steps(ck.Saver(), f"{tmp_path}/model", [1, 2], write_meta_graph=False)
        leftovers(tmp_path, "model-0.meta")
        assert look(tmp_path).graphs == ("model-0.meta",)
        save_steps(ck.Saver(), f"{tmp_path}/model", [3])
        assert reasons(look(tmp_path)) == {"model-0.meta": "graph alone"}

    def test_v1_checkpoints_and_their_graphs(self, tmp_path: Path, fixtures_dir: Path) -> None:
        run = tmp_path / "run"
        shutil.copytree(fixtures_dir / "05_v1_format", run)
        for basename in ("v1.ckpt", "v1sh.ckpt"):
            # Later ones are V2 and have a graph, so that both basenames are known.
            save_steps(ck.Saver(), f"{run}/{basename}", [9])
        leftovers(run, "v1.ckpt-7.meta", "v1sh.ckpt-8.meta", age_s=9 * DAY)
        assert collect(run).removed == ()

    @pytest.mark.parametrize(
        "name",
        [
            "01_single_shard",
            "02_sharded_devices",
            "04_object_based",
            "10_checkpoint_record/saver",
            "14_crafted",
        ],
    )
    def test_whatever_tensorflow_wrote(self, tmp_path: Path, fixtures_dir: Path, name: str) -> None:
        run = tmp_path / "run"
        shutil.copytree(fixtures_dir / name, run)
        assert collect(run).removed == ()

    def test_what_a_pending_line_names(self, run: Path) -> None:
        data = (run / "checkpoint").read_bytes()
        line = b'# pending "model-0" version="v" shards="00000-of-00001" suffix="meta"\n'
        (run / "checkpoint").write_bytes(data.replace(b"# ckptstore 1\n", b"# ckptstore 1\n" + line))
        left = leftovers(run, "model-0.data-00000-of-00001", "model-0.meta", age_s=9 * DAY)
        gone = leftovers(run, "model-0.data-00000-of-00444", age_s=9 * DAY)
        garbage = look(run)
        assert list(reasons(garbage)) == gone
        assert sorted(garbage.pending) == sorted(left)
        collect(run)
        assert set(left) <= set(names_in(str(run)))

    def test_what_a_pending_line_of_another_record_names(self, run: Path) -> None:
        (run / "best").write_text(
            '# ckptstore 1\n# pending "b-0" version="v" shards="00000-of-00001"\n'
            'model_checkpoint_path: "b-1"\n'
        )
        leftovers(run, "b-0.data-00000-of-00001", age_s=9 * DAY)
        assert look(run, records=["checkpoint", "best"]).files == ()
        assert len(look(run).files) == 1

    def test_nothing_goes_while_a_record_cannot_be_read(self, run: Path) -> None:
        leftovers(run, "model-9.data-00000-of-00001", age_s=9 * DAY)
        (run / "checkpoint").write_bytes(b"\xff")
        with pytest.raises(CorruptError, match="ckptstore repair"):
            look(run)

    def test_a_directory_without_a_record(self, run: Path) -> None:
        (run / "checkpoint").unlink()
        leftovers(run, "model-9.data-00000-of-00001")
        assert len(collect(run).removed) == 1


class TestAge:
    def test_young_files_stay(self, run: Path) -> None:
        leftovers(run, "a-1.data-00000-of-00001", age_s=0.9 * HOUR)
        leftovers(run, "a-2.data-00000-of-00001", age_s=1.1 * HOUR)
        garbage = look(run, min_age_s=HOUR)
        assert list(reasons(garbage)) == ["a-2.data-00000-of-00001"]
        assert [file.name for file in garbage.young] == ["a-1.data-00000-of-00001"]

    def test_a_save_is_as_old_as_its_youngest_file(self, run: Path) -> None:
        leftovers(run, "a-1.data-00000-of-00002", age_s=9 * DAY)
        leftovers(run, "a-1.data-00001-of-00002", age_s=1)
        assert look(run, min_age_s=HOUR).files == ()

    def test_superseded_data_is_unneeded_since_it_was_replaced(self, run: Path) -> None:
        for path in run.glob("model-*"):
            age(path, 9 * DAY)
        ck.Saver(max_to_keep=2, run="again").save(values(20), f"{run}/model", 2)
        # A reader may have opened the index a minute ago.
        assert look(run, min_age_s=HOUR).files == ()
        age(run / "model-2.index", 2 * HOUR)
        assert len(look(run, min_age_s=HOUR).files) == 1

    def test_a_clock_that_lags_behind_does_not_matter_for_0s(self, run: Path) -> None:
        leftovers(run, "a-1.data-00000-of-00001", age_s=-HOUR)
        assert look(run, min_age_s=1.0).files == ()
        assert len(look(run).files) == 1

    def test_by_the_clock_of_the_storage(self, run: Path) -> None:
        class Later(StorageWrapper, KnowsServerTime):
            def now_s(self) -> float:
                return time.time() + 2 * DAY

        leftovers(run, "a-1.data-00000-of-00001")
        with use_wrapper(Later):
            assert len(look(run, min_age_s=DAY).files) == 1


class TestTheLiving:
    @pytest.fixture(params=["local", "memory"])
    def directory(self, request: pytest.FixtureRequest, tmp_path: Path) -> str:
        return f"{tmp_path}/run" if request.param == "local" else fresh_memory()

    def test_a_save_under_way_is_spared_between_all_its_calls(self, directory: str) -> None:
        """The collector runs before each call of a save; it never takes anything of it."""
        save_steps(ck.Saver(max_to_keep=2, run="a"), f"{directory}/model", [1, 2])

        class Collecting(StorageWrapper):
            busy = False

            def intercept(self, primitive, keys, call):
                if not self.busy:
                    type(self).busy = True
                    place = locate(directory)
                    inner = Location(self.inner, place.key, place.url)
                    report = collect_garbage(
                        inner, find_garbage(inner, [inner.child("checkpoint")], min_age_s=0.0)
                    )
                    assert report.error is None
                    type(self).busy = False
                return call()

        with use_wrapper(Collecting):
            saver = ck.Saver(max_to_keep=2, run="b")
            save_steps(saver, f"{directory}/model", [3, 4])
            saver.save(values(40), f"{directory}/model", 4)
            saver.save(values(41), f"{directory}/model", 4)
            ck.Saver().save(values(50), f"{directory}/other", write_state=False)
        assert stamp_of(f"{directory}/model-3") == 3
        assert stamp_of(f"{directory}/model-4") == 41
        assert stamp_of(f"{directory}/other") == 50
        for prefix in ("model-3", "model-4", "other"):
            assert f"{prefix}.meta" in names_in(directory)

    def test_data_of_a_writer_in_another_process(self, tmp_path: Path) -> None:
        shard = tmp_path / "model-1.data-00000-of-00001"
        code = (
            "import sys; from ckptstore.storage.local.storage import LocalStorage\n"
            "upload = LocalStorage().upload(sys.argv[1]); upload.write(b'data'); upload.commit()\n"
            "print('ready', flush=True); sys.stdin.read()"
        )
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(shard)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            leftovers(tmp_path, "model-1.meta")
            garbage = look(tmp_path)
            assert (garbage.files, garbage.in_use) == ((), ("model-1",))
        finally:
            child.kill()
            child.communicate()
        assert sorted(reasons(look(tmp_path))) == ["model-1.data-00000-of-00001", "model-1.meta"]

    def test_unfinished_uploads_of_the_living(self, run: Path) -> None:
        with LocalStorage().upload(f"{run}/model-9.data-00000-of-00001") as upload:
            upload.write(b"x")
            assert collect(run).uploads_dropped == 0
            upload.commit()

    def test_where_nobody_knows_the_living_uploads_go_by_age(self, run: Path) -> None:
        class Blind(StorageWrapper):
            hides = (KnowsWriters,)

        with use_wrapper(Blind), LocalStorage().upload(f"{run}/model-9.data-00000-of-00001") as upload:
            upload.write(b"x")
            assert collect(run, min_age_s=HOUR).uploads_dropped == 0
            assert collect(run).uploads_dropped == 1

    def test_a_graph_that_shows_up_in_the_listing_before_its_data(self, run: Path) -> None:
        """A directory is not listed in one step: here the data of a save are in the second listing only."""
        with LocalStorage().upload(f"{run}/model-9.data-00000-of-00001") as upload:
            upload.write(b"x")
            upload.commit()
            leftovers(run, "model-9.meta")

            class Torn(StorageWrapper):
                listings = 0

                def list(self, prefix: str):
                    type(self).listings += 1
                    found = list(self.inner.list(prefix))
                    if self.listings == 1:
                        found = [info for info in found if "model-9.data" not in info.key]
                    return iter(found)

            with use_wrapper(Torn):
                assert look(run).files == ()

    def test_a_file_that_changed_meanwhile(self, run: Path) -> None:
        leftovers(run, "model-9.data-00000-of-00001", "model-9.meta")

        class Busy(StorageWrapper):
            listings = 0

            def list(self, prefix: str):
                type(self).listings += 1
                if self.listings == 2:
                    (run / "model-9.meta").write_bytes(b"another graph")
                return self.inner.list(prefix)

        with use_wrapper(Busy):
            assert list(reasons(look(run))) == ["model-9.data-00000-of-00001"]

    def test_a_graph_written_anew_since_the_look_is_spared(self, run: Path) -> None:
        leftovers(run, "model-9.data-00000-of-00001", "model-9.meta")
        garbage = look(run)
        (run / "model-9.meta").write_bytes(b"another graph")
        report = collect_garbage(locate(str(run)), garbage)
        assert (run / "model-9.meta").read_bytes() == b"another graph"
        assert "model-9.data-00000-of-00001" in [file.name for file in report.removed]

    def test_only_what_was_shown_goes_after_a_question(self, run: Path) -> None:
        leftovers(run, "a-1.data-00000-of-00001", "b-1.data-00000-of-00001")
        shown = look(run)
        (run / "a-1.data-00000-of-00001").write_bytes(b"another one")
        leftovers(run, "c-1.data-00000-of-00001")
        assert [file.name for file in shown.still(look(run)).files] == ["b-1.data-00000-of-00001"]


class TestTroubles:
    class Locked(StorageWrapper):
        def intercept(self, primitive, keys, call):
            if primitive == "get" and keys[0].endswith("model-9.index"):
                raise AccessError("cannot read", url=keys[0])
            return call()

    def test_one_index_that_cannot_be_looked_at_hinders_no_other(self, run: Path) -> None:
        leftovers(run, "model-8.data-00000-of-00001", "model-9.data-00000-of-00001", "model-9.meta")
        with use_wrapper(self.Locked):
            report = collect(run)
        assert [file.name for file in report.removed] == ["model-8.data-00000-of-00001"]
        assert isinstance(report.garbage.failure, AccessError)
        assert "model-9.meta" in names_in(str(run))

    def test_what_could_not_be_removed_is_told(self, run: Path) -> None:
        class Denied(StorageWrapper):
            def intercept(self, primitive, keys, call):
                if primitive == "delete_many":
                    self.inner.delete_many([key for key in keys if "a-1" in key])
                    raise AccessError("cannot delete", url=keys[0])
                return call()

        leftovers(run, "a-1.data-00000-of-00001", "b-1.data-00000-of-00001")
        with use_wrapper(Denied):
            report = collect(run)
        assert isinstance(report.error, AccessError)
        assert [file.name for file in report.removed] == ["a-1.data-00000-of-00001"]
        assert collect(run).error is None


def test_storages_say_whose_writers_they_know() -> None:
    for storage in (LocalStorage(), MemoryStorage(), StorageWrapper(LocalStorage())):
        assert isinstance(storage, KnowsWriters)


@pytest.mark.parametrize("backend", ["local", "memory"])
def test_in_use_until_the_upload_is_closed(backend: str, tmp_path: Path) -> None:
    storage = locate(str(tmp_path) if backend == "local" else fresh_memory()).storage
    key = f"{tmp_path}/shard" if backend == "local" else "/in-use/shard"
    assert isinstance(storage, KnowsWriters)
    assert not storage.is_in_use(key)
    with storage.upload(key) as upload:
        upload.commit()
        assert storage.is_in_use(key)
        assert not storage.is_abandoned(key)
    assert not storage.is_in_use(key)
    storage.put_new(f"{key}2", b"x")
    assert not storage.is_in_use(f"{key}2")


def test_errors_are_those_of_the_storage() -> None:
    with pytest.raises(CkptStoreError):
        look("/proc/self/mem")
