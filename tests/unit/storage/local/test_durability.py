"""What the local backend does to the disk, in which order, and what is left when a system call fails."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from ckptstore.errors import (
    AccessError,
    CkptStoreError,
    NotFoundError,
    StorageFullError,
    TransientError,
)
from ckptstore.storage.base import Storage
from ckptstore.storage.local import locks
from ckptstore.storage.local.locks import LOCK_NAME
from ckptstore.storage.local.storage import LocalStorage
from ckptstore.storage.values import Ambiguous, Committed, Lost, PutOutcome
from tests.small_disk import small_disk
from tests.unit.storage.local.syscalls import (
    each_call_failing,
    record_calls,
    refuse,
    refuse_directories,
    replace_calls,
)

SYSTEM_CALLS = [
    "open",
    "mkdir",
    "pwritev",
    "fsync",
    "link",
    "rename",
    "unlink",
    "stat",
    "lstat",
    "fstat",
    "utime",
    "fchmod",
    "setxattr",
    "close",
    "flock",
]


@pytest.fixture
def storage() -> LocalStorage:
    return LocalStorage()


def put_new(storage: Storage, key: str) -> PutOutcome:
    return storage.put_new(key, b"new")


def put_if(storage: Storage, key: str) -> PutOutcome:
    return storage.put_if(key, b"new", storage.head(key).version)


def upload(storage: Storage, key: str) -> PutOutcome:
    with storage.upload(key) as handle:
        handle.write(b"ne")
        handle.write(b"w")
        return handle.commit()


def recorded() -> AbstractContextManager[list[str]]:
    """Record the system calls that matter for durability."""
    return record_calls("fsync", "link", "rename", "unlink", "mkdir", "pwritev")


@pytest.mark.parametrize("write", [put_new, upload])
def test_a_new_file_is_durable_before_it_has_its_name_and_then_so_is_the_name(
    storage: LocalStorage, tmp_path: Path, write: Callable[[Storage, str], PutOutcome]
) -> None:
    with recorded() as events:
        write(storage, str(tmp_path / "f"))
    assert [event for event in events if event != "pwritev"] == [
        "fsync file",
        "link",
        "unlink temporary",
        "fsync directory",
    ]


def test_a_replacement_is_durable_before_it_has_its_name_and_then_so_is_the_name(
    storage: LocalStorage, tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(b"old")
    with recorded() as events:
        put_if(storage, str(tmp_path / "f"))
    assert events == ["pwritev", "fsync file", "rename", "fsync directory"]


def test_what_was_put_without_waiting_is_made_durable_later(storage: LocalStorage, tmp_path: Path) -> None:
    key = str(tmp_path / "f")
    with recorded() as events:
        storage.without_sync().put_new(key, b"x")
        version = storage.head(key).version
        storage.without_sync().make_durable(key, version)
    assert not any("fsync" in event for event in events)
    with recorded() as events:
        storage.make_durable(key, version)
    assert events == ["fsync file", "fsync directory"]
    put_if(storage, key)
    with pytest.raises(NotFoundError):
        storage.make_durable(key, version)


def test_a_delete_is_durable_before_the_next_one_begins(storage: LocalStorage, tmp_path: Path) -> None:
    keys = [str(tmp_path / name) for name in ("model.index", "model.data", "model.meta")]
    for key in keys:
        storage.put_new(key, b"x")
    version = storage.head(keys[0]).version
    with recorded() as events:
        storage.delete_if(keys[0], version)
        storage.delete_many(keys[1:])
    assert events == ["unlink", "fsync directory", "unlink", "unlink", "fsync directory"]


def test_new_directories_are_durable_in_their_parents(storage: LocalStorage, tmp_path: Path) -> None:
    with recorded() as events:
        storage.put_new(str(tmp_path / "a" / "b" / "c" / "f"), b"x")
    made = events[: events.index("pwritev")]
    assert [event for event in made if event.startswith("mkdir") or "directory" in event] == [
        "mkdir c",
        "mkdir b",
        "mkdir a",
        "fsync directory",
        "mkdir b",
        "fsync directory",
        "mkdir c",
        "fsync directory",
    ]


def test_two_makers_of_one_directory_do_not_disturb_each_other(storage: LocalStorage, tmp_path: Path) -> None:
    barrier = threading.Barrier(8)
    outcomes: list[PutOutcome] = []

    def make(number: int) -> None:
        barrier.wait(timeout=60)
        outcomes.append(storage.put_new(str(tmp_path / "a" / "b" / "c" / f"f{number}"), b"x"))

    threads = [threading.Thread(target=make, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(outcome, Committed) for outcome in outcomes) == 8


class _Interrupted(KeyboardInterrupt):
    pass


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("write", [put_new, put_if, upload])
def test_an_interrupt_in_any_system_call_leaves_old_or_new_and_nothing_else(
    storage: LocalStorage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Storage, str], PutOutcome],
    after: bool,
) -> None:
    monkeypatch.setattr(locks, "_GIVE_UP_S", 0.5)
    for fault in each_call_failing(SYSTEM_CALLS, _Interrupted(), after=after):
        directory = tmp_path / str(fault.number)
        directory.mkdir()
        path = directory / "f"
        if write is put_if:
            path.write_bytes(b"old")
        try:
            with fault:
                outcome = write(storage, str(path))
        except _Interrupted:
            left = {entry.name for entry in directory.iterdir()} - {LOCK_NAME}
            content = path.read_bytes() if path.exists() else None
            assert left <= {"f"}, fault
            assert content in ((b"old", b"new") if write is put_if else (None, b"new")), fault
            # No lock stayed behind either: the next save goes through at once.
            assert isinstance(storage.put_new(f"{path}2", b"next"), Committed), fault
            assert isinstance(put_if(storage, f"{path}2"), Committed), fault
        else:
            assert isinstance(outcome, Committed)
            assert not fault.was_reached
    assert fault.number > 8


@pytest.mark.parametrize("after", [False, True], ids=["not done", "done"])
@pytest.mark.parametrize("write", [put_new, put_if, upload])
def test_an_error_in_any_system_call_is_typed_and_leaves_old_or_new(
    storage: LocalStorage, tmp_path: Path, write: Callable[[Storage, str], PutOutcome], after: bool
) -> None:
    for fault in each_call_failing(SYSTEM_CALLS, OSError(errno.EIO, "Input/output error"), after=after):
        directory = tmp_path / str(fault.number)
        directory.mkdir()
        path = directory / "f"
        if write is put_if:
            path.write_bytes(b"old")
        failure: CkptStoreError | None = None
        outcome: PutOutcome | None = None
        try:
            with fault:
                outcome = write(storage, str(path))
        except CkptStoreError as error:
            failure = error
        content = path.read_bytes() if path.exists() else None
        if isinstance(outcome, Committed | Ambiguous):
            assert content == b"new", fault
        else:
            assert isinstance(failure, TransientError), fault
            assert failure.url is not None
            # No error is raised when the new file is visible: the caller would delete what it needs.
            assert content in (None, b"old"), fault
        if not fault.was_reached:
            assert isinstance(outcome, Committed)
        elif fault.made[fault.number - 1] != "unlink":
            names = {entry.name for entry in directory.iterdir()} - {LOCK_NAME}
            assert names <= {"f"}, fault


def test_a_directory_that_cannot_be_synced_makes_the_outcome_ambiguous(
    storage: LocalStorage, tmp_path: Path
) -> None:
    # The file is visible: an error would make the caller delete what it names.
    with replace_calls(fsync=refuse_directories(errno.EIO)):
        for write in (put_new, put_if):
            outcome = write(storage, str(tmp_path / "f"))
            assert isinstance(outcome, Ambiguous)
            assert "synced" in outcome.reason
            assert (tmp_path / "f").read_bytes() == b"new"
        assert isinstance(upload(storage, str(tmp_path / "g")), Ambiguous)
    assert {path.name for path in tmp_path.iterdir()} == {"f", "g", LOCK_NAME}


def test_file_systems_that_have_no_directory_sync_are_taken_as_they_are(
    storage: LocalStorage, tmp_path: Path
) -> None:
    with replace_calls(fsync=refuse_directories(errno.EINVAL)):
        assert isinstance(put_new(storage, str(tmp_path / "f")), Committed)


@pytest.mark.parametrize("write", [put_new, upload])
def test_without_hard_links_a_new_file_is_made_under_the_lock(
    storage: LocalStorage, tmp_path: Path, write: Callable[[Storage, str], PutOutcome]
) -> None:
    key = str(tmp_path / "f")
    with replace_calls(link=refuse(errno.EPERM)):
        first = write(storage, key)
        assert isinstance(first, Committed)
        assert storage.head(key).version == first.version
        assert write(storage, key) == Lost(first.version)
    assert {path.name for path in tmp_path.iterdir()} == {"f", LOCK_NAME}


def test_without_hard_links_eight_writers_still_have_one_winner(
    storage: LocalStorage, tmp_path: Path
) -> None:
    key = str(tmp_path / "f")
    outcomes: list[PutOutcome] = []
    barrier = threading.Barrier(8)

    def create(number: int) -> None:
        barrier.wait(timeout=60)
        outcomes.append(storage.put_new(key, b"%d" % number))

    with replace_calls(link=refuse(errno.EPERM)):
        threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    (winner,) = [outcome for outcome in outcomes if isinstance(outcome, Committed)]
    assert outcomes.count(Lost(winner.version)) == 7


def test_a_link_whose_answer_was_lost_is_recognised_as_our_own(storage: LocalStorage, tmp_path: Path) -> None:
    link = os.link

    def link_twice(*args: object, **kwargs: object) -> None:
        link(*args, **kwargs)  # type: ignore[arg-type]
        link(*args, **kwargs)  # type: ignore[arg-type]

    with replace_calls(link=link_twice):
        outcome = put_new(storage, str(tmp_path / "f"))
    assert outcome == Committed(storage.head(str(tmp_path / "f")).version)
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_short_writes_go_on_where_they_stopped(storage: LocalStorage, tmp_path: Path) -> None:
    pwrite = os.pwrite
    data = os.urandom(1000)
    with replace_calls(pwritev=lambda fd, pieces, offset: pwrite(fd, b"".join(pieces)[:7], offset)):
        storage.put_new(str(tmp_path / "f"), data)
    assert (tmp_path / "f").read_bytes() == data


def test_versions_grow_even_when_the_clock_does_not(storage: LocalStorage, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    path.write_bytes(b"old")
    future_ns = 4_000_000_000 * 10**9
    os.utime(path, ns=(future_ns, future_ns))
    versions = [storage.head(str(path)).version]
    for number in range(3):
        outcome = storage.put_if(str(path), b"%03d" % number, versions[-1])
        assert isinstance(outcome, Committed)
        versions.append(outcome.version)
        assert path.stat().st_mtime_ns == future_ns + number + 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["pwritev", "fsync"])
@pytest.mark.parametrize("write", [put_new, put_if, upload])
def test_a_full_disk_is_told_and_leaves_the_old_file(
    storage: LocalStorage,
    tmp_path: Path,
    write: Callable[[Storage, str], PutOutcome],
    call: str,
    number: int,
) -> None:
    path = tmp_path / "f"
    if write is put_if:
        path.write_bytes(b"old")

    with replace_calls(**{call: refuse(number)}), pytest.raises(StorageFullError) as caught:
        write(storage, str(path))
    assert caught.value.url == str(path)
    assert caught.value.errno == number
    assert {entry.name for entry in tmp_path.iterdir()} <= {"f", LOCK_NAME}
    assert not path.exists() or path.read_bytes() == b"old"


def test_after_a_failed_write_the_upload_is_over_and_its_room_is_free(
    storage: LocalStorage, tmp_path: Path
) -> None:
    with storage.upload(str(tmp_path / "f")) as handle:
        part = memoryview(bytes(handle.part_size_bytes))
        handle.send(0, (part,), 0)
        with replace_calls(pwritev=refuse(errno.ENOSPC)), pytest.raises(StorageFullError):
            handle.send(1, (part,), 0)
        # At once and not when the block is left: the error may be handled inside, by making room.
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(CkptStoreError):
            handle.commit()


def test_a_file_size_limit_is_a_full_disk(tmp_path: Path) -> None:
    script = f"""
