"""Trouble in the middle of a transfer in many parts: outlasted or reported; and the last save restores."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.bundle.verify.verify import verify_bundle
from ckptstore.storage.object_store.attempts import RetryPolicy
from ckptstore.storage.registry import locate
from tests.backends.fault_cases import Stage, impatient
from tests.servers.fault_proxy import FaultProxy, Request

# The watchdog: what does not come to an end fails.

# Pauses are short; what stalls is noticed soon.
_POLICY = RetryPolicy(deadline_s=20.0, attempt_s=1.0, pause_scale=0.001)

# Requests for data files; GCS is told the names of new objects in bodies.
_DATA = "data-|/upload/"

# Neighbours that travel together, small ones between large ones: 33 MiB, more than four requests.
_LARGE, _SMALL = 8, 60


def values_of(step: int) -> dict[str, np.ndarray]:
    values = {f"w{n}": np.full(1 << 20, step * 100 + n, np.float32) for n in range(_LARGE)}
    return values | {f"w{n % _LARGE}/s{n}": np.full(n + 1, step * 100 + n, np.int64) for n in range(_SMALL)}


def assert_same(values: dict[str, np.ndarray], step: int) -> None:
    expected = values_of(step)
    assert values.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(values[name], array)


@pytest.fixture(params=["s3", "gs"])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    server = request.getfixturevalue("minio" if request.param == "s3" else "gcs_server")
    port = server.process.port if request.param == "s3" else server.processes[-1].port
    with FaultProxy(port) as proxy:
        stage = Stage(server, request.param, server.make_bucket(), proxy, tmp_path, server.options)
        ck.Saver().save(values_of(1), f"{stage.url}/model", 1, storage_options=stage.options)
        yield stage


def into_arrays(stage: Stage) -> None:
    values = {name: np.zeros_like(array) for name, array in values_of(1).items()}
    ck.Saver().restore(values, f"{stage.url}/model-1", storage_options=stage.at(stage.proxy.url))
    assert_same(values, 1)


def new_arrays(stage: Stage) -> None:
    values: dict[str, np.ndarray] = {}
    ck.Saver().restore(values, f"{stage.url}/model-1", storage_options=stage.at(stage.proxy.url))
    assert_same(values, 1)


def verify(stage: Stage) -> None:
    report = verify_bundle(locate(f"{stage.url}/model-1", stage.at(stage.proxy.url)))
    assert not report.faults
    assert report.tensors_checked == _LARGE + _SMALL


def save(stage: Stage) -> None:
    ck.Saver().save(values_of(2), f"{stage.url}/model", 2, storage_options=stage.at(stage.proxy.url))


def throttle(stage: Stage, times: int | None) -> None:
    code = {"s3": "SlowDown", "gs": "backendError"}[stage.scheme]
    stage.refuse(stage.proxy.when(pattern=_DATA), 503, code, "Please reduce your request rate.", times=times)


def cut(stage: Stage, times: int | None) -> None:
    stage.proxy.when("GET", "data-", "range").cut_body(3_000_000 if times else 10, times=times)


def break_off(stage: Stage, times: int | None) -> None:
    stage.proxy.when(pattern=_DATA).reset(times=times)


def lose(stage: Stage, times: int | None) -> None:
    stage.proxy.when(pattern=_DATA).lose_answer(times=times)


def stall(stage: Stage, times: int | None) -> None:
    stage.proxy.when("GET", "data-", "range").stall(times=times)


def check_that_all_is_well(stage: Stage) -> None:
    """Check that the newest restores, that there are no threads at work, and that saving goes on."""
    stage.proxy.clear()
    latest = ck.latest_checkpoint(stage.url, storage_options=stage.options)
    assert latest in (f"{stage.url}/model-1", f"{stage.url}/model-2")
    values: dict[str, np.ndarray] = {}
    ck.Saver().restore(values, latest, storage_options=stage.options)
    assert_same(values, int(latest[-1]))
    ck.Saver().save(values_of(3), f"{stage.url}/model", 3, storage_options=stage.at(stage.proxy.url))
    for thread in threading.enumerate():
        if thread.name == "ckptstore-transfer":
            thread.join(60)
            assert not thread.is_alive()


# All who read ask in one way, which the first row tries; the others differ in what becomes of half a body.
_PASSING = {
    into_arrays: (throttle, cut, break_off, lose, stall),
    new_arrays: (cut, stall),
    verify: (cut, stall),
    save: (throttle, break_off, lose),
}


@pytest.mark.parametrize(
    ("operation", "trouble"), [(operation, each) for operation, row in _PASSING.items() for each in row]
)
def test_what_passes_is_outlasted(
    stage: Stage, operation: Callable[[Stage], None], trouble: Callable[[Stage, int | None], None]
) -> None:
    with impatient(_POLICY):
        trouble(stage, 4)
        operation(stage)
    check_that_all_is_well(stage)


@pytest.mark.parametrize(
    ("operation", "trouble"),
    [(into_arrays, throttle), (into_arrays, cut), (new_arrays, break_off), (verify, cut), (save, break_off)],
)
def test_what_does_not_pass_is_told(
    stage: Stage, operation: Callable[[Stage], None], trouble: Callable[[Stage, int | None], None]
) -> None:
    with impatient(_POLICY):
        trouble(stage, None)
        with pytest.raises(ck.TransientError) as caught:
            operation(stage)
    assert str(caught.value.url).startswith(stage.url)
    assert caught.value.hint
    check_that_all_is_well(stage)


def test_only_what_is_missing_of_a_range_is_asked_for_again(stage: Stage) -> None:
    """Also where several tensors travel together: a body that is cut goes on where it broke off."""
    # Nothing stalls: a request that is given up as too slow would be sent again from its beginning.
    with impatient(replace(_POLICY, attempt_s=15.0)):
        cut(stage, 4)
        into_arrays(stage)
    starts_of: dict[int, list[int]] = {}
    for request in stage.proxy.requests:
        wanted = {name.lower(): value for name, value in request.headers.items()}.get("range", "")
        if request.method == "GET" and "data-" in request.path and wanted:
            start, stop = map(int, wanted.removeprefix("bytes=").split("-"))
            starts_of.setdefault(stop, []).append(start)
    again = [np.diff(starts).tolist() for starts in starts_of.values() if len(starts) > 1]
    moved = list(itertools.chain(*again))
    # The last range is so short that it comes whole, and it may be among the first four.
    assert moved in ([3_000_000] * 4, [3_000_000] * 3)
    size_bytes = sum(array.nbytes for array in values_of(1).values())
    assert sum(stop + 1 - starts[0] for stop, starts in starts_of.items()) == size_bytes


@pytest.mark.parametrize("operation", [into_arrays, new_arrays, verify, save])
def test_a_server_that_dies_in_the_middle_is_told(stage: Stage, operation: Callable[[Stage], None]) -> None:
    stage.proxy.when().reset()
    # Until then all is well: for whatever comes first, and some of the data.
    stage.proxy.when(pattern=f"^((?!{_DATA}).)*$").rewrite(_as_it_is, times=20, sign=False)
    stage.proxy.when(pattern=_DATA).rewrite(_as_it_is, times=3, sign=False)
    with impatient(_POLICY), pytest.raises((ck.TransientError, ck.AmbiguousOutcomeError)):
        operation(stage)
    check_that_all_is_well(stage)


def _as_it_is(request: Request) -> Request:
    return request
