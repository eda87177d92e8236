"""The writer dies in any storage call, on real servers; gc then leaves exactly what is needed."""

from __future__ import annotations

import itertools
import warnings

import pytest

import ckptstore as ck
from ckptstore.directory.garbage import collect_garbage
from ckptstore.directory.garbage_search import find_garbage
from ckptstore.storage.gcs.transport import GcsTransport
from ckptstore.storage.registry import locate
from tests.backends.conftest import names_in
from tests.crash.crashing_process import every_state, run_until_crash
from tests.crash.test_every_call import SCENARIOS, Scenario, check_reader, saver, values_of
from tests.servers.gcs import GcsServer


@pytest.mark.parametrize("backend", ["minio", "gcs"], indirect=True)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_crash_in_any_call_on_a_server(scenario: Scenario, run_url: str) -> None:
    url = f"{run_url}-0"
    scenario.before(url)
    calls = run_until_crash(scenario.interrupted, url).calls
    assert len(calls) >= 8
    for number, crash in enumerate(every_state(len(calls)), 1):
        url = f"{run_url}-{number}"
        scenario.before(url)
        run_until_crash(scenario.interrupted, url, **crash)
        place = f"{crash} of {calls}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ck.CkptStoreWarning)
            check_reader(scenario, url, place)
            check_next_run_and_gc(url, place)


@pytest.mark.parametrize("backend", ["gcs"], indirect=True)
def test_a_crash_in_any_call_of_a_save_that_is_sent_in_parts(
    run_url: str, gcs_server: GcsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    size_bytes = 256 * 1024  # five parts, in three levels
    monkeypatch.setattr("ckptstore.storage.object_store.upload._part_size_bytes", lambda *_: size_bytes)
    monkeypatch.setattr("ckptstore.storage.gcs.compose.MOST_SOURCES", 2)
    monkeypatch.setattr(GcsTransport, "part_size_bytes", size_bytes)
    scenario = next(scenario for scenario in SCENARIOS if scenario.name == "save with retention")
    scenario.before(f"{run_url}-0")
    calls = run_until_crash(scenario.interrupted, f"{run_url}-0").calls
    assert [call.primitive for call in calls].count("upload.send") == 5
    unfinished = 0
    # Parts are sent at the same time: here the two sides of a call do differ.
    for number, side in itertools.product(range(1, len(calls) + 1), ("crash_before", "crash_after")):
        url = f"{run_url}-{number}-{side}"
        scenario.before(url)
        run_until_crash(scenario.interrupted, url, **{side: number})
        place = f"{side} {number}, {calls[number - 1]}"
        bucket, _, directory = url.removeprefix("gs://").partition("/")
        unfinished += any("/.ckptstore-parts/" in key for key in gcs_server.keys(bucket, directory + "/"))
        check_reader(scenario, url, place)
        check_next_run_and_gc(url, place)
        left = gcs_server.keys(bucket, directory + "/")
        assert [key for key in left if ".ckptstore" in key] == [], place
    # Otherwise nothing was tried.
    assert unfinished >= 5


def check_next_run_and_gc(url: str, place: str) -> None:
    had_record = ck.get_checkpoint_state(url) is not None
    after = saver("after")
    for step in (11, 12, 13):
        prefix = after.save(values_of(step), f"{url}/model", step, write_meta_graph=False)
        assert ck.latest_checkpoint(url) == prefix, place
    directory = locate(url)
    garbage = find_garbage(directory, [directory.child("checkpoint")], min_age_s=0.0)
    assert collect_garbage(directory, garbage).error is None
    # A first save that died between index and record left a checkpoint that nobody may delete, and what was
    # saved without a step has an owner of its own.
    kept = ("model.",) if had_record else ("model.", "model-1.")
    extra = [name for name in names_in(url) if name.startswith(kept)]
    assert [name for name in names_in(url) if name not in extra] == [
        "checkpoint",
        "model-12.data-00000-of-00001",
        "model-12.index",
        *(["model-12.meta"] if "model-12.meta" in names_in(url) else []),
        "model-13.data-00000-of-00001",
        "model-13.index",
    ], place
