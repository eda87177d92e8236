"""``import ckptstore`` is free and inert: nothing heavy is loaded before something heavy is asked for."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.meta.source import ROOT

HEAVY = (
    "aiobotocore",
    "botocore",
    "click",
    "fsspec",
    "gcsfs",
    "google.protobuf",
    "google_crc32c",
    "jax",
    "ml_dtypes",
    "numpy",
    "rich",
    "s3fs",
    "tensorflow",
    "torch",
    "urllib3",
)


def _loaded_after(code: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after running `code`."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_loads_nothing_heavy():
    loaded = _loaded_after("import ckptstore")
    assert sorted(loaded.intersection(HEAVY)) == []
    assert sorted(name for name in loaded if name.startswith("ckptstore")) == ["ckptstore"]


def test_listing_the_names_loads_nothing_either():
    loaded = _loaded_after("import ckptstore\nassert 'Saver' in dir(ckptstore)")
    assert sorted(loaded.intersection(HEAVY)) == []


@pytest.mark.parametrize("name", ["Saver", "latest_checkpoint", "open_checkpoint", "CheckpointManager"])
def test_the_everyday_names_load_no_storage_client_and_no_framework(name):
    loaded = _loaded_after(f"import ckptstore\nckptstore.{name}")
    unwanted = {"aiobotocore", "botocore", "click", "gcsfs", "jax", "rich", "s3fs", "tensorflow", "torch"}
    assert sorted(loaded.intersection(unwanted)) == []


def test_import_starts_no_thread_and_leaves_the_environment_alone():
    look = "dict(os.environ), threading.active_count(), list(warnings.filters), list(logging.root.handlers)"
    _loaded_after(
        "import logging, os, threading, warnings\n"
        f"before = {look}\n"
        "import ckptstore\n"
        f"assert before == ({look})"
    )
