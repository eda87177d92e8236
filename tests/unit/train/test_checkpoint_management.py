"""TensorFlow's functions around checkpoints."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

import ckptstore as ck
from tests.unit.directory.helpers import checkpoints_in, names_in, save_steps, values


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save_steps(ck.Saver(run="a"), f"{tmp_path}/run/model", [1, 2])
    return tmp_path / "run"


def test_exists(run: Path) -> None:
    assert ck.checkpoint_exists(run / "model-1")
    assert not ck.checkpoint_exists(run / "model-3")
    assert not ck.checkpoint_exists(run / "model-*")
    assert not ck.checkpoint_exists(run)
    assert not ck.checkpoint_exists(run / "missing" / "model")
    assert not ck.checkpoint_exists(run / "model-1.index")


def test_mtimes(run: Path) -> None:
    os.utime(run / "model-1.index", (1234.9, 1234.9))
    os.utime(run / "model-2.index", (99.0, 99.0))
    paths = [run / "model-1", run / "gone", run / "model-2"]
    assert ck.get_checkpoint_mtimes(paths) == [1234.0, 99.0]


def test_remove_by_exact_names(run: Path) -> None:
    save_steps(ck.Saver(run="b"), f"{run}/model", [10])
    ck.remove_checkpoint(run / "model-1")
    ck.remove_checkpoint(run / "model-1")
    ck.remove_checkpoint(run / "model-?")
    assert checkpoints_in(str(run)) == ["model-10", "model-2"]
    assert not [name for name in names_in(str(run)) if name.startswith("model-1.")]


def test_remove_takes_all_data_of_an_overwritten_one(run: Path) -> None:
    for stamp in (3, 4):
        ck.Saver(run="a").save(values(stamp), f"{run}/model", 2, write_state=False)
    ck.remove_checkpoint(run / "model-2", meta_graph_suffix="meta")
    assert not [name for name in names_in(str(run)) if name.startswith("model-2.")]


def test_state_joins_relative_paths(run: Path) -> None:
    state = ck.get_checkpoint_state(run)
    assert state is not None
    assert state.model_checkpoint_path == f"{run}/model-2"
    assert list(state.all_model_checkpoint_paths) == [f"{run}/model-1", f"{run}/model-2"]
    assert ck.get_checkpoint_state(run / "nowhere") is None
    (run / "checkpoint").write_bytes(b"")
    with pytest.warns(ck.CkptStoreWarning, match="empty"):
        assert ck.get_checkpoint_state(run) is None


class TestUpdate:
    def test_it_keeps_the_lines_of_a_running_saver(self, run: Path) -> None:
        saver = ck.Saver(run="a", max_to_keep=5)
        save_steps(saver, f"{run}/model", [3])
        ck.update_checkpoint_state(run, f"{run}/model-3", [f"{run}/model-2"])
        save_steps(saver, f"{run}/model", [4])
        assert [p.rpartition("/")[2] for p in saver.last_checkpoints] == ["model-2", "model-3", "model-4"]

    def test_relative_paths_as_in_tensorflow(self, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(run.parent)
        ck.update_checkpoint_state("run", "run/model-1")
        assert ck.latest_checkpoint("run") == "run/model-1"
        ck.update_checkpoint_state(run, "model-2")
        assert ck.latest_checkpoint(run) == f"{run}/model-2"

    def test_errors(self, run: Path) -> None:
        before = (run / "checkpoint").read_bytes()
        with pytest.raises(ck.UsageError, match="must match"):
            ck.update_checkpoint_state(
                run, "model-1", ["model-1"], all_model_checkpoint_timestamps=[1.0, 2.0]
            )
        with pytest.raises(ck.UsageError, match="conflicts"):
            ck.update_checkpoint_state(run, "checkpoint")
        with pytest.raises(ck.UsageError, match="another storage"):
            ck.update_checkpoint_state(run, "memory://x/model-1")
        assert (run / "checkpoint").read_bytes() == before


class TestFollowing:
    def test_a_timeout_shorter_than_the_pause_looks_once(self, run: Path) -> None:
        assert ck.wait_for_new_checkpoint(run, f"{run}/model-2", seconds_to_sleep=5, timeout=1) is None
        assert ck.wait_for_new_checkpoint(run, f"{run}/model-1", seconds_to_sleep=5, timeout=1) is not None

    def test_each_new_one_once(self, run: Path) -> None:
        saver = ck.Saver(run="b")
        seen: list[str] = []

        def later() -> None:
            save_steps(saver, f"{run}/model", [3])

        timer = threading.Timer(0.05, later)
        for path in ck.checkpoints_iterator(run, timeout=1.2):
            seen.append(path.rpartition("/")[2])
            if len(seen) == 1:
                timer.start()
        assert seen == ["model-2", "model-3"]

    def test_the_timeout_function_decides(self, tmp_path: Path) -> None:
        answers = iter([False, True])
        asked: list[bool] = []

        def timed_out() -> bool:
            asked.append(next(answers))
            return asked[-1]

        assert list(ck.checkpoints_iterator(tmp_path, timeout=0, timeout_fn=timed_out)) == []
        assert asked == [False, True]


def test_variables(run: Path) -> None:
    assert ck.list_variables(run) == [("b", []), ("w", [3])]
    assert np.asarray(ck.load_variable(run, "w:0")).tolist() == [2.0] * 3


@pytest.mark.parametrize("name", ["v1.ckpt-7", "v1sh.ckpt-8-?????-of-00003"])
def test_a_v1_checkpoint_is_removed_by_exact_names(tmp_path: Path, fixtures_dir: Path, name: str) -> None:
    shutil.copytree(fixtures_dir / "05_v1_format", tmp_path / "run")
    before = {path.name for path in (tmp_path / "run").iterdir()}
    assert ck.checkpoint_exists(tmp_path / "run" / name)
    ck.remove_checkpoint(tmp_path / "run" / name, 1)
    assert not ck.checkpoint_exists(tmp_path / "run" / name)
    start = name.partition("-?")[0]
    assert before - {path.name for path in (tmp_path / "run").iterdir()} == {
        each for each in before if each.startswith(start)
    }
