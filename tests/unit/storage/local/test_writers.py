"""Live and dead writers: killed ones, other machines, forked children, frozen holders of the lock."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckptstore.config import host_id
from ckptstore.errors import DeadlineError, UnsupportedError, UsageError
from ckptstore.storage.local import locks, mounts, temp_file
from ckptstore.storage.local.directory import Directory
from ckptstore.storage.local.locks import LOCK_NAME
from ckptstore.storage.local.storage import LocalStorage
from ckptstore.storage.local.temp_file import TempFile
from ckptstore.storage.values import Committed
from tests.open_files import open_files
from tests.unit.storage.local.writer_process import kill, leftovers, process

NEVER = float("inf")


@pytest.fixture
def storage() -> LocalStorage:
    return LocalStorage()


UNFINISHED = """
    upload = storage.upload(sys.argv[1])
    upload.write(bytes(100_000))
    ready()
    upload.commit()
    upload.close()
"""

COMMITTED = """
    upload = storage.upload(sys.argv[1])
    upload.write(b"data")
    upload.commit()
    ready()
    upload.close()
"""


def test_what_a_killed_writer_left_is_hidden_and_removed_at_once(
    storage: LocalStorage, tmp_path: Path
) -> None:
    shard = tmp_path / "model-1.data-00000-of-00001"
    with process(UNFINISHED, str(shard)) as child:
        assert len(leftovers(tmp_path)) == 1
        # Alive: not a leftover, however young a file may have to be.
        assert storage.abort_stale_uploads(f"{tmp_path}/", NEVER) == 0
        assert storage.abort_stale_uploads(f"{tmp_path}/", 3600.0) == 0
        kill(child)
    assert not shard.exists()
    assert list(storage.list(f"{tmp_path}/")) == []
    assert storage.abort_stale_uploads(f"{tmp_path}/model-2", NEVER) == 0
    assert storage.abort_stale_uploads(f"{tmp_path}/model-1", NEVER) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_committed_file_is_abandoned_when_its_writer_is_killed(
    storage: LocalStorage, tmp_path: Path
) -> None:
    shard = tmp_path / "model-1.data-00000-of-00001"
    with process(COMMITTED, str(shard)) as child:
        assert shard.read_bytes() == b"data"
        assert not storage.is_abandoned(str(shard))
        kill(child)
    assert storage.is_abandoned(str(shard))
    # Reading, asking and asking again leave no lock on it.
    assert storage.get(str(shard)).data == b"data"
    assert storage.is_abandoned(str(shard))


def test_a_living_writer_of_this_process_is_alive_too(storage: LocalStorage, tmp_path: Path) -> None:
    shard = str(tmp_path / "shard")
    with storage.upload(shard) as upload:
        upload.write(b"x")
        assert storage.abort_stale_uploads(f"{tmp_path}/", NEVER) == 0
        upload.commit()
        assert not LocalStorage().is_abandoned(shard)
    assert storage.is_abandoned(shard)


def test_an_upload_closed_without_an_end_is_left_like_a_dead_one(
    storage: LocalStorage, tmp_path: Path
) -> None:
    upload = storage.upload(str(tmp_path / "shard"))
    upload.write(b"x")
    upload.close()
    del upload
    assert len(leftovers(tmp_path)) == 1
    assert storage.abort_stale_uploads(f"{tmp_path}/", NEVER) == 1


def test_an_upload_that_was_dropped_leaves_nothing(storage: LocalStorage, tmp_path: Path) -> None:
    # What an interrupt does that comes before the with block is entered.
    storage.upload(str(tmp_path / "shard")).write(b"x")
    assert list(tmp_path.iterdir()) == []


def test_threads_that_fail_at_the_same_time_discard_the_file_once(tmp_path: Path) -> None:
    class Raced(TempFile):
        races = False

        @property
        def is_ours(self) -> bool:
            if self.races:
                # Another thread, in the middle of the first one's `discard`.
                self.races = False
                self.discard()
            return True

    with Directory(str(tmp_path)) as directory:
        temp = Raced(directory, "model")
        with temp:
            temp.races = True
            temp.discard()
    assert os.listdir(tmp_path) == []


def test_small_writes_under_way_are_no_leftovers(storage: LocalStorage, tmp_path: Path) -> None:
    with Directory(str(tmp_path)) as directory, TempFile(directory, "checkpoint") as temp:
        temp.write_at(0, (memoryview(b"under way"),))
        assert storage.abort_stale_uploads(f"{tmp_path}/", NEVER) == 0
        temp.seal(9)
        assert isinstance(temp.publish(), Committed)


def test_a_file_that_no_upload_made_is_never_abandoned(storage: LocalStorage, tmp_path: Path) -> None:
    # TensorFlow writes it, or a checkpoint is being copied, data before index.
    (tmp_path / "foreign").write_bytes(b"x")
    storage.put_new(str(tmp_path / "put"), b"x")
    with storage.upload(str(tmp_path / "ours")) as upload:
        upload.commit()
    if not os.listxattr(tmp_path / "ours"):
        pytest.skip("this file system has no extended attributes")
    (tmp_path / "link").symlink_to("ours")
    shutil.copy2(tmp_path / "ours", tmp_path / "copy")
    assert os.listxattr(tmp_path / "copy"), "the copy was to keep the mark"
    answers = {path.name: storage.is_abandoned(str(path)) for path in tmp_path.iterdir()}
    assert answers == {"foreign": False, "put": False, "ours": True, "link": False, "copy": False}


def _make_leftover(directory: Path, host: str, *, age_s: float = 0.0) -> None:
    path = directory / f"shard.tmp-{host}-0123456789abcdef"
    path.write_bytes(b"x")
    then = time.time() - age_s
    os.utime(path, (then, then))


def test_a_leftover_of_another_machine_goes_by_its_age(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A lock of another machine cannot be seen on every network file system.
    monkeypatch.setattr(mounts, "file_system_type", lambda fd: "nfs")
    _make_leftover(tmp_path, "0" * 8, age_s=100.0)
    assert storage.abort_stale_uploads(f"{tmp_path}/", NEVER) == 0
    assert storage.abort_stale_uploads(f"{tmp_path}/", 3600.0) == 0
    assert storage.abort_stale_uploads(f"{tmp_path}/", 60.0) == 1
    _make_leftover(tmp_path, host_id())
    assert storage.abort_stale_uploads(f"{tmp_path}/", NEVER) == 1


def test_a_leftover_from_before_a_reboot_is_dead_on_a_disk_of_this_machine(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for here in (False, True):
        monkeypatch.setattr(mounts, "file_system_type", lambda fd, here=here: "ext4" if here else "nfs")
        _make_leftover(tmp_path, "0" * 8)
        assert storage.abort_stale_uploads(f"{tmp_path}/", NEVER) == int(here)
    shard = str(tmp_path / "committed")
    with monkeypatch.context() as patch:
        patch.setattr(locks, "host_id", lambda: "0" * 8)
        with storage.upload(shard) as upload:
            upload.commit()
    assert storage.is_abandoned(shard)
    monkeypatch.setattr(mounts, "file_system_type", lambda fd: "nfs")
    assert not storage.is_abandoned(shard)


def test_where_files_cannot_be_marked_a_free_lock_decides_on_disks_of_this_machine(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", refuse)
    monkeypatch.setattr(os, "getxattr", refuse)
    for here in (False, True):
        monkeypatch.setattr(mounts, "file_system_type", lambda fd, here=here: "ext4" if here else "nfs")
        shard = str(tmp_path / f"shard-{here}")
        with storage.upload(shard) as upload:
            upload.commit()
            assert not storage.is_abandoned(shard)
        assert storage.is_abandoned(shard) is here


def test_the_mount_table_tells_disks_of_this_machine(tmp_path: Path) -> None:
    kinds = {
        line.split(" - ")[1].split()[0] for line in Path("/proc/self/mountinfo").read_text().splitlines()
    }
    with open("/proc/self/stat", "rb") as file:
        assert mounts.file_system_type(file.fileno()) == "proc"
    if kinds & {"ext4", "xfs", "btrfs", "overlay", "tmpfs"}:
        with Directory(str(tmp_path)) as directory:
            assert mounts.file_system_type(directory.fd) in kinds
    assert mounts.file_system_type(-1) == ""


def test_without_locks_uploads_work_and_nothing_is_called_dead(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    shard = str(tmp_path / "shard")
    with storage.upload(shard) as upload:
        upload.write(b"x")
        assert storage.abort_stale_uploads(f"{tmp_path}/", NEVER) == 0
        assert isinstance(upload.commit(), Committed)
    assert not storage.is_abandoned(shard)
    outcome = storage.put_new(str(tmp_path / "checkpoint"), b"one")
    assert isinstance(outcome, Committed)
    with pytest.raises(UnsupportedError, match="cannot lock"):
        storage.put_if(str(tmp_path / "checkpoint"), b"two", outcome.version)
    assert (tmp_path / "checkpoint").read_bytes() == b"one"
    assert leftovers(tmp_path) == []


def test_a_file_swept_away_before_it_was_locked_is_made_again(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = locks.hold
    swept: list[Any] = []

    def sweep_first(fd: int) -> bool:
        if not swept:
            swept.append(LocalStorage().abort_stale_uploads(f"{tmp_path}/", NEVER))
        return hold(fd)

    monkeypatch.setattr(temp_file, "hold", sweep_first)
    assert isinstance(storage.put_new(str(tmp_path / "checkpoint"), b"x"), Committed)
    assert swept == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_file_that_a_search_for_leftovers_locked_first_is_made_again(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = locks.hold
    answers = iter([False, True])
    monkeypatch.setattr(temp_file, "hold", lambda fd: next(answers) and hold(fd))
    assert isinstance(storage.put_new(str(tmp_path / "checkpoint"), b"x"), Committed)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def in_child(act: Callable[[], None]) -> int:
    """Run `act` in a forked child; return its exit code."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            act()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_forked_child_does_not_touch_the_upload_of_its_parent(
    storage: LocalStorage, tmp_path: Path
) -> None:
    shard = str(tmp_path / "shard")
    with storage.upload(shard) as upload:
        upload.write(b"half ")

        def act() -> None:
            for call in (lambda: upload.write(b"?"), upload.commit):
                with pytest.raises(UsageError):
                    call()
            upload.abort()
            upload.close()

        assert in_child(act) == 0
        # Neither the file nor its lock went with the child.
        assert storage.abort_stale_uploads(f"{tmp_path}/", NEVER) == 0
        upload.write(b"and half")
        assert isinstance(upload.commit(), Committed)
    assert Path(shard).read_bytes() == b"half and half"


