"""`ckptstore.keras` on each backend, in a process of its own: a process of Keras has one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.meta.source import ROOT

# Names, values, and checkpoints of the other backends.
FEW = "file_that_keras_writes or between or another_optimizer"

pytestmark = pytest.mark.timeout(1000)


def test_the_cases_hold_on_every_backend(tmp_path: Path) -> None:
    # Training is tried with one of them: the first `fit` of a process compiles for long.
    for backend, cases in (("jax", ""), ("torch", FEW), ("tensorflow", FEW)):
        environment = {
            **os.environ,
            "KERAS_BACKEND": backend,
            "CKPTSTORE_TEST_SHARED": str(tmp_path),
            "PYTHONPATH": str(ROOT),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "CUDA_VISIBLE_DEVICES": "",
        }
        # Not the options of the run that this is a part of.
        environment = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
        command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "tests.forbid_skips"]
        ended = subprocess.run(
            [*command, "-p", "no:cacheprovider", "-k", cases, "tests/frameworks/keras_cases.py"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert ended.returncode == 0, f"{backend}\n{ended.stdout[-6000:]}\n{ended.stderr[-3000:]}"
        assert " passed" in ended.stdout
