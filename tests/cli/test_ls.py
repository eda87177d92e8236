from __future__ import annotations

import math
import os
import shutil
import time

import numpy as np
import pytest

import ckptstore as ck

NOW_S = 1_795_000_000.0

TABLE = """\
   STEP  CHECKPOINT  STATE      SIZE     AGE  GRAPH  RECORD
    500  model-500   gone          -       -  -      listed
   1000  model-1000  complete  154 B     2 d  yes    listed
*  2000  model-2000  complete  129 B     3 h  -      listed
   3000  model-3000  torn      125 B  10 min  -      -
   4000  model-4000  torn        8 B   9 min  -      -
   5000  model-5000  torn      121 B    30 s  -      listed
"""


@pytest.fixture
def directory(tmp_path, save, monkeypatch):
    """One of each: gone, complete, latest, cut off, without index, without data."""
    run = tmp_path / "run"
    ages_s = {1000: 2 * 86400, 2000: 3 * 3600, 3000: 600, 4000: 540, 5000: 30}
    for step in ages_s:
        save(run / f"model-{step}")
    (run / "model-1000.meta").write_bytes(b"x" * 25)
    with (run / "model-3000.data-00000-of-00001").open("r+b") as file:
        file.truncate(4)
    (run / "model-4000.index").unlink()
    (run / "model-5000.data-00000-of-00001").unlink()
    listed = [500, 1000, 2000, 5000]
    (run / "checkpoint").write_text(
        'model_checkpoint_path: "model-5000"\n'
        + "".join(f'all_model_checkpoint_paths: "model-{step}"\n' for step in listed)
    )
    for path in run.iterdir():
        step = path.name.partition("-")[2].partition(".")[0]
        mtime_s = NOW_S - ages_s.get(int(step or 0), 0)
        os.utime(path, (mtime_s, mtime_s))
    monkeypatch.setattr(time, "time", lambda: NOW_S)
    monkeypatch.chdir(tmp_path)
    return run


def test_one_of_each(run, directory):
    result = run("ls", "run")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(TABLE)
    reasons = result.out.removeprefix(TABLE).splitlines()
    assert reasons[0] == "gone: model-500: the record lists it, but its files are missing [run/model-500]"
    assert reasons[1].startswith("torn: model-3000: the data file ends before the tensor does [tensor 'w'")
    assert "run/model-3000.data-00000-of-00001" in reasons[1]
    assert "expected at least 8 bytes, found 4 bytes" in reasons[1]
    assert reasons[2].startswith("torn: model-4000: no index: ")
    assert reasons[3].startswith("torn: model-5000: a data file that the index names is missing")
    assert reasons[4:] == [
        "* latest: model-2000 (the record names model-5000)",
        "6 checkpoints (3 torn, 1 gone), 537 B",
    ]


@pytest.mark.parametrize("target", ["run/", "run/checkpoint", "./run", "run/../run"])
def test_the_directory_in_other_words(run, directory, target):
    assert run("ls", target).out.startswith(TABLE)


def test_the_current_directory(run, directory, monkeypatch):
    monkeypatch.chdir(directory)
    assert run("ls", ".").out.startswith(TABLE)
    assert run("ls", "checkpoint").out.startswith(TABLE)


def test_json(run, directory):
    result = run("ls", "run", "--json")
    found = result.json
    assert (result.code, result.err) == (0, "")
    assert found["schema"] == "ckptstore.ls/1"
    assert (found["directory"], found["latest"]) == ("run", "run/model-2000")
    assert (found["record"]["state"], found["record"]["latest"]) == ("present", "model-5000")
    by_step = {item["step"]: item for item in found["checkpoints"]}
    assert [item["step"] for item in found["checkpoints"]] == [500, 1000, 2000, 3000, 4000, 5000]
    assert [step for step, item in by_step.items() if item["latest"]] == [2000]
    assert [step for step, item in by_step.items() if item["listed"]] == [500, 1000, 2000, 5000]
    assert by_step[1000] == {
        "prefix": "model-1000",
        "url": "run/model-1000",
        "step": 1000,
        "format_version": 2,
        "state": "complete",
        "problem": None,
        "size_bytes": 154,
        "mtime_s": NOW_S - 2 * 86400,
        "age_s": 172800.0,
        "graph": True,
        "listed": True,
        "latest": False,
        "pinned": False,
        "metrics": {},
    }
    assert by_step[500]["mtime_s"] is None
    assert {step: item["problem"]["code"] for step, item in by_step.items() if item["problem"]} == {
        500: "not-found",
        3000: "truncated",
        4000: "incomplete",
        5000: "incomplete",
    }