import resource
from ckptstore.errors import StorageFullError
from ckptstore.storage.local.storage import LocalStorage
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
storage = LocalStorage()
for write in (lambda: storage.put_new({str(tmp_path / "f")!r}, bytes(100000)), lambda: upload()):
    def upload():
        with storage.upload({str(tmp_path / "g")!r}) as handle:
            for _ in range(10):
                handle.write(bytes(10000))
            handle.commit()
    try:
        write()
    except StorageFullError as error:
        print("full", error.errno)
"""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == f"full {errno.EFBIG}\n" * 2, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 1024) as disk:
        yield disk


def test_a_disk_that_is_really_full_keeps_the_old_files(storage: LocalStorage, disk: Path) -> None:
    record, shard = str(disk / "checkpoint"), str(disk / "shard")
    storage.put_new(record, b"old" * 1000)
    version = storage.head(record).version
    large = bytes(700_000)
    assert isinstance(storage.put_new(shard, large), Committed)
    with pytest.raises(StorageFullError):
        storage.put_new(shard + "2", large)
    with pytest.raises(StorageFullError):
        storage.put_if(record, large, version)
    with storage.upload(shard + "3") as handle, pytest.raises(StorageFullError):
        handle.send(0, (memoryview(large),), 0, is_last=True)
    assert {path.name for path in disk.iterdir()} == {"checkpoint", "shard"}
    assert storage.get(record).data == b"old" * 1000
    # Nothing of the failures takes up room.
    storage.delete_many([shard])
    assert isinstance(storage.put_new(shard + "2", large), Committed)


def test_a_clean_up_that_fails_is_a_note_on_the_first_error(storage: LocalStorage, tmp_path: Path) -> None:
    with replace_calls(pwritev=refuse(errno.ENOSPC), unlink=refuse(errno.EROFS)):
        with pytest.raises(StorageFullError) as caught:
            storage.put_new(str(tmp_path / "f"), b"x")
        assert "could not be removed" in "".join(getattr(caught.value.__cause__, "__notes__", []))
        with pytest.raises(ValueError, match="mine") as own, storage.upload(str(tmp_path / "g")):
            raise ValueError("mine")
        assert "cannot remove" in "".join(own.value.__notes__)
        handle = storage.upload(str(tmp_path / "h"))
        with pytest.raises(AccessError):
            handle.abort()
        handle.close()
