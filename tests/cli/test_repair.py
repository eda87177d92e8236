from __future__ import annotations

import os
from pathlib import Path

import pytest

import ckptstore as ck
from ckptstore import errors
from ckptstore.storage.registry import use_wrapper
from ckptstore.storage.wrappers import StorageWrapper

DAMAGED = """\
   CHECKPOINT  RECORD    KEPT
   best-7      added     yes
   model-1     added     yes
*  model-2     added     yes
   model-3     left out  -
"""


@pytest.fixture
def directory(tmp_path, save, monkeypatch):
    """Two complete checkpoints, a torn one, and another basename; no record."""
    run = tmp_path / "run"
    for number, name in enumerate(["best-7", "model-1", "model-2", "model-3"]):
        save(run / name)
        os.utime(run / f"{name}.index", (1e9 + number, 1e9 + number))
    (run / "model-3.data-00000-of-00001").unlink()
    monkeypatch.chdir(tmp_path)
    return run


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (None, "there was no record run/checkpoint"),
        (b"", "record: the record is empty [run/checkpoint]. "),
        (b"\xff", "record: the record is not UTF-8 text [run/checkpoint, at byte 0]. "),
    ],
    ids=["missing", "empty", "not utf-8"],
)
def test_golden(run, directory, data, said):
    if data is not None:
        (directory / "checkpoint").write_bytes(data)
    before = contents(directory)
    result = run("repair", "run")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(DAMAGED)
    torn, record, *rest = result.out.removeprefix(DAMAGED).splitlines()
    assert torn.startswith("left out: model-3: a data file that the index names is missing")
    assert record.startswith(said)
    assert rest == [
        "* latest: model-2",
        "not certain: the time of model-2 lies before there were such checkpoints,"
        " so best-7 may be the newer one",
        "kept: 3 checkpoints without a known owner; retention never deletes them",
        "to let it count them again, pass them to Saver.recover_last_checkpoints",
        "wrote run/checkpoint: 3 checkpoints",
    ]
    after = contents(directory)
    assert after.pop("checkpoint").decode() == (
        "# ckptstore 1\n"
        '# kept "best-7"\n# kept "model-1"\n# kept "model-2"\n'
        'model_checkpoint_path: "model-2"\n'
        'all_model_checkpoint_paths: "best-7"\n'
        'all_model_checkpoint_paths: "model-1"\n'
        'all_model_checkpoint_paths: "model-2"\n'
        "all_model_checkpoint_timestamps: 1000000000.0\n"
        "all_model_checkpoint_timestamps: 1000000001.0\n"
        "all_model_checkpoint_timestamps: 1000000002.0\n"
    )
    before.pop("checkpoint", None)
    after.pop(".ckptstore.lock", None)
    assert after == before

    result = run("repair", "run")
    assert result.out.splitlines()[-2:] == ["* latest: model-2", "the record is in order; nothing to repair"]


def test_dry_run(run, directory):
    before = contents(directory)
    result = run("repair", "run", "--dry-run")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(DAMAGED)
    assert result.out.endswith("would write run/checkpoint: 3 checkpoints (dry run)\n")
    assert contents(directory) == before


def test_json(run, directory):
    result = run("repair", "run", "--json")
    found = result.json
    assert (result.code, result.err) == (0, "")
    assert found == {
        "schema": "ckptstore.repair/1",
        "directory": "run",
        "dry_run": False,
        "changed": True,
        "written": True,
        "latest": "model-2",
        "latest_before": None,
        "record": {"url": "run/checkpoint", "state": "missing", "problem": None, "lines_lost": 0},
        "owners": [],
        "checkpoints": found["checkpoints"],
    }
    assert [
        (item["prefix"], item["action"], item["kept"], item["latest"]) for item in found["checkpoints"]
    ] == [
        ("best-7", "added", True, False),
        ("model-1", "added", True, False),
        ("model-2", "added", True, True),
        ("model-3", "left out", False, False),
    ]
    assert found["checkpoints"][0]["url"] == "run/best-7"
    assert found["checkpoints"][3]["problem"]["code"] == "incomplete"
    found = run("repair", "run", "--json", "--dry-run").json
    assert (found["changed"], found["written"], found["dry_run"]) == (False, False, True)
    (directory / "checkpoint").write_bytes(b"")
    found = run("repair", "run", "--json").json
    assert (found["record"]["state"], found["record"]["problem"]["code"]) == ("unreadable", "format")


