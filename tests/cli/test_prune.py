from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.directory.record_update import read_record
from ckptstore.storage.registry import locate
from ckptstore.testing import ManualClock

HOUR_S = 3600.0

TABLE = """\
CHECKPOINT  VERDICT   SIZE   AGE  BECAUSE
model-500   stays    129 B   0 s  not listed
model-1000  stays    129 B  10 h  --keep-every 6h
model-2000  stays    129 B   8 h  pinned
model-3000  goes     129 B   6 h  no rule keeps it
model-4000  stays    129 B   4 h  --keep-every 6h, --keep-best loss=1
model-5000  stays    129 B   2 h  --keep-last 2
model-6000  stays    129 B   0 s  --keep-last 2
best        stays    129 B   0 s  saved without a step
"""
RULES = ("--keep-last", "2", "--keep-best", "loss=1", "--keep-every", "6h")


@pytest.fixture
def directory(tmp_path, monkeypatch):
    clock = ManualClock(time.time() - 12 * HOUR_S)
    monkeypatch.chdir(tmp_path)
    values = {"w": np.zeros(2, np.float32)}
    saver = ck.Saver(max_to_keep=100, clock=clock, run="job")
    for step in range(1000, 7000, 1000):
        clock.advance(2 * HOUR_S)
        metrics = {"loss": abs(step - 4100) / 1e3}
        saver.save(values, "run/model", step, write_meta_graph=False, metrics=metrics)
    ck.pin("run/model-2000")
    ck.Saver(run="best", clock=clock).save(values, "run/best", write_meta_graph=False)
    ck.Saver(run="by hand").save(values, "run/model", 500, write_meta_graph=False, write_state=False)
    os.utime("run/model-500.index", (clock(), clock()))
    monkeypatch.setattr("ckptstore.storage.abilities.time.time", clock)
    return tmp_path / "run"


def steps(directory):
    return sorted(int(path.stem.rpartition("-")[2]) for path in directory.glob("model-*.index"))


def listed(directory):
    state = read_record(locate(directory).child("checkpoint")).record.state
    assert state is not None
    return list(state.all_model_checkpoint_paths)


def test_dry_run(run, directory):
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    result = run("prune", "run", *RULES, "--dry-run")
    assert (result.code, result.err) == (0, "")
    table, _, lines = result.out.partition("not listed in")
    assert [line.split() for line in table.splitlines()] == [line.split() for line in TABLE.splitlines()]
    assert lines.splitlines() == [
        " the record, so not judged without --unlisted: 1 checkpoint",
        "would delete 1 checkpoint, 129 B (dry run)",
    ]
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


def test_it_deletes_and_the_record_agrees(run, directory):
    result = run("prune", "run", *RULES, "--yes")
    assert (result.code, result.err) == (0, "")
    assert result.out.endswith("deleted 1 checkpoint, 129 B\n")
    assert steps(directory) == [500, 1000, 2000, 4000, 5000, 6000]
    assert not list(directory.glob("model-3000*"))
    assert listed(directory) == [*(f"model-{step}" for step in steps(directory) if step > 500), "best"]
    record = read_record(locate(directory).child("checkpoint")).record
    assert record.pending == ()
    assert set(record.notes) == {f"model-{step}" for step in steps(directory) if step > 500}
    result = run("prune", "run", *RULES, "--yes")
    assert result.out.endswith("nothing to delete in run\n")
    assert ck.latest_checkpoint("run") == "run/best"


def test_json(run, directory):
    found = run("prune", "run", *RULES, "--dry-run", "--json").json
    assert (found["schema"], found["directory"], found["dry_run"]) == ("ckptstore.prune/1", "run", True)
    assert found["record"] == "run/checkpoint"
    by_name = {item["prefix"]: item for item in found["checkpoints"]}
    assert by_name["model-4000"] == {
        "prefix": "model-4000",
        "step": 4000,
        "goes": False,
        "because": ["--keep-every 6h", "--keep-best loss=1"],
        "size_bytes": by_name["model-4000"]["size_bytes"],
        "age_s": 4 * HOUR_S,
        "deleted": False,
    }
    assert [name for name, item in by_name.items() if item["goes"]] == ["model-3000"]
    found = run("prune", "run", *RULES, "--yes", "--json").json
    assert (found["checkpoints_deleted"], found["unfinished"]) == (1, [])
    assert [item["prefix"] for item in found["checkpoints"] if item["deleted"]] == ["model-3000"]


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (["--keep-last", "1"], [500, 2000, 6000]),
        (["--keep-every-steps", "2000"], [500, 2000, 4000, 6000]),
        (["--keep-younger", "5h"], [500, 2000, 4000, 5000, 6000]),
        (["--keep-best", "loss:max=2"], [500, 1000, 2000, 6000]),
        (["--keep-best", "loss:min=1"], [500, 2000, 4000, 6000]),
        (["--keep-best", "missing=3"], [500, 2000, 6000]),
        (["--keep", "model-1000", "--keep", "model-3000"], [500, 1000, 2000, 3000, 6000]),
        (["--keep-last", "3", "--unlisted"], [2000, 4000, 5000, 6000]),
        (["--keep-every-steps", "500", "--unlisted"], [500, 1000, 2000, 3000, 4000, 5000, 6000]),
    ],
)
def test_rules(run, directory, words, left):
    result = run("prune", "run", *words, "--yes")
    assert (result.code, result.err) == (0, "")
    assert steps(directory) == left
    assert (directory / "best.index").exists()
    for step in left:
        assert ck.checkpoint_exists(directory / f"model-{step}")


