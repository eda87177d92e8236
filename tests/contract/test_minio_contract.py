"""The storage contract on MinIO, which ignores conditions on DELETE."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ckptstore.storage.abilities import ProbesCapabilities
from ckptstore.storage.base import Location
from tests.contract.s3_contract import S3Contract
from tests.servers.fixtures import need
from tests.servers.s3 import S3Server
from tests.servers.s3_tls import TlsS3Server, minio_tls


class TestMinio(S3Contract):
    @pytest.fixture
    def server(self, minio: S3Server) -> S3Server:
        return minio

    def test_what_is_claimed_is_what_it_does(self, directory: Location) -> None:
        assert isinstance(directory.storage, ProbesCapabilities)
        claimed = directory.storage.probe(directory.child("x").key)
        assert claimed.create_if_absent
        assert claimed.compare_and_swap
        assert not claimed.conditional_delete
        assert claimed.checksum_proved_by_store


class TestMinioThroughS3fs(TestMinio):
    """The other way for large bodies."""

    direct = False


@pytest.fixture(scope="module")
def tls_minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsS3Server]:
    server: TlsS3Server = need(minio_tls(tmp_path_factory.mktemp("minio-tls")), "minio")
    with server.process:
        yield server


class TestMinioOverTls(TestMinio):
    @pytest.fixture
    def server(self, tls_minio: TlsS3Server) -> S3Server:
        return tls_minio
