"""`SupportsCopies`: objects from objects, without moving the bytes."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import pytest

from ckptstore.errors import NotFoundError
from ckptstore.storage.abilities import SupportsCopies
from ckptstore.storage.base import Location
from ckptstore.storage.values import Committed, Lost, PutOutcome
from ckptstore.testing.contract.base import CONTENT, AbilityContract, at_once, committed, replace_object

__all__ = ["CopyContract"]


class CopyContract(AbilityContract):
    """Copies: all bytes of one version, never over an object that is there."""

    ability: ClassVar[type] = SupportsCopies

    def test_a_copy_has_the_bytes_and_needs_its_source_no_more(
        self, source: Location, target: Location
    ) -> None:
        storage = source.storage
        outcome = _copy(source, target, storage.head(source.key).version)
        if outcome is None:
            assert self.get_raw(target) is None
            pytest.skip("the place of the test cannot copy")
        version = committed(outcome)
        assert self.get_raw(target) == CONTENT
        info = storage.head(target.key)
        assert (info.size_bytes, info.version) == (len(CONTENT), version)
        storage.delete_many([source.key])
        assert storage.get(target.key, version=version).data == CONTENT
        # And the other way round.
        again = _copy(target, source, version)
        assert again is None or committed(again)
        replace_object(target, b"new")
        assert self.get_raw(source) == (None if again is None else CONTENT)

    def test_a_copy_replaces_nothing(self, source: Location, target: Location) -> None:
        self.need(source.storage, "create_if_absent")
        storage = source.storage
        self.put_raw(target, b"theirs")
        outcome = _copy(source, target, storage.head(source.key).version)
        assert outcome in (None, Lost(storage.head(target.key).version))
        assert self.get_raw(target) == b"theirs"

    @pytest.mark.parametrize("what", ["replaced", "deleted"])
    def test_another_version_is_not_copied(self, source: Location, target: Location, what: str) -> None:
        storage = source.storage
        version = storage.head(source.key).version
        if what == "replaced":
            replace_object(source, b"other")
        else:
            storage.delete_many([source.key])
        try:
            outcome = _copy(source, target, version)
        except NotFoundError:
            outcome = None
        assert outcome is None
        assert self.get_raw(target) is None
        assert storage.abort_stale_uploads(f"{target.parent.key}/", 0.0) == 0

    def test_of_four_copies_at_once_one_wins(self, source: Location, target: Location) -> None:
        self.need(source.storage, "create_if_absent")
        version = source.storage.head(source.key).version
        outcomes = at_once([partial(_copy, source, target, version)] * 4)
        if None not in outcomes:
            assert sum(isinstance(outcome, Committed) for outcome in outcomes) == 1, outcomes
        assert self.get_raw(target) in (None, CONTENT)


def _copy(source: Location, target: Location, version: str) -> PutOutcome | None:
    storage = source.storage
    assert isinstance(storage, SupportsCopies)
    return storage.copy_from(source.key, target.key, version)
