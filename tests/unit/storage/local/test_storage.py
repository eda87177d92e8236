"""The local backend beyond the contract: modes, symbolic links, other things than files, the lock file."""

from __future__ import annotations

import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from ckptstore.checksums import crc32c
from ckptstore.errors import NotFoundError, TruncatedFileError, UsageError
from ckptstore.storage.base import Storage
from ckptstore.storage.local import storage as storage_module
from ckptstore.storage.local.locks import LOCK_NAME
from ckptstore.storage.local.storage import LocalStorage
from ckptstore.storage.values import Committed, Lost
from ckptstore.types import ByteRange
from tests.open_files import open_files

ANY_VERSION = "1:2:3:4"


@pytest.fixture
def storage() -> LocalStorage:
    return LocalStorage()


@pytest.fixture
def umask() -> Iterator[int]:
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


def version_of(outcome: object) -> str:
    assert isinstance(outcome, Committed)
    return outcome.version


def upload(storage: Storage, key: str, data: bytes) -> None:
    with storage.upload(key) as handle:
        handle.write(data)
        version_of(handle.commit())


def writes(storage: Storage, key: str) -> list[Callable[[], object]]:
    """Every way to change `key`, as calls."""
    return [
        lambda: storage.put_new(key, b"x"),
        lambda: storage.put_if(key, b"x", ANY_VERSION),
        lambda: upload(storage, key, b"x"),
        lambda: storage.delete_if(key, ANY_VERSION),
    ]


def test_the_version_names_device_inode_time_and_size(storage: LocalStorage, tmp_path: Path) -> None:
    key = str(tmp_path / "f")
    version = version_of(storage.put_new(key, b"12345"))
    status = os.stat(key)
    assert version == f"{status.st_ino}:{status.st_mtime_ns}:5"


def test_the_umask_decides_who_may_read(storage: LocalStorage, tmp_path: Path, umask: int) -> None:
    # mkstemp would make files that only their owner can read.
    storage.put_new(str(tmp_path / "new" / "put"), b"x")
    upload(storage, str(tmp_path / "new" / "uploaded"), b"x")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes == {"new": 0o750, "put": 0o640, "uploaded": 0o640}