def test_a_record_that_can_be_read(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saver = ck.Saver(run="job")
    for step in (1, 2, 3):
        saver.save({"w": [step]}, "run/model", step)
    ck.remove_checkpoint("run/model-1")
    Path("run/model-3.data-00000-of-00001").write_bytes(b"")
    result = run("repair", "run")
    lines = result.out.splitlines()
    assert lines[:4] == [
        "   CHECKPOINT  RECORD   KEPT",
        "   model-1     dropped  -",
        "*  model-2     stays    -",
        "   model-3     dropped  -",
    ]
    assert lines[4].startswith("dropped: model-1: ")
    assert lines[5].startswith("dropped: model-3: the data file ends before the tensor does")
    assert lines[6:] == ["* latest: model-2 (the record named model-3)", "wrote run/checkpoint: 1 checkpoint"]
    found = run("repair", "run", "--json").json
    assert [(owner["basename"], owner["run"], owner["epoch"]) for owner in found["owners"]] == [
        ("model", "job", 1)
    ]


def test_another_record(run, directory):
    (directory / "best").write_bytes(b"")
    assert run("repair", "run", "--record", "best").code == 0
    assert ck.latest_checkpoint("run", "best") == "run/model-2"
    assert not (directory / "checkpoint").exists()
    assert run("repair", "run", "--record", "../best").code == 2


@pytest.mark.parametrize("flags", [[], ["--dry-run"], ["--json"]])
def test_nothing_complete(run, tmp_path, save, flags):
    save(tmp_path / "model-1")
    (tmp_path / "model-1.data-00000-of-00001").unlink()
    (tmp_path / "checkpoint").write_bytes(b"x")
    result = run("repair", tmp_path, *flags)
    assert (result.code, result.out) == (3, "")
    assert "there is no complete checkpoint" in result.err
    assert (tmp_path / "checkpoint").read_bytes() == b"x"


@pytest.mark.parametrize(
    ("target", "code"), [("nowhere", 3), ("run/model-1.index", 2), ("run/model-1", 2), ("run/checkpoint", 0)]
)
def test_targets(run, directory, target, code):
    (directory / "checkpoint").write_bytes(b"")
    assert run("repair", target).code == code


def test_a_newer_protocol(run, directory):
    (directory / "checkpoint").write_bytes(b'# ckptstore 2\nmodel_checkpoint_path: "model-1"\n')
    result = run("repair", "run")
    assert result.code == 2
    assert "newer ckptstore" in result.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.AccessError, 5),
        (errors.TransientError, 6),
        (errors.StorageFullError, 5),
        (errors.DeadlineError, 6),
    ],
)
@pytest.mark.parametrize("primitive", ["get", "list", "put_new"])
def test_failures_of_the_storage(run, directory, error, code, primitive):
    class Failing(StorageWrapper):
        def intercept(self, name, keys, call):
            if name == primitive:
                raise error("no", url=keys[0])
            return call()

    before = contents(directory)
    with use_wrapper(Failing):
        result = run("repair", "run")
    assert (result.code, result.out) == (code, "")
    assert contents(directory) == before


def test_hostile_names_are_escaped(run, directory, save):
    save(directory / "evil-1")
    for path in directory.glob("evil-1.*"):
        path.rename(path.with_name(path.name.replace("evil", "\x1b]0;x\x07")))
    (directory / "checkpoint").write_bytes(b'model_checkpoint_path: "\\033[2J"\n')
    result = run("repair", "run")
    assert result.code == 0
    assert "\x1b" not in result.out
    assert "\\x1b[2J" in result.out
