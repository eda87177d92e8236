"""Following a directory of an object store: which requests a look makes, and what it does on a bad day."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import ckptstore as ck
from tests.servers.fault_proxy import FaultProxy
from tests.servers.gcs import GcsServer
from tests.servers.s3 import S3Server

SOON_S = 60.0


class Job:
    """A job that saves past the proxy, and a host that watches through it."""

    def __init__(self, server: S3Server | GcsServer, proxy: FaultProxy, scheme: str) -> None:
        self.server, self.proxy = server, proxy
        self.bucket = server.make_bucket()
        self.url = f"{scheme}://{self.bucket}/run"
        self.saver = ck.Saver(run="job", max_to_keep=2)
        self.options = server.options | {"endpoint_url": proxy.url}

    def save(self, step: int) -> None:
        self.saver.save(
            {"w": np.arange(9.0) + step}, f"{self.url}/model", step, storage_options=self.server.options
        )

    def watch(self, every_s: float = 0.1) -> ck.Watcher:
        return ck.watch(self.url, every_s=every_s, storage_options=self.options)

    def asked(self) -> list[str]:
        """Return method and last part of the path of each request, and forget them."""
        found = [
            f"{request.method} {request.path.partition('?')[0].rpartition('/')[2].rpartition('%2F')[2]}"
            for request in self.proxy.requests
        ]
        self.proxy.clear()
        return found


@pytest.fixture(params=["minio", "gcs"])
def job(request: pytest.FixtureRequest) -> Iterator[Job]:
    if request.param == "minio":
        server = request.getfixturevalue("minio")
        port = server.process.port
    else:
        server = request.getfixturevalue("gcs_server")
        port = server.processes[-1].port
    with FaultProxy(port) as proxy:
        yield Job(server, proxy, "s3" if request.param == "minio" else "gs")


def follow_until(watcher: ck.Watcher, holds: Callable[[ck.WatchHealth], bool]) -> None:
    """Follow a directory in which nothing new is seen until its health is as wanted."""
    ends_s = time.monotonic() + SOON_S
    while not holds(watcher.health()):
        assert time.monotonic() < ends_s, watcher.health()
        assert watcher.next(0.1) is None


def step_of(step: ck.Step | None) -> int | None:
    assert step is not None
    return step.step


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
