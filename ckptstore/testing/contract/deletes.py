"""`delete_if`, `delete_many` and `DeletesOnce`: exactly these, in exactly this version."""

from __future__ import annotations

from typing import ClassVar

from ckptstore.storage.abilities import DeletesOnce
from ckptstore.storage.base import Location
from ckptstore.testing.contract.base import AbilityContract, ContractBase, committed

__all__ = ["DeleteContract", "DeleteOnceContract"]


class DeleteContract(ContractBase):
    """Deleting: nothing but what was named."""

    def test_delete_if_deletes_the_version_it_was_shown(self, directory: Location) -> None:
        location = directory.child("model.index")
        self.put_raw(location, b"old")
        assert location.storage.delete_if(location.key, location.storage.head(location.key).version)
        assert self.get_raw(location) is None

    def test_delete_if_leaves_alone_another_version(self, directory: Location) -> None:
        location = directory.child("model.index")
        self.need(location.storage, "conditional_delete")
        old = committed(location.storage.put_new(location.key, b"one"))
        self.put_raw(location, b"two")
        assert not location.storage.delete_if(location.key, old)
        assert self.get_raw(location) == b"two"

    def test_delete_if_of_nothing_is_done(self, directory: Location) -> None:
        location = directory.child("model.index")
        version = committed(location.storage.put_new(location.key, b"one"))
        assert location.storage.delete_if(location.key, version)
        assert location.storage.delete_if(location.key, version)
        nowhere = directory.child("no").child("where")
        assert nowhere.storage.delete_if(nowhere.key, version)

    def test_delete_many_deletes_what_is_there(self, directory: Location) -> None:
        names = ["model-1.data-00000-of-00002", "model-1.data-00001-of-00002", "model-1.meta"]
        for name in (*names, "model-10.meta"):
            self.put_raw(directory.child(name), b"x")
        absent = [directory.child("model-1.absent").key, directory.child("no").child("where").key]
        directory.storage.delete_many([absent[0], *(directory.child(name).key for name in names), absent[1]])
        assert all(self.get_raw(directory.child(name)) is None for name in names)
        assert self.get_raw(directory.child("model-10.meta")) == b"x"

    def test_delete_many_of_nothing_deletes_nothing(self, directory: Location) -> None:
        self.put_raw(directory.child("model.meta"), b"x")
        directory.storage.delete_many([])
        assert self.get_raw(directory.child("model.meta")) == b"x"

    def test_glob_characters_in_a_key_mean_themselves(self, directory: Location) -> None:
        # Deleting "m[1].index" through fsspec deletes "m1.index" and keeps "m[1].index".
        victims = ["m[1].index", "m?.index", "m*.index"]
        for name in (*victims, "m1.index"):
            self.put_raw(directory.child(name), b"x")
        directory.storage.delete_many([directory.child(name).key for name in victims])
        assert self.get_raw(directory.child("m1.index")) == b"x"
        assert all(self.get_raw(directory.child(name)) is None for name in victims)

    def test_a_deleted_key_can_be_made_anew(self, directory: Location) -> None:
        location = directory.child("model.index")
        committed(location.storage.put_new(location.key, b"one"))
        location.storage.delete_many([location.key])
        committed(location.storage.put_new(location.key, b"two"))
        assert self.get_raw(location) == b"two"


class DeleteOnceContract(AbilityContract):
    """Deletes that are sent once: the same, where all goes well."""

    ability: ClassVar[type] = DeletesOnce

    def test_delete_once_deletes_what_is_there_and_nothing_else(self, directory: Location) -> None:
        storage = directory.storage
        assert isinstance(storage, DeletesOnce)
        names = ["model-1.data-00000-of-00002", "model-1.data-00001-of-00002"]
        for name in (*names, "model-1.data-00000-of-00003"):
            self.put_raw(directory.child(name), b"x")
        storage.delete_once([directory.child(name).key for name in (*names, "absent")])
        storage.delete_once([])
        assert all(self.get_raw(directory.child(name)) is None for name in names)
        assert self.get_raw(directory.child("model-1.data-00000-of-00003")) == b"x"
        storage.delete_once([directory.child("model-1.data-00000-of-00003").key])
        assert self.get_raw(directory.child("model-1.data-00000-of-00003")) is None
