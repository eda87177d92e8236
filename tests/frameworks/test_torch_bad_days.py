"""A rank is killed or frozen in a save of DTensors: the others name it, and two ranks go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.frameworks.torch_bad_day_cases import CASES, SIZE, Case
from tests.meta.source import ROOT


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("ranks")
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.frameworks.torch_bad_days", str(top)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-6000:]
    return top


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_others_name_the_rank_and_a_smaller_job_goes_on(directory: Path, case: Case) -> None:
    said = directory / f"{case.name}-said"
    assert (said / "state").read_text() == ("-9" if case.how == "kill" else "stopped")
    for rank in set(range(SIZE)) - {case.rank}:
        one = json.loads((said / f"rank-{rank}").read_text())
        if case.rank:
            assert (one["error"], one["ranks"]) == ("RanksMissingError", [case.rank]), one
        else:
            # It had what the others wrote: only the storage knows whether it was published.
            assert one["error"] == "CoordinatorLostError", one
    for rank in (0, 1):
        one = json.loads((directory / "resumed" / f"rank-{rank}").read_text())[case.name]
        assert one == {"newest": str(directory / case.name / "m-1"), "differ": [], "differ_later": []}
