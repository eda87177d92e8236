"""What a terminal is sent: colours, widths, and completions."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.cli.main import main
from ckptstore.view.text import display_width
from ckptstore.view.text_table import Column, Row, TextTable, table_lines


def _on_terminal(arguments, columns=80, **environment):
    """Return what a command writes to a terminal of this width."""
    import fcntl
    import struct
    import termios

    primary, secondary = pty.openpty()
    fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    clean = {name: text for name, text in os.environ.items() if name not in ("NO_COLOR", "TERM")}
    process = subprocess.Popen(
        [sys.executable, "-m", "ckptstore", *map(str, arguments)],
        stdin=secondary,
        stdout=secondary,
        stderr=secondary,
        env={**clean, "TERM": "xterm-256color", **environment},
    )
    os.close(secondary)
    shown = b""
    while True:
        try:
            piece = os.read(primary, 65536)
        except OSError:  # the terminal of a process that has ended
            break
        if not piece:
            break
        shown += piece
    os.close(primary)
    assert process.wait(timeout=60) == 0
    return shown.decode().replace("\r\n", "\n")


@pytest.fixture
def directory(tmp_path, save):
    for step in (1000, 2000):
        save(tmp_path / f"model-{step}")
    return tmp_path


def test_colours_are_for_terminals_that_want_them(directory):
    assert "\x1b[" in _on_terminal(["ls", directory])
    assert "\x1b[" in _on_terminal(["ls", directory], NO_COLOR="")
    for environment in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        shown = _on_terminal(["ls", directory], **environment)
        assert "\x1b" not in shown
        assert "model-2000" in shown


def test_a_table_of_checkpoints_fits_in_forty_columns(directory):
    shown = _on_terminal(["ls", directory], columns=40, NO_COLOR="1")
    table = shown.split("\n\n")[0].splitlines()
    assert max(map(display_width, table)) <= 40
    assert "CHECKPOINT" in table[0]
    assert any("model-2000" in line and "complete" in line for line in table)


def test_what_a_prune_would_do_fits_in_forty_columns(tmp_path):
    saver = ck.Saver()
    for step in (1000, 2000, 3000):
        saver.save({"w": np.zeros(3)}, tmp_path / "model", step, metrics={"loss": float(step)})
    ck.pin(tmp_path / "model-1000")
    words = ["prune", tmp_path, "--keep-every-steps", "3000", "--keep-best", "loss=1", "--dry-run"]
    shown = _on_terminal(words, columns=40, NO_COLOR="1")
    table = shown.split("\n\n")[0].splitlines()
    assert max(map(display_width, table)) <= 40
    assert table[0].split() == ["CHECKPOINT", "VERDICT", "BECAUSE"]
    assert any(line.split() == ["model-1000", "stays", "pinned"] for line in table)


def test_columns_are_left_out_in_their_order_and_only_where_they_do_not_fit():
    columns = (Column("NAME", flexible=True), Column("A", dropped=2), Column("B", dropped=1))
    table = TextTable(columns, [Row(("a-very-long-name", "first-cell", "second-cell"))])

    def titles(width):
        return next(table_lines(table, width))[0].split()

    assert titles(None) == titles(80) == ["NAME", "A", "B"]
    assert titles(30) == ["NAME", "A"]
    assert titles(12) == titles(1) == ["NAME"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_click_makes_the_script_for_completion(capsys, monkeypatch, shell):
    monkeypatch.setenv("_CKPTSTORE_COMPLETE", f"{shell}_source")
    monkeypatch.setattr("click.shell_completion.BashComplete._check_version", staticmethod(lambda: None))
    assert main() == 0
    assert "_CKPTSTORE_COMPLETE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "word", "expected"),
    [
        ("ckptstore ve", 1, "plain,verify"),
        ("ckptstore verify --qu", 2, "plain,--quick"),
        ("ckptstore verify run/mod", 2, "file,run/mod"),
        ("ckptstore verify s3://buck", 2, ""),
    ],
)
def test_words_are_completed(capsys, monkeypatch, words, word, expected):
    monkeypatch.setenv("_CKPTSTORE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(word))
    assert main() == 0
    assert capsys.readouterr().out.strip() == expected


def test_arguments_of_a_program_are_never_a_completion(run, directory, monkeypatch):
    monkeypatch.setenv("_CKPTSTORE_COMPLETE", "bash_source")
    assert "model-1000" in run("ls", directory).out
