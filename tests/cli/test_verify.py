from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest

from ckptstore.cli import progress_display as cli_progress
from ckptstore.errors import AccessError
from ckptstore.storage.registry import use_wrapper
from ckptstore.storage.wrappers import StorageWrapper


def damage(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 0xFF
    path.write_bytes(data)


def test_a_good_checkpoint(run, fixtures_dir, monkeypatch):
    monkeypatch.chdir(fixtures_dir)
    result = run("verify", "02_sharded_devices/sh")
    size = 684 + 433
    assert (result.code, result.out, result.err) == (
        0,
        f"ok       02_sharded_devices/sh  10 tensors, {size / 1024:.1f} KiB checked\n",
        "",
    )


@pytest.mark.parametrize("prefix", ["05_v1_format/v1.ckpt-7", "05_v1_format/v1sh.ckpt-8", "14_crafted/be"])
def test_other_formats(run, fixtures_dir, prefix):
    assert run("verify", fixtures_dir / prefix).code == 0


def test_a_fault_names_tensor_file_and_bytes(run, tmp_path, save, monkeypatch):
    save(tmp_path / "m", a=np.array([1, 2], np.float32), b=np.array([3, 4], np.float32))
    damage(tmp_path / "m.data-00000-of-00001", 9)
    monkeypatch.chdir(tmp_path)
    result = run("verify", "m")
    assert result.code == 4
    head, fault = result.out.splitlines()
    assert head.startswith("FAULTY   m  1 fault (2 tensors, ")
    assert fault.startswith(
        "  checksum: the checksum of bytes 8 to 16 does not match "
        "[tensor 'b', m.data-00000-of-00001, at byte 8]"
    )
    assert "expected masked_crc32c 0x" in fault

    found = run("verify", "m", "--json")
    assert found.code == 4
    assert found.json["schema"] == "ckptstore.verify/1"
    assert not found.json["ok"]
    (checkpoint,) = found.json["checkpoints"]
    (problem,) = checkpoint["faults"]
    assert (problem["code"], problem["tensor"]) == ("checksum", "b")
    assert problem["url"] == "m.data-00000-of-00001"
    assert (problem["start"], problem["stop"]) == (8, 16)
    assert problem["expected"].startswith("masked_crc32c 0x")
    assert problem["actual"].startswith("0x")


def test_quick_reads_no_tensor(run, tmp_path, save):
    save(tmp_path / "m")
    damage(tmp_path / "m.data-00000-of-00001", 0)
    result = run("verify", tmp_path / "m", "--quick")
    assert result.code == 0
    assert "without --quick every tensor is checked" in result.out
    assert run("verify", tmp_path / "m", "--quick", "--json").json["quick"] is True


def test_quick_finds_what_is_missing(run, tmp_path, save):
    save(tmp_path / "m")
    (tmp_path / "m.data-00000-of-00001").unlink()
    result = run("verify", tmp_path / "m", "--quick")
    assert result.code == 4
    assert "incomplete: " in result.out


def test_a_damaged_index_is_a_fault_and_no_traceback(run, tmp_path, save):
    save(tmp_path / "m")
    damage(tmp_path / "m.index", 20)
    result = run("verify", tmp_path / "m")
    assert result.code == 4
    assert "m.index" in result.out
    assert result.err == ""


def test_many_faults_of_one_kind_are_told_in_short(run, tmp_path, save):
    save(tmp_path / "m", **{f"w{number:03d}": np.array([number], np.float32) for number in range(50)})
    with (tmp_path / "m.data-00000-of-00001").open("r+b") as file:
        file.truncate(0)
    result = run("verify", tmp_path / "m")
    lines = result.out.splitlines()
    assert lines[0].startswith("FAULTY   ")
    assert "50 faults" in lines[0]
    assert lines[2] == "    also tensor 'w001', bytes 4 to 8: expected at least 8 bytes, found 0 bytes"
    assert lines[-1] == "    and 29 more like these; --json lists all"
    assert len(run("verify", tmp_path / "m", "--json").json["checkpoints"][0]["faults"]) == 50


def test_a_directory_is_verified_as_a_whole(run, tmp_path, save, monkeypatch):
    for step in (9, 10, 11):
        save(tmp_path / "run" / f"model-{step}")
    damage(tmp_path / "run" / "model-10.data-00000-of-00001", 0)
    (tmp_path / "run" / "model-11.index").unlink()
    monkeypatch.chdir(tmp_path)
    result = run("verify", "run")
    assert result.code == 4
    lines = result.out.splitlines()
    assert [line.split()[:2] for line in (lines[0], lines[1], lines[3])] == [
        ["ok", "model-9"],
        ["FAULTY", "model-10"],
        ["2", "checkpoints:"],
    ]
    assert lines[3] == "2 checkpoints: 1 faulty"
    assert result.err.startswith("ckptstore: warning: skipped model-11: no index")
    found = run("verify", "run", "--json")
    assert [item["ok"] for item in found.json["checkpoints"]] == [True, False]
    assert [item["schema"] for item in found.err_objects] == ["ckptstore.warning/1"]


def test_a_good_directory(run, fixtures_dir):
    result = run("verify", fixtures_dir / "03_partitioned")
    assert result.code == 0
    assert result.out.splitlines()[-1] == "3 checkpoints: all good"


def test_a_directory_of_v1_checkpoints(run, fixtures_dir):
    result = run("verify", fixtures_dir / "05_v1_format")
    assert (result.code, result.out.split()[:2]) == (0, ["ok", "v1sh.ckpt-8"])


@pytest.mark.parametrize("file", ["sh.index", "sh.data-00002-of-00003"])
def test_a_file_stands_for_its_checkpoint(run, fixtures_dir, file):
    result = run("verify", fixtures_dir / "02_sharded_devices" / file)
    assert result.code == 0
    assert "names a file of the checkpoint" in result.err


def test_an_empty_directory_is_no_good_backup(run, tmp_path):
    result = run("verify", tmp_path)
    assert (result.code, result.out) == (3, "")
    assert "there is no checkpoint in this directory" in result.err


def test_what_cannot_be_read_is_not_called_damaged(run, tmp_path, save):
    class Locked(StorageWrapper):
        def intercept(self, primitive, keys, call):
            if keys[0].endswith("model-1.index"):
                raise AccessError("cannot read: Permission denied", url=keys[0])
            return call()

    save(tmp_path / "model-1")
    save(tmp_path / "model-2")
    with use_wrapper(Locked):
        result = run("verify", tmp_path)
        assert result.code == 5
        assert result.out.splitlines()[0] == "UNKNOWN  model-1"
        assert result.out.splitlines()[-1] == "2 checkpoints: 1 unknown"
        damage(tmp_path / "model-2.data-00000-of-00001", 0)
        assert run("verify", tmp_path).code == 4


@pytest.fixture
def at_terminal(monkeypatch):
    """Standard error is one, and bars come at once; return what they were told."""
    told = []

    def reporter(progress):
        told.append(progress)
        return told.append

    # Of the class: pytest makes a new stream when the test begins.
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda stream: stream is sys.stderr)
    monkeypatch.setattr(cli_progress, "reporter", reporter)
    monkeypatch.setattr(cli_progress, "_FIRST_S", 0.0)
    return told


