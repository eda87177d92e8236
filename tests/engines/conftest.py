from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engines.job import Job


@pytest.fixture(scope="module")
def job(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """Four ranks, started as the module's `LAUNCHER` says, once for all of its tests."""
    with Job(request.module.LAUNCHER, tmp_path_factory.mktemp("job")) as job:
        yield job
