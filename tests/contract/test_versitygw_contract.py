"""The storage contract on versitygw, as it is and with one request at a time; it has other error codes."""

from __future__ import annotations

import pytest

from ckptstore.storage.abilities import ProbesCapabilities
from ckptstore.storage.base import Location
from tests.contract.s3_contract import S3Contract
from tests.servers.s3 import S3Server


class TestVersitygw(S3Contract):
    # It holds a lock while it replaces an object, and none while it deletes one: both at once prove nothing.
    test_a_delete_and_a_replacement_of_one_version_do_not_both_happen = None  # type: ignore[assignment]

    @pytest.fixture
    def server(self, versitygw: S3Server) -> S3Server:
        return versitygw

    def test_what_is_claimed_is_what_it_does(self, directory: Location) -> None:
        assert isinstance(directory.storage, ProbesCapabilities)
        claimed = directory.storage.probe(directory.child("x").key)
        assert claimed.create_if_absent
        assert claimed.compare_and_swap
        assert claimed.checksum_proved_by_store
        # It looks at the version and deletes in two steps.
        assert not claimed.conditional_delete


class TestConditionalDeletes(S3Contract):
    """What S3 itself promises: a condition on DELETE holds whatever comes at the same moment."""

    @pytest.fixture
    def server(self, serial_versitygw: S3Server) -> S3Server:
        return serial_versitygw

    def test_what_is_claimed_is_what_it_does(self, directory: Location) -> None:
        assert isinstance(directory.storage, ProbesCapabilities)
        claimed = directory.storage.probe(directory.child("x").key)
        assert claimed.compare_and_swap
        assert claimed.conditional_delete
