"""The storage contract on file systems of fsspec's own, reached as any that has no backend of its own."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

import ckptstore as ck
from ckptstore.errors import CkptStoreWarning
from ckptstore.storage.base import Location
from ckptstore.storage.registry import locate
from ckptstore.testing import SimulatedCrash, StorageContract


class OnDisk(LocalFileSystem):
    """As sftp: directories, paths from the root, and a file that grows while it is written."""

    protocol = ("ckpt-disk",)

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return str(os.fspath(path)).removeprefix("ckpt-disk://").rstrip("/") or "/"


class InBuckets(MemoryFileSystem):
    """As an object store: no directories."""

    protocol = ("ckpt-buckets",)
    store: dict[str, Any] = {}  # noqa: RUF012 - as the class above it has it
    pseudo_dirs = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("ckpt-buckets://").strip("/")


class Asynchronous(AsyncFileSystemWrapper):
    """One whose calls run on a loop, several at once."""

    protocol = ("ckpt-async",)

    def __init__(self, **options: Any) -> None:
        super().__init__(fs=OnDisk(skip_instance_cache=True), **options)

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return str(path).removeprefix("ckpt-async://").rstrip("/") or "/"


@pytest.fixture(autouse=True, scope="module")
def registered() -> Iterator[None]:
    kinds = (OnDisk, InBuckets, Asynchronous)
    for kind in kinds:
        fsspec.register_implementation(kind.protocol[0], kind, clobber=True)
    yield
    for kind in kinds:
        _registry.pop(kind.protocol[0])


@pytest.fixture(autouse=True)
def expected_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*single-writer", CkptStoreWarning)
        yield


class _OnFiles(StorageContract):
    scheme = ""

    @pytest.fixture
    def directory(self, tmp_path: Path) -> Location:
        return locate(f"{self.scheme}://{tmp_path}/some run")

    def put_raw(self, location: Location, data: bytes) -> None:
        path = Path(location.url.partition("://")[2])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def get_raw(self, location: Location) -> bytes | None:
        path = Path(location.url.partition("://")[2])
        return path.read_bytes() if path.is_file() else None


class TestOnDisk(_OnFiles):
    scheme = "ckpt-disk"


class TestAsynchronous(_OnFiles):
    scheme = "ckpt-async"


_numbers = itertools.count()


class TestInBuckets(StorageContract):
    @pytest.fixture
    def directory(self) -> Iterator[Location]:
        InBuckets.store.clear()
        InBuckets.pseudo_dirs[:] = [""]
        yield locate(f"ckpt-buckets://bucket-{next(_numbers)}/run")
        InBuckets.store.clear()

    def put_raw(self, location: Location, data: bytes) -> None:
        InBuckets(skip_instance_cache=True).pipe_file(location.url, data)

    def get_raw(self, location: Location) -> bytes | None:
        try:
            return bytes(InBuckets(skip_instance_cache=True).cat_file(location.url))
        except FileNotFoundError:
            return None


@pytest.mark.parametrize("dies_in", ["model-2.data-00000-of-00001", "model-2.index", "checkpoint"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_save_that_dies_in_the_middle_of_a_file_leaves_the_checkpoint_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_in: str, share: float
) -> None:
    directory = f"ckpt-disk://{tmp_path}/run"
    saver = ck.Saver()
    saver.save({"w": np.full(1000, 1.0)}, f"{directory}/model", global_step=1)
    write = LocalFileSystem.pipe_file
    is_dead = False

    def dying(self: Any, path: str, value: bytes, **options: Any) -> None:
        nonlocal is_dead
        if is_dead:
            raise SimulatedCrash
        if os.path.basename(path) == dies_in:
            is_dead = True
            write(self, path, value[: int(len(value) * share)])
            raise SimulatedCrash
        write(self, path, value)

    def dead(*_: Any, **__: Any) -> None:
        if is_dead:
            raise SimulatedCrash

    with monkeypatch.context() as patch:
        patch.setattr(OnDisk, "pipe_file", dying, raising=False)
        patch.setattr(OnDisk, "rm_file", dead, raising=False)
        with pytest.raises(SimulatedCrash):
            saver.save({"w": np.full(1000, 2.0)}, f"{directory}/model", global_step=2)
    restored: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CkptStoreWarning)
        latest = ck.latest_checkpoint(directory)
        # The first write of the record announces the index, so nothing is complete before it; a record that
        # was cut short hides nothing.
        assert latest == f"{directory}/model-1"
        ck.Saver().restore(restored, latest)
        assert set(restored["w"]) == {1.0}
        # The next run repairs what is left.
        ck.Saver().save({"w": np.full(1000, 3.0)}, f"{directory}/model", global_step=3)
        assert ck.latest_checkpoint(directory) == f"{directory}/model-3"
