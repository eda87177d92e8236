"""Fixtures for servers, one of each kind for a whole session; a pytest plugin of tests/conftest.py.

A server that was not built skips its tests and says so at the end. With ``CI=true`` it fails them: a lane
whose whole point is a server proves nothing without it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.servers import gcs, s3
from tests.servers.serial import SerialProxy
from tests.servers.toxiproxy import Toxiproxy
from tests.servers.toxiproxy import toxiproxy as make_toxiproxy

_missing: set[str] = set()

_MEMORY = Path("/dev/shm")
# Two workers with two servers each keep about 3 GB in a session.
_ROOM_BYTES = 8 << 30


def need(server: Any, name: str) -> Any:
    """Return `server`; where it is None, skip the test, or fail it where servers must be there."""
    if server is not None:
        return server
    _missing.add(name)
    reason = f"{name} is not there: `make servers` builds it"
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _missing:
        terminalreporter.section("servers that did not take part", red=True)
        for name in sorted(_missing):
            terminalreporter.line(
                f"{name}: nothing was proved against it; `make servers` builds it (needs Go)"
            )


@contextmanager
def _disk(name: str) -> Iterator[Path]:
    """Yield where a server keeps its objects: in memory where there is plenty.

    It waits for the disk in every request, and whether it outlives its machine is not what we test.
    """
    has_room = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free >= _ROOM_BYTES
    with tempfile.TemporaryDirectory(
        prefix=f"ckptstore-{name}-", dir=_MEMORY if has_room else None, ignore_cleanup_errors=True
    ) as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def minio() -> Iterator[s3.S3Server]:
    with _disk("minio") as directory:
        server = need(s3.minio(directory), "minio")
        with server.process:
            yield server


@pytest.fixture(scope="session")
def versitygw() -> Iterator[s3.S3Server]:
    with _disk("versitygw") as directory:
        server = need(s3.versitygw(directory), "versitygw")
        with server.process:
            yield server


@pytest.fixture(scope="session")
def serial_versitygw(versitygw: s3.S3Server) -> Iterator[s3.S3Server]:
    """Return versitygw with one request at a time, so that its conditional deletes are one step."""
    with SerialProxy(versitygw.process.port) as proxy:
        yield versitygw.through(proxy.url)


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.S3Server]:
    server = need(s3.moto(tmp_path_factory.mktemp("moto")), "moto")
    with server.process:
        yield server


@pytest.fixture(scope="session")
def gcs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gcs.GcsServer]:
    """Return the GCS server that behaves as the service documents."""
    server = need(gcs.strict_gcs(tmp_path_factory.mktemp("gcs")), "fake-gcs-server")
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def bare_gcs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gcs.GcsServer]:
    """Return the GCS server that ignores most conditions."""
    server = need(gcs.fake_gcs(tmp_path_factory.mktemp("bare-gcs")), "fake-gcs-server")
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def toxiproxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Toxiproxy]:
    proxy = need(make_toxiproxy(tmp_path_factory.mktemp("toxiproxy")), "toxiproxy-server")
    with proxy.process:
        yield proxy
