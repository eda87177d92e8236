"""The storage contract on the local disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptstore.storage.base import Location
from ckptstore.storage.local.locks import LOCK_NAME
from ckptstore.storage.local.storage import LocalStorage
from ckptstore.testing import CountingStorage, FaultyStorage
from ckptstore.testing.contract import (
    CopyContract,
    DiagnosisContract,
    MarkContract,
    RelaxedDurabilityContract,
    StorageContract,
    ViewContract,
    WriterContract,
)


class _OnDisk(
    StorageContract,
    ViewContract,
    CopyContract,
    RelaxedDurabilityContract,
    MarkContract,
    WriterContract,
    DiagnosisContract,
):
    @pytest.fixture
    def bare(self, tmp_path: Path) -> Iterator[Location]:
        yield Location(LocalStorage(), str(tmp_path / "run"), str(tmp_path / "run"))
        names = [path.name for path in tmp_path.rglob("*") if path.is_file()]
        assert not [name for name in names if ".tmp-" in name], "an unfinished file was left behind"
        assert {name for name in names if name.startswith(".")} <= {LOCK_NAME, ".m"}

    def put_raw(self, location: Location, data: bytes) -> None:
        path = Path(location.key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(data)

    def get_raw(self, location: Location) -> bytes | None:
        path = Path(location.key)
        return path.read_bytes() if path.is_file() else None


class TestLocal(_OnDisk):
    @pytest.fixture
    def directory(self, bare: Location) -> Location:
        return bare


class TestWrapped(_OnDisk):
    """A wrapper has the abilities of the storage inside, and loses nothing on the way through."""

    @pytest.fixture
    def directory(self, bare: Location) -> Location:
        return Location(FaultyStorage(CountingStorage(bare.storage)), bare.key, bare.url)
