"""The storage contract on any S3 server; boto3 looks at the result."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ckptstore.storage.abilities import ProbesCapabilities
from ckptstore.storage.base import Location
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
from tests.servers.s3 import S3Server


class S3Contract(
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
    def server(self) -> S3Server:
        raise NotImplementedError

    @pytest.fixture
    def directory(self, server: S3Server) -> Iterator[Location]:
        self.raw = server
        bucket = server.make_bucket()
        directory = locate(f"s3://{bucket}/some run", server.options | {"direct": self.direct})
        # What the server does is known only after it was asked, and decides which tests there are.
        assert isinstance(directory.storage, ProbesCapabilities)
        directory.storage.probe(directory.child("x").key)
        assert isinstance(directory.storage, ObjectStorage)
        transport = directory.storage.transport
        assert transport.data_path(bucket, directory.storage.service.new_attempts()).is_direct is self.direct
        yield directory
        keys = server.keys(bucket)
        assert not [key for key in keys if "probe" in key], "the probe left something behind"
        for key in {*keys, "some run/model-1.data-00000-of-00001"}:
            assert not server.uploads(bucket, key), "an unfinished upload was left behind"

    def put_raw(self, location: Location, data: bytes) -> None:
        bucket, _, key = location.key.partition("/")
        self.raw.put(bucket, key, data)

    def get_raw(self, location: Location) -> bytes | None:
        bucket, _, key = location.key.partition("/")
        return self.raw.get(bucket, key)
