"""The lane ``frameworks``: every test needs a framework, and runs in the environment that has all of them."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

# Before JAX is imported: eight devices on one CPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave these tests out of a mere list where there is no framework; a run without one fails."""
    return True if config.option.collectonly and find_spec("torch") is None else None
