"""torch.distributed.checkpoint with the plug-in: four ranks save, four and two load; single processes."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

import ckptstore as ck
import ckptstore.torch
from ckptstore.torch import LoadPlanner, SavePlanner, StorageReader, StorageWriter
from tests.meta.source import ROOT

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dcp")


@pytest.fixture(scope="module")
def found(directory: Path) -> dict[tuple[str, int], list[dict[str, Any]]]:
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.frameworks.torch_dcp_ranks", str(directory)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-6000:]
    jobs: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for line in ended.stdout.splitlines():
        one = json.loads(line)
        jobs.setdefault((one["work"], one["size"]), []).append(one)
    return jobs


@pytest.mark.parametrize("size", [4, 2])
@pytest.mark.parametrize("how", ["dcp", "ckptstore"])
def test_what_four_ranks_saved_comes_back_on(size: int, how: str, found: dict[Any, Any]) -> None:
    ranks = found["load", size]
    assert len(ranks) == size
    for one in ranks:
        assert one[how] == {
            "differ": [],
            "tensors": 27,
            "rows": True,
            "bfloat16": True,
            "scalar": 5.0,
            "whole": [0.0, 1.0, 2.0, 3.0],
            "plain": [3, [1, "two", None]],
        }


def test_all_ranks_name_what_one_of_them_cannot_save(found: dict[Any, Any], directory: Path) -> None:
    for one in found["save", 4]:
        assert (one["first"], one["second"]) == ({}, {})
        assert list(one["object"]) == ["2"]
        assert one["object"]["2"][0] == "UsageError"
        assert "['bad']" in one["object"]["2"][1]
        assert sorted(one["values"]) == ["0", "1", "2", "3"]
        assert all(kind == "UsageError" and "['lr']" in text for kind, text in one["values"].values())
    assert ck.latest_checkpoint(directory) == str(directory / "model-2")
    # One Saver: it counts both.
    record = ck.get_checkpoint_state(directory)
    assert record is not None
    assert len(record.all_model_checkpoint_paths) == 2
    assert not ck.checkpoint_exists(directory / "model-3")
    with ck.open_checkpoint(directory / "model-2") as opened:
        assert {"model.a.weight", "optimizer.state.a.weight.exp_avg", "extras.whole"} <= set(opened)
        assert "step" not in opened
        assert opened["extras.empty"].shape == (0, 4)


def save_alone(state: dict[str, Any], prefix: Path, **more: Any) -> None:
    dcp.save(state, checkpoint_id=str(prefix), storage_writer=StorageWriter(), **more)


def load_alone(state: dict[str, Any], prefix: Path, **more: Any) -> None:
    dcp.load(state, checkpoint_id=str(prefix), storage_reader=StorageReader(), **more)


def the_failure(raised: pytest.ExceptionInfo[CheckpointException]) -> BaseException:
    [(error, _)] = raised.value.failures.values()
    assert isinstance(error, BaseException)
    return error


def test_one_process_saves_and_loads_as_the_page_says(tmp_path: Path) -> None:
    text = (ROOT / "docs/frameworks/torch.md").read_text()
    [lines] = re.findall(r"<!-- dcp -->\n```python\n(.*?)```\n", text, re.DOTALL)
    weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    scale, filled = (torch.full((1,), byte, dtype=torch.uint8).view(torch.float8_e8m0fnu) for byte in (7, 0))
    state: dict[str, Any] = {
        "model": {"w": weight, "tied": weight, "scale": scale},
        "optimizer": {"state": {0: {"step": 7}}, "param_groups": [{"betas": (0.9, 0.999)}]},
        "dtype": torch.float16,
    }
    into: dict[str, Any] = {
        "model": {"w": torch.zeros(2, 3), "tied": torch.zeros(2, 3), "scale": filled},
        "optimizer": {"state": {0: {"step": 0}}, "param_groups": [{"betas": ()}]},
        "dtype": None,
    }
    exec(lines, {"dcp": dcp, "ckptstore": ck, "state": state, "into": into, "directory": str(tmp_path)})
    assert torch.equal(into["model"]["w"], weight)
    assert torch.equal(into["model"]["tied"], weight)
    assert filled.view(torch.uint8).tolist() == [7]
    assert into["optimizer"] == state["optimizer"]
    assert into["dtype"] is torch.float16
    assert ck.latest_checkpoint(tmp_path) == str(tmp_path / "model-100")
    with ck.open_checkpoint(tmp_path / "model-100") as opened:
        assert "model.tied" not in opened
    # The tied one is found with the default planner too.
    other = {"model": {"tied": torch.zeros(2, 3)}}
    load_alone(other, tmp_path / "model-100")
    assert torch.equal(other["model"]["tied"], weight)


def test_the_default_planner_stores_tensors_and_what_it_pickled_is_refused(tmp_path: Path) -> None:
    save_alone({"w": torch.ones(3), "step": 7}, tmp_path / "model-1")
    with pytest.raises(CheckpointException) as raised:
        load_alone({"w": torch.zeros(3), "step": 0}, tmp_path / "model-1")
    error = the_failure(raised)
    assert isinstance(error, ck.UsageError)
    assert error.tensor == "step"
    assert "SavePlanner" in str(error)
    shared = torch.zeros(3)
    load_alone({"w": shared}, tmp_path / "model-1")
    assert shared.tolist() == [1.0, 1.0, 1.0]


def test_values_of_the_tree_want_our_load_planner(tmp_path: Path) -> None:
    save_alone({"w": torch.ones(3), "step": 7}, tmp_path / "model-1", planner=SavePlanner())
    state = {"w": torch.zeros(3), "step": 0}
    with pytest.raises(CheckpointException) as raised:
        load_alone(state, tmp_path / "model-1")
    assert "LoadPlanner" in str(the_failure(raised))
    assert state["w"].tolist() == [0.0, 0.0, 0.0]


def test_arrays_that_dcp_does_not_see_are_refused_by_name(tmp_path: Path) -> None:
    ckptstore.torch.save({"w": torch.ones(3), "pair": (torch.ones(2), 1)}, tmp_path / "model-1")
    state = {"w": torch.zeros(3), "pair": (0, 1)}
    with pytest.raises(CheckpointException) as raised:
        load_alone(state, tmp_path / "model-1", planner=LoadPlanner())
    error = the_failure(raised)
    assert isinstance(error, ck.UsageError)
    assert error.tensor == "pair"
    load_alone({"w": state["w"]}, tmp_path / "model-1")
    assert state["w"].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("value", [(torch.ones(2),), object()], ids=["tensor in a tuple", "object"])
def test_what_cannot_be_stored_is_refused_by_name(value: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointException) as raised:
        save_alone({"a": {"bad": value}}, tmp_path / "model-1", planner=SavePlanner())
    error = the_failure(raised)
    assert isinstance(error, ck.UsageError)
    assert str(error.tensor).startswith("a.bad")
    assert not list(tmp_path.iterdir())


def test_another_type_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    save_alone({"w": torch.ones(3)}, tmp_path / "model-1")
    state = {"w": torch.zeros(3, dtype=torch.float16)}
    with pytest.raises(CheckpointException) as raised:
        load_alone(state, tmp_path / "model-1")
    assert isinstance(the_failure(raised), ck.UsageError)
    assert state["w"].tolist() == [0.0, 0.0, 0.0]


def test_damage_and_absence_are_told_with_their_own_errors(tmp_path: Path) -> None:
    save_alone({"w": torch.ones(3)}, tmp_path / "model-1")
    [data] = tmp_path.glob("model-1.data-*")
    data.write_bytes(bytes([data.read_bytes()[0] ^ 1]) + data.read_bytes()[1:])
    with pytest.raises(CheckpointException) as raised:
        load_alone({"w": torch.zeros(3)}, tmp_path / "model-1")
    error = the_failure(raised)
    assert isinstance(error, ck.ChecksumError)
    assert error.tensor == "w"
    with pytest.raises(CheckpointException) as raised:
        load_alone({"w": torch.zeros(3)}, tmp_path / "model-2", planner=LoadPlanner())
    assert isinstance(the_failure(raised), ck.NotFoundError)


@pytest.mark.parametrize(
    ("made", "signature"),
    [
        (StorageWriter, "(path=None, *, saver=None, storage_options=None)"),
        (StorageReader, "(path=None, *, memory_budget=None, storage_options=None)"),
        (SavePlanner, "()"),
        (LoadPlanner, "()"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_signatures(made: Any, signature: str) -> None:
    parameters = inspect.signature(made).parameters.values()
    bare = [one.replace(annotation=inspect.Parameter.empty) for one in parameters]
    assert str(inspect.Signature(bare)) == signature
