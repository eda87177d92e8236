"""Calls that are one way of several: whatever error a mount refuses them with, the next way is taken."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.storage.local import direct_io, temp_file
from ckptstore.storage.local.storage import LocalStorage
from ckptstore.storage.values import Committed, Lost
from tests.unit.storage.local.syscalls import refuse, replace_calls

_NUMBERS = [
    *(errno.EIO, errno.EINVAL, errno.EACCES, errno.EPERM, errno.EXDEV, errno.ENODEV, errno.ENOSYS),
    *(errno.EOPNOTSUPP, errno.ENOTTY, errno.EBADF, errno.EROFS, errno.EMLINK, errno.ENOENT, errno.EEXIST),
    *(errno.ESTALE, errno.EREMOTEIO, errno.ETIMEDOUT, errno.ENXIO, errno.ESPIPE, errno.ENOMEM),
]
_CALLS = ("link", "posix_fallocate", "ioctl", "setxattr", "getxattr", "posix_fadvise", "utime", "fchmod")


@pytest.fixture(autouse=True)
def _known_file_system(monkeypatch: pytest.MonkeyPatch) -> None:
    # So that room is reserved and direct I/O is tried, whatever holds the files of this test.
    monkeypatch.setattr(temp_file, "file_system_type", lambda fd: "ext4")
    monkeypatch.setattr(direct_io, "file_system_type", lambda fd: "ext4")


def _refuse_reading_and_writing(number: int) -> Callable[..., int]:
    real = os.open

    def call(path: str, flags: int, *args: int, **kwargs: int) -> int:
        if flags & os.O_RDWR and flags & os.O_EXCL:
            raise OSError(number, os.strerror(number))
        return real(path, flags, *args, **kwargs)

    return call


def _refuse_direct(number: int) -> Callable[..., object]:
    import fcntl

    real = fcntl.fcntl

    def call(fd: int, command: int, argument: int = 0) -> object:
        if command == fcntl.F_SETFL and argument & os.O_DIRECT:
            raise OSError(number, os.strerror(number))
        return real(fd, command, argument)

    return call


def _save_and_restore(directory: Path) -> None:
    saver = ck.Saver(max_to_keep=2, reuse_unchanged=True)
    large = np.arange(140_000, dtype=np.float64)
    for step in range(3):
        values = {"large": large, "step": np.array(step)}
        prefix = saver.save(values, f"{directory}/model", step)
    assert prefix is not None
    assert ck.latest_checkpoint(directory) == prefix
    with ck.open_checkpoint(prefix) as checkpoint:
        np.testing.assert_array_equal(checkpoint.read("large"), large)
        assert checkpoint.read("step") == 2
    left = {path.name.partition(".")[0] for path in directory.iterdir() if path.name[0] != "."}
    assert left == {"checkpoint", "model-1", "model-2"}


@pytest.mark.parametrize("number", _NUMBERS, ids=errno.errorcode.get)
def test_no_error_of_one_call_fails_a_write(tmp_path: Path, number: int) -> None:
    # Not synced: twenty errors of eight calls would take minutes on a slow disk.
    storage = LocalStorage().without_sync()
    data = bytes(1 << 20)
    for call in _CALLS:
        key = str(tmp_path / call)
        with replace_calls(**{call: refuse(number)}):
            with storage.upload(key, len(data)) as upload:
                upload.write(data)
                made = upload.commit()
            assert isinstance(made, Committed), call
            old = storage.put_new(f"{key}-record", b"old")
            assert isinstance(old, Committed), call
            assert isinstance(storage.put_if(f"{key}-record", b"new", old.version), Committed), call
            copied = storage.copy_from(key, f"{key}-copy", made.version)
            assert copied is None or isinstance(copied, Committed), call
            assert storage.get(key).data == data


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ENOSYS], ids=errno.errorcode.get)
def test_all_of_them_refused_at_once_do_not_fail_a_save(tmp_path: Path, number: int) -> None:
    refused: dict[str, Callable[..., object]] = {name: refuse(number) for name in _CALLS}
    refused["open"] = _refuse_reading_and_writing(number)
    refused["fcntl"] = _refuse_direct(number)
    with replace_calls(**refused):
        _save_and_restore(tmp_path)


@pytest.mark.parametrize("number", [errno.EIO, errno.EEXIST, errno.ENOENT], ids=errno.errorcode.get)
def test_a_name_is_still_given_once_where_links_are_refused(tmp_path: Path, number: int) -> None:
    key = str(tmp_path / "f")
    storage = LocalStorage()
    with replace_calls(link=refuse(number)):
        first = storage.put_new(key, b"first")
        assert isinstance(first, Committed)
        assert storage.put_new(key, b"second") == Lost(first.version)
    assert storage.get(key).data == b"first"


def test_a_directory_in_which_nothing_may_be_made_is_an_access_error_at_once(tmp_path: Path) -> None:
    real = os.open
    made = []

    def deny(path: str, flags: int, *args: int, **kwargs: int) -> int:
        if flags & os.O_EXCL:
            made.append(path)
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, flags, *args, **kwargs)

    with replace_calls(open=deny), pytest.raises(ck.AccessError):
        LocalStorage().put_new(str(tmp_path / "f"), b"data")
    assert len(made) == 2
