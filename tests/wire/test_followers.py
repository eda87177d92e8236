"""Fifty hosts that follow one directory, and days on which the store is away; each request is counted.

CKPTSTORE_FOLLOWERS=1 (`make followers`) makes the periods longer, and the outages a minute each.
"""

from __future__ import annotations

import os
import platform
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

import ckptstore as ck
from ckptstore.serving import watch as watch_module
from tests.servers.s3 import S3Server
from tests.servers.toxiproxy import Toxiproxy
from tests.wire.follow_scene import Job, job, step_of

__all__ = ["job"]

IS_LONG = bool(os.environ.get("CKPTSTORE_FOLLOWERS"))
HOSTS = 50
EVERY_S = 2.0 if IS_LONG else 0.8
SAVES, PAUSE_S = (12, 5.0) if IS_LONG else (3, 1.0)
# Looks of each host while nothing changes.
QUIET_LOOKS = 30 if IS_LONG else 3
OUTAGE_S = 60.0 if IS_LONG else 0.0
SOON_S = 120.0

pytestmark = pytest.mark.timeout(900 if IS_LONG else 300)


class Host:
    """Follows until it is told to stop; notes steps and what goes wrong."""

    def __init__(self, watcher: ck.Watcher) -> None:
        self.watcher = watcher
        self.steps: list[int] = []
        self.failures: list[BaseException] = []
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        try:
            self.steps.extend(step.step or 0 for step in self.watcher)
        except BaseException as error:  # noqa: BLE001 - of a thread; the test looks at it
            self.failures.append(error)

    def end(self) -> None:
        self.watcher.stop()
        self._thread.join(SOON_S)
        assert not self._thread.is_alive()


def until(holds: Callable[[], bool], what: str) -> None:
    ends_s = time.monotonic() + SOON_S
    while not holds():
        assert time.monotonic() < ends_s, what
        time.sleep(0.02)


@contextmanager
def hosts(job: Job, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Host]]:
    found = []
    for number in range(HOSTS):
        # Its name decides when a host looks.
        monkeypatch.setattr(platform, "node", lambda number=number: f"host-{number}")
        found.append(Host(job.watch(EVERY_S)))
    try:
        yield found
    finally:
        for host in found:
            host.watcher.stop()
        for host in found:
            host.end()


def test_fifty_hosts_end_on_the_last_step_and_ask_for_no_more_than_is_needed(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.save(0)
    started_s = time.monotonic()
    with hosts(job, monkeypatch) as found:
        for step in range(1, SAVES + 1):
            time.sleep(PAUSE_S)
            job.save(step)
        until(lambda: all(host.steps[-1:] == [SAVES] for host in found), "not all see the last step")
        assert not [host.failures for host in found if host.failures]
        for host in found:
            assert host.steps == sorted(set(host.steps))
        most_looks = (time.monotonic() - started_s) / EVERY_S + 2
        for host in found:
            # One a look, in one of ten the index too, and what each step costs.
            assert host.watcher.health().requests <= 1.1 * most_looks + 4 * len(host.steps) + 1
        quiet(job, found)
    # Not one that a watcher does not know of.
    assert sum(host.watcher.health().requests for host in found) == len(job.proxy.requests)


def quiet(job: Job, found: list[Host]) -> None:
    """Look at the requests of some periods in which nothing changes."""
    before = [host.watcher.health().requests for host in found]
    at = len(job.proxy.requests)
    until(
        lambda: all(
            host.watcher.health().requests >= count + QUIET_LOOKS
            for host, count in zip(found, before, strict=True)
        ),
        "not all have looked again",
    )
    requests = job.proxy.requests[at:]
    for request in requests:
        names = {name.lower() for name in request.headers}
        assert request.method == "GET"
        assert "if-none-match" in names or "ifGenerationNotMatch=" in request.path
        assert not re.search(r"list-type|[?&]prefix=", request.path)
    indexes = [request for request in requests if ".index" in request.path]
    # In every tenth look of a host.
    assert len(indexes) <= len(requests) / 10 + HOSTS


@pytest.mark.parametrize("fault", ["503", "reset"])
def test_a_store_that_refuses_is_asked_once_a_period_at_most(job: Job, fault: str) -> None:
    def begin() -> None:
        when = job.proxy.when()
        when.answer(503, "SlowDown") if fault == "503" else when.reset()

    sit_out(job, job.watch(EVERY_S / 4), begin, job.proxy.clear)


def test_a_host_serves_on_while_the_store_is_away(job: Job) -> None:
    job.save(1)

    def load(checkpoint: ck.OpenCheckpoint, previous: object) -> float:
        return float(checkpoint.read("w", 0))

    with ck.Live(load, job.url, every_s=0.2, storage_options=job.options) as live:
        assert live.wait_ready(SOON_S)
        job.proxy.when().answer(503, "SlowDown")
        job.save(2)
        until(lambda: live.health().watch.is_stale, "not stale")
        with live.use() as found:
            assert found == 1.0
        assert live.health().is_ready
        job.proxy.clear()
        until(lambda: live.step is not None and live.step.step == 2, "the next step is not served")
        assert not live.health().watch.is_stale


@pytest.mark.parametrize("fault", ["cut", "black hole"])
def test_a_network_that_is_away(
    minio: S3Server, toxiproxy: Toxiproxy, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    if not IS_LONG:
        monkeypatch.setattr(watch_module, "_SHORTEST_LOOK_S", 0.3)
    with toxiproxy.proxy(minio.process.port) as network:
        job = Job(minio, network, "s3")
        watcher = job.watch(EVERY_S / 4)
        down = network.down() if fault == "cut" else network.toxic("timeout", timeout=0)
        sit_out(job, watcher, down.__enter__, lambda: down.__exit__(None, None, None))


def sit_out(job: Job, watcher: ck.Watcher, begin: Callable[[], object], end: Callable[[], object]) -> None:
    """Follow through an outage: nothing is raised, few requests are made, one look finds what was missed."""
    every_s = EVERY_S / 4
    job.save(1)
    assert step_of(watcher.next(SOON_S)) == 1
    assert not watcher.health().is_stale
    before, started_s = watcher.health().requests, time.monotonic()
    begin()
    job.save(2)
    ends_s = started_s + SOON_S + OUTAGE_S
    while True:
        assert watcher.next(0.05) is None
        health = watcher.health()
        assert health.looked_s_ago is not None
        assert health.is_stale == (health.looked_s_ago > 3 * every_s)
        gone_s = time.monotonic() - started_s
        if health.is_stale and health.failures_in_a_row >= 3 and gone_s >= OUTAGE_S:
            break
        assert time.monotonic() < ends_s, health
    assert health.error is not None
    # One a period at most; and one that was under way.
    assert health.requests - before <= gone_s / every_s + 2
    end()
    assert step_of(watcher.next(SOON_S)) == 2
    # The next look finds it; one may have been under way when the outage ended.
    assert watcher.health().requests - health.requests <= 5
    assert (watcher.health().failures_in_a_row, watcher.health().is_stale) == (0, False)
