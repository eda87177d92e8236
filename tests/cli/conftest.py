"""Running the command, in this process or in one of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptstore.cli.main import main
from ckptstore.train.bundle_writer import BundleWriter

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Standard output, which must be exactly one object on one line."""
        assert self.out.count("\n") == 1
        return json.loads(self.out)

    @property
    def err_objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.err.splitlines()]


Run = Callable[..., Result]


@pytest.fixture
def run(capsys) -> Run:
    def call(*arguments: object) -> Result:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture
def spawn() -> Callable[..., subprocess.Popen[bytes]]:
    def start(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
        return subprocess.Popen([sys.executable, *arguments], env=environment, **options)

    return start


@pytest.fixture
def save() -> Callable[..., Path]:
    """Write a checkpoint of one tensor, `w` = [1, 2], or of the given ones."""

    def write(prefix: Path, **values: Any) -> Path:
        with BundleWriter(prefix) as writer:
            for name, value in (values or {"w": np.array([1, 2], np.float32)}).items():
                writer.add(name, value)
        return prefix

    return write