def test_a_series_alone(run, directory):
    values = {"w": np.zeros(2, np.float32)}
    critic = ck.Saver(run="critic")
    for step in (1, 2):
        critic.save(values, "run/critic", step, write_meta_graph=False)
    result = run("prune", "run/critic", "--keep-last", "1", "--yes")
    assert (result.code, result.err) == (0, "")
    assert sorted(path.name for path in directory.glob("critic-*.index")) == ["critic-2.index"]
    assert len(steps(directory)) == 7


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["run"], 2, "nothing says what to keep"),
        (["run", "--keep-last", "1"], 2, "no terminal"),
        (["run", "--keep-last", "0", "--yes"], 2, "keep-last"),
        (["run", "--keep-best", "loss", "--yes"], 2, "--keep-best"),
        (["run", "--keep-best", "=3", "--yes"], 2, "--keep-best"),
        (["run", "--keep-best", "loss=0", "--yes"], 2, "positive"),
        (["run", "--keep-every", "6", "--yes"], 2, "not an age"),
        (["run", "--keep", "model-7", "--yes"], 3, "no such checkpoint to keep"),
        (["elsewhere", "--keep-last", "1", "--yes"], 3, "no such directory"),
        (["run", "--keep-last", "1", "--yes", "--record", "other"], 3, "no record"),
    ],
)
def test_exit_codes(run, directory, words, code, said):
    result = run("prune", *words)
    assert (result.code, result.out) == (code, "")
    assert said in result.err
    assert len(steps(directory)) == 7


def test_a_damaged_record_is_not_gone_by(run, directory):
    (directory / "checkpoint").write_bytes(b"nonsense")
    assert run("prune", "run", "--keep-last", "1", "--yes").code == 4
    assert len(steps(directory)) == 7


@pytest.fixture
def person(monkeypatch):
    """Somebody at a terminal who answers yes or no, and may do something before."""
    said: list[str] = []

    class Person:
        answer = True
        questions = said

        def before(self):
            pass

    someone = Person()

    def confirm(question, **options):
        said.append(question)
        someone.before()
        return someone.answer

    monkeypatch.setattr("ckptstore.cli.prune.is_interactive", lambda: True)
    monkeypatch.setattr("click.confirm", confirm)
    return someone


def test_a_person_is_asked(run, directory, person):
    person.answer = False
    result = run("prune", "run", *RULES)
    assert result.code == 0
    assert person.questions == ["Delete 1 checkpoint, 129 B, from run?"]
    assert result.err == "ckptstore: nothing was deleted\n"
    assert len(steps(directory)) == 7
    person.answer = True
    assert run("prune", "run", *RULES).out.endswith("deleted 1 checkpoint, 129 B\n")
    assert run("prune", "run", *RULES).out.endswith("nothing to delete in run\n")
    assert len(person.questions) == 2


def test_what_was_pinned_or_saved_again_before_the_answer_stays(run, directory, person):
    def meanwhile():
        ck.pin("run/model-3000")
        ck.Saver(run="job", max_to_keep=100).save(
            {"w": np.ones(2, np.float32)}, "run/model", 4000, write_meta_graph=False
        )

    person.before = meanwhile
    result = run("prune", "run", "--keep-last", "2")
    assert person.questions == ["Delete 3 checkpoints, 387 B, from run?"]
    assert (result.code, result.err) == (0, "")
    assert steps(directory) == [500, 2000, 3000, 4000, 5000, 6000]


