"""The demo checks itself; these tests check its exit code and its directory."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.meta.source import ROOT

pytestmark = pytest.mark.timeout(900)


@pytest.mark.parametrize("script", ["run.py", "serve.py"])
def test_demo_comes_out_as_it_claims(tmp_path, script):
    done = subprocess.run(
        [sys.executable, ROOT / "demo" / script],
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout
    assert "Everything came out as claimed" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo-run"]


@pytest.mark.parametrize("script", ["run.py", "serve.py"])
def test_demo_leaves_a_directory_alone_that_it_did_not_make(tmp_path, script):
    mine = tmp_path / "demo-run" / "precious.txt"
    mine.parent.mkdir()
    mine.write_text("keep")
    done = subprocess.run(
        [sys.executable, ROOT / "demo" / script],
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode != 0
    assert "move it away" in done.stderr
    assert mine.read_text() == "keep"
