"""Files as memory: read-only, pinned to a version, without a descriptor, and only where that is safe."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ckptstore.errors import NotFoundError, TransientError, UsageError
from ckptstore.storage.abilities import SupportsViews
from ckptstore.storage.base import Storage
from ckptstore.storage.local import mapping, mounts
from ckptstore.storage.local.storage import LocalStorage
from ckptstore.storage.values import Committed
from ckptstore.testing import CountingStorage
from tests.open_files import open_files

DATA = bytes(range(256)) * 100


@pytest.fixture
def key(tmp_path: Path) -> str:
    return str(tmp_path / "shard")


@pytest.fixture
def version(key: str) -> str:
    outcome = LocalStorage().put_new(key, DATA)
    assert isinstance(outcome, Committed)
    return outcome.version


def view_of(storage: Storage, key: str, version: str) -> memoryview:
    assert isinstance(storage, SupportsViews)
    view = storage.view(key, version=version)
    assert view is not None
    return view


def maps_of(key: str) -> int:
    return Path("/proc/self/maps").read_text("utf-8").count(os.path.basename(key))


@pytest.fixture
def without_system() -> Iterator[None]:
    mapping._system.cache_clear()
    yield
    mapping._system.cache_clear()


def test_a_view_shows_the_file_and_cannot_be_changed(key: str, version: str) -> None:
    view = view_of(LocalStorage(), key, version)
    assert view == DATA
    assert (view.format, view.ndim, view.nbytes, view.readonly) == ("B", 1, len(DATA), True)
    with pytest.raises(TypeError):
        view[0] = 1
    array = np.frombuffer(view, np.uint8)
    assert not array.flags.writeable
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True


def test_a_view_begins_at_a_page(key: str, version: str) -> None:
    array = np.frombuffer(view_of(LocalStorage(), key, version), np.uint8)
    assert array.ctypes.data % 4096 == 0


def test_an_empty_file_is_an_empty_view(key: str) -> None:
    storage = LocalStorage()
    outcome = storage.put_new(key, b"")
    assert isinstance(outcome, Committed)
    assert view_of(storage, key, outcome.version) == b""


def test_no_descriptor_stays_open_and_the_map_goes_with_the_last_that_uses_it(key: str, version: str) -> None:
    storage = LocalStorage()
    view_of(storage, key, version)
    before = open_files(os.path.dirname(key))
    view = view_of(storage, key, version)
    array = np.frombuffer(view[100:], "<u2")
    assert open_files(os.path.dirname(key)) == before
    assert maps_of(key) == 1
    del view
    gc.collect()
    assert maps_of(key) == 1
    assert array[0] == DATA[100] + 256 * DATA[101]
    del array
    gc.collect()
    assert maps_of(key) == 0


def test_arrays_over_a_map_may_outlive_the_interpreter(key: str, version: str) -> None:
    script = f"""
import atexit, sys
import numpy as np
from ckptstore.storage.local.storage import LocalStorage
sys.kept = np.frombuffer(LocalStorage().view({key!r}, version={version!r}), np.uint8)
atexit.register(lambda: print(int(sys.kept[-1])))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "255\n", "")


def test_a_file_that_is_replaced_or_deleted_stays_as_it_was_in_a_view(key: str, version: str) -> None:
    storage = LocalStorage()
    view = view_of(storage, key, version)
    outcome = storage.put_if(key, b"new", version)
    assert isinstance(outcome, Committed)
    assert view == DATA
    with pytest.raises(NotFoundError):
        storage.view(key, version=version)
    second = view_of(storage, key, outcome.version)
    storage.delete_many([key])
    assert second == b"new"
    with pytest.raises(NotFoundError):
        storage.view(key, version=outcome.version)


def test_what_is_not_a_file_has_no_view(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    with pytest.raises(UsageError):
        LocalStorage().view(str(tmp_path / "directory"), version="1:2:3:4")


@pytest.mark.parametrize("kind", ["nfs4", "9p", "fuse.sshfs", "cifs", ""])
def test_where_another_machine_could_cut_the_file_there_is_no_view(
    key: str, version: str, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(mounts, "file_system_type", lambda fd: kind)
    assert LocalStorage().view(key, version=version) is None


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.ENODEV, errno.EIO])
@pytest.mark.usefixtures("without_system")
def test_a_file_that_cannot_be_mapped_is_to_be_read(
    key: str, version: str, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    import ctypes

    class System:
        class mmap:
            argtypes = restype = None

            def __new__(cls, *args: object) -> int:  # type: ignore[misc]
                ctypes.set_errno(number)
                found = ctypes.c_void_p(-1).value
                assert found is not None
                return found

        class munmap:
            argtypes = None

    monkeypatch.setattr(ctypes, "CDLL", lambda *args, **kwargs: System)
    if number == errno.EIO:
        with pytest.raises(TransientError):
            LocalStorage().view(key, version=version)
    else:
        assert LocalStorage().view(key, version=version) is None


@pytest.mark.usefixtures("without_system")
def test_without_ctypes_there_is_no_view(key: str, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ctypes", None)
    assert LocalStorage().view(key, version=version) is None


def test_a_forked_child_sees_the_view_and_its_end_takes_nothing_from_the_parent(
    key: str, version: str
) -> None:
    view = view_of(LocalStorage(), key, version)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if view == DATA else 2
            del view
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert view == DATA


def test_many_threads_map_at_the_same_time(key: str, version: str) -> None:
    storage = LocalStorage()
    found: list[bool] = []

    def look() -> None:
        found.extend(view_of(storage, key, version) == DATA for _ in range(50))

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert found == [True] * 400
    gc.collect()
    assert maps_of(key) == 0


def test_wrappers_see_a_view_as_a_call(key: str, version: str) -> None:
    storage = CountingStorage(LocalStorage())
    assert view_of(storage, key, version) == DATA
    assert storage.calls == [("view", key)]
