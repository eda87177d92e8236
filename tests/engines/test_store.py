"""Four processes without an engine, which talk through the directory, and start again."""

from __future__ import annotations

from pathlib import Path

import pytest

import ckptstore as ck
from tests.engines.job import SIZE, Job


@pytest.mark.timeout(1000)
def test_a_job_that_starts_again_goes_on_where_the_first_one_stopped(tmp_path: Path) -> None:
    prefix = f"{tmp_path}/model-7"
    for attempt, newest in (("first", None), ("second", prefix)):
        with Job("store", tmp_path, attempt=attempt) as job:
            found = job.ask("page", directory=str(tmp_path))
        assert found == [{"newest": newest, "step": 7, "rows": float(rank)} for rank in range(SIZE)]
        assert ck.latest_checkpoint(tmp_path) == prefix
