from __future__ import annotations

import dataclasses

from ckptstore.errors import FormatError, IncompleteBundleError
from ckptstore.view.directory_listing import (
    CheckpointFacts,
    DirectoryFacts,
    RecordFacts,
    checkpoint_table,
    directory_object,
    directory_summary,
)
from ckptstore.view.problems import Problem
from ckptstore.view.text_table import table_lines

NOW_S = 1_795_000_000.0
GOOD = CheckpointFacts(
    prefix="model-1000",
    url="run/model-1000",
    step=1000,
    version=2,
    state="complete",
    problem=None,
    size_bytes=1536,
    mtime_s=NOW_S - 300,
    graph=True,
    listed=True,
    latest=True,
    published=True,
)
TORN = dataclasses.replace(
    GOOD,
    prefix="model-2000",
    url="run/model-2000",
    step=2000,
    state="torn",
    problem=Problem.of_error(IncompleteBundleError("no index", url="run/model-2000")),
    mtime_s=NOW_S - 30,
    graph=False,
    listed=False,
    latest=False,
    published=False,
)
RECORD = RecordFacts("run/checkpoint", "present", latest="model-1000", latest_prefix="model-1000")


def facts(*checkpoints, record=RECORD, latest="run/model-1000"):
    return DirectoryFacts("run", NOW_S, record, checkpoints, latest)


def shown(found):
    return [line for line, _ in table_lines(checkpoint_table(found))]


def summary(found):
    return [line for line, _ in directory_summary(found)]


def test_the_table_marks_the_latest_and_shows_the_torn_one():
    assert shown(facts(GOOD, TORN)) == [
        "   STEP  CHECKPOINT  STATE        SIZE    AGE  GRAPH  RECORD",
        "*  1000  model-1000  complete  1.5 KiB  5 min  yes    listed",
        "   2000  model-2000  torn      1.5 KiB   30 s  -      -",
    ]


def test_the_summary_says_why_and_how_many():
    assert summary(facts(GOOD, TORN)) == [
        f"torn: model-2000: no index [run/model-2000]. {FormatError.next_step}",
        "* latest: model-1000",
        "2 checkpoints (1 torn), 3.0 KiB",
    ]


def test_a_torn_row_is_marked_as_bad_and_the_latest_as_good():
    assert [row.tone for row in checkpoint_table(facts(GOOD, TORN)).rows] == ["good", "bad"]


def test_a_record_that_names_another_one_is_told():
    record = dataclasses.replace(RECORD, latest="model-2000", latest_prefix="model-2000")
    assert "* latest: model-1000 (the record names model-2000)" in summary(facts(GOOD, record=record))


def test_an_absolute_path_in_the_record_is_the_same_checkpoint():
    record = dataclasses.replace(RECORD, latest="/data/run/model-1000")
    assert "* latest: model-1000" in summary(facts(GOOD, record=record))


def test_a_missing_and_an_unreadable_record_are_told():
    missing = RecordFacts("run/checkpoint", "missing")
    assert "* latest: model-1000 (there is no record)" in summary(facts(GOOD, record=missing))
    problem = Problem.of_error(FormatError("the record is empty", url="run/checkpoint"))
    broken = RecordFacts("run/checkpoint", "unreadable", problem)
    assert summary(facts(GOOD, record=broken))[0].startswith("record: the record is empty [run/checkpoint].")


def test_none_restorable_and_cannot_be_told_are_two_things():
    assert "latest: none can be restored" in summary(facts(TORN, latest=None))
    unknown = dataclasses.replace(facts(TORN, latest=None), latest_problem=TORN.problem)
    assert "latest: unknown" in summary(unknown)


def test_an_empty_directory_says_so():
    assert summary(facts(latest=None)) == ["no checkpoints in run"]


def test_hostile_names_are_escaped():
    hostile = dataclasses.replace(TORN, prefix="\x1b]0;x\x07-1")
    text = "\n".join(shown(facts(hostile)) + summary(facts(hostile)))
    assert "\x1b" not in text
    assert "\\x1b]0;x\\x07-1" in text


def test_the_object_has_everything_in_exact_form():
    found = directory_object(facts(GOOD, TORN))
    assert found["latest"] == "run/model-1000"
    assert found["record"] == {
        "url": "run/checkpoint",
        "state": "present",
        "latest": "model-1000",
        "problem": None,
    }
    first, second = found["checkpoints"]
    assert first == {
        "prefix": "model-1000",
        "url": "run/model-1000",
        "step": 1000,
        "format_version": 2,
        "state": "complete",
        "problem": None,
        "size_bytes": 1536,
        "mtime_s": NOW_S - 300,
        "age_s": 300.0,
        "graph": True,
        "listed": True,
        "latest": True,
        "pinned": False,
        "metrics": {},
    }
    assert second["state"] == "torn"
    assert second["problem"]["code"] == "incomplete"