def test_on_a_terminal_it_shows_the_bar_that_a_save_shows(run, fixtures_dir, at_terminal):
    pytest.importorskip("rich")
    result = run("verify", fixtures_dir / "02_sharded_devices" / "sh")
    assert result.code == 0
    how, *events = at_terminal
    assert how == "rich"
    assert {(event.kind, event.url.rpartition("/")[2]) for event in events} == {("verify", "sh")}
    assert (events[-1].is_over, events[-1].done_bytes, events[-1].total_bytes) == (True, 684, 684)


def test_what_is_done_at_once_shows_no_bar(run, fixtures_dir, at_terminal, monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setattr(cli_progress, "_FIRST_S", 1e9)
    assert run("verify", fixtures_dir / "02_sharded_devices" / "sh").code == 0
    assert at_terminal == ["rich"]


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_without_a_person_who_watches_there_is_no_bar(run, fixtures_dir, at_terminal, monkeypatch, options):
    if not options:
        monkeypatch.setattr(type(sys.stderr), "isatty", lambda stream: False)
    assert run("verify", fixtures_dir / "02_sharded_devices" / "sh", *options).code == 0
    assert at_terminal == []


def test_without_rich_it_is_one_line(run, fixtures_dir, at_terminal, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = run("verify", fixtures_dir / "02_sharded_devices" / "sh")
    assert result.err.startswith("\rverify sh  ")
    assert " of 684 B\x1b[K" in result.err
    assert result.err.endswith("\r\x1b[K")
    assert at_terminal == []
