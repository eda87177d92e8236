"""Single bundles: published whole or not at all, replaced under the eyes of readers, merged."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.storage.registry import use_wrapper
from ckptstore.storage.values import Ambiguous
from ckptstore.storage.wrappers import StorageWrapper
from ckptstore.testing import CountingStorage
from tests.unit.directory.helpers import FailingOnce, fresh_memory, names_in


@pytest.fixture(params=["local", "memory"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"{tmp_path}/d" if request.param == "local" else fresh_memory()


def write(prefix: str, **arrays: object) -> None:
    with ck.BundleWriter(prefix) as writer:
        for name, array in arrays.items():
            writer.add(name, array)  # type: ignore[arg-type]


def read(prefix: str) -> dict[str, list[float]]:
    with ck.open_checkpoint(prefix) as opened:
        return {name: opened[name].tolist() for name in opened}


class TestBundleWriter:
    def test_nothing_is_visible_before_finish(self, directory: str) -> None:
        writer = ck.BundleWriter(f"{directory}/m")
        writer.add("a", [1.0])
        assert not ck.checkpoint_exists(f"{directory}/m")
        writer.finish()
        assert read(f"{directory}/m") == {"a": [1.0]}
        writer.finish()
        writer.abort()
        assert read(f"{directory}/m") == {"a": [1.0]}
        with pytest.raises(ck.UsageError, match="finished"):
            writer.add("b", [1.0])

    @pytest.mark.parametrize("begun", [False, True])
    def test_abort_leaves_no_file(self, begun: bool, directory: str) -> None:
        writer = ck.BundleWriter(f"{directory}/m")
        if begun:
            writer.add("a", np.ones(1000))
        writer.abort()
        writer.abort()
        assert names_in(directory) == []
        for call in (writer.finish, lambda: writer.add("b", [1.0])):
            with pytest.raises(ck.UsageError, match="aborted"):
                call()

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
    def test_a_raising_block_leaves_no_file(self, error: type[BaseException], directory: str) -> None:
        with pytest.raises(error), ck.BundleWriter(f"{directory}/m") as writer:  # noqa: PT012
            writer.add("a", [1.0])
            raise error
        assert names_in(directory) == []

    def test_a_dropped_writer_leaves_no_file(self, directory: str) -> None:
        writer = ck.BundleWriter(f"{directory}/m")
        writer.add("a", [1.0])
        del writer
        assert names_in(directory) == []

    def test_an_empty_bundle(self, directory: str) -> None:
        with ck.BundleWriter(f"{directory}/m"):
            pass
        assert read(f"{directory}/m") == {}
        assert names_in(directory) == ["m.data-00000-of-00001", "m.index"]

    def test_a_refused_tensor_does_not_spoil_the_others(self, directory: str, tmp_path: Path) -> None:
        write(f"{tmp_path}/good", a=[1.0], b=[2.0])
        with ck.BundleWriter(f"{directory}/m") as writer:
            writer.add("a", [1.0])
            for name, bad in (("a", [3.0]), ("", [1.0]), ("c", np.array(["2020"], "M8[D]"))):
                with pytest.raises(ck.UsageError):
                    writer.add(name, bad)
            with pytest.raises(ck.UsageError):
                writer.add_slice("s", (4,), "0,9", np.ones(9))
            writer.add("b", [2.0])
        assert read(f"{directory}/m") == {"a": [1.0], "b": [2.0]}
        if directory.startswith("/"):
            for suffix in ("index", "data-00000-of-00001"):
                assert (
                    Path(f"{directory}/m.{suffix}").read_bytes() == (tmp_path / f"good.{suffix}").read_bytes()
                )

    def test_a_reader_of_the_old_one_goes_on(self, directory: str) -> None:
        write(f"{directory}/m", a=np.zeros(1000), b=[0.0])
        with ck.open_checkpoint(f"{directory}/m") as opened:
            assert opened["b"].tolist() == [0]
            write(f"{directory}/m", a=np.ones(1000), b=[1.0])
            assert not opened["a"].any()
        assert read(f"{directory}/m")["b"] == [1]

    def test_two_at_once(self, directory: str) -> None:
        one, two = ck.BundleWriter(f"{directory}/m"), ck.BundleWriter(f"{directory}/m")
        one.add("a", [1.0])
        two.add("a", [2.0])
        one.finish()
        with pytest.raises(ck.ConflictError):
            two.finish()
        assert read(f"{directory}/m") == {"a": [1.0]}
        assert names_in(directory) == ["m.data-00000-of-00001", "m.index"]
        with pytest.raises(ck.UsageError):
            two.finish()

    def test_an_answer_that_was_lost_is_no_success_the_second_time(self, directory: str) -> None:
        class Unsure(StorageWrapper):
            def put_new(self, key, data):
                super().put_new(key, data)
                return Ambiguous("no answer")

        with use_wrapper(Unsure):
            writer = ck.BundleWriter(f"{directory}/m")
            writer.add("a", [1.0])
            with pytest.raises(ck.AmbiguousOutcomeError):
                writer.finish()
            with pytest.raises(ck.UsageError):
                writer.finish()
        assert read(f"{directory}/m") == {"a": [1.0]}

    @pytest.mark.parametrize(
        ("error", "side"),
        [
            (KeyboardInterrupt, "before"),
            (KeyboardInterrupt, "after"),
            (lambda: ck.StorageFullError("full"), "before"),
        ],
        ids=["interrupt before", "interrupt after", "full"],
    )
    @pytest.mark.parametrize("old", [False, True])
    def test_a_failure_in_any_call_leaves_old_or_new(
        self, old: bool, error: Callable[[], BaseException], side: str, directory: str
    ) -> None:
        for number in itertools.count(1):
            prefix = f"{directory}/{number}/m"
            if old:
                write(prefix, a=[0.0])
            wrappers: list[FailingOnce] = []

            def wrap(inner, number=number, wrappers=wrappers):
                wrappers.append(FailingOnce(inner, number, side, error))
                return wrappers[0]

            raised: type[BaseException] | None = None
            with use_wrapper(wrap):
                try:
                    write(prefix, a=[1.0])
                except (KeyboardInterrupt, ck.StorageFullError) as failure:
                    raised = type(failure)
            calls = wrappers[0].calls
            present = ck.checkpoint_exists(prefix)
            assert present or not old
            if present:
                assert read(prefix) in ([{"a": [0.0]}, {"a": [1.0]}] if old else [{"a": [1.0]}])
            if number > len(calls):
                break
            primitive, key = calls[number - 1]
            if raised and not present and not key.endswith(".index"):
                assert names_in(f"{directory}/{number}") == [], (primitive, key)
            # Whatever was left, the next writer gets through.
            write(prefix, a=[2.0])
            assert read(prefix) == {"a": [2.0]}


class TestParts:
    """What a crash before the merge leaves is no checkpoint."""

    def write(self, directory: str, step: int, count: int = 2) -> list[str]:
        parts = [ck.part_prefix(f"{directory}/model-{step}", number, count) for number in range(count)]
        for number, part in enumerate(parts):
            write(part, **{f"t{number}": [float(step)]})
        return parts

    def test_the_names_are_tensorflows(self) -> None:
        assert ck.part_prefix(Path("run/model-2"), 1, 3) == "run/model-2.part-00001-of-00003"

    @pytest.mark.parametrize(("number", "count"), [(-1, 2), (2, 2), (0, 0)])
    def test_a_part_that_is_not_one_is_refused(self, number: int, count: int) -> None:
        with pytest.raises(ck.UsageError, match="no such part"):
            ck.part_prefix("run/model-2", number, count)

    @pytest.mark.parametrize("has_record", [True, False])
    def test_nobody_takes_them_for_a_checkpoint(self, has_record: bool, directory: str) -> None:
        saver = ck.Saver()
        saver.save({"a": np.zeros(1)}, f"{directory}/model", 1, write_state=has_record)
        parts = self.write(directory, 2)
        assert ck.latest_checkpoint(directory) == f"{directory}/model-1"
        assert read(parts[1]) == {"t1": [2.0]}, "who names one reads it"
        ck.merge_bundles(parts, f"{directory}/model-2")
        assert read(f"{directory}/model-2") == {"t0": [2.0], "t1": [2.0]}
        assert not [name for name in names_in(directory) if ".part-" in name]
        if not has_record:
            assert ck.latest_checkpoint(directory) == f"{directory}/model-2"

    def test_parts_alone_are_nothing(self, directory: str) -> None:
        self.write(directory, 2)
        assert ck.latest_checkpoint(directory) is None

    def test_a_new_saver_does_not_adopt_them(self, directory: str) -> None:
        self.write(directory, 2)
        saver = ck.Saver(max_to_keep=1)
        saver.save({"a": np.zeros(1)}, f"{directory}/model", 1)
        assert saver.last_checkpoints == [f"{directory}/model-1"]
        assert len([name for name in names_in(directory) if ".part-" in name]) == 4


class TestMerge:
    def test_the_inputs_go_and_the_output_stays(self, directory: str) -> None:
        write(f"{directory}/p0", a=[1.0])
        write(f"{directory}/p1", b=[2.0])
        ck.merge_bundles([f"{directory}/p0", f"{directory}/p1"], f"{directory}/m")
        assert read(f"{directory}/m") == {"a": [1.0], "b": [2.0]}
        assert names_in(directory) == ["m.data-00000-of-00002", "m.data-00001-of-00002", "m.index"]

    def test_slices_of_one_tensor(self, directory: str) -> None:
        for number in (0, 1):
            with ck.BundleWriter(f"{directory}/p{number}") as writer:
                writer.add_slice("w", (4,), [(2 * number, 2)], np.full(2, float(number)))
        ck.merge_bundles([f"{directory}/p0", f"{directory}/p1"], f"{directory}/m")
        assert read(f"{directory}/m") == {"w": [0, 0, 1, 1]}

    @pytest.mark.parametrize("damage", ["index", "data", "name", "none", "self", "garbage"])
    def test_what_cannot_be_merged_stays_as_it_was(self, damage: str, tmp_path: Path) -> None:
        directory = str(tmp_path)
        write(f"{directory}/p0", a=[1.0])
        write(f"{directory}/p1", **{"a" if damage == "name" else "b": [2.0]})
        inputs, output = [f"{directory}/p0", f"{directory}/p1"], f"{directory}/m"
        expected: type[ck.CkptStoreError] = ck.UsageError
        if damage == "index":
            (tmp_path / "p1.index").unlink()
            expected = ck.NotFoundError
        elif damage == "data":
            (tmp_path / "p1.data-00000-of-00001").unlink()
            expected = ck.IncompleteBundleError
        elif damage == "garbage":
            (tmp_path / "p1.index").write_bytes(b"\x01" * 100)
            expected = ck.CorruptError
        elif damage == "none":
            inputs = []
        elif damage == "self":
            output = f"{directory}/./p0"
        before = names_in(directory)
        with pytest.raises(expected):
            ck.merge_bundles(inputs, output)
        assert names_in(directory) == before
        assert read(f"{directory}/p0") == {"a": [1.0]}

    def test_an_output_that_is_there_is_replaced_at_once(self, directory: str) -> None:
        write(f"{directory}/m", old=[0.0])
        with ck.open_checkpoint(f"{directory}/m") as opened:
            write(f"{directory}/p0", a=[1.0])
            ck.merge_bundles([f"{directory}/p0"], f"{directory}/m")
            assert opened["old"].tolist() == [0.0]
        assert read(f"{directory}/m") == {"a": [1.0]}

    def test_inputs_that_were_overwritten_cost_no_thousand_requests(self, directory: str) -> None:
        for number in range(6):
            for stamp in (1.0, 2.0):
                write(f"{directory}/p{number}", **{f"t{number}": [stamp]})
        storages: list[CountingStorage] = []

        def wrap(inner):
            storages.append(CountingStorage(inner))
            return storages[0]

        # The counts in their names are random and add up to far more than five digits.
        with use_wrapper(wrap):
            ck.merge_bundles([f"{directory}/p{number}" for number in range(6)], f"{directory}/m")
        assert sum(storages[0].counts.values()) < 100
        assert read(f"{directory}/m") == {f"t{number}": [2.0] for number in range(6)}
        data = [name for name in names_in(directory) if name.startswith("m.data-")]
        assert len(data) == 6
        assert {len(name) for name in data} == {len("m.data-00000-of-00000")}

    def test_no_data_goes_through_this_process_where_the_storage_copies(self, tmp_path: Path) -> None:
        prefixes = [f"{tmp_path}/p{number}" for number in range(3)]
        for number, prefix in enumerate(prefixes):
            write(prefix, **{f"t{number}": [float(number)] * 1000})
        storages: list[CountingStorage] = []

        def wrap(inner):
            storages.append(CountingStorage(inner))
            return storages[0]

        with use_wrapper(wrap):
            ck.merge_bundles(prefixes, f"{tmp_path}/m")
        assert storages[0].counts["copy_from"] == 3
        assert not storages[0].counts["upload"]
        assert read(f"{tmp_path}/m") == {f"t{number}": [float(number)] * 1000 for number in range(3)}
        assert not [name for name in names_in(str(tmp_path)) if name.startswith("p")]

    def test_inputs_that_cannot_be_removed_are_a_warning(self, directory: str) -> None:
        write(f"{directory}/p0", a=[1.0])

        class NoDeletes(StorageWrapper):
            def delete_many(self, keys):
                raise ck.AccessError("not allowed")

        with use_wrapper(NoDeletes), pytest.warns(ck.CkptStoreWarning, match="could not be removed"):
            ck.merge_bundles([f"{directory}/p0"], f"{directory}/m")
        assert read(f"{directory}/m") == {"a": [1.0]}


@pytest.mark.parametrize("write", ["BundleWriter", "write_state", "Checkpoint", "merge_bundles"])
def test_a_loop_over_one_prefix_does_not_fill_the_disk(tmp_path: Path, write: str) -> None:
    prefix = tmp_path / "x"
    tree = ck.Checkpoint(w=np.zeros(3))
    for generation in range(8):
        value = np.full(3, float(generation))
        if write == "BundleWriter":
            with ck.BundleWriter(prefix) as writer:
                writer.add("w", value)
        elif write == "write_state":
            ck.Saver().save({"w": value}, prefix, write_state=False)
        elif write == "Checkpoint":
            tree.w[...] = value
            tree.write(prefix)
        else:
            with ck.BundleWriter(tmp_path / "part") as writer:
                writer.add("w", value)
            ck.merge_bundles([tmp_path / "part"], prefix)
        assert len(list(tmp_path.glob("x.data-*"))) <= 2
        name = next(name for name, _ in ck.list_variables(prefix) if name.startswith("w"))
        np.testing.assert_array_equal(ck.load_variable(prefix, name), value)
