"""The lane ``frameworks``: every test needs a framework, and runs in the environment that has all of them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave these tests out of a mere list where there is no framework; a run without one fails."""
    return True if config.option.collectonly and find_spec("torch") is None else None
