from __future__ import annotations

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.directory.record_update import read_record
from ckptstore.storage.registry import locate


@pytest.fixture
def directory(tmp_path, monkeypatch):
    saver = ck.Saver(max_to_keep=2)
    for step in (1, 2):
        saver.save({"w": np.zeros(4, np.float32)}, tmp_path / "run" / "model", step, write_meta_graph=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def pins(directory, record="checkpoint"):
    return read_record(locate(directory).child(record)).record.pins


def test_golden(run, directory):
    result = run("pin", "run/model-1")
    assert (result.code, result.err) == (0, "")
    assert result.out == "pinned: run/model-1: nothing deletes it until ckptstore unpin\n"
    assert pins(directory) == ("model-1",)
    assert run("pin", "run/model-1").out == "run/model-1 was pinned already\n"
    result = run("unpin", "run/model-1")
    assert (result.code, result.err) == (0, "")
    assert result.out == "unpinned: run/model-1: retention counts it again if the record lists it\n"
    assert pins(directory) == ()
    assert run("unpin", "run/model-1").out == "run/model-1 was not pinned\n"


def test_json(run, directory):
    found = {"schema": "ckptstore.pin/1", "url": "run/model-2", "pinned": True, "changed": True}
    assert run("pin", "run/model-2", "--json").json == found
    assert run("pin", "run/model-2", "--json").json == found | {"changed": False}
    assert run("unpin", "run/model-2", "--json").json == found | {"pinned": False}


def test_a_file_of_the_checkpoint_means_it(run, directory):
    result = run("pin", "run/model-1.index")
    assert result.code == 0
    assert "names a file of the checkpoint run/model-1" in result.err
    assert pins(directory) == ("model-1",)
    assert run("unpin", "run/model-1.data-00000-of-00001").code == 0
    assert pins(directory) == ()


@pytest.mark.parametrize("command", ["pin", "unpin"])
def test_exit_codes(run, directory, command):
    result = run(command, "run/model-7")
    assert (result.code, result.out) == (3, "")
    assert "no checkpoint" in result.err
    assert run(command, "elsewhere/model-1").code == 3
    result = run(command, "run")
    assert result.code == 2
    assert "is a directory" in result.err
    assert run(command).code == 2
    (directory / "checkpoint").write_bytes(b"nonsense")
    assert run(command, "run/model-1").code == 4


def test_without_a_record(run, directory):
    (directory / "checkpoint").unlink()
    result = run("pin", "run/model-1")
    assert result.code == 3
    assert "ckptstore repair" in result.err


def test_the_record_of_another_name(run, directory):
    ck.Saver().save({"w": np.zeros(4)}, directory / "other", 3, latest_filename="best")
    assert run("pin", "run/other-3", "--record", "best").code == 0
    assert (pins(directory, "best"), pins(directory)) == (("other-3",), ())


def test_what_is_gone_can_be_unpinned(run, directory):
    ck.pin(directory / "model-1")
    ck.remove_checkpoint(directory / "model-1")
    assert run("unpin", "run/model-1").code == 0
    assert pins(directory) == ()
