"""`KnowsWriters` and `MarksUploads`: who wrote an object, and whether the writer is alive."""

from __future__ import annotations

from typing import ClassVar

import pytest

from ckptstore.errors import NotFoundError
from ckptstore.storage.abilities import KnowsWriters, MarksUploads
from ckptstore.storage.base import Location
from ckptstore.testing.contract.base import AbilityContract, committed

__all__ = ["MarkContract", "WriterContract"]


class WriterContract(AbilityContract):
    """Writers: in use until the upload is closed, and never abandoned before."""

    ability: ClassVar[type] = KnowsWriters

    @pytest.fixture
    def shard(self, directory: Location) -> Location:
        return directory.child("model-1.data-00000-of-00001")

    def test_a_living_writer_is_never_dead(self, shard: Location) -> None:
        storage = shard.storage
        assert isinstance(storage, KnowsWriters)
        assert not storage.is_abandoned(shard.key)
        with storage.upload(shard.key) as upload:
            upload.write(b"x")
            assert not storage.is_abandoned(shard.key)
            committed(upload.commit())
            assert not storage.is_abandoned(shard.key)

    def test_an_object_is_in_use_until_its_upload_is_closed(self, shard: Location) -> None:
        storage = shard.storage
        assert isinstance(storage, KnowsWriters)
        assert not storage.is_in_use(shard.key)
        with storage.upload(shard.key) as upload:
            upload.write(b"x")
            committed(upload.commit())
            assert storage.is_in_use(shard.key)
        assert not storage.is_in_use(shard.key)

    def test_an_object_that_no_upload_made_has_no_known_writer(self, directory: Location) -> None:
        storage, key = directory.storage, directory.child("checkpoint").key
        assert isinstance(storage, KnowsWriters)
        committed(storage.put_new(key, b"x"))
        assert not storage.is_in_use(key)
        assert not storage.is_abandoned(key)

    def test_what_an_index_names_is_not_abandoned(self, shard: Location) -> None:
        storage = shard.storage
        assert isinstance(storage, KnowsWriters)
        with storage.upload(shard.key) as upload:
            upload.write(b"x")
            committed(upload.commit())
        is_known = storage.is_abandoned(shard.key)
        for _ in range(2):
            storage.mark_needed([shard.key, shard.key + "0"])
            assert not storage.is_abandoned(shard.key)
        for _ in range(2):
            storage.mark_unneeded([shard.key, shard.key + "0"])
            assert storage.is_abandoned(shard.key) == is_known

    def test_what_no_upload_made_is_never_abandoned(self, directory: Location) -> None:
        storage, key = directory.storage, directory.child("foreign").key
        assert isinstance(storage, KnowsWriters)
        committed(storage.put_new(key, b"x"))
        storage.mark_needed([key])
        storage.mark_unneeded([key])
        assert not storage.is_abandoned(key)


class MarkContract(AbilityContract):
    """Marks: what an upload made here is known from what another program put there."""

    ability: ClassVar[type] = MarksUploads

    def test_what_an_upload_made_is_marked(self, directory: Location) -> None:
        shard = directory.child("model-1.data-00000-of-00001")
        storage = shard.storage
        assert isinstance(storage, MarksUploads)
        with pytest.raises(NotFoundError):
            storage.is_upload(shard.key)
        with storage.upload(shard.key) as upload:
            upload.write(b"x")
            committed(upload.commit())
            assert storage.is_upload(shard.key)
        assert storage.is_upload(shard.key)

    def test_what_another_program_put_there_is_not(self, directory: Location) -> None:
        shard = directory.child("model-1.data-00000-of-00001")
        storage = shard.storage
        assert isinstance(storage, MarksUploads)
        self.put_raw(shard, b"x")
        assert not storage.is_upload(shard.key)
