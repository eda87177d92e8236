"""A MinIO whose disk is full: a permanent error, the old checkpoint restores, and room is all it takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.cli.main import main
from tests.own_warnings import own_warnings
from tests.servers.fixtures import need
from tests.servers.s3 import S3Server, minio
from tests.small_disk import fill, small_disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 96 * 1024) as disk:
        yield disk


@pytest.fixture
def server(disk: Path) -> Iterator[S3Server]:
    server = need(minio(disk), "minio")
    with server.process:
        yield server


def values_of(stamp: float) -> dict[str, np.ndarray]:
    return {"big": np.full((1000, 1000), stamp, np.float32), "small": np.array([stamp])}


def wait_until_it_notices(server: S3Server, bucket: str) -> None:
    """MinIO remembers for a moment that there was no room."""
    stop_s = time.monotonic() + 60.0
    while True:
        try:
            server.put(bucket, "elsewhere/x", b"x")
        except server.raw.exceptions.ClientError:
            assert time.monotonic() < stop_s
            time.sleep(0.2)
        else:
            return


def test_a_full_disk_of_the_server(
    server: S3Server, disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    bucket = server.make_bucket()
    url = f"s3://{bucket}/run"
    saver = ck.Saver(max_to_keep=2)
    saver.save(values_of(1.0), f"{url}/model", 1)
    before = server.keys(bucket)
    ballast = fill(disk, but_pages=16)
    with pytest.raises(ck.StorageFullError) as caught:
        saver.save(values_of(2.0), f"{url}/model", 2)
    assert (caught.value.url or "").startswith(url)
    assert caught.value.hint
    assert "attempts" not in str(caught.value)
    assert main(["verify", f"{url}/model-1"]) == 0
    assert main(["ls", url]) == 0
    assert ck.latest_checkpoint(url) == f"{url}/model-1"
    restored: dict[str, np.ndarray] = {}
    ck.Saver().restore(restored, f"{url}/model-1")
    np.testing.assert_array_equal(restored["big"], values_of(1.0)["big"])
    assert server.keys(bucket) == before
    ballast.unlink()
    wait_until_it_notices(server, bucket)
    with own_warnings("error"):
        saver.save(values_of(3.0), f"{url}/model", 3)
    assert ck.latest_checkpoint(url) == f"{url}/model-3"
