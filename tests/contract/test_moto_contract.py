"""The storage contract on moto, which verifies neither checksums nor credentials."""

from __future__ import annotations

import pytest

from ckptstore.errors import ChecksumError
from ckptstore.storage.abilities import ProbesCapabilities
from ckptstore.storage.base import Location
from tests.contract.s3_contract import S3Contract
from tests.servers.s3 import S3Server


class TestMoto(S3Contract):
    # It looks at a condition and then acts, in a thread for each request: two at once prove nothing.
    test_no_increment_of_a_counter_is_lost = None  # type: ignore[assignment]
    test_a_delete_and_a_replacement_of_one_version_do_not_both_happen = None  # type: ignore[assignment]
    test_of_four_copies_at_once_one_wins = None  # type: ignore[assignment]
    test_of_eight_uploads_at_once_one_wins = None  # type: ignore[assignment]
    test_what_it_promises_holds_when_two_requests_meet = None  # type: ignore[assignment]

    @pytest.fixture
    def server(self, moto: S3Server) -> S3Server:
        return moto

    def test_what_is_claimed_is_what_it_does(self, directory: Location) -> None:
        assert isinstance(directory.storage, ProbesCapabilities)
        claimed = directory.storage.probe(directory.child("x").key)
        assert claimed.create_if_absent
        assert claimed.compare_and_swap
        assert claimed.conditional_delete

    def test_parts_make_one_object_in_whatever_order_they_come(self, shard: Location) -> None:
        """Of parts it tells the CRC-32 where a CRC-32C was asked for, so it is not believed."""
        with pytest.raises(ChecksumError, match="not the one that was sent"):
            super().test_parts_make_one_object_in_whatever_order_they_come(shard)
        assert self.get_raw(shard) is None
