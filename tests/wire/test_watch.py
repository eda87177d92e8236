"""Following a directory of an object store: which requests a look makes, and what it does on a bad day."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

import ckptstore as ck
from tests.servers.fault_proxy import FaultProxy
from tests.servers.s3 import S3Server
from tests.wire.follow_scene import Job, job, step_of

__all__ = ["job"]

SOON_S = 60.0


def follow_until(watcher: ck.Watcher, holds: Callable[[ck.WatchHealth], bool]) -> None:
    """Follow a directory in which nothing new is seen until its health is as wanted."""
    ends_s = time.monotonic() + SOON_S
    while not holds(watcher.health()):
        assert time.monotonic() < ends_s, watcher.health()
        assert watcher.next(0.1) is None


def test_unchanged_looks_are_conditional_gets_of_the_record_and_nothing_else(job: Job) -> None:
    job.save(1)
    watcher = job.watch()
    assert step_of(watcher.next(SOON_S)) == 1
    job.asked()
    before = watcher.health().requests
    follow_until(watcher, lambda health: health.requests >= before + 12)
    for request in job.proxy.requests:
        names = {name.lower() for name in request.headers}
        assert "if-none-match" in names or "ifGenerationNotMatch=" in request.path
    asked = job.asked()
    assert len(asked) == watcher.health().requests - before
    # One look in ten asks for the index too.
    assert asked.count("GET model-1.index") <= len(asked) / 10 + 1
    assert set(asked) - {"GET model-1.index"} == {"GET checkpoint"}


def test_a_new_step_costs_three_requests_more(job: Job) -> None:
    job.save(1)
    watcher = job.watch()
    watcher.check()
    job.save(2)
    job.asked()
    assert step_of(watcher.check()) == 2
    kinds = sorted(name.rpartition(".")[2].partition("-")[0] for name in job.asked())
    assert kinds == ["GET checkpoint", "data", "index"]


@pytest.mark.parametrize("fault", ["reset", "503", "403"])
def test_an_outage_costs_one_request_a_look_and_ends_by_itself(job: Job, fault: str) -> None:
    job.save(1)
    watcher = job.watch(every_s=0.05)
    watcher.next(SOON_S)
    when = job.proxy.when()
    if fault == "reset":
        when.reset()
    else:
        when.answer(int(fault), "SlowDown" if fault == "503" else "AccessDenied")
    before = watcher.health().requests
    follow_until(watcher, lambda health: health.is_stale and health.failures_in_a_row >= 5)
    health = watcher.health()
    # One request each; the look before may have asked for the index too.
    assert health.requests - before <= health.failures_in_a_row + 2
    job.save(2)
    job.proxy.clear()
    assert step_of(watcher.next(SOON_S)) == 2
    assert watcher.health().error is None


def test_a_black_hole_can_be_left(job: Job) -> None:
    job.save(1)
    watcher = job.watch(every_s=0.05)
    watcher.next(SOON_S)
    job.proxy.when().stall()
    started_s = time.monotonic()
    # The request that hangs is given up.
    with pytest.raises(ck.TransientError):
        _stopped_while(watcher)
    assert time.monotonic() - started_s < SOON_S
    assert watcher.next() is None


def _stopped_while(watcher: ck.Watcher) -> None:
    timer = threading.Timer(1.0, watcher.stop)
    timer.start()
    try:
        watcher.check()
    finally:
        timer.join()


def test_get_object_alone_suffices(minio: S3Server) -> None:
    with FaultProxy(minio.process.port) as proxy:
        job = Job(minio, proxy, "s3")
        job.save(1)
        job.options |= minio.user_with(["GetObject"], job.bucket)
        watcher = job.watch()
        first = watcher.next(SOON_S)
        assert step_of(first) == 1
        job.save(2)
        second = watcher.next(SOON_S)
        assert step_of(second) == 2
        assert second is not None
        with second.open() as checkpoint:
            np.testing.assert_array_equal(checkpoint["w"], np.arange(9.0) + 2)
        assert not [request for request in proxy.requests if request.method not in ("GET", "HEAD")]