def test_every_index_damaged(run, tmp_path, save):
    save(tmp_path / "model-1")
    (tmp_path / "model-1.index").write_bytes(b"x" * 60)
    result = run("ls", tmp_path)
    assert result.code == 0
    assert "torn: model-1: not an sstable (bad magic number)" in result.out
    assert "latest: none can be restored" in result.out


def test_an_empty_directory(run, tmp_path):
    result = run("ls", tmp_path)
    assert (result.code, result.out, result.err) == (0, f"no checkpoints in {tmp_path}\n", "")
    assert run("ls", tmp_path, "--json").json["checkpoints"] == []


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (None, "* latest: model-1 (there is no record)"),
        (b"", "* latest: model-1 (the record cannot be read)"),
        (b"\xff\xfe", "* latest: model-1 (the record cannot be read)"),
        (
            b'model_checkpoint_path: "../../etc/passwd"',
            "* latest: model-1 (the record names ../../etc/passwd)",
        ),
        (b'model_checkpoint_path: "/elsewhere/model-1"', "* latest: model-1"),
        (b'model_checkpoint_path: "\\033[31m"', "* latest: model-1 (the record names \\x1b[31m)"),
    ],
    ids=["missing", "empty", "not utf-8", "outside", "moved", "hostile"],
)
def test_records_of_all_kinds(run, tmp_path, save, record, said):
    save(tmp_path / "model-1")
    if record is not None:
        (tmp_path / "checkpoint").write_bytes(record)
    result = run("ls", tmp_path)
    assert result.code == 0
    assert said in result.out.splitlines()
    assert "\x1b" not in result.out


def test_a_directory_in_the_place_of_the_record(run, tmp_path, save):
    save(tmp_path / "model-1")
    (tmp_path / "checkpoint").mkdir()
    result = run("ls", tmp_path)
    assert result.code == 0
    assert "complete" in result.out
    assert "record: " in result.out


def test_v1_checkpoints(run, fixtures_dir):
    result = run("ls", fixtures_dir / "05_v1_format", "--json")
    assert result.json["checkpoints"][-1] | {"mtime_s": 0, "age_s": 0, "url": ""} == {
        "prefix": "v1sh.ckpt-8",
        "url": "",
        "step": 8,
        "format_version": 1,
        "state": "complete",
        "problem": None,
        "size_bytes": 856 + 311 + 384,
        "mtime_s": 0,
        "age_s": 0,
        "graph": False,
        "listed": True,
        "latest": True,
        "pinned": False,
        "metrics": {},
    }
    assert "* latest: v1sh.ckpt-8\n" in run("ls", fixtures_dir / "05_v1_format").out


def test_v1_checkpoints_of_the_record_torn_and_in_one_file(run, tmp_path, fixtures_dir):
    source = fixtures_dir / "05_v1_format"
    for name in ("v1.ckpt-7", "v1sh.ckpt-8-00000-of-00003", "v1sh.ckpt-8-00001-of-00003"):
        shutil.copy(source / name, tmp_path)
    (tmp_path / "checkpoint").write_text(
        'model_checkpoint_path: "v1sh.ckpt-8-?????-of-00003"\n'
        'all_model_checkpoint_paths: "v1.ckpt-7"\n'
        'all_model_checkpoint_paths: "v1sh.ckpt-8-?????-of-00003"\n'
    )
    states = {item["prefix"]: item["state"] for item in run("ls", tmp_path, "--json").json["checkpoints"]}
    assert states == {"v1.ckpt-7": "complete", "v1sh.ckpt-8": "torn"}


