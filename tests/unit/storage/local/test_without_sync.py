"""The local backend that does not wait for the disk: the same outcomes, and nothing synced."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ckptstore.errors import NotFoundError, TransientError
from ckptstore.storage.abilities import SupportsRelaxedDurability
from ckptstore.storage.base import Storage
from ckptstore.storage.local.storage import LocalStorage
from ckptstore.storage.memory import MemoryStorage
from ckptstore.storage.values import Committed, Lost
from ckptstore.storage.wrappers import StorageWrapper
from ckptstore.testing import CountingStorage, FaultyStorage, SimulatedCrash


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, calls.append)
    return calls


def use(storage: Storage, tmp_path: Path) -> None:
    key = str(tmp_path / "new" / "f")
    first = storage.put_new(key, b"one")
    assert isinstance(first, Committed)
    assert storage.put_new(key, b"other") == Lost(first.version)
    second = storage.put_if(key, b"two", first.version)
    assert isinstance(second, Committed)
    size_bytes = (2 << 20) + 1
    with storage.upload(key + ".data", size_bytes) as upload:
        upload.write(bytes(size_bytes))
        assert isinstance(upload.commit(), Committed)
    assert storage.head(key + ".data").size_bytes == size_bytes
    assert storage.delete_if(key, second.version)
    storage.delete_many([key + ".data"])
    with pytest.raises(NotFoundError):
        storage.get(key)


def test_nothing_waits_for_the_disk_and_all_else_is_the_same(tmp_path: Path, synced: list[int]) -> None:
    use(LocalStorage().without_sync(), tmp_path)
    assert synced == []
    use(LocalStorage(), tmp_path / "durable")
    assert len(synced) > 8


def test_it_says_that_nothing_is_durable() -> None:
    storage = LocalStorage()
    unsynced = storage.without_sync()
    assert not unsynced.capabilities.durable_when_acknowledged
    assert storage.capabilities.durable_when_acknowledged
    assert isinstance(unsynced, SupportsRelaxedDurability)
    assert unsynced.without_sync() is unsynced
    assert storage.without_sync() is unsynced


def test_only_a_storage_that_waits_for_the_disk_has_it() -> None:
    assert isinstance(StorageWrapper(LocalStorage()), SupportsRelaxedDurability)
    for storage in (MemoryStorage(), CountingStorage(MemoryStorage())):
        assert not isinstance(storage, SupportsRelaxedDurability)


def test_a_wrapper_is_not_lost(tmp_path: Path, synced: list[int]) -> None:
    storage = CountingStorage(LocalStorage())
    wrapped = StorageWrapper(storage)
    assert isinstance(wrapped, SupportsRelaxedDurability)
    unsynced = wrapped.without_sync()
    assert not unsynced.capabilities.durable_when_acknowledged
    use(unsynced, tmp_path)
    assert storage.counts["put_new"] == 2
    assert storage.counts["upload.send"] == 1
    assert synced == []
    assert isinstance(unsynced, SupportsRelaxedDurability)
    assert unsynced.without_sync() is unsynced
    assert wrapped.without_sync() is unsynced


def test_a_death_in_the_storage_without_sync_is_one_everywhere(tmp_path: Path) -> None:
    key = str(tmp_path / "f")
    storage = FaultyStorage(LocalStorage(), errors={1: TransientError("first")}, crash_before=3)
    assert isinstance(storage, SupportsRelaxedDurability)
    unsynced = storage.without_sync()
    with pytest.raises(TransientError):
        unsynced.put_new(key, b"x")
    upload = unsynced.upload(key)
    with pytest.raises(SimulatedCrash):
        unsynced.put_new(key + "2", b"x")
    with pytest.raises(SimulatedCrash):
        storage.get(key)
    del upload
    # The dead do not clean up: the wrapper outside keeps hold of the upload.
    assert [".tmp-" in path.name for path in tmp_path.iterdir()] == [True]
    storage.release_holds()
    assert LocalStorage().abort_stale_uploads(key, float("inf")) == 1
