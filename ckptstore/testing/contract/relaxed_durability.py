"""`SupportsRelaxedDurability`: writes that do not wait for the disk."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from ckptstore.storage.abilities import SupportsRelaxedDurability
from ckptstore.storage.base import Location, Storage
from ckptstore.storage.values import Lost
from ckptstore.testing.contract.base import AbilityContract, committed

__all__ = ["RelaxedDurabilityContract"]


class RelaxedDurabilityContract(AbilityContract):
    """Without sync: the same outcomes in the same place."""

    ability: ClassVar[type] = SupportsRelaxedDurability

    def test_the_storage_without_sync_is_the_same_place(self, source: Location) -> None:
        storage = source.storage
        unsynced = _without_sync(source)
        assert isinstance(unsynced, SupportsRelaxedDurability)
        assert unsynced.without_sync() is unsynced
        assert _without_sync(source) is unsynced, "each call must return the same storage"
        assert unsynced.url_of(source.key) == storage.url_of(source.key)
        claimed = replace(unsynced.capabilities, durable_when_acknowledged=True)
        assert claimed == replace(storage.capabilities, durable_when_acknowledged=True)
        assert unsynced.get(source.key) == storage.get(source.key)
        assert list(unsynced.list(source.key)) == list(storage.list(source.key))

    def test_what_was_put_without_sync_can_be_made_durable(self, source: Location) -> None:
        storage, key = source.storage, source.parent.child("graph").key
        version = committed(_without_sync(source).put_new(key, b"graph"))
        for place in (storage, _without_sync(source)):
            assert isinstance(place, SupportsRelaxedDurability)
            place.make_durable(key, version)
            assert place.get(key, version=version).data == b"graph"

    def test_the_storage_without_sync_promises_the_same(self, directory: Location, target: Location) -> None:
        storage, key = directory.storage, directory.child("record").key
        unsynced = _without_sync(directory)
        first = committed(unsynced.put_new(key, b"one"))
        assert storage.head(key).version == first
        if storage.capabilities.create_if_absent:
            assert unsynced.put_new(key, b"two") == Lost(first)
        second = committed(unsynced.put_if(key, b"two", first))
        if storage.capabilities.compare_and_swap:
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


def _without_sync(location: Location) -> Storage:
    storage = location.storage
    assert isinstance(storage, SupportsRelaxedDurability)
    return storage.without_sync()
