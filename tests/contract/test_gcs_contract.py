"""The storage contract on a GCS server that keeps every condition, and on one that ignores some."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ckptstore.storage.abilities import ProbesCapabilities
from ckptstore.storage.base import Location
from ckptstore.storage.gcs.transport import GcsTransport
from ckptstore.storage.object_store.storage import ObjectStorage
from ckptstore.storage.registry import locate
from ckptstore.testing.contract import (
    CopyContract,
    DeleteOnceContract,
    DiagnosisContract,
    MarkContract,
    ProbeContract,
    ServerTimeContract,
    StorageContract,
)
from tests.servers.gcs import GcsServer


class _OnGcs(
    StorageContract,
    CopyContract,
    MarkContract,
    DeleteOnceContract,
    ProbeContract,
    ServerTimeContract,
    DiagnosisContract,
):
    direct = True

    @pytest.fixture
    def server(self) -> GcsServer:
        raise NotImplementedError

    @pytest.fixture
    def directory(self, server: GcsServer) -> Iterator[Location]:
        self.raw = server
        bucket = server.make_bucket()
        directory = locate(f"gs://{bucket}/some run", server.options | {"direct": self.direct})
        # What the server does is known only after it was asked, and decides which tests there are.
        assert isinstance(directory.storage, ProbesCapabilities)
        directory.storage.probe(directory.child("x").key)
        assert isinstance(directory.storage, ObjectStorage)
        transport = directory.storage.transport
        assert transport.data_path(bucket, directory.storage.service.new_attempts()).is_direct is self.direct
        yield directory
        assert not [key for key in server.keys(bucket) if "probe" in key], "the probe left something behind"

    def put_raw(self, location: Location, data: bytes) -> None:
        bucket, _, name = location.key.partition("/")
        self.raw.put(bucket, name, data)

    def get_raw(self, location: Location) -> bytes | None:
        bucket, _, name = location.key.partition("/")
        return self.raw.get(bucket, name)


class TestGcs(_OnGcs):
    """Behind the front that behaves as the service documents."""

    @pytest.fixture
    def server(self, gcs_server: GcsServer) -> GcsServer:
        return gcs_server

    def test_what_is_claimed_is_what_it_does(self, directory: Location) -> None:
        assert isinstance(directory.storage, ProbesCapabilities)
        claimed = directory.storage.probe(directory.child("x").key)
        assert claimed.create_if_absent
        assert claimed.compare_and_swap
        assert claimed.conditional_delete
        assert claimed.checksum_proved_by_store
        assert claimed.several_hosts
        assert not claimed.single_writer


class TestGcsThroughGcsfs(TestGcs):
    """The other way for large bodies."""

    direct = False


class TestGcsInParts(TestGcs):
    """Large objects composed of parts."""

    @pytest.fixture(autouse=True)
    def small_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(GcsTransport, "part_size_bytes", 8 * 1024 * 1024)

    @pytest.fixture
    def directory(self, server: GcsServer) -> Iterator[Location]:
        self.raw = server
        bucket = server.make_bucket()
        directory = locate(f"gs://{bucket}/some run", server.options)
        assert isinstance(directory.storage, ProbesCapabilities)
        directory.storage.probe(directory.child("x").key)
        with directory.storage.upload(directory.child("large").key, 40 * 1024 * 1024) as upload:
            assert upload.parallel == 8
        yield directory
        assert not [key for key in server.keys(bucket) if ".ckptstore" in key], "something was left behind"


class TestBareGcs(_OnGcs):
    """fake-gcs-server as it is: what it does not do must be found out, and said."""

    @pytest.fixture
    def server(self, bare_gcs_server: GcsServer) -> GcsServer:
        return bare_gcs_server

    def test_what_is_claimed_is_what_it_does(self, directory: Location) -> None:
        assert isinstance(directory.storage, ProbesCapabilities)
        claimed = directory.storage.probe(directory.child("x").key)
        assert claimed.create_if_absent
        assert claimed.compare_and_swap
        assert not claimed.conditional_delete
        assert claimed.checksum_proved_by_store
        assert not claimed.single_writer