def test_what_no_saver_owns_stays(run, directory, monkeypatch):
    values = {"w": np.zeros(2, np.float32)}
    (directory / "checkpoint").unlink()
    run("repair", "run")
    result = run("prune", "run", "--keep-last", "1", "--yes")
    assert result.out.count("kept: no saver owns it") == 8
    assert len(steps(directory)) == 7
    for step in (7000, 8000):
        ck.Saver(run="next", max_to_keep=9).save(values, "run/model", step, write_meta_graph=False)
    run("prune", "run", "--keep-last", "1", "--yes")
    assert steps(directory)[-2:] == [6000, 8000]


def test_torn_ones_take_no_place_and_stay(run, directory):
    for step in (5000, 6000):
        (directory / f"model-{step}.data-00000-of-00001").unlink()
    result = run("prune", "run", "--keep-last", "1", "--yes")
    assert result.code == 0
    assert steps(directory) == [500, 2000, 4000, 5000, 6000]


def test_a_plan_is_carried_out_later(run, directory):
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    result = run("prune", "run", *RULES, "--plan-out", "plan.json")
    assert (result.code, result.err) == (0, "")
    assert result.out.endswith("would delete 1 checkpoint, 129 B (dry run)\n")
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    assert [each["prefix"] for each in json.loads(Path("plan.json").read_text())["delete"]] == ["model-3000"]
    result = run("prune", "run", "--apply", "plan.json")
    assert (result.code, result.err) == (0, "")
    assert result.out == "deleted 1 checkpoint, 129 B\n"
    assert steps(directory) == [500, 1000, 2000, 4000, 5000, 6000]
    # The record has moved on by that.
    assert run("prune", "run", "--apply", "plan.json").code == 7


@pytest.mark.parametrize("change", ["a save", "a pin", "an overwrite past the record", "its files are gone"])
def test_a_plan_that_does_not_fit_any_more_deletes_nothing(run, directory, change):
    assert run("prune", "run", "--keep-last", "2", "--plan-out", "plan.json").code == 0
    values = {"w": np.ones(5, np.float32)}
    if change == "a save":
        ck.Saver(run="job", max_to_keep=100).save(values, "run/model", 7000, write_meta_graph=False)
    elif change == "a pin":
        ck.pin("run/model-3000")
    elif change == "an overwrite past the record":
        ck.Saver(run="x").save(values, "run/model", 3000, write_state=False, write_meta_graph=False)
    else:
        ck.remove_checkpoint("run/model-3000")
    left = steps(directory)
    result = run("prune", "run", "--apply", "plan.json")
    assert (result.code, result.out) == (7, "")
    assert "Make a new plan." in result.err
    assert steps(directory) == left


def test_a_plan_may_name_unlisted_ones_and_never_what_is_protected(run, directory):
    assert run("prune", "run", "--keep-last", "3", "--unlisted", "--plan-out", "plan.json").code == 0
    plan = json.loads(Path("plan.json").read_text())
    assert [each["prefix"] for each in plan["delete"]] == ["model-500", "model-1000", "model-3000"]
    version = locate(directory / "model-6000.index").storage.head(str(directory / "model-6000.index")).version
    for name in ("model-6000", "model-2000", "best", "../run/model-1000", "elsewhere"):
        forged = {**plan, "delete": [{"prefix": name, "index_version": version}]}
        Path("forged.json").write_text(json.dumps(forged))
        assert run("prune", "run", "--apply", "forged.json").code == 7
    assert len(steps(directory)) == 7
    assert run("prune", "run", "--apply", "plan.json").code == 0
    assert steps(directory) == [2000, 4000, 5000, 6000]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "[]",
        "{}",
        '{"schema": "ckptstore.prune-plan/1"}',
        "[" * 100_000,
        "\xff",
        '{"schema": 1}',
    ],
)
def test_what_is_not_a_plan_is_refused(run, directory, text):
    Path("plan.json").write_text(text, encoding="latin-1")
    result = run("prune", "run", "--apply", "plan.json")
    assert result.code == 2
    assert "not a plan" in result.err


def test_a_plan_of_another_record_or_with_other_options_is_refused(run, directory):
    assert run("prune", "run", "--keep-last", "1", "--plan-out", "plan.json").code == 0
    assert run("prune", "run", "--apply", "plan.json", "--record", "other").code == 2
    assert run("prune", "run", "--apply", "plan.json", "--keep-last", "1").code == 2
    assert run("prune", "run", "--apply", "missing.json").code == 2
    assert len(steps(directory)) == 7
