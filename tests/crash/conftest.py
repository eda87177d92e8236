from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

_fresh = itertools.count()


@pytest.fixture(params=["local", "memory"])
def make_directory(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Return what names a new directory with each call."""

    def make() -> str:
        number = next(_fresh)
        return f"{tmp_path}/{number}/run" if request.param == "local" else f"memory://crash-{number}/run"

    return make
