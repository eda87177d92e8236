"""Processes that write the same files through the local backend, and are killed at it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckptstore.storage.base import Storage
from ckptstore.storage.local.locks import LOCK_NAME
from ckptstore.storage.local.storage import LocalStorage
from ckptstore.storage.values import Committed
from tests.unit.storage.local.writer_process import kill, leftovers, process

NEVER = float("inf")


@pytest.fixture
def storage() -> LocalStorage:
    return LocalStorage()


COUNT = """
    from ckptstore.storage.values import Committed
    ready()
    done = 0
    while done < 50:
        got = storage.get(sys.argv[1])
        done += isinstance(storage.put_if(sys.argv[1], b"%04d" % (int(got.data) + 1), got.version), Committed)
"""


def test_no_increment_of_four_processes_is_lost(storage: LocalStorage, tmp_path: Path) -> None:
    key = str(tmp_path / "counter")
    storage.put_new(key, b"0000")
    with (
        process(COUNT, key) as first,
        process(COUNT, key) as second,
        process(COUNT, key) as third,
        process(COUNT, key) as fourth,
    ):
        children = [first, second, third, fourth]
        for child in children:
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
        assert [child.wait(timeout=120) for child in children] == [0, 0, 0, 0]
    assert Path(key).read_bytes() == b"0200"
    assert {path.name for path in tmp_path.iterdir()} == {"counter", LOCK_NAME}


def test_killed_at_any_moment_a_writer_leaves_old_or_new_and_free_locks(
    storage: LocalStorage, tmp_path: Path
) -> None:
    key = str(tmp_path / "checkpoint")
    storage.put_new(key, b"a" * 5000)
    script = """
        ready()
        for letter in b"bcdefgh" * 1000:
            storage.put_if(sys.argv[1], bytes([letter]) * 5000, storage.head(sys.argv[1]).version)
            storage.delete_many([sys.argv[1] + ".shard"])
            with storage.upload(sys.argv[1] + ".shard") as upload:
                upload.write(bytes([letter]) * 5000)
                upload.commit()
            print("saved", flush=True)
    """
    for saves in range(1, 9):
        with process(script, key) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write("\n")
            child.stdin.flush()
            for _ in range(saves):
                child.stdout.readline()
            kill(child)
        data = storage.get(key).data
        assert data == data[:1] * 5000
        shards = [storage.get(info.key).data for info in storage.list(key + ".")]
        assert all(shard == shard[:1] * 5000 for shard in shards)
        assert isinstance(_swap(storage, key, data), Committed)
        storage.abort_stale_uploads(f"{tmp_path}/", NEVER)
        assert leftovers(tmp_path) == []


def _swap(storage: Storage, key: str, data: bytes) -> object:
    return storage.put_if(key, data, storage.head(key).version)
