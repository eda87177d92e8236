"""The writer dies in any storage call, on real servers; gc then leaves exactly what is needed."""

from __future__ import annotations

import itertools
import warnings

import pytest

import ckptstore as ck
from ckptstore.directory.garbage import collect_garbage
from ckptstore.directory.garbage_search import find_garbage
from ckptstore.storage.registry import locate
from tests.backends.conftest import names_in
from tests.crash.test_every_call import SCENARIOS, Scenario, check_reader, interrupted_run, saver, values_of

_numbers = itertools.count(1)


@pytest.mark.parametrize("backend", ["minio", "gcs"], indirect=True)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_crash_in_any_call_on_a_server(scenario: Scenario, run_url: str) -> None:
    calls = None
    for number in itertools.count(0):
        for side in ("crash_before", "crash_after"):
            url = f"{run_url}-{next(_numbers)}"
            scenario.before(url)
            if number == 0:
                calls = interrupted_run(scenario, url).calls
                break
            interrupted_run(scenario, url, **{side: number})
            place = f"{side} {number}"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ck.CkptStoreWarning)
                check_reader(scenario, url, place)
                check_next_run_and_gc(url, place)
        assert calls is not None
        if number == len(calls):
            return


def check_next_run_and_gc(url: str, place: str) -> None:
    had_record = ck.get_checkpoint_state(url) is not None
    after = saver("after")
    for step in (11, 12, 13):
        prefix = after.save(values_of(step), f"{url}/model", step, write_meta_graph=False)
        assert ck.latest_checkpoint(url) == prefix, place
    directory = locate(url)
    garbage = find_garbage(directory, [directory.child("checkpoint")], min_age_s=0.0)
    assert collect_garbage(directory, garbage).error is None
    # A first save that died between index and record left a checkpoint that nobody may delete.
    extra = [] if had_record else [name for name in names_in(url) if name.startswith("model-1.")]
    assert [name for name in names_in(url) if name not in extra] == [
        "checkpoint",
        "model-12.data-00000-of-00001",
        "model-12.index",
        *(["model-12.meta"] if "model-12.meta" in names_in(url) else []),
        "model-13.data-00000-of-00001",
        "model-13.index",
    ], place
