"""The memory backend beside fsspec: each sees what the other does, and no change goes unnoticed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from ckptstore.errors import NotFoundError, TransientError, UsageError
from ckptstore.storage import memory
from ckptstore.storage.base import Storage
from ckptstore.storage.memory import MemoryStorage
from ckptstore.storage.values import Committed, Lost

NEVER = float("inf")


@pytest.fixture
def fs() -> Iterator[MemoryFileSystem]:
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    assert not memory.unfinished_uploads()


@pytest.fixture
def storage(fs: MemoryFileSystem) -> MemoryStorage:
    return MemoryStorage()


def upload(storage: Storage, key: str) -> None:
    with storage.upload(key) as handle:
        handle.write(b"x")
        handle.commit()


def test_fsspec_sees_our_files(storage: MemoryStorage, fs: MemoryFileSystem) -> None:
    storage.put_new("/bucket/run/checkpoint", b"ours")
    upload(storage, "/bucket/run/shard")
    assert fs.cat("memory://bucket/run/checkpoint") == b"ours"
    assert fs.find("memory://bucket") == ["/bucket/run/checkpoint", "/bucket/run/shard"]
    assert fs.info("/bucket/run/checkpoint")["size"] == 4
    with fs.open("/bucket/run/checkpoint") as file:
        assert file.read() == b"ours"


def test_two_instances_see_the_same_files(storage: MemoryStorage) -> None:
    storage.put_new("/bucket/f", b"x")
    assert MemoryStorage().head("/bucket/f") == storage.head("/bucket/f")


def _rewrite(fs: MemoryFileSystem, mode: str, data: bytes) -> None:
    with fs.open("/bucket/f", mode) as file:
        file.write(data)


@pytest.mark.parametrize(
    "change",
    [
        lambda fs: fs.pipe_file("/bucket/f", b"AAAA"),
        lambda fs: fs.pipe_file("/bucket/f", b"aaaa"),
        lambda fs: _rewrite(fs, "wb", b"AAAA"),
        lambda fs: _rewrite(fs, "ab", b"A"),
        lambda fs: _rewrite(fs, "r+b", b"A"),
        lambda fs: fs.open("/bucket/f", "r+b").truncate(2),
        lambda fs: (fs.pipe_file("/bucket/g", b"AAAA"), fs.mv("/bucket/g", "/bucket/f")),
    ],
    ids=["pipe", "pipe equal", "write", "append", "in place", "truncate", "move"],
)
def test_a_change_through_fsspec_is_another_version(
    storage: MemoryStorage, fs: MemoryFileSystem, change: Callable[[MemoryFileSystem], None]
) -> None:
    outcome = storage.put_new("/bucket/f", b"aaaa")
    assert isinstance(outcome, Committed)
    before = storage.get("/bucket/f")
    change(fs)
    after = storage.head("/bucket/f").version
    assert after != before.version
    assert before.data == b"aaaa"
    assert storage.put_if("/bucket/f", b"ours", before.version) == Lost(after)
    assert not storage.delete_if("/bucket/f", before.version)


def test_reading_through_fsspec_is_no_change(storage: MemoryStorage, fs: MemoryFileSystem) -> None:
    storage.put_new("/bucket/f", b"aaaa")
    version = storage.head("/bucket/f").version
    # cat and info look into the buffer, after which Python keeps it in another place.
    assert fs.cat("/bucket/f") == b"aaaa"
    assert fs.info("/bucket/f")["size"] == 4
    assert fs.open("/bucket/f").read() == b"aaaa"
    assert storage.head("/bucket/f").version == version


def test_a_file_deleted_through_fsspec_is_gone(storage: MemoryStorage, fs: MemoryFileSystem) -> None:
    storage.put_new("/bucket/f", b"x")
    fs.rm_file("/bucket/f")
    with pytest.raises(NotFoundError) as caught:
        storage.get("/bucket/f")
    assert caught.value.url == "memory://bucket/f"
    assert list(storage.list("/bucket/")) == []


def test_a_file_where_a_directory_should_be_is_named(storage: MemoryStorage, fs: MemoryFileSystem) -> None:
    # fsspec would hide either the file or what is below it.
    fs.pipe_file("/bucket/run", b"x")
    for write in (
        lambda: storage.put_new("/bucket/run/f", b"x"),
        lambda: storage.upload("/bucket/run/f"),
        lambda: storage.list("/bucket/run/"),
    ):
        with pytest.raises(UsageError, match="file stands where a directory") as caught:
            write()
        assert caught.value.url == "memory://bucket/run"
    assert fs.find("/") == ["/bucket/run"]


def test_a_directory_where_a_file_should_be_is_named(storage: MemoryStorage, fs: MemoryFileSystem) -> None:
    fs.makedirs("/bucket/run")
    with pytest.raises(UsageError, match="directory stands where a file"):
        storage.put_new("/bucket/run", b"x")
    assert list(storage.list("/bucket/run")) == []


def test_a_key_without_its_slash_is_refused(storage: MemoryStorage) -> None:
    with pytest.raises(UsageError):
        storage.put_new("bucket/f", b"x")


def test_the_root_can_be_listed(storage: MemoryStorage) -> None:
    storage.put_new("/f", b"x")
    storage.put_new("/bucket/f", b"x")
    assert [info.key for info in storage.list("/")] == ["/f"]
    assert storage.url_of("") == "memory://"


def test_a_living_writer_is_alive_and_a_closed_one_is_not(
    storage: MemoryStorage, fs: MemoryFileSystem
) -> None:
    with storage.upload("/bucket/shard") as handle:
        assert storage.abort_stale_uploads("/bucket/", NEVER) == 0
        handle.commit()
        assert not storage.is_abandoned("/bucket/shard")
    assert storage.is_abandoned("/bucket/shard")
    fs.pipe_file("/bucket/shard", b"by somebody else")
    assert not storage.is_abandoned("/bucket/shard")


def test_an_upload_closed_without_an_end_is_left_like_a_dead_one(storage: MemoryStorage) -> None:
    handle = storage.upload("/bucket/shard")
    handle.write(b"x")
    handle.close()
    del handle
    assert storage.abort_stale_uploads("/bucket/other", NEVER) == 0
    assert storage.abort_stale_uploads("/bucket/sh", NEVER) == 1
    assert storage.abort_stale_uploads("/bucket/sh", NEVER) == 0


def test_an_upload_that_was_dropped_leaves_nothing(storage: MemoryStorage) -> None:
    storage.upload("/bucket/shard").write(b"x")
    assert storage.abort_stale_uploads("/bucket/", 0.0) == 0


def test_an_upload_that_was_swept_away_is_told(storage: MemoryStorage) -> None:
    with storage.upload("/bucket/shard") as handle:
        assert storage.abort_stale_uploads("/bucket/", 0.0) == 1
        with pytest.raises(TransientError, match="removed while it was written"):
            handle.commit()


def test_a_forked_child_finds_the_lock_free(storage: MemoryStorage) -> None:
    storage.put_new("/bucket/f", b"x")
    with memory._LOCKS[0]:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = 0 if storage.get("/bucket/f").data == b"x" else 2
            finally:
                os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_fsspec_is_loaded_by_the_first_use_of_memory_only() -> None:
    script = """
import sys
from ckptstore.storage.registry import locate
locate("/tmp/model")
assert "fsspec" not in sys.modules
locate("memory://bucket/model")
assert "fsspec" in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
