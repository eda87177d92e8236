"""The command as a process: entry points, pipes, signals, terminals, permissions."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pytest

import ckptstore

ROOT = Path(__file__).resolve().parents[2]
PIPE = subprocess.PIPE


def finish(process):
    out, err = process.communicate(timeout=60)
    return process.returncode, out.decode(), err.decode()


def test_python_dash_m_is_the_same_command(spawn, fixtures_dir, run, monkeypatch):
    monkeypatch.chdir(fixtures_dir)
    prefix = "02_sharded_devices/sh"
    code, out, err = finish(
        spawn("-m", "ckptstore", "inspect", prefix, stdout=PIPE, stderr=PIPE, cwd=fixtures_dir)
    )
    assert (code, out, err) == (0, run("inspect", prefix).out, "")


def test_version_and_help(spawn):
    code, out, _ = finish(spawn("-m", "ckptstore", "--version", stdout=PIPE, stderr=PIPE))
    assert (code, out) == (0, f"ckptstore, version {ckptstore.__version__}\n")
    for arguments in (["--help"], ["-h"], ["inspect", "--help"], ["ls", "-h"], ["verify", "--help"]):
        code, out, err = finish(spawn("-m", "ckptstore", *arguments, stdout=PIPE, stderr=PIPE))
        assert (code, err) == (0, "")
        assert out.startswith("Usage: ckptstore ")


def test_help_waits_for_nothing_heavy(spawn):
    code = (
        "import sys; from ckptstore.cli.main import main; assert main(['--help']) == 0;"
        "heavy = {'numpy', 'rich', 'fsspec', 'google.protobuf', 'ml_dtypes'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    assert finish(spawn("-c", code, stdout=PIPE, stderr=PIPE))[0] == 0


@pytest.mark.parametrize(
    "prefix", ["02_sharded_devices/sh", "12_many_variables/many"], ids=["at the flush", "while printing"]
)
def test_a_reader_who_went_away_is_no_reason_to_complain(spawn, fixtures_dir, prefix):
    reading, writing = os.pipe()
    os.close(reading)
    process = spawn("-m", "ckptstore", "inspect", fixtures_dir / prefix, stdout=writing, stderr=PIPE)
    os.close(writing)
    assert finish_quietly(process) == (141, "")


def finish_quietly(process):
    _, err = process.communicate(timeout=60)
    return process.returncode, err.decode()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a full disk at hand")
def test_a_full_disk_under_the_output_is_told(spawn, fixtures_dir):
    with open("/dev/full", "wb") as full:
        process = spawn(
            "-m", "ckptstore", "inspect", fixtures_dir / "02_sharded_devices/sh", stdout=full, stderr=PIPE
        )
        code, err = finish_quietly(process)
    assert code == 5
    assert err.startswith("ckptstore: error: cannot write the output: No space left on device")
    assert err.count("\n") == 1


def test_ctrl_c(spawn):
    code = """if True:
        import signal, sys
        from ckptstore.cli.main import main
        from ckptstore.storage.registry import use_wrapper
        from ckptstore.storage.wrappers import StorageWrapper

        class Waiting(StorageWrapper):
            def intercept(self, primitive, keys, call):
                print("ready", file=sys.stderr, flush=True)
                signal.pause()

        with use_wrapper(Waiting):
            sys.exit(main(["verify", "m"]))
    """
    process = spawn("-c", code, stdout=PIPE, stderr=PIPE)
    assert process.stderr.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    assert finish(process) == (130, "", "ckptstore: interrupted\n")


def test_an_ascii_terminal_gets_escapes_and_no_traceback(spawn, fixtures_dir):
    process = spawn(
        "-m", "ckptstore", "inspect", fixtures_dir / "06_strings_unicode/str", "--all-tensor-names",
        stdout=PIPE, stderr=PIPE, env={"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    code, out, err = finish(process)
    assert (code, err) == (0, "")
    assert "tensor: \\u65e5\\u672c/stem_0 (string) [6]" in out


def test_a_directory_without_permission(tmp_path, save, spawn, fixtures_dir):
    directory = tmp_path / "locked"
    save(directory / "model-1")
    directory.chmod(0o000)
    # To root every file is open. Imports are done before: the files may lie where only root looks.
    code = """if True:
        import os, sys
        from ckptstore.cli.main import main
        good, *arguments = sys.argv[1:]
        for command in ("inspect", "verify", "ls"):
            main([command, good, "--json"])
        print("---", flush=True)
        if os.geteuid() == 0:
            os.setgroups([])
            os.setegid(65534)
            os.seteuid(65534)
        sys.exit(main(arguments))
    """
    good = str(fixtures_dir / "02_sharded_devices")
    try:
        for command, target in (("inspect", "model-1"), ("verify", "model-1"), ("verify", ""), ("ls", "")):
            arguments = [command, str(directory / target), "--json"]
            status, out, err = finish(spawn("-c", code, good, *arguments, stdout=PIPE, stderr=PIPE))
            assert (status, out.split("---\n")[1]) == (5, ""), err
            assert json.loads(err.splitlines()[-1])["code"] == "access"
    finally:
        directory.chmod(0o755)


def on_a_terminal(columns, *arguments):
    """Return what the command writes to a terminal of this width, line ends as in the program."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (40, columns))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
    process = subprocess.Popen(
        [sys.executable, "-m", "ckptstore", *map(str, arguments)],
        stdout=theirs,
        stderr=theirs,
        env=environment,
    )
    os.close(theirs)
    pieces = []
    while select.select([ours], [], [], 60)[0]:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # Linux: the other side is closed
            break
        if not piece:
            break
        pieces.append(piece)
    os.close(ours)
    process.wait(timeout=60)
    return b"".join(pieces).decode().replace("\r\n", "\n")


def test_a_terminal_gets_colours_and_folded_columns(tmp_path, save):
    save(tmp_path / "m", **{"encoder/layer_1/attention/self/query/kernel": np.array([1, 2], np.float32)})
    shown = on_a_terminal(50, "inspect", tmp_path / "m")
    assert "encoder/layer_1/attention/    float32  [2]     8 B\n  self/query/kernel\n" in shown
    assert "\x1b[1mTENSOR" in shown


def test_a_terminal_shows_a_torn_checkpoint_in_red_and_the_latest_in_green(tmp_path, save):
    save(tmp_path / "model-1")
    save(tmp_path / "model-2")
    (tmp_path / "model-2.data-00000-of-00001").unlink()
    lines = on_a_terminal(100, "ls", tmp_path).splitlines()
    assert lines[1].startswith("\x1b[32m*     1  model-1  ")
    assert lines[2].startswith("\x1b[31m      2  model-2  ")


def test_a_hostile_name_cannot_command_the_terminal(tmp_path, save):
    save(tmp_path / "m", **{"\x1b]0;owned\x07": np.float32(1)})
    for flags in ([], ["--all-tensors"], ["--all-tensor-names"], ["--tensor-name", "\x1b]0;nope\x07"]):
        shown = on_a_terminal(80, "inspect", tmp_path / "m", *flags)
        assert "\x07" not in shown
        assert "\x1b]" not in shown
        assert "\\x1b]0;" in shown
