"""`view`, `copy_from` and `without_sync`: shorter ways, which a storage may have or not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ckptstore.errors import NotFoundError
from ckptstore.storage.base import Location
from ckptstore.storage.values import Committed, Lost, PutOutcome
from ckptstore.testing.contract.base import ContractBase, at_once, committed

__all__ = ["ShortcutContract"]

_DATA = bytes(range(256)) * 1000


class ShortcutContract(ContractBase):
    """What goes the shorter way comes out the same."""

    @pytest.fixture
    def source(self, directory: Location) -> Location:
        location = directory.child("model-1.data-00000-of-00001")
        with location.storage.upload(location.key, len(_DATA)) as upload:
            upload.write(_DATA)
            committed(upload.commit())
        return location

    @pytest.fixture
    def target(self, directory: Location) -> Location:
        return directory.child("model-2.data-00000-of-00001")

    def _replace(self, location: Location, data: bytes) -> None:
        storage = location.storage
        storage.delete_many([location.key])
        committed(storage.put_new(location.key, data))

    def test_a_view_shows_the_bytes_and_nobody_can_write_them(self, source: Location) -> None:
        storage = source.storage
        view = storage.view(source.key, version=storage.head(source.key).version)
        if view is None:
            return
        assert view.nbytes == len(_DATA)
        assert view == _DATA
        assert view.readonly
        with pytest.raises(TypeError):
            view[0] = 1

    def test_a_view_of_an_empty_object_is_empty(self, directory: Location) -> None:
        location = directory.child("empty")
        self.put_raw(location, b"")
        view = location.storage.view(location.key, version=location.storage.head(location.key).version)
        assert view is None or view.nbytes == 0

    @pytest.mark.parametrize("what", ["replaced", "deleted"])
    def test_a_view_keeps_its_bytes_and_no_other_version_is_shown(self, source: Location, what: str) -> None:
        storage = source.storage
        version = storage.head(source.key).version
        view = storage.view(source.key, version=version)
        if view is None:
            return
        part = view[1000:2000]
        del view
        if what == "replaced":
            self._replace(source, b"other" * 1000)
        else:
            storage.delete_many([source.key])
        assert part == _DATA[1000:2000]
        with pytest.raises(NotFoundError):
            storage.view(source.key, version=version)

    def test_a_copy_has_the_bytes_and_needs_its_source_no_more(
        self, source: Location, target: Location
    ) -> None:
        storage = source.storage
        outcome = storage.copy_from(source.key, target.key, storage.head(source.key).version)
        if outcome is None:
            assert self.get_raw(target) is None
            return
        version = committed(outcome)
        assert self.get_raw(target) == _DATA
        info = storage.head(target.key)
        assert (info.size_bytes, info.version) == (len(_DATA), version)
        storage.delete_many([source.key])
        assert storage.get(target.key, version=version).data == _DATA
        # And the other way round.
        again = storage.copy_from(target.key, source.key, version)
        assert again is None or committed(again)
        self._replace(target, b"new")
        assert self.get_raw(source) == (None if again is None else _DATA)

    def test_a_copy_replaces_nothing(self, source: Location, target: Location) -> None:
        self.need(source.storage, "create_if_absent")
        storage = source.storage
        self.put_raw(target, b"theirs")
        outcome = storage.copy_from(source.key, target.key, storage.head(source.key).version)
        assert outcome in (None, Lost(storage.head(target.key).version))
        assert self.get_raw(target) == b"theirs"

    @pytest.mark.parametrize("what", ["replaced", "deleted"])
    def test_of_another_version_there_is_no_copy(self, source: Location, target: Location, what: str) -> None:
        storage = source.storage
        version = storage.head(source.key).version
        if what == "replaced":
            self._replace(source, b"other")
        else:
            storage.delete_many([source.key])
        try:
            outcome = storage.copy_from(source.key, target.key, version)
        except NotFoundError:
            outcome = None
        assert outcome is None
        assert self.get_raw(target) is None
        assert storage.abort_stale_uploads(f"{target.parent.key}/", 0.0) == 0

    def test_of_four_copies_at_once_one_wins(self, source: Location, target: Location) -> None:
        self.need(source.storage, "create_if_absent")
        storage = source.storage
        version = storage.head(source.key).version

        def copy() -> PutOutcome | None:
            return storage.copy_from(source.key, target.key, version)

        outcomes = at_once([copy] * 4)
        if None not in outcomes:
            assert sum(isinstance(outcome, Committed) for outcome in outcomes) == 1, outcomes
        assert self.get_raw(target) in (None, _DATA)

    def test_the_storage_without_sync_is_the_same_place(self, source: Location) -> None:
        storage = source.storage
        unsynced = storage.without_sync()
        assert unsynced.without_sync() is unsynced
        assert unsynced.url_of(source.key) == storage.url_of(source.key)
        claimed = unsynced.probe(source.key)
        durable = storage.probe(source.key).durable_when_acknowledged
        assert replace(claimed, durable_when_acknowledged=durable) == storage.probe(source.key)
        assert unsynced.get(source.key) == storage.get(source.key)
        assert list(unsynced.list(source.key)) == list(storage.list(source.key))

    def test_what_was_put_without_sync_can_be_made_durable(self, source: Location) -> None:
        storage, key = source.storage, source.parent.child("graph").key
        version = committed(storage.without_sync().put_new(key, b"graph"))
        for place in (storage, storage.without_sync()):
            place.make_durable(key, version)
            assert place.get(key, version=version).data == b"graph"

    def test_the_storage_without_sync_promises_the_same(self, directory: Location, target: Location) -> None:
        storage, key = directory.storage, directory.child("record").key
        unsynced = storage.without_sync()
        first = committed(unsynced.put_new(key, b"one"))
        assert storage.head(key).version == first
        if storage.probe(key).create_if_absent:
            assert unsynced.put_new(key, b"two") == Lost(first)
        second = committed(unsynced.put_if(key, b"two", first))
        if storage.probe(key).compare_and_swap:
            assert unsynced.put_if(key, b"three", first) == Lost(second)
        assert storage.get(key, version=second).data == b"two"
        with unsynced.upload(target.key, 5) as upload:
            upload.write(b"large")
            assert self.get_raw(target) is None
            committed(upload.commit())
        assert self.get_raw(target) == b"large"
        with unsynced.upload(target.key + "2") as upload:
            upload.write(b"unwanted")
        assert self.get_raw(replace(target, key=target.key + "2", url=target.url + "2")) is None
        assert unsynced.delete_if(key, second)
        unsynced.delete_many([target.key])
        assert list(storage.list(f"{directory.key}/")) == []