def test_a_replaced_file_keeps_its_mode(storage: LocalStorage, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    version = version_of(storage.put_new(str(path), b"old"))
    path.chmod(0o604)
    version_of(storage.put_if(str(path), b"new", version))
    assert stat.S_IMODE(path.stat().st_mode) == 0o604


def test_a_replaced_file_is_never_changed_in_place(storage: LocalStorage, tmp_path: Path) -> None:
    # A process that has mapped it keeps the old bytes.
    path = tmp_path / "checkpoint"
    version = version_of(storage.put_new(str(path), b"old"))
    with path.open("rb") as reader:
        version_of(storage.put_if(str(path), b"new", version))
        assert reader.read() == b"old"


def test_symbolic_links_are_read_through_and_deleted_themselves(
    storage: LocalStorage, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"content")
    for name in ("a", "b"):
        (tmp_path / name).symlink_to(target)
    first, second = str(tmp_path / "a"), str(tmp_path / "b")
    assert storage.get(first).data == b"content"
    assert [info.size_bytes for info in storage.list(first)] == [7]
    assert storage.delete_if(first, storage.head(first).version)
    storage.delete_many([second])
    assert [path.name for path in tmp_path.iterdir() if path.name != LOCK_NAME] == ["target"]
    assert target.read_bytes() == b"content"


def test_replacing_through_a_symbolic_link_leaves_its_target(storage: LocalStorage, tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"theirs")
    link = tmp_path / "checkpoint"
    link.symlink_to("target")
    version_of(storage.put_if(str(link), b"ours", storage.head(str(link)).version))
    assert not link.is_symlink()
    assert link.read_bytes() == b"ours"
    assert (tmp_path / "target").read_bytes() == b"theirs"


def test_a_link_to_nowhere_is_not_there_for_readers_and_in_the_way_of_writers(
    storage: LocalStorage, tmp_path: Path
) -> None:
    link = tmp_path / "model.index"
    link.symlink_to("nowhere")
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(NotFoundError):
        storage.get(str(link))
    assert list(storage.list(f"{tmp_path}/")) == []
    with pytest.raises(UsageError, match="broken symbolic link"):
        storage.put_new(str(link), b"x")
    assert link.is_symlink()
    assert not (tmp_path / "nowhere").exists()


def test_a_directory_behind_a_link_to_nowhere_is_not_made(storage: LocalStorage, tmp_path: Path) -> None:
    # The disk it should lie on is not mounted; a second one beside it would be worse than an error.
    (tmp_path / "run").symlink_to(tmp_path / "unmounted" / "run")
    for key in (tmp_path / "run" / "model.index", tmp_path / "run" / "deeper" / "model.index"):
        with pytest.raises(NotFoundError):
            storage.put_new(str(key), b"x")
    assert not (tmp_path / "unmounted").exists()


def test_a_directory_where_a_file_should_be_is_named(storage: LocalStorage, tmp_path: Path) -> None:
    (tmp_path / "model.index").mkdir()
    key = str(tmp_path / "model.index")
    calls = [lambda: storage.get(key), lambda: storage.head(key), lambda: storage.delete_many([key])]
    for call in [*calls, *writes(storage, key)]:
        with pytest.raises(UsageError, match="directory") as caught:
            call()
        assert caught.value.url == key
    assert list(tmp_path.rglob("*")) == [tmp_path / "model.index"]


def test_a_file_where_a_directory_should_be_is_named(storage: LocalStorage, tmp_path: Path) -> None:
    (tmp_path / "run").write_bytes(b"a file")
    for key in (str(tmp_path / "run" / "model.index"), str(tmp_path / "run" / "deeper" / "model.index")):
        calls = [lambda: storage.get(key), lambda: storage.head(key), lambda: list(storage.list(key))]  # noqa: B023
        for call in [*calls, *writes(storage, key), lambda: storage.abort_stale_uploads(key, 0.0)]:  # noqa: B023
            with pytest.raises(UsageError) as caught:
                call()
            assert "file stands where a directory" in str(caught.value)
    assert (tmp_path / "run").read_bytes() == b"a file"


def test_a_named_pipe_is_refused_and_not_waited_for(storage: LocalStorage, tmp_path: Path) -> None:
    key = str(tmp_path / "model.index")
    os.mkfifo(key)
    for call in [lambda: storage.get(key), lambda: storage.head(key), *writes(storage, key)]:
        with pytest.raises(UsageError, match="not a regular file"):
            call()
    assert list(storage.list(f"{tmp_path}/")) == []
    assert not storage.is_abandoned(key)


@pytest.mark.parametrize(
    "name", ["a\0b", "a\0/b", "\ud800", "relative/name", "", "/", "/tmp/", "/tmp/.", "/tmp/.."]
)
def test_names_that_no_file_can_have_are_refused(storage: LocalStorage, name: str, tmp_path: Path) -> None:
    key = f"{tmp_path}/{name}" if "\0" in name or name == "\ud800" else name
    for call in [lambda: storage.get(key), lambda: storage.head(key), *writes(storage, key)]:
        with pytest.raises(UsageError) as caught:
            call()
        # The message can be shown on any terminal.
        str(caught.value).encode("utf-8")
    with pytest.raises(UsageError):
        storage.delete_many([key])


def test_a_name_longer_than_the_disk_takes_is_refused(storage: LocalStorage, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="shorter name"):
        storage.put_new(str(tmp_path / ("n" * 256)), b"x")
    key = str(tmp_path / ("n" * 200 + ".data-00000-of-00001"))
    upload(storage, key, b"fits")
    assert storage.get(key).data == b"fits"


def test_names_that_are_not_unicode_are_kept(storage: LocalStorage, tmp_path: Path) -> None:
    key = os.fsdecode(os.fsencode(tmp_path) + b"/mod\xe8le")
    version_of(storage.put_new(key, b"x"))
    assert [info.key for info in storage.list(f"{tmp_path}/mod")] == [key]
    assert os.listdir(os.fsencode(tmp_path)) == [b"mod\xe8le"]


def test_the_root_directory_can_be_listed(storage: LocalStorage) -> None:
    expected = sorted(f"/{path.name}" for path in Path("/").iterdir() if path.is_file())
    assert [info.key for info in storage.list("/")] == expected
    assert storage.url_of("") == "/"


def test_only_changes_of_a_known_version_make_the_lock_file(storage: LocalStorage, tmp_path: Path) -> None:
    key = str(tmp_path / "checkpoint")
    version = version_of(storage.put_new(key, b"one"))
    upload(storage, str(tmp_path / "shard"), b"x")
    assert storage.put_if(key, b"two", ANY_VERSION) == Lost(version)
    assert not storage.delete_if(key, ANY_VERSION)
    assert storage.delete_if(str(tmp_path / "absent"), ANY_VERSION)
    storage.delete_many([str(tmp_path / "shard")])
    storage.abort_stale_uploads(f"{tmp_path}/", 0.0)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    version = version_of(storage.put_if(key, b"two", version))
    assert storage.delete_if(key, version)
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_NAME]


