"""The storage contract on fsspec's memory file system; fsspec itself looks at the result."""

from __future__ import annotations

from collections.abc import Iterator

import fsspec
import pytest

from ckptstore.storage import memory
from ckptstore.storage.base import Location
from ckptstore.storage.memory import MemoryStorage
from ckptstore.testing import CountingStorage, FaultyStorage, StorageContract
from ckptstore.testing.contract import CopyContract, MarkContract, WriterContract


class _OnMemory(StorageContract, CopyContract, WriterContract, MarkContract):
    @pytest.fixture
    def bare(self) -> Iterator[Location]:
        fs = fsspec.filesystem("memory")
        fs.store.clear()
        fs.pseudo_dirs[:] = [""]
        yield Location(MemoryStorage(), "/bucket/run", "memory://bucket/run")
        assert not memory.unfinished_uploads(), "an unfinished upload was left behind"
        fs.store.clear()
        fs.pseudo_dirs[:] = [""]

    def put_raw(self, location: Location, data: bytes) -> None:
        fsspec.filesystem("memory").pipe_file(location.url, data)

    def get_raw(self, location: Location) -> bytes | None:
        try:
            return fsspec.filesystem("memory").cat_file(location.url)
        except FileNotFoundError:
            return None


class TestMemory(_OnMemory):
    @pytest.fixture
    def directory(self, bare: Location) -> Location:
        return bare


class TestWrapped(_OnMemory):
    """A wrapped storage keeps the contract of the one inside: nothing is lost on the way through."""

    @pytest.fixture
    def directory(self, bare: Location) -> Location:
        return Location(FaultyStorage(CountingStorage(bare.storage)), bare.key, bare.url)
