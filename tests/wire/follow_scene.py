"""A job that saves, and hosts that follow it through a proxy which notes every request."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import ckptstore as ck
from tests.servers.fault_proxy import FaultProxy
from tests.servers.gcs import GcsServer
from tests.servers.s3 import S3Server

__all__ = ["Job", "job", "step_of"]


class Job:
    """A job that saves past the proxy, and a host that watches through it."""

    def __init__(self, server: S3Server | GcsServer, proxy: Any, scheme: str) -> None:
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


def step_of(step: ck.Step | None) -> int | None:
    assert step is not None
    return step.step
