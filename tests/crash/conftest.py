from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

_fresh = itertools.count()


@pytest.fixture(params=["local", "local-without-sync", "memory"])
def make_directory(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Return what names a new directory with each call."""

    if request.param == "local-without-sync":
        request.getfixturevalue("without_sync")

    def make() -> str:
        number = next(_fresh)
        return f"memory://crash-{number}/run" if request.param == "memory" else f"{tmp_path}/{number}/run"

    return make