def test_other_files_named_like_v1_shards_are_no_checkpoints(run, tmp_path, save):
    save(tmp_path / "model-1")
    for shard in range(3):
        (tmp_path / f"train.tfrecord-{shard:05d}-of-00003").write_bytes(b"\x0a" * 100)
    prefixes = [item["prefix"] for item in run("ls", tmp_path, "--json").json["checkpoints"]]
    assert prefixes == ["model-1"]


def test_a_graph_of_its_own_is_no_torn_checkpoint(run, tmp_path, save):
    save(tmp_path / "model-1")
    (tmp_path / "exported.meta").write_bytes(b"")
    lines = run("ls", tmp_path).out.splitlines()
    assert lines[1].split()[:4] == ["-", "exported", "graph", "only"]
    assert lines[-1].startswith("1 checkpoint, ")


def test_several_basenames_are_kept_together_and_steps_are_numbers(run, tmp_path, save, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, age_s in [("b-2", 50), ("a-10", 30), ("b-10", 20), ("a-9", 10), ("a", 40)]:
        save(tmp_path / name)
        for path in tmp_path.glob(f"{name}.*"):
            os.utime(path, (NOW_S - age_s, NOW_S - age_s))
    prefixes = [item["prefix"] for item in run("ls", ".", "--json").json["checkpoints"]]
    assert prefixes == ["b-2", "b-10", "a", "a-9", "a-10"]


def test_a_checkpoint_of_the_record_in_a_directory_below(run, tmp_path, save):
    save(tmp_path / "sub" / "model-1")
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "sub/model-1"\n')
    found = run("ls", tmp_path, "--json").json
    assert [(item["prefix"], item["state"], item["latest"]) for item in found["checkpoints"]] == [
        ("sub/model-1", "complete", True)
    ]
    assert found["checkpoints"][0]["size_bytes"] == 129


def test_memory_urls(run, save):
    save("memory://ls-test/model-1", w=np.float32(1))
    found = run("ls", "memory://ls-test", "--json").json
    assert (found["directory"], found["latest"]) == ("memory://ls-test", "memory://ls-test/model-1")
    assert run("ls", "memory://nothing-here").code == 3


def test_what_is_gone_is_listed_in_the_order_of_the_record(run, save, tmp_path):
    directory = tmp_path / "run"
    save(directory / "model-20")
    listed = ["zeta-3", "model-40", "model-20", "alpha-9", "model-10", "b", "c", "a"]
    (directory / "checkpoint").write_text(
        'model_checkpoint_path: "model-20"\n'
        + "".join(f'all_model_checkpoint_paths: "{name}"\n' for name in listed)
    )
    rows = run("ls", str(directory), "--json").json["checkpoints"]
    names = [row["prefix"] for row in rows]
    assert names == [name for name in listed if name != "model-20"] + ["model-20"]


def test_pins_and_metrics(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saver = ck.Saver(max_to_keep=2)
    values = {"w": np.zeros(4, np.float32)}
    for step, metrics in ((1, {"loss": 0.25, "top\x1b 5": 1e-9}), (2, {"loss": math.nan}), (3, None)):
        saver.save(values, "run/model", step, write_meta_graph=False, metrics=metrics)
        if step == 1:
            ck.pin("run/model-1")
    lines = run("ls", "run").out.splitlines()
    assert lines[0].split() == ["STEP", "CHECKPOINT", "STATE", "SIZE", "AGE", "GRAPH", "RECORD", "METRICS"]
    assert lines[1].endswith("listed, pinned  loss=0.25 top\\x1b 5=1e-09")
    assert lines[2].endswith("listed          loss=nan")
    assert lines[3].endswith("listed          -")
    found = {item["step"]: item for item in run("ls", "run", "--json").json["checkpoints"]}
    assert [found[step]["pinned"] for step in (1, 2, 3)] == [True, False, False]
    assert found[1]["metrics"] == {"loss": 0.25, "top\x1b 5": 1e-9}
    # JSON knows no NaN.
    assert found[2]["metrics"] == {"loss": "nan"}
