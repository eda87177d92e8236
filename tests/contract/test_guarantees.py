"""The servers do what docs/guarantees.md says of them."""

from __future__ import annotations

import pytest

from ckptstore.errors import CkptStoreWarning
from ckptstore.storage.abilities import ProbesCapabilities
from ckptstore.storage.gcs.transport import GcsTransport
from ckptstore.storage.registry import locate
from ckptstore.storage.values import Capabilities
from tests.meta.guarantees import MINIO, WITH_CONDITIONAL_DELETES, WITHOUT_CONDITIONS
from tests.servers.fault_proxy import FaultProxy
from tests.servers.gcs import GcsServer
from tests.servers.s3 import S3Server


def _found(server: S3Server | GcsServer, scheme: str = "s3") -> Capabilities:
    location = locate(f"{scheme}://{server.make_bucket()}/run/x", server.options)
    assert isinstance(location.storage, ProbesCapabilities)
    return location.storage.probe(location.key)


def test_minio(minio: S3Server) -> None:
    assert _found(minio) == MINIO


def test_s3_with_conditional_deletes(serial_versitygw: S3Server) -> None:
    assert _found(serial_versitygw) == WITH_CONDITIONAL_DELETES


def test_a_server_that_deletes_in_two_steps(versitygw: S3Server) -> None:
    assert _found(versitygw) == MINIO


def test_gcs(gcs_server: GcsServer) -> None:
    assert _found(gcs_server, "gs") == GcsTransport.nominal


def test_a_server_that_ignores_conditions(minio: S3Server) -> None:
    with FaultProxy(minio.process.port) as proxy:
        for header in ("If-Match", "If-None-Match"):
            for method in ("PUT", "DELETE"):
                proxy.when(method, header=header).rewrite(
                    lambda request: request.without("If-Match", "If-None-Match")
                )
        with pytest.warns(CkptStoreWarning, match="single-writer"):
            assert _found(minio.through(proxy.url)) == WITHOUT_CONDITIONS
