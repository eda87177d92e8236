"""Fixtures for servers, one of each kind for a whole session; a pytest plugin of tests/conftest.py.

A server that was not built skips its tests and says so at the end. With ``CI=true`` it fails them: a lane
whose whole point is a server proves nothing without it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.servers import gcs, s3
from tests.servers.serial import SerialProxy
from tests.servers.toxiproxy import Toxiproxy
from tests.servers.toxiproxy import toxiproxy as make_toxiproxy

_missing: set[str] = set()


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


@pytest.fixture(scope="session")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.S3Server]:
    server = need(s3.minio(tmp_path_factory.mktemp("minio")), "minio")
    with server.process:
        yield server


@pytest.fixture(scope="session")
def versitygw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.S3Server]:
    server = need(s3.versitygw(tmp_path_factory.mktemp("versitygw")), "versitygw")
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
