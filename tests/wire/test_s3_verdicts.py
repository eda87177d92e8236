"""What the probe says of each real server, and a save on one that keeps no writers apart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import ckptstore
from ckptstore.errors import CkptStoreWarning
from ckptstore.storage.object_store.probe import Verdicts
from ckptstore.storage.object_store.storage import ObjectStorage
from ckptstore.storage.registry import locate
from tests.own_warnings import own_warnings
from tests.servers import s3
from tests.servers.build import binary
from tests.servers.fault_proxy import FaultProxy
from tests.servers.fixtures import need
from tests.servers.s3 import S3Server


def _verdicts(server: S3Server) -> Verdicts:
    bucket = server.make_bucket()
    location = locate(f"s3://{bucket}/run/x", server.options)
    storage = location.storage
    assert isinstance(storage, ObjectStorage)
    found = storage.service.verdicts(storage.service.object_name(location.key), location.url)
    assert server.keys(bucket) == []
    return found


def test_minio(minio: S3Server) -> None:
    assert _verdicts(minio) == Verdicts("yes", "yes", "404", cond_delete=False, crc32c=True)


@pytest.fixture(scope="module")
def last_minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = need(s3.minio(tmp_path_factory.mktemp("minio-last"), "minio-last"), "minio-last")
    with server.process:
        yield server


def test_the_last_commit_of_minio(last_minio: S3Server) -> None:
    assert _verdicts(last_minio) == Verdicts("yes", "yes", "404", cond_delete=False, crc32c=True)


def test_versitygw(versitygw: S3Server) -> None:
    # A condition on DELETE is honoured, in two steps.
    assert _verdicts(versitygw) == Verdicts("yes", "yes", "404", cond_delete=False, crc32c=True)


def test_moto(moto: S3Server) -> None:
    found = _verdicts(moto)
    assert (found.create, found.cas, found.cas_missing, found.cond_delete) == ("yes", "yes", "404", True)


@pytest.fixture
def ignoring(minio: S3Server) -> Iterator[FaultProxy]:
    """Return a proxy that takes every condition out of what it passes on."""
    with FaultProxy(minio.process.port) as proxy:
        for header in ("If-Match", "If-None-Match"):
            for method in ("PUT", "POST", "DELETE"):
                proxy.when(method, header=header).rewrite(
                    lambda request: request.without("If-Match", "If-None-Match")
                )
        yield proxy


def test_a_proxy_that_ignores_conditions(minio: S3Server, ignoring: FaultProxy) -> None:
    with pytest.warns(CkptStoreWarning, match="single-writer"):
        found = _verdicts(minio.through(ignoring.url))
    assert found == Verdicts("ignored", "ignored", "created", cond_delete=False, crc32c=True)


def test_one_writer_saves_keeps_and_restores_on_a_server_that_ignores_conditions(
    minio: S3Server, ignoring: FaultProxy, tmp_path: Path
) -> None:
    options = minio.through(ignoring.url).options
    bucket = minio.make_bucket()
    directory = f"s3://{bucket}/run"
    saver = ckptstore.Saver(max_to_keep=2)
    with own_warnings() as said:
        for step in (1, 2, 3, 3):
            values = {"w": np.full(4, step, np.float32)}
            saver.save(values, f"{directory}/model", global_step=step, storage_options=options)
    assert len([warning for warning in said if "single-writer" in str(warning.message)]) == 1
    latest = ckptstore.latest_checkpoint(directory, storage_options=options)
    assert latest == f"{directory}/model-3"
    with ckptstore.open_checkpoint(latest, storage_options=options) as checkpoint:
        np.testing.assert_array_equal(checkpoint["w"], np.full(4, 3, np.float32))
    indexes = [key for key in minio.keys(bucket) if key.endswith(".index")]
    assert indexes == ["run/model-2.index", "run/model-3.index"]


def test_what_was_built_is_what_was_asked_for() -> None:
    for name in ("minio", "versitygw", "toxiproxy-server", "fake-gcs-server"):
        need(binary(name), name)
