"""The Saver's arguments, names and errors, as the pinned API says them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import ckptstore as ck
from tests.unit.directory.helpers import files_of, names_in, stamp_of, values


@pytest.fixture(autouse=True)
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class TestVarList:
    def test_none_saves_all(self) -> None:
        path = ck.Saver().save({"b": np.ones(2), "a": np.zeros(())}, "m")
        assert path is not None
        assert [name for name, _ in ck.list_variables(path)] == ["a", "b"]

    @pytest.mark.parametrize("names", [["w"], ("w",), {"w"}, frozenset({"w"})], ids=repr)
    def test_a_list_picks(self, names: object) -> None:
        path = ck.Saver(names).save({"w": np.ones(2), "other": np.zeros(1)}, "m")  # type: ignore[arg-type]
        assert ck.list_variables(path or "") == [("w", [2])]

    def test_a_dict_renames_both_ways(self) -> None:
        saver = ck.Saver({"ckpt/w": "w"})
        path = saver.save({"w": np.arange(3.0), "other": np.zeros(1)}, "m")
        assert ck.list_variables(path or "") == [("ckpt/w", [3])]
        target = {"w": np.zeros(3), "other": np.ones(1)}
        saver.restore(target, "m")
        assert target["w"].tolist() == [0, 1, 2]
        assert target["other"].tolist() == [1]

    @pytest.mark.parametrize(
        ("var_list", "message"),
        [
            ("abc", "dict or a list. Got 'abc'"),
            (b"abc", "dict or a list"),
            (5, "dict or a list"),
            (["a", "b", "a"], "same name: a"),
            ({"x": "w", "y": "w"}, "restored with two names: w"),
            ([3], "Name is not a string"),
            ([["a"]], "Name is not a string"),
            ({3: "w"}, "Name is not a string"),
            ({"w": np.zeros(2)}, "Name is not a string"),
            ([], "No variables to save"),
            ({}, "No variables to save"),
            (set(), "No variables to save"),
        ],
    )
    def test_wrong_ones_are_refused_at_once(self, var_list: object, message: str) -> None:
        with pytest.raises(ck.UsageError, match=message):
            ck.Saver(var_list)  # type: ignore[arg-type]

    def test_a_name_that_the_values_lack(self) -> None:
        with pytest.raises(ck.TensorNotFoundError, match="weight"):
            ck.Saver(["weight"]).save({"weights": np.ones(1)}, "d/m", 1)
        assert not os.path.exists("d")

    def test_nothing_to_save(self) -> None:
        with pytest.raises(ck.UsageError, match="No variables to save"):
            ck.Saver().save({}, "d/m")
        assert not os.path.exists("d")

    @pytest.mark.parametrize("sharded", [False, True])
    def test_allow_empty_writes_the_graph_only(self, sharded: bool) -> None:
        graph = ck.GraphBuilder().build()
        saver = ck.Saver([], allow_empty=True, sharded=sharded, graph=graph)
        assert saver.save({}, "d/m", 1) is None
        assert names_in("d") == ["m-1.meta"]
        assert ck.latest_checkpoint("d") is None
        assert saver.save({}, "e/m", 1, write_meta_graph=False) is None
        assert not os.path.exists("e")

    @pytest.mark.parametrize("wrong", [None, [("w", 1)], "w", 5])
    def test_values_must_be_a_mapping(self, wrong: object) -> None:
        with pytest.raises(ck.UsageError, match="mapping"):
            ck.Saver().save(wrong, "d/m")  # type: ignore[arg-type]
        assert not os.path.exists("d")

    @pytest.mark.parametrize("bad", [{3: np.ones(1)}, {"": np.ones(1)}, {"w": np.array(["2020"], "M8[D]")}])
    def test_values_that_cannot_be_stored_leave_nothing(self, bad: dict[str, object]) -> None:
        with pytest.raises(ck.UsageError):
            ck.Saver().save({"fine": np.ones(1), **bad}, "d/m")
        assert not os.path.exists("d")


class TestStep:
    @pytest.mark.parametrize(
        ("step", "name"),
        [
            (0, "m-0"),
            (7, "m-7"),
            (-1, "m--1"),
            (True, "m-1"),
            (np.int8(5), "m-5"),
            (np.uint64(2**64 - 1), f"m-{2**64 - 1}"),
            (np.array(9), "m-9"),
            (np.array(9, ">i4"), "m-9"),
            (-(2**63), f"m-{-(2**63)}"),
        ],
    )
    def test_integers_of_all_kinds(self, step: object, name: str) -> None:
        assert ck.Saver().save(values(1), "m", step) == name
        assert ck.latest_checkpoint(".") == f"./{name}"
        assert stamp_of(name) == 1

    @pytest.mark.parametrize(
        "step", [1.0, "1", np.array([1]), np.array(1.0), 10**25, [1], np.datetime64(1, "s")]
    )
    def test_anything_else_is_refused(self, step: object) -> None:
        with pytest.raises(ck.UsageError, match="global_step"):
            ck.Saver().save(values(1), "d/m", step)
        assert not os.path.exists("d")

    @pytest.mark.parametrize(
        ("step", "name"), [(7, "m-00000007"), (123456789, "m-123456789"), (-7, "m--0000007")]
    )
    def test_padded(self, step: int, name: str) -> None:
        saver = ck.Saver(max_to_keep=1, pad_step_number=True)
        assert saver.save(values(step), "m", step) == name
        saver.save(values(step + 1), "m", step + 1)
        assert saver.last_checkpoints == [ck.latest_checkpoint(".").removeprefix("./")]  # type: ignore[union-attr]
        assert not ck.checkpoint_exists(name)


class TestPath:
    @pytest.mark.parametrize(
        "name",
        [
            "a[1]",
            "m*",
            "m?",
            "sp ace",
            "ünï-世界",
            "q'\"",
            "a\\b",
            "per%20cent",
            "~",
            "-",
            "m.ckpt",
            ".hidden",
            "#1",
        ],
    )
    def test_odd_names_are_literal(self, name: str) -> None:
        saver = ck.Saver(max_to_keep=1)
        for step in (1, 2):
            path = saver.save(values(step), f"d/{name}", step)
            assert ck.latest_checkpoint("d") == path == f"d/{name}-{step}"
            assert stamp_of(path) == step
        assert names_in("d") == sorted(["checkpoint", *files_of(f"{name}-2")])

    def test_a_glob_deletes_only_itself(self) -> None:
        ck.Saver(run="x").save(values(1), "d/m1", 1)
        saver = ck.Saver(max_to_keep=1)
        for step in (1, 2):
            saver.save(values(step), "d/m[1]", step)
            saver.save(values(step), "d/m*", step)
        assert stamp_of("d/m1-1") == 1

    @pytest.mark.parametrize(
        ("path", "expected"),
        [
            ("m", "m-1"),
            ("./m", "./m-1"),
            ("d/../m", "d/../m-1"),
            ("d//m", "d//m-1"),
            (b"m", "m-1"),
            (Path("d/m"), "d/m-1"),
            ("~/m", "~/m-1"),
        ],
    )
    def test_the_path_comes_back_as_it_was_given(self, path: object, expected: str) -> None:
        assert ck.Saver().save(values(3), path, 1) == expected  # type: ignore[arg-type]
        assert stamp_of(expected) == 3
        assert ck.latest_checkpoint(os.path.dirname(expected) or ".") is not None

    @pytest.mark.parametrize("step", [None, 5])
    @pytest.mark.parametrize(
        "path",
        ["", "d/", "d/.", "d/..", ".", "..", "/", "n\nl", "t\tb", b"d/\xff", "x" * 201, None, 5, "s3:/b/m"],
    )
    def test_useless_paths_are_refused_before_anything_is_written(
        self, path: object, step: int | None
    ) -> None:
        with pytest.raises(ck.UsageError):
            ck.Saver().save(values(1), path, step)  # type: ignore[arg-type]
        assert os.listdir() == []

    def test_a_file_where_the_directory_should_be(self) -> None:
        Path("file").write_text("x")
        for path in ("file/m", "file/sub/m"):
            with pytest.raises(ck.UsageError):
                ck.Saver().save(values(1), path, 1)
        assert os.listdir() == ["file"]
        assert Path("file").read_text() == "x"

    def test_a_directory_where_a_file_should_be(self) -> None:
        os.makedirs("d/m-1.index")
        with pytest.raises(ck.UsageError):
            ck.Saver().save(values(1), "d/m", 1)
        assert [name for name in names_in("d") if ".data-" in name] == []

    def test_the_working_directory_may_change_between_saves(self, tmp_path: Path) -> None:
        saver = ck.Saver(max_to_keep=2)
        for name in ("a", "b"):
            os.makedirs(tmp_path / name)
            os.chdir(tmp_path / name)
            for step in (1, 2, 3):
                saver.save(values(step), "m", step)
        for name in ("a", "b"):
            assert ck.latest_checkpoint(tmp_path / name) == f"{tmp_path}/{name}/m-3"
            assert not ck.checkpoint_exists(tmp_path / name / "m-1")

    def test_one_directory_under_two_names(self, tmp_path: Path) -> None:
        os.makedirs("real")
        os.symlink("real", "link")
        saver = ck.Saver(max_to_keep=2)
        for step in range(1, 7):
            saver.save(values(step), f"{'real' if step % 2 else 'link'}/m", step)
        assert ck.latest_checkpoint("link") == "link/m-6"
        assert [n for n in names_in("real") if n.endswith("index")] == ["m-5.index", "m-6.index"]

    def test_a_moved_directory_goes_on(self) -> None:
        saver = ck.Saver(run="a")
        saver.save(values(1), "old/m", 1)
        os.rename("old", "new")
        assert ck.latest_checkpoint("new") == "new/m-1"
        again = ck.Saver(max_to_keep=1, run="b")
        again.save(values(2), "new/m", 2)
        assert names_in("new") == ["checkpoint", *files_of("m-2")]


class TestRecordName:
    @pytest.mark.parametrize(
        "name", ["a/b", "/abs", "..", ".", "m-1.index", "m-1.meta", "x.data-00000-of-00001"]
    )
    def test_names_that_cannot_be_one(self, name: str) -> None:
        with pytest.raises(ck.UsageError):
            ck.Saver().save(values(1), "d/m", 1, latest_filename=name)
        assert names_in("d") == []

    @pytest.mark.parametrize("step", [None, 1])
    def test_a_collision(self, step: int | None) -> None:
        name = "checkpoint" if step is None else "checkpoint-1"
        with pytest.raises(ck.UsageError, match="collides"):
            ck.Saver().save(values(1), "d/checkpoint", step, latest_filename=name)
        assert names_in("d") == []

    def test_the_usual_name_with_a_step_is_fine(self) -> None:
        ck.Saver().save(values(1), "d/checkpoint", 1)
        assert ck.latest_checkpoint("d") == "d/checkpoint-1"

    def test_two_records_in_one_directory(self) -> None:
        one, two = ck.Saver(max_to_keep=1), ck.Saver(max_to_keep=1)
        for step in (1, 2):
            one.save(values(step), "d/a", step)
            two.save(values(step), "d/b", step, latest_filename="best")
        assert ck.latest_checkpoint("d") == "d/a-2"
        assert ck.latest_checkpoint("d", "best") == "d/b-2"
        assert names_in("d") == sorted(["best", "checkpoint", *files_of("a-2"), *files_of("b-2")])

    def test_write_state_false_touches_no_record(self) -> None:
        saver = ck.Saver(max_to_keep=1)
        saver.save(values(1), "d/m", 1)
        before = Path("d/checkpoint").read_bytes()
        for step in (2, 3, 3):
            saver.save(values(step), "d/m", step, write_state=False)
        assert Path("d/checkpoint").read_bytes() == before
        assert saver.last_checkpoints == ["d/m-1"]
        assert stamp_of("d/m-3") == 3


class TestGraphFile:
    @pytest.mark.parametrize(
        "suffix",
        ["", "index", "data-00000-of-00001", "a/b", "../x", "n\nl", "x" * 300, "data-00007-of-00009"],
    )
    def test_suffixes_that_would_hit_another_file(self, suffix: str) -> None:
        with pytest.raises(ck.UsageError, match="suffix"):
            ck.Saver().save(values(1), "d/m", 1, meta_graph_suffix=suffix)
        assert not os.path.exists("d")

    def test_a_changed_suffix_leaves_the_old_file_as_in_tensorflow(self) -> None:
        saver = ck.Saver(max_to_keep=1)
        saver.save(values(1), "d/m", 1)
        saver.save(values(2), "d/m", 2, meta_graph_suffix="graph")
        saver.save(values(3), "d/m", 3, meta_graph_suffix="graph")
        expected = ["checkpoint", *files_of("m-3", graph=False), "m-3.graph", "m-1.meta"]
        assert names_in("d") == sorted(expected)

    def test_shards_by_the_device_of_the_variable_and_not_of_its_key(self) -> None:
        builder = ck.GraphBuilder()
        for name, device in (("w", "/cpu:0"), ("b", "/cpu:1")):
            attrs = {"shape": (2,), "dtype": "float32"}
            builder.operation(name, "VariableV2", [], attrs, device=device)
        graph = builder.build()
        saver = ck.Saver({"ckpt/w": "w", "ckpt/b": "b"}, sharded=True, graph=graph)
        saver.save({"w": np.ones(2, "f4"), "b": np.zeros(2, "f4")}, "d/m", 1)
        assert {name for name in names_in("d") if "data" in name} == {
            "m-1.data-00000-of-00002",
            "m-1.data-00001-of-00002",
        }


class TestConstructor:
    def test_defer_build(self) -> None:
        saver = ck.Saver(defer_build=True)
        with pytest.raises(ck.UsageError, match="build"):
            saver.save(values(1), "d/m")
        with pytest.raises(ck.UsageError, match="build"):
            saver.restore({}, "d/m")
        saver.build()
        saver.save(values(1), "d/m")
        with pytest.raises(ck.UsageError, match="deferred"):
            ck.Saver(["w"], defer_build=True)

    @pytest.mark.parametrize("wrong", [-1, -5])
    def test_a_negative_limit(self, wrong: int) -> None:
        with pytest.raises(ck.UsageError, match="negative"):
            ck.Saver(max_to_keep=wrong)

    @pytest.mark.parametrize("wrong", [2.5, "5", [1]])
    def test_a_limit_that_is_no_number(self, wrong: object) -> None:
        with pytest.raises(ck.UsageError, match="max_to_keep"):
            ck.Saver(max_to_keep=wrong)  # type: ignore[arg-type]

    def test_what_only_tensorflow_can_do(self) -> None:
        for arguments in ({"builder": object()}, {"write_version": 1}):
            with pytest.raises(ck.UnsupportedError):
                ck.Saver(**arguments)
        with pytest.raises(ck.UnsupportedError):
            ck.Saver().save(values(1), "d/m", save_debug_info=True)
        assert not os.path.exists("d")


class TestRestore:
    def test_none_and_missing(self) -> None:
        with pytest.raises(ck.UsageError, match="Can't load save_path when it is None"):
            ck.Saver().restore({}, None)
        with pytest.raises(ck.NotFoundError):
            ck.Saver().restore({}, "nowhere/m")

    def test_nothing_changes_on_a_wrong_shape(self) -> None:
        ck.Saver().save({"a": np.ones(2), "b": np.ones((2, 3))}, "d/m")
        target = {"a": np.zeros(2), "b": np.zeros((3, 2))}
        with pytest.raises(ck.UsageError):
            ck.Saver().restore(target, "d/m")
        assert not target["a"].any()
        ck.Saver(reshape=True).restore(target, "d/m")
        assert target["b"].all()


@pytest.mark.parametrize("name", ["graph", "graph.meta", "a.b.pbtxt"])
def test_a_graph_is_exported_to_the_very_name(tmp_path: Path, name: str) -> None:
    saver = ck.Saver()
    saver.save({"w": np.zeros(2)}, tmp_path / "model")
    data = saver.export_meta_graph(tmp_path / name)
    assert (tmp_path / name).read_bytes() == data == (tmp_path / "model.meta").read_bytes()


def test_a_lower_step_in_a_directory_of_our_own_has_tensorflows_names(tmp_path: Path) -> None:
    saver = ck.Saver()
    for step in (10, 9):
        saver.save({"w": np.zeros(2)}, tmp_path / "m", step)
    assert (tmp_path / "m-9.data-00000-of-00001").exists()
    other = ck.Saver(run="another")
    other.save({"w": np.zeros(2)}, tmp_path / "m", 8)
    assert not (tmp_path / "m-8.data-00000-of-00001").exists()


class TestStorageOptions:
    def test_those_of_the_saver_hold_for_calls_without_any(self, monkeypatch):
        given = []
        from ckptstore.saving import arguments
        from ckptstore.storage import registry
        from ckptstore.train import saver as module

        def locate(url, options=None):
            given.append(options)
            return registry.locate(url)

        for room in (arguments, module):
            monkeypatch.setattr(room, "locate", locate)
        saver = ck.Saver(storage_options={"anon": True})
        prefix = saver.save({"w": np.ones(2)}, "memory://saver-options/model")
        saver.restore({"w": np.zeros(2)}, prefix)
        assert given
        assert all(options == {"anon": True} for options in given)
        given.clear()
        saver.restore({"w": np.zeros(2)}, prefix, storage_options={})
        assert given == [{}]
