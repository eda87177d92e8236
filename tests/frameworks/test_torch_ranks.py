"""FSDP2, tensor parallelism, stages of a pipeline: saved by four ranks, loaded by four to one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ckptstore as ck
from tests.meta.source import ROOT


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def found(directory: Path) -> dict[tuple[str, int], list[dict[str, Any]]]:
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.frameworks.torch_ranks", str(directory)],
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


@pytest.mark.parametrize("size", [4, 3, 2, 1])
def test_every_tensor_and_value_comes_back_on(size: int, found: dict[Any, Any]) -> None:
    ranks = found["load", size]
    assert len(ranks) == size
    for one in ranks:
        assert (one["differ"], one["tensors"]) == ([], 27)
        # Rows became columns; a scalar is a box without dimensions.
        assert (one["rows"], one["bfloat16"], one["scalar"], one["step"]) == (True, True, 5.0, 3)
        # What one stage alone has held.
        assert one["stage3"] == [[3.0, 3.0], 3]


def test_all_ranks_name_what_one_of_them_cannot_save(found: dict[Any, Any], directory: Path) -> None:
    ranks = found["save", 4]
    assert {one["first"] for one in ranks} == {str(directory / "model-2")}
    assert {one["second"] for one in ranks} == {str(directory / "model-3")}
    for one in ranks:
        assert "['bad']" in one["object"]
        assert "['lr']" in one["values"]
        assert "0.0 on rank 0" in one["values"]
        assert one["rank"] == 2 or "rank 2" in one["object"]
        # A Saver without a coordinator saves alone, and what it lacks is not made up.
        assert "leave a hole" in one["alone"]
        assert f"{directory / 'model-2'}, {directory / 'model-3'}" in one["two"]
    assert ck.latest_checkpoint(directory) == str(directory / "model-3")
    assert not ck.checkpoint_exists(directory / "model-4")


def test_the_checkpoint_has_the_names_of_dcp_and_whole_tensors(
    found: dict[Any, Any], directory: Path
) -> None:
    with ck.open_checkpoint(directory / "model-3") as opened:
        assert {"model.a.weight", "optimizer.state.a.weight.exp_avg", "stage1.w"} <= set(opened)
        assert opened["extras.rows"].tolist() == [
            [float(10 * row + n) for n in range(10)] for row in range(3)
        ]
        assert opened["extras.empty"].shape == (0, 4)
    assert found
