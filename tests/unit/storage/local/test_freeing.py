"""Large files that are deleted: the name is gone at once, nobody waits for the blocks but who needs them."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from ckptstore.errors import StorageFullError
from ckptstore.storage.local import freeing, temp_file
from ckptstore.storage.local.storage import LocalStorage

_SIZE_BYTES = 4 << 20


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The blocks are given back when `open` is set; `closed` are the descriptors whose are."""
    gate = SimpleNamespace(open=threading.Event(), closed=[])
    close = freeing.give_back

    def close_later(fds: tuple[int, ...]) -> None:
        assert gate.open.wait(60)
        gate.closed += fds
        close(fds)

    monkeypatch.setattr(freeing, "give_back", close_later)
    # Whatever the tests run on.
    monkeypatch.setattr(freeing, "file_system_type", lambda fd: "ext4")
    monkeypatch.setattr(temp_file, "file_system_type", lambda fd: "ext4")
    yield gate
    gate.open.set()
    for thread in list(freeing.threads):
        thread.join(60)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large"
    path.write_bytes(bytes(_SIZE_BYTES))
    return path


def test_the_name_is_gone_before_the_blocks_are(gate: SimpleNamespace, large: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.write_bytes(b"small")
    LocalStorage().delete_many([str(large), str(small), str(tmp_path / "missing")])
    assert os.listdir(tmp_path) == []
    (held,) = freeing.held
    assert (os.fstat(held).st_size, os.fstat(held).st_nlink) == (_SIZE_BYTES, 0)
    gate.open.set()
    for thread in list(freeing.threads):
        thread.join(60)
    assert gate.closed == [held]
    assert not freeing.held
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(held)


def test_a_symbolic_link_goes_and_its_target_stays(
    gate: SimpleNamespace, large: Path, tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(large)
    LocalStorage().delete_many([str(link)])
    assert os.listdir(tmp_path) == ["large"]
    assert not freeing.held


def test_on_a_network_file_system_nothing_is_held(
    monkeypatch: pytest.MonkeyPatch, gate: SimpleNamespace, large: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(freeing, "file_system_type", lambda fd: "nfs4")
    LocalStorage().delete_many([str(large)])
    assert os.listdir(tmp_path) == []
    assert not freeing.held


def _full_until(is_free: Callable[[], bool], asked: list[bool]) -> Callable[[int, int, int], None]:
    def fallocate(fd: int, offset: int, size_bytes: int) -> None:
        asked.append(is_free())
        if not asked[-1]:
            raise OSError(errno.ENOSPC, "No space left on device")

    return fallocate


def test_a_file_that_needs_the_room_waits_for_it(
    monkeypatch: pytest.MonkeyPatch, gate: SimpleNamespace, large: Path, tmp_path: Path
) -> None:
    storage, asked = LocalStorage(), []  # type: ignore[var-annotated]
    storage.delete_many([str(large)])
    fallocate = _full_until(lambda: bool(gate.closed), asked)
    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    join = threading.Thread.join

    def open_and_join(self: threading.Thread, timeout: float | None = None) -> None:
        gate.open.set()
        join(self, timeout)

    monkeypatch.setattr(threading.Thread, "join", open_and_join)
    with storage.upload(str(tmp_path / "next"), _SIZE_BYTES):
        assert asked == [False, True]


@pytest.mark.parametrize("grows", [True, False])
def test_it_waits_for_other_processes_while_space_comes_back(
    monkeypatch: pytest.MonkeyPatch, gate: SimpleNamespace, tmp_path: Path, grows: bool
) -> None:
    free = iter([10, 11, 11, 12] if grows else [10, 10])
    monkeypatch.setattr(os, "fstatvfs", lambda fd: SimpleNamespace(f_bavail=next(free)))
    asked: list[bool] = []
    monkeypatch.setattr(os, "posix_fallocate", _full_until(lambda: grows and len(asked) == 2, asked))
    storage, key = LocalStorage(), str(tmp_path / "next")
    if grows:
        with storage.upload(key, _SIZE_BYTES):
            assert asked == [False, False, True]
    else:
        with pytest.raises(StorageFullError):
            storage.upload(key, _SIZE_BYTES)
        assert asked == [False]
        assert os.listdir(tmp_path) == []


def test_a_forked_child_keeps_no_blocks(gate: SimpleNamespace, large: Path) -> None:
    LocalStorage().delete_many([str(large)])
    (held,) = freeing.held
    child = os.fork()
    if not child:
        try:
            os.fstat(held)
        except OSError:
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert os.fstat(held).st_size == _SIZE_BYTES
