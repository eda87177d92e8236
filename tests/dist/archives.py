"""What `make dist` built, and the environment that holds the wheel and what it depends on, nothing else."""

from __future__ import annotations

import os
import subprocess
import tarfile
import zipfile
from functools import cache
from pathlib import Path

import pytest

import ckptstore

__all__ = ["BIN", "ROOT", "names_in_sdist", "names_in_wheel", "run", "sdist", "tracked_files", "wheel"]

ROOT = Path(__file__).resolve().parents[2]
BIN = ROOT / ".cache" / "venv-dist" / "bin"


def _built(name: str) -> Path:
    path = ROOT / "dist" / name
    if not path.is_file():
        pytest.skip(f"dist/{name} is not there: run `make dist`")
    return path


def wheel() -> Path:
    return _built(f"ckptstore-{ckptstore.__version__}-py3-none-any.whl")


def sdist() -> Path:
    return _built(f"ckptstore-{ckptstore.__version__}.tar.gz")


def names_in_wheel() -> set[str]:
    with zipfile.ZipFile(wheel()) as archive:
        return set(archive.namelist())


def names_in_sdist() -> set[str]:
    """Return the names of the files in the archive, without the directory that holds all of them."""
    with tarfile.open(sdist()) as archive:
        return {member.name.partition("/")[2] for member in archive if member.isfile()}


@cache
def tracked_files() -> set[str]:
    """Return the files that git tracks, as paths below the root; skip the test where there is no git."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    return {name.decode() for name in listed.split(b"\0") if name and (ROOT / name.decode()).is_file()}


def run(*command: str | Path, cwd: Path, timeout: float = 120) -> str:
    """Run a command in `cwd` without anything of this checkout on the path; return what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment | {"PYTHONIOENCODING": "utf-8"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout
