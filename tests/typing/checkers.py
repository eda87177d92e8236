"""mypy and pyright, run as a user runs them: on files outside of the repository, with its package."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.meta.source import ROOT

Messages = dict[str, dict[int, str]]
"""File name → line → the error there."""

_MYPY_LINE = re.compile(r"^(?P<file>[^:\n]+):(?P<line>\d+): error: (?P<text>.*)$", re.MULTILINE)


def mypy_strict(folder: Path) -> Messages:
    """Return the errors of ``mypy --strict`` in the files of `folder`."""
    cache = ROOT / ".cache" / "mypy-typing"
    # A configuration of the user's home, or of this repository, must not change the result.
    options = ["--strict", "--config-file=", f"--cache-dir={cache}", "--no-error-summary"]
    done = _run("mypy", *options, *(path.name for path in folder.glob("*.py")), folder=folder)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found: Messages = {}
    for match in _MYPY_LINE.finditer(done.stdout):
        found.setdefault(match["file"], {})[int(match["line"])] = match["text"]
    return found


def pyright(folder: Path) -> Messages:
    """Return the errors of pyright in the files of `folder`, in its standard mode."""
    # A loop may run no time at all, which every example with one would have to deny.
    settings = {"typeCheckingMode": "standard", "reportPossiblyUnboundVariable": "none"}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    # basedpyright is pyright with its Node.js in the wheel: pyright's own package downloads one when it runs.
    done = _run("basedpyright", "--outputjson", "--pythonpath", sys.executable, ".", folder=folder)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found: Messages = {}
    for one in json.loads(done.stdout)["generalDiagnostics"]:
        if one["severity"] == "error":
            line = one["range"]["start"]["line"] + 1
            found.setdefault(Path(one["file"]).name, {})[line] = one["message"]
    return found


def _run(module: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        check=False,
        cwd=folder,
        env=os.environ | {"MYPYPATH": str(ROOT), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )


CHECKERS: dict[str, Callable[[Path], Messages]] = {"mypy --strict": mypy_strict, "pyright": pyright}