def test_a_lock_that_leads_elsewhere_is_not_followed(storage: LocalStorage, tmp_path: Path) -> None:
    key = str(tmp_path / "run" / "checkpoint")
    version = version_of(storage.put_new(key, b"one"))
    (tmp_path / "run" / LOCK_NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError):
        storage.put_if(key, b"two", version)
    assert not (tmp_path / "elsewhere").exists()


def test_delete_many_tries_all_before_it_complains(storage: LocalStorage, tmp_path: Path) -> None:
    for name in ("dir1", "dir2"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(UsageError) as caught:
        storage.delete_many([str(tmp_path / name) for name in ("dir1", "dir2", "file")])
    assert not (tmp_path / "file").exists()
    assert caught.value.url == str(tmp_path / "dir1")
    assert any("dir2" in note for note in caught.value.__notes__)


def test_neighbouring_ranges_share_a_call(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytes(range(250)) * 40
    (tmp_path / "shard").write_bytes(data)
    calls = []
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *args: calls.append(args) or preadv(*args))
    ranges = [ByteRange(start, start + 2) for start in range(0, len(data), 2)]
    buffers = [memoryview(bytearray(2)) for _ in ranges]
    storage.read_into(str(tmp_path / "shard"), ranges[::-1], buffers[::-1])
    assert b"".join(buffers) == data
    assert len(calls) == 5  # 5000 ranges, 1024 in a call


def test_short_reads_go_on_where_they_stopped(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As the kernel does for more than 2 GiB, and network file systems when they like.
    data = os.urandom(5000)
    (tmp_path / "shard").write_bytes(data)
    key = str(tmp_path / "shard")

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        some = os.pread(fd, 7, offset)
        left = some
        for buffer in buffers:
            part, left = left[: buffer.nbytes], left[buffer.nbytes :]
            buffer.cast("B")[: len(part)] = part
        return min(len(some), sum(buffer.nbytes for buffer in buffers))

    monkeypatch.setattr(os, "preadv", preadv)
    cuts = [0, 1, 1, 4, 20, 21, 2500, 5000]
    ranges = [ByteRange(start, stop) for start, stop in pairwise(cuts)]
    buffers = [memoryview(bytearray(extent.size_bytes)) for extent in ranges]
    storage.read_into(key, ranges, buffers)
    assert b"".join(buffers) == data

    monkeypatch.setattr(storage_module, "_MAX_READ_BYTES", 3)
    assert storage.get(key).data == data
    assert storage.get(key, ByteRange(1, 12)).data == data[1:12]
    assert storage.get(key, ByteRange(1, 3)).data == data[1:3]


def test_a_file_that_shrinks_while_it_is_read_is_truncated(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "shard"
    fstat = os.fstat

    def fstat_then_truncate(fd: int) -> os.stat_result:
        status = fstat(fd)
        os.truncate(path, 4)
        return status

    for read in (
        lambda: storage.get(str(path)),
        lambda: storage.get(str(path), ByteRange(2, 8)),
        lambda: storage.read_into(str(path), [ByteRange(0, 9)], [memoryview(bytearray(9))]),
    ):
        path.write_bytes(b"0123456789")
        with monkeypatch.context() as patch:
            patch.setattr(os, "fstat", fstat_then_truncate)
            with pytest.raises(TruncatedFileError) as caught:
                read()
        assert caught.value.actual == "4 bytes"


def test_the_unfinished_file_lies_beside_the_final_one(storage: LocalStorage, tmp_path: Path) -> None:
    # Another directory could be another disk, from which nothing can be linked.
    with storage.upload(str(tmp_path / "model.data-00000-of-00001")) as handle:
        handle.send(0, (memoryview(b"x"),), crc32c(b"x"), is_last=True)
        (name,) = os.listdir(tmp_path)
        assert re.fullmatch(r"model\.data-00000-of-00001\.tmp-[0-9a-f]{8}-[0-9a-f]{16}", name)
        # Not by Python's buffers, but on its way to the disk.
        assert (tmp_path / name).read_bytes() == b"x"


def test_a_directory_moved_during_an_upload_takes_it_along(storage: LocalStorage, tmp_path: Path) -> None:
    with storage.upload(str(tmp_path / "run" / "shard")) as handle:
        handle.write(b"x")
        (tmp_path / "run").rename(tmp_path / "moved")
        version_of(handle.commit())
    assert [path.name for path in (tmp_path / "moved").iterdir()] == ["shard"]
    assert not (tmp_path / "run").exists()


def test_no_descriptor_is_left_open(storage: LocalStorage, tmp_path: Path) -> None:
    key = str(tmp_path / "a" / "checkpoint")
    version = version_of(storage.put_new(key, b"one"))
    storage.put_new(key, b"one")
    version = version_of(storage.put_if(key, b"two", version))
    storage.put_if(key, b"two", ANY_VERSION)
    upload(storage, key + "2", b"x")
    storage.upload(key + "3").abort()
    storage.upload(key + "4")
    storage.get(key)
    storage.read_into(key, [ByteRange(0, 1)], [memoryview(bytearray(1))])
    list(storage.list(key))
    storage.is_abandoned(key + "2")
    storage.abort_stale_uploads(key, 0.0)
    storage.delete_if(key, version)
    storage.delete_many([key + "2"])
    for call in [
        lambda: storage.get(key),
        lambda: storage.get(str(tmp_path)),
        lambda: storage.put_new("/proc/x/y", b""),
    ]:
        with pytest.raises((NotFoundError, UsageError)):
            call()
    assert open_files(tmp_path) == []


@pytest.mark.parametrize("hint", [0, 10, 1 << 20, 3 << 20, (3 << 20) + 7, 8 << 20])
def test_the_size_of_an_upload_is_a_hint_only(tmp_path: Path, hint: int) -> None:
    data = os.urandom((3 << 20) + 7)
    storage = LocalStorage()
    with storage.upload(f"{tmp_path}/file", hint) as upload:
        upload.write(data[: 1 << 20])
        upload.write(data[1 << 20 :])
        assert isinstance(upload.commit(), Committed)
    assert (tmp_path / "file").read_bytes() == data
    assert (tmp_path / "file").stat().st_blocks * 512 < len(data) + (1 << 20)


def test_many_threads_read_into_their_own_memory(storage: LocalStorage, tmp_path: Path) -> None:
    key = str(tmp_path / "shard")
    data = os.urandom(6 << 20)
    storage.put_new(key, data)
    version = storage.head(key).version
    found = bytearray(len(data))
    step = 1_500_000
    starts = list(range(0, len(data), step))

    def read() -> None:
        while True:
            try:
                start = starts.pop()
            except IndexError:
                return
            stop = min(start + step, len(data))
            middle = min(start + 200_001, stop)
            view = memoryview(found)
            storage.read_into(
                key,
                [ByteRange(middle, stop), ByteRange(start, middle)],
                [view[middle:stop], view[start:middle]],
                version=version,
            )

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert found == data


def test_only_large_reads_ask_for_more_and_may_be_refused_it(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = str(tmp_path / "shard")
    data = os.urandom(2 << 20)
    storage.put_new(key, data)
    asked: list[int] = []

    def refuse(fd: int, offset: int, size_bytes: int, advice: int) -> None:
        asked.append(advice)
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "posix_fadvise", refuse)
    found = bytearray(len(data))
    storage.read_into(key, [ByteRange(0, 1000)], [memoryview(found)[:1000]])
    assert asked == []
    storage.read_into(key, [ByteRange(0, len(data))], [memoryview(found)])
    assert asked == [os.POSIX_FADV_SEQUENTIAL]
    assert found == data


def test_several_reads_at_a_time_are_worth_it(storage: LocalStorage) -> None:
    assert 1 <= storage.parallel_reads <= 4
