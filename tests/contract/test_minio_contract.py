"""The storage contract on MinIO, which ignores conditions on DELETE."""

from __future__ import annotations

import pytest

from ckptstore.storage.base import Location
from tests.contract.s3_contract import S3Contract
from tests.servers.s3 import S3Server


class TestMinio(S3Contract):
    @pytest.fixture
    def server(self, minio: S3Server) -> S3Server:
        return minio

    def test_what_is_claimed_is_what_it_does(self, directory: Location) -> None:
        claimed = directory.storage.probe(directory.child("x").key)
        assert claimed.create_if_absent
        assert claimed.compare_and_swap
        assert not claimed.conditional_delete
        assert claimed.checksum_proved_by_store