def test_a_child_that_lives_on_does_not_keep_the_lock(storage: LocalStorage, tmp_path: Path) -> None:
    # Workers that load data are forked at any moment and inherit every descriptor.
    shard = str(tmp_path / "shard")
    read_end, write_end = os.pipe()
    with storage.upload(shard) as upload:
        pid = os.fork()
        if pid == 0:
            os.close(write_end)
            os.read(read_end, 1)
            os._exit(0)
        upload.commit()
    try:
        assert storage.is_abandoned(shard)
    finally:
        os.close(write_end)
        os.close(read_end)
        os.waitpid(pid, 0)


def test_a_child_forked_while_a_thread_holds_the_lock_can_save(storage: LocalStorage, tmp_path: Path) -> None:
    key = str(tmp_path / "checkpoint")
    storage.put_new(key, b"one")
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        # The mutex of this process only: the lock on the file would rightly keep the child out.
        with locks._STRIPES[hash(str(tmp_path)) % len(locks._STRIPES)]:
            held.set()
            done.wait(timeout=60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(timeout=60)

    def act() -> None:
        signal.alarm(30)
        assert isinstance(storage.put_if(key, b"two", storage.head(key).version), Committed)

    try:
        assert in_child(act) == 0
    finally:
        done.set()
        thread.join()


LOCKED = """
    import os
    from ckptstore.storage.local.directory import Directory
    from ckptstore.storage.local.locks import lock_directory
    with Directory(sys.argv[1]) as directory, lock_directory(directory.fd, sys.argv[1]):
        ready()
"""


def test_a_frozen_holder_of_the_lock_is_waited_for_with_an_end(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_GIVE_UP_S", 0.1)
    key = str(tmp_path / "checkpoint")
    storage.put_new(key, b"one")
    version = storage.head(key).version
    with process(LOCKED, str(tmp_path)) as child:
        for change in (lambda: storage.put_if(key, b"two", version), lambda: storage.delete_if(key, version)):
            with pytest.raises(DeadlineError) as caught:
                change()
            assert caught.value.url == str(tmp_path / LOCK_NAME)
        # Readers and other names need no lock.
        assert storage.get(key).data == b"one"
        assert isinstance(storage.put_new(key + "2", b"x"), Committed)
        kill(child)
    assert isinstance(storage.put_if(key, b"two", version), Committed)
    assert leftovers(tmp_path) == []


def test_a_waiter_goes_on_when_the_holder_releases_the_lock(storage: LocalStorage, tmp_path: Path) -> None:
    key = str(tmp_path / "checkpoint")
    storage.put_new(key, b"one")
    with process(LOCKED, str(tmp_path)) as child:
        outcomes: list[object] = []
        thread = threading.Thread(
            target=lambda: outcomes.append(storage.put_if(key, b"two", storage.head(key).version))
        )
        thread.start()
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
        thread.join(timeout=60)
    assert isinstance(outcomes[0], Committed)


def test_a_deleted_lock_file_excludes_nobody_and_is_replaced(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two waiters, one on the deleted file and one on its successor, must not both get in.
    key = str(tmp_path / "checkpoint")
    storage.put_new(key, b"one")
    flock = fcntl.flock
    locked: list[int] = []

    def delete_first(fd: int, operation: int) -> None:
        flock(fd, operation)
        if operation & fcntl.LOCK_EX and (tmp_path / LOCK_NAME).exists():
            locked.append(os.fstat(fd).st_ino)
            if len(locked) == 1:
                (tmp_path / LOCK_NAME).unlink()

    with Directory(str(tmp_path)) as directory, monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", delete_first)
        with locks.lock_directory(directory.fd, str(tmp_path)):
            assert len(locked) == 2
            assert (tmp_path / LOCK_NAME).stat().st_ino == locked[1]


def test_a_committed_upload_keeps_one_descriptor(tmp_path: Path) -> None:
    storage = LocalStorage()
    uploads = [storage.upload(f"{tmp_path}/data-{number}") for number in range(20)]
    for upload in uploads:
        upload.write(b"x")
        assert isinstance(upload.commit(), Committed)
    assert len(open_files(tmp_path)) == 20
    assert not any(storage.is_abandoned(f"{tmp_path}/data-{number}") for number in range(20))
    for upload in uploads:
        upload.close()
    assert open_files(tmp_path) == []
