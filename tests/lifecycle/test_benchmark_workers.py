"""The harness with tiny sets: figures for contenders that work, a reason for those that do not."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import workers
from benchmarks.contenders.base import Place
from benchmarks.contenders.registry import CONTENDERS, Spec
from benchmarks.harness import Run, Settings
from benchmarks.rows import ROWS
from benchmarks.sets import SetSpec
from benchmarks.team import Team
from benchmarks.workers import WorkerError, WorkerProcess

SMALL = SetSpec("small", 20)


@pytest.fixture
def environments(tmp_path):
    """One environment, this process's own."""
    python = tmp_path / "environments" / "venv-bench" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return tmp_path / "environments"


@pytest.fixture
def settings(tmp_path, environments):
    return Settings(
        rounds=2,
        slow_rounds=1,
        large=SetSpec("large", 2**20),
        small=SMALL,
        ranks=SetSpec("sharded", 2**20),
        imports=0,
        seed=1,
        directory=tmp_path,
        environments=environments,
    )


@pytest.fixture
def numpy_as(monkeypatch):
    """Put another class in the place of the contender numpy."""

    def replace_it(name: str) -> None:
        code = f"tests.unit.benchmarks.contenders:{name}"
        monkeypatch.setitem(CONTENDERS, "numpy", replace(CONTENDERS["numpy"], code=code))

    return replace_it


def _entries(results, row):
    found = next(item for item in results["rows"] if item["id"] == row)
    return {entry["contender"]: entry for entry in found["entries"]}


def _run(settings, *contenders):
    rows = {name: ROWS[name] for name in ("small-local-save", "small-local-restore")}
    return Run(replace(settings, contenders=frozenset(contenders))).all(rows)


def test_figures_for_who_works_and_a_reason_for_who_has_no_environment(settings, tmp_path):
    results = _run(settings, "numpy", "torch-save")
    for row in ("small-local-save", "small-local-restore"):
        entries = _entries(results, row)
        assert entries.keys() == {"numpy", "torch-save"}
        assert set(entries["numpy"]["rounds"]) == {0, 1}
        assert all(costs["seconds"] > 0 for costs in entries["numpy"]["rounds"].values())
        assert entries["torch-save"]["rounds"] == {}
        assert "environment bench-torch is missing" in entries["torch-save"]["failure"]
    assert results["contenders"]["numpy"]["versions"].keys() == {"numpy"}
    assert str(tmp_path) not in json.dumps(results)


def test_the_order_is_that_of_the_seed(settings, monkeypatch):
    orders = []
    for seed in (1, 1, 2, 3, 4):
        order: list[str] = []
        monkeypatch.setattr(
            "benchmarks.harness._Scenario.once",
            lambda self, who, operation, number, order=order: order.append(who),
        )
        _run(replace(settings, rounds=4, seed=seed), "ckptstore", "numpy", "tensorflow", "safetensors")
        orders.append(order)
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) > 1


def test_a_wrong_result_is_a_failure(settings, numpy_as):
    numpy_as("Cuts")
    entries = _entries(_run(settings, "numpy"), "small-local-restore")
    assert entries["numpy"]["rounds"] == {}
    assert entries["numpy"]["failure"] == "ValueError: wrong result: 19 tensors instead of 20"


def test_what_an_earlier_round_left_is_a_wrong_result(environments, tmp_path):
    worker = _worker("Forgets", environments, tmp_path)
    try:
        for stamp in (1, 2):
            worker.ask("run", {"operation": "save", "where": "x", "stamp": stamp})
        with pytest.raises(WorkerError, match="differs from what was saved in round 2"):
            worker.ask("run", {"operation": "restore_new", "where": "x", "stamp": 2})
    finally:
        worker.close()


def test_a_contender_that_dies_is_reported_and_the_others_go_on(settings, numpy_as):
    numpy_as("Dies")
    results = _run(settings, "numpy", "ckptstore")
    saves, restores = (_entries(results, row) for row in ("small-local-save", "small-local-restore"))
    assert saves["numpy"]["failure"] == "its process ended with status 7"
    assert restores["numpy"]["failure"].startswith("nothing to restore, its save failed")
    assert saves["ckptstore"]["rounds"] or saves["ckptstore"]["failure"] != saves["numpy"]["failure"]


def test_a_reason_is_shown_without_paths_of_this_machine(settings, numpy_as, tmp_path):
    numpy_as("Complains")
    results = _run(settings, "numpy")
    assert _entries(results, "small-local-save")["numpy"]["failure"].startswith("OSError: no room in …/")
    text = json.dumps(results)
    assert str(tmp_path) not in text
    assert str(workers.ROOT) not in text


def _worker(name: str, environments: Path, tmp_path: Path) -> WorkerProcess:
    spec = Spec("label", f"tests.unit.benchmarks.contenders:{name}", "bench", "peer")
    place = Place(str(tmp_path / "files"))
    operations = ["save", "restore_new"] if name in ("Prints", "Forgets") else []
    return WorkerProcess(
        spec, place, SMALL, operations, warm=bool(operations), environments=environments, directory=tmp_path
    )


def _team(name: str, environments: Path, tmp_path: Path) -> Team:
    spec = Spec("label", f"tests.unit.benchmarks.contenders:{name}", "bench", "peer", ranks=2)
    place = Place(str(tmp_path / "files"))
    data = SetSpec("sharded", 2**20)
    operations = ["save", "restore_into"]
    return Team(spec, place, data, operations, warm=True, environments=environments, directory=tmp_path)


def test_of_a_team_the_slowest_rank_counts_and_each_restores_its_own_part(environments, tmp_path):
    team = _team("Rank", environments, tmp_path)
    try:
        save = team.ask("run", {"operation": "save", "where": "x", "stamp": 1})
        restore = team.ask("run", {"operation": "restore_into", "where": "x", "stamp": 1})
        assert save["seconds"] >= 0.3
        assert restore.keys() == save.keys() == {"seconds", "cpu_s", "peak_bytes"}
    finally:
        team.close()
    assert not team.is_alive


def test_a_team_ends_when_one_of_its_ranks_fails(environments, tmp_path):
    team = _team("RankFails", environments, tmp_path)
    with pytest.raises(WorkerError, match="no room"):
        team.ask("run", {"operation": "save", "where": "x", "stamp": 1})
    assert not team.is_alive


def test_what_a_library_prints_is_no_answer(environments, tmp_path):
    worker = _worker("Prints", environments, tmp_path)
    try:
        assert worker.ask("run", {"operation": "save", "where": "x", "stamp": 1})["seconds"] > 0
    finally:
        worker.close()


def test_a_worker_that_does_not_answer_is_given_up_on(environments, tmp_path):
    worker = _worker("Hangs", environments, tmp_path)
    with pytest.raises(WorkerError, match="no answer within 1 s"):
        worker.ask("run", {"operation": "save", "where": "x", "stamp": 1}, timeout_s=1)
    assert not worker.is_alive


def test_settings_for_s3_of_the_caller_do_not_reach_a_worker(monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "mine")
    monkeypatch.setenv("FSSPEC_S3_KEY", "mine")
    environment = workers._environment(Place("root", "bucket", "http://localhost:1", "k", "s"))
    assert "AWS_PROFILE" not in environment
    assert "FSSPEC_S3_KEY" not in environment
    assert environment["AWS_ENDPOINT_URL"] == "http://localhost:1"
