"""Second files without moving bytes: clones and hard links, and that nothing else mistakes them."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from ckptstore.errors import CkptStoreError, NotFoundError, StorageFullError, UsageError
from ckptstore.storage.abilities import SupportsCopies
from ckptstore.storage.base import Storage
from ckptstore.storage.local import mounts
from ckptstore.storage.local.storage import LocalStorage
from ckptstore.storage.memory import MemoryStorage
from ckptstore.storage.values import Ambiguous, Committed, Lost
from ckptstore.storage.wrappers import StorageWrapper
from ckptstore.testing import CountingStorage
from tests.open_files import open_files
from tests.unit.storage.local.syscalls import each_call_failing, record_calls, refuse, replace_calls

NEVER = float("inf")
DATA = b"frozen weights" * 1000

SYSTEM_CALLS = [
    "open",
    "fsync",
    "link",
    "unlink",
    "fstat",
    "stat",
    "lstat",
    "setxattr",
    "getxattr",
    "close",
    "utime",
]


@pytest.fixture
def storage() -> LocalStorage:
    return LocalStorage()


@pytest.fixture
def source(storage: LocalStorage, tmp_path: Path) -> str:
    """A shard that an upload made an hour ago, closed since."""
    key = str(tmp_path / "model-1.data-00000-of-00001")
    with storage.upload(key) as upload:
        upload.write(DATA)
        assert isinstance(upload.commit(), Committed)
    if not os.listxattr(key):
        pytest.skip("this file system has no extended attributes")
    then = time.time() - 3600.0
    os.utime(key, (then, then))
    return key


@pytest.fixture
def target(tmp_path: Path) -> str:
    return str(tmp_path / "model-2.data-00000-of-00001")


def copy(storage: Storage, source: str, target: str) -> Committed:
    assert isinstance(storage, SupportsCopies)
    outcome = storage.copy_from(source, target, storage.head(source).version)
    assert isinstance(outcome, Committed)
    return outcome


@pytest.fixture
def cloning() -> Iterator[None]:
    """A file system that shares blocks, simulated by a copy."""

    def clone(target_fd: int, request: int, source_fd: int) -> int:
        assert request == 0x40049409
        os.pwrite(target_fd, os.pread(source_fd, 1 << 20, 0), 0)
        return 0

    with replace_calls(ioctl=clone):
        yield


@pytest.fixture
def linking() -> Iterator[None]:
    """A file system that cannot share blocks."""
    with replace_calls(ioctl=refuse(errno.EOPNOTSUPP)):
        yield


@pytest.fixture(params=["cloning", "linking"])
def either(request: pytest.FixtureRequest) -> str:
    request.getfixturevalue(request.param)
    return str(request.param)


@pytest.mark.usefixtures("either")
def test_the_copy_has_the_bytes_and_its_version(storage: LocalStorage, source: str, target: str) -> None:
    outcome = copy(storage, source, target)
    got = storage.get(target)
    assert (got.data, got.version) == (DATA, outcome.version)
    assert storage.head(target).version == outcome.version
    assert len(os.listdir(os.path.dirname(target))) == 2


@pytest.mark.usefixtures("either")
def test_what_is_there_stays(storage: LocalStorage, source: str, target: str) -> None:
    there = storage.put_new(target, b"there")
    assert isinstance(there, Committed)
    version = storage.head(source).version
    assert storage.copy_from(source, target, version) == Lost(there.version)
    assert storage.get(target).data == b"there"
    assert len(os.listdir(os.path.dirname(target))) == 2


@pytest.mark.usefixtures("either")
def test_of_two_that_copy_the_same_one_wins(storage: LocalStorage, source: str, target: str) -> None:
    first = copy(storage, source, target)
    assert storage.copy_from(source, target, storage.head(source).version) == Lost(first.version)


@pytest.mark.usefixtures("either")
def test_a_source_that_was_replaced_or_is_gone_is_not_copied(
    storage: LocalStorage, source: str, target: str
) -> None:
    version = storage.head(source).version
    assert isinstance(storage.put_if(source, b"new", version), Committed)
    with pytest.raises(NotFoundError):
        storage.copy_from(source, target, version)
    storage.delete_many([source])
    with pytest.raises(NotFoundError):
        storage.copy_from(source, target, version)
    assert not os.path.exists(target)


@pytest.mark.usefixtures("either")
def test_missing_directories_are_made_and_copies_cross_them(
    storage: LocalStorage, source: str, tmp_path: Path
) -> None:
    target = str(tmp_path / "a" / "b" / "f")
    copy(storage, source, target)
    assert storage.get(target).data == DATA


@pytest.mark.usefixtures("either")
def test_each_of_the_two_lives_on_when_the_other_is_deleted_or_replaced(
    storage: LocalStorage, source: str, target: str
) -> None:
    version = copy(storage, source, target).version
    assert storage.delete_if(source, storage.head(source).version)
    assert storage.get(target, version=version).data == DATA
    copy(storage, target, source)
    replaced = storage.put_if(target, b"new", storage.head(target).version)
    assert isinstance(replaced, Committed)
    assert storage.get(source).data == DATA
    assert storage.get(target).data == b"new"
    # The version of the old bytes is not that of the new ones, by whichever name one deletes.
    assert not storage.delete_if(target, storage.head(source).version)
    assert storage.get(target).data == b"new"


@pytest.mark.usefixtures("either")
def test_a_copy_of_a_copy_of_a_copy(storage: LocalStorage, source: str, tmp_path: Path) -> None:
    keys = [source] + [str(tmp_path / f"copy{number}") for number in range(3)]
    for first, second in pairwise(keys):
        copy(storage, first, second)
    storage.delete_many(keys[:-1])
    assert storage.get(keys[-1]).data == DATA


@pytest.mark.usefixtures("either")
def test_neither_name_passes_for_a_dead_writers(storage: LocalStorage, source: str, target: str) -> None:
    # Else the next run that starts removes the new file before the index is there that names it.
    assert storage.is_abandoned(source)
    copy(storage, source, target)
    assert not storage.is_abandoned(target)
    assert not storage.is_in_use(target)
    assert not storage.is_in_use(source)
    assert storage.abort_stale_uploads(os.path.dirname(target) + "/", 0.0) == 0
    assert storage.get(target).data == DATA


@pytest.mark.usefixtures("either")
def test_a_new_name_is_young_though_the_bytes_are_old(
    storage: LocalStorage, source: str, target: str
) -> None:
    # gc takes what is old and in no index, and a save that is under way has no index yet.
    assert storage.head(source).mtime_s < time.time() - 3000
    pinned = storage.head(source).version
    copy(storage, source, target)
    assert storage.head(target).mtime_s > time.time() - 600
    listed = {info.key: info for info in storage.list(os.path.dirname(target) + "/")}
    assert listed[target] == storage.head(target)
    # A reader of the source is not disturbed.
    assert storage.get(source, version=pinned).data == DATA


def test_files_that_another_program_linked_keep_their_times(storage: LocalStorage, source: str) -> None:
    # cp -al of a directory must not make all checkpoints equally old: retention counts in hours.
    before = storage.head(source).mtime_s
    os.link(source, source + ".backup")
    assert storage.head(source).mtime_s == before


@pytest.mark.usefixtures("linking")
def test_a_shard_whose_writer_lives_is_not_shared(storage: LocalStorage, tmp_path: Path, target: str) -> None:
    key = str(tmp_path / "shard")
    with storage.upload(key) as upload:
        upload.write(DATA)
        outcome = upload.commit()
        assert isinstance(outcome, Committed)
        assert LocalStorage().copy_from(key, target, outcome.version) is None
    assert isinstance(storage.copy_from(key, target, outcome.version), Committed)


@pytest.mark.usefixtures("either")
def test_without_marks_nothing_is_shared(storage: LocalStorage, source: str, target: str) -> None:
    with replace_calls(getxattr=refuse(errno.ENOTSUP), setxattr=refuse(errno.ENOTSUP)):
        assert storage.copy_from(source, target, storage.head(source).version) is None
    assert not os.path.exists(target)


@pytest.mark.usefixtures("linking")
@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOENT])
def test_what_cannot_be_linked_is_to_be_written(
    storage: LocalStorage, source: str, target: str, number: int
) -> None:
    with replace_calls(link=refuse(number)):
        assert storage.copy_from(source, target, storage.head(source).version) is None
    assert os.listdir(os.path.dirname(target)) == [os.path.basename(source)]


@pytest.mark.usefixtures("either")
def test_an_error_in_any_system_call_never_hides_a_file_that_is_there(
    storage: LocalStorage, source: str, target: str
) -> None:
    version = storage.head(source).version
    error = OSError(errno.EIO, "Input/output error")
    outcomes = []
    for after in (False, True):
        for fault in each_call_failing(SYSTEM_CALLS, error, after=after):
            failure = outcome = None
            try:
                with fault:
                    outcome = storage.copy_from(source, target, version)
            except CkptStoreError as caught:
                failure = caught
            is_there = os.path.exists(target)
            if isinstance(outcome, Committed):
                assert storage.get(target).data == DATA, fault
            elif not isinstance(outcome, Ambiguous):
                assert not is_there, fault
                assert outcome is None, fault
            assert storage.get(source, version=version).data == DATA, fault
            outcomes.append(type(failure or outcome))
            for path in Path(target).parent.iterdir():
                if str(path) != source:
                    path.unlink()
        assert isinstance(outcome, Committed)
    assert Ambiguous in outcomes


@pytest.mark.usefixtures("linking")
def test_a_full_disk_is_told(storage: LocalStorage, source: str, target: str) -> None:
    with replace_calls(link=refuse(errno.ENOSPC)), pytest.raises(StorageFullError) as caught:
        storage.copy_from(source, target, storage.head(source).version)
    assert caught.value.url == target


@pytest.mark.usefixtures("linking")
def test_on_a_network_file_system_a_link_that_is_there_may_be_our_own(
    storage: LocalStorage, source: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy(storage, source, target)
    monkeypatch.setattr(mounts, "file_system_type", lambda fd: "nfs4")
    assert isinstance(storage.copy_from(source, target, storage.head(source).version), Ambiguous)


@pytest.mark.usefixtures("linking")
def test_the_bytes_are_durable_before_they_have_a_second_name(
    storage: LocalStorage, source: str, target: str
) -> None:
    with record_calls("fsync", "link") as events:
        copy(storage, source, target)
    assert events == ["fsync file", "link", "fsync directory"]
    with record_calls("fsync", "link") as events:
        copy(storage.without_sync(), source, target + "2")
    assert events == ["link"]


def test_a_link_leads_to_the_file_and_not_to_a_link_to_it(
    storage: LocalStorage, source: str, target: str, tmp_path: Path
) -> None:
    (tmp_path / "other").symlink_to(source)
    copy(storage, str(tmp_path / "other"), target)
    assert not os.path.islink(target)
    storage.delete_many([source])
    assert storage.get(target).data == DATA


def test_a_directory_is_not_copied(storage: LocalStorage, tmp_path: Path, target: str) -> None:
    (tmp_path / "directory").mkdir()
    with pytest.raises(UsageError):
        storage.copy_from(str(tmp_path / "directory"), target, "1:2:3:4")


def test_no_descriptor_is_left_open(storage: LocalStorage, source: str, target: str, tmp_path: Path) -> None:
    copy(storage, source, target)
    assert open_files(tmp_path) == []


@pytest.mark.usefixtures("linking")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_a_failure_of_the_disk_is_not_taken_for_something_that_it_cannot_do(
    storage: LocalStorage, source: str, target: str, number: int
) -> None:
    version = storage.head(source).version
    for call in ("link", "ioctl"):
        with replace_calls(**{call: refuse(number)}), pytest.raises(CkptStoreError):
            storage.copy_from(source, target, version)


def test_a_file_in_memory_shares_its_bytes() -> None:
    storage = MemoryStorage()
    first, second = "/copies/first", "/copies/second"
    try:
        made = storage.put_new(first, DATA)
        assert isinstance(made, Committed)
        copied = storage.copy_from(first, second, made.version)
        assert isinstance(copied, Committed)
        assert storage.get(second).data is storage.get(first).data
        assert storage.copy_from(first, second, made.version) == Lost(copied.version)
        assert isinstance(storage.put_if(first, b"new", made.version), Committed)
        assert storage.get(second).data == DATA
        with pytest.raises(NotFoundError):
            storage.copy_from(first, second, made.version)
    finally:
        storage.delete_many([first, second])


def test_wrappers_see_a_copy_as_a_call(storage: LocalStorage, source: str, target: str) -> None:
    counting = CountingStorage(storage)
    version = storage.head(source).version
    wrapped = StorageWrapper(counting)
    assert isinstance(wrapped, SupportsCopies)
    assert isinstance(wrapped.copy_from(source, target, version), Committed)
    assert counting.calls == [("copy_from", target)]
