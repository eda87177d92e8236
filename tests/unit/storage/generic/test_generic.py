"""File systems that have no backend of their own: what is kept all the same, what is said about the rest."""

from __future__ import annotations

import os
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from ckptstore.errors import (
    AccessError,
    ChecksumError,
    CkptStoreError,
    CkptStoreWarning,
    DeadlineError,
    NotFoundError,
    StorageFullError,
    TransientError,
    UnsupportedError,
    UsageError,
)
from ckptstore.storage.base import Location
from ckptstore.storage.generic.files import is_served
from ckptstore.storage.generic.storage import GenericStorage
from ckptstore.storage.registry import locate
from ckptstore.storage.values import Ambiguous, Committed, Lost
from ckptstore.types import ByteRange
from tests.own_warnings import own_warnings


class Remote(MemoryFileSystem):
    """A memory file system with a host in its URLs, that fails when it is told to."""

    protocol = ("ckpt-remote",)
    store: dict[str, Any] = {}  # noqa: RUF012 - as the class above it has it
    pseudo_dirs = [""]  # noqa: RUF012
    made: list[dict[str, Any]] = []  # noqa: RUF012
    before: Callable[[str, str], None] | None = None
    after: Callable[[str, str], None] | None = None
    told: Callable[[dict[str, Any]], dict[str, Any]] | None = None

    def __init__(self, host: str = "", password: str = "", **options: Any) -> None:
        super().__init__(**options)
        self.made.append({"host": host, "password": password})

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        if "://" not in path:
            return "/" + path.strip("/")
        # As most do: what follows a question mark is none of the path.
        path = path.partition("://")[2].partition("?")[0]
        return "/" + path.partition("/")[2].strip("/")

    @staticmethod
    def _get_kwargs_from_urls(url: str) -> dict[str, str]:
        return {"host": url.partition("://")[2].partition("/")[0]}

    def _hook(self, hook: str, call: str, path: str) -> None:
        action = getattr(type(self), hook)
        if action is not None:
            action(call, path)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        self._hook("before", "pipe_file", path)
        super().pipe_file(path, value)
        self._hook("after", "pipe_file", path)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        self._hook("before", "cat_file", path)
        return bytes(super().cat_file(path, start, end))

    def rm_file(self, path: str) -> None:
        self._hook("before", "rm_file", path)
        if path not in self.store:
            raise FileNotFoundError(path)
        super().rm_file(path)

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        self._hook("before", "info", path)
        told = super().info(path)
        return told if type(self).told is None else type(self).told(told)  # type: ignore[misc]

    def rm(self, *_: Any, **__: Any) -> None:
        raise AssertionError("rm expands patterns")

    mv = move = glob = exists = rm


@pytest.fixture(autouse=True)
def remote() -> Iterator[type[Remote]]:
    fsspec.register_implementation("ckpt-remote", Remote, clobber=True)
    Remote.store.clear()
    Remote.pseudo_dirs[:] = ["", "/run"]
    Remote.made.clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*single-writer", CkptStoreWarning)
        yield Remote
    Remote.before = Remote.after = Remote.told = None
    _registry.pop("ckpt-remote")


@pytest.fixture
def here() -> Location:
    storage = GenericStorage("ckpt-remote", password="tops3cret")
    return Location(storage, "host/run/model.index", "ckpt-remote://host/run/model.index")


def failing(call: str, error: BaseException, partial: bytes | None = None) -> Callable[[str, str], None]:
    """Fail in `call`, once a part of the file is there if one is given."""

    def fail(called: str, path: str) -> None:
        if called == call:
            if partial is not None:
                MemoryFileSystem.pipe_file(Remote(skip_instance_cache=True), path, partial)
            raise error

    return fail


# ------------------------------------------------------------------------------------- which and where


@pytest.mark.parametrize("protocol", ["sftp", "abfs", "hdfs", "smb", "webdav", "ckpt-remote"])
def test_file_systems_of_others_are_served(protocol: str) -> None:
    assert is_served(protocol)


@pytest.mark.parametrize(
    "protocol", ["simplecache", "filecache", "zip", "reference", "dir", "http", "local", "s3a", "nobody"]
)
def test_those_around_another_one_and_those_with_a_backend_are_not(protocol: str) -> None:
    assert not is_served(protocol)


def test_a_url_leads_there_and_what_it_says_of_the_host_is_used(here: Location) -> None:
    location = locate("ckpt-remote://other/run/model.index", {"password": "x"})
    location.storage.put_new(location.key, b"x")
    assert location.key == "other/run/model.index"
    assert location.storage.url_of(location.key) == location.url
    assert Remote.made[0] == {"host": "other", "password": "x"}
    assert list(Remote.store) == ["/run/model.index"]
    assert location.storage.capabilities.backend == "ckpt-remote"


def test_one_connection_serves_one_host(here: Location) -> None:
    for _ in range(3):
        here.storage.put_new(here.key, b"x")
    here.storage.head(here.key)
    assert len(Remote.made) == 1
    with pytest.raises(NotFoundError):
        here.storage.head("other/run/absent")
    assert [made["host"] for made in Remote.made] == ["host", "other"]


def test_a_name_that_the_client_cuts_short_is_refused_and_not_cut(here: Location) -> None:
    for call in (
        lambda key: here.storage.put_new(key, b"x"),
        here.storage.get,
        lambda key: here.storage.delete_many([key]),
    ):
        with pytest.raises(UsageError, match="another one"):
            call("host/run/model?x.index")
    assert Remote.store == {}


def test_a_client_that_is_not_installed_is_named() -> None:
    class Absent(Remote):
        def __init__(self, **options: Any) -> None:
            raise ImportError("No module named 'paramiko'")

    fsspec.register_implementation("ckpt-remote", Absent, clobber=True)
    with pytest.raises(UnsupportedError, match="paramiko") as caught:
        GenericStorage("ckpt-remote").get("host/run/x")
    assert "ckpt-remote" in (caught.value.hint or "")


def test_options_that_the_client_does_not_know_are_refused() -> None:
    class Strict(Remote):
        def __init__(self, host: str = "") -> None:
            super().__init__(host)

    fsspec.register_implementation("ckpt-remote", Strict, clobber=True)
    with pytest.raises(UsageError, match="unexpected keyword"):
        GenericStorage("ckpt-remote", colour="red").get("host/run/x")


# ------------------------------------------------------------------------------------- honest about it


def test_it_claims_nothing_that_fsspec_does_not_have(here: Location) -> None:
    claimed = here.storage.capabilities
    assert claimed.single_writer
    assert not claimed.conditional_delete
    assert not claimed.durable_when_acknowledged
    assert not claimed.checksum_proved_by_store
    assert not claimed.several_hosts


def test_it_says_once_that_one_job_may_write() -> None:
    storage = GenericStorage("ckpt-remote")
    with own_warnings() as caught:
        with pytest.raises(NotFoundError):
            storage.get("host/run/a")
        assert caught == []
        for name in "abc":
            storage.put_new(f"host/run/{name}", b"x")
    assert len(caught) == 1
    assert caught[0].category is CkptStoreWarning
    assert "single-writer" in str(caught[0].message)


# ------------------------------------------------------------------------------- conditions, looked at


def test_conditions_are_kept_against_writers_that_came_before(here: Location) -> None:
    storage = here.storage
    first = storage.put_new(here.key, b"one")
    assert isinstance(first, Committed)
    assert storage.put_new(here.key, b"two") == Lost(first.version)
    second = storage.put_if(here.key, b"three", first.version)
    assert isinstance(second, Committed)
    assert second.version != first.version
    assert storage.put_if(here.key, b"four", first.version) == Lost(second.version)
    assert storage.get(here.key).data == b"three"
    assert storage.put_if("host/run/absent", b"x", first.version) == Lost(None)
    assert not storage.delete_if(here.key, first.version)
    assert storage.delete_if(here.key, second.version)
    assert storage.put_if(here.key, b"five", second.version) == Lost(None)
    with storage.upload(here.key) as upload:
        upload.write(b"six")
        assert isinstance(storage.put_new(here.key, b"seven"), Committed)
        assert isinstance(upload.commit(), Lost)
    assert storage.get(here.key).data == b"seven"


# ------------------------------------------------------------------------------------ writes that fail


@pytest.mark.parametrize("error", [OSError(5, "I/O error"), RuntimeError("odd"), KeyboardInterrupt()])
def test_a_new_file_that_could_not_be_written_whole_is_taken_away(
    here: Location, error: BaseException
) -> None:
    Remote.before = failing("pipe_file", error, partial=b"mod")
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else TransientError):
        here.storage.put_new(here.key, b"model")
    assert Remote.store == {}


def test_a_write_that_landed_and_failed_is_committed(here: Location) -> None:
    Remote.after = failing("pipe_file", TimeoutError("too late"))
    first = here.storage.put_new(here.key, b"model")
    assert first == Committed(here.storage.head(here.key).version)
    second = here.storage.put_if(here.key, b"newer", first.version)
    assert second == Committed(here.storage.head(here.key).version)


def test_a_replacement_that_failed_halfway_is_ambiguous(here: Location) -> None:
    first = here.storage.put_new(here.key, b"model")
    assert isinstance(first, Committed)
    Remote.before = failing("pipe_file", OSError(5, "I/O error"), partial=b"ne")
    outcome = here.storage.put_if(here.key, b"newer", first.version)
    assert isinstance(outcome, Ambiguous)
    assert "part" in outcome.reason


def test_what_was_written_is_read_back(here: Location) -> None:
    def spoil(call: str, path: str) -> None:
        if call == "pipe_file":
            MemoryFileSystem.pipe_file(Remote(skip_instance_cache=True), path, b"modEl")

    Remote.after = spoil
    with pytest.raises(ChecksumError):
        here.storage.put_new(here.key, b"model")


def test_a_file_that_was_cut_short_silently_is_noticed_also_when_it_is_large(here: Location) -> None:
    def spoil(call: str, path: str) -> None:
        if call == "pipe_file":
            MemoryFileSystem.pipe_file(Remote(skip_instance_cache=True), path, bytes(5 << 20))

    Remote.after = spoil
    with here.storage.upload(here.key) as upload:
        upload.write(bytes(6 << 20))
        with pytest.raises(ChecksumError, match="5242880"):
            upload.commit()


def test_a_reader_waits_for_a_file_that_is_being_rewritten(
    here: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("ckptstore.storage.generic.storage.pause", pauses.append)
    here.storage.put_new(here.key, b"old")
    rewrites = [b"ne", b"new"]

    def rewrite(call: str, path: str) -> None:
        if call == "cat_file" and rewrites:
            MemoryFileSystem.pipe_file(Remote(skip_instance_cache=True), path, rewrites.pop(0))

    Remote.before = rewrite
    assert here.storage.get(here.key).data == b"new"
    assert len(pauses) == 2


# ---------------------------------------------------------------------------------------------- errors


class ClientAuthenticationError(Exception):
    pass


class ServiceError(Exception):
    def __init__(self, status_code: int) -> None:
        super().__init__("the service said no to tops3cret")
        self.status_code = status_code


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (FileNotFoundError("x"), NotFoundError),
        (PermissionError(13, "denied"), AccessError),
        (PermissionError("denied"), AccessError),
        (ClientAuthenticationError("no"), AccessError),
        (ServiceError(403), AccessError),
        (ServiceError(401), AccessError),
        (ServiceError(404), NotFoundError),
        (ServiceError(503), TransientError),
        (OSError(28, "No space left on device"), StorageFullError),
        (OSError("something"), TransientError),
        (ConnectionResetError(104, "reset"), TransientError),
        (TimeoutError("slow"), DeadlineError),
        (NotImplementedError("no"), UnsupportedError),
        (NotADirectoryError(20, "Not a directory"), UsageError),
        (ValueError("tops3cret is no host"), UsageError),
        (KeyError("x"), TransientError),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value.__name__,
)
def test_what_clients_raise_becomes_one_of_ours(
    here: Location, error: Exception, expected: type[CkptStoreError]
) -> None:
    here.storage.put_new(here.key, b"x")
    Remote.before = failing("cat_file", error)
    with pytest.raises(expected) as caught:
        here.storage.get(here.key)
    assert type(caught.value) is expected
    assert caught.value.url == here.url
    assert caught.value.hint
    assert "tops3cret" not in f"{caught.value} {caught.value!r} {caught.value.__cause__!r}"
    assert "tops3cret" not in repr(here.storage)


def test_a_delete_of_many_goes_on_after_a_failure_and_reports_it(here: Location) -> None:
    for name in "abc":
        here.storage.put_new(f"host/run/{name}", b"x")

    def deny(call: str, path: str) -> None:
        if call == "rm_file" and path.endswith("/a"):
            raise PermissionError(13, "denied")

    Remote.before = deny
    with pytest.raises(AccessError) as caught:
        here.storage.delete_many([f"host/run/{name}" for name in ("a", "b", "absent", "c")])
    assert caught.value.url == "ckpt-remote://host/run/a"
    assert list(Remote.store) == ["/run/a"]


# -------------------------------------------------------------------------------------- what a file is


def test_a_tag_counts_more_than_a_time(here: Location) -> None:
    here.storage.put_new(here.key, b"x")
    Remote.told = lambda told: told | {"ETag": '"t1"'}
    version = here.storage.head(here.key).version
    Remote.told = lambda told: told | {"ETag": '"t1"', "created": 1.0}
    assert here.storage.head(here.key).version == version
    Remote.told = lambda told: told | {"ETag": '"t2"'}
    assert here.storage.head(here.key).version != version


@pytest.mark.parametrize(
    ("changed", "seconds"),
    [
        (1795422149.5, 1795422149.5),
        (1795422149500, 1795422149.5),
        ("2026-11-23T08:22:29.5Z", 1795422149.5),
    ],
)
def test_times_are_taken_in_every_form(here: Location, changed: object, seconds: float) -> None:
    here.storage.put_new(here.key, b"x")
    Remote.told = lambda told: told | {"mtime": changed}
    assert here.storage.head(here.key).mtime_s == seconds


def test_a_file_of_unknown_age_is_never_old(here: Location) -> None:
    here.storage.put_new(here.key, b"x")
    Remote.told = lambda told: told | {"created": None}
    assert abs(here.storage.head(here.key).mtime_s - time.time()) < 60
    version = here.storage.head(here.key).version
    assert here.storage.head(here.key).version == version


def test_a_directory_is_no_file(here: Location) -> None:
    here.storage.put_new("host/run/deep/model", b"x")
    with pytest.raises(NotFoundError):
        here.storage.get("host/run/deep")


# ----------------------------------------------------------------------------------------- large files


def test_what_does_not_fit_into_memory_waits_in_a_file_that_goes_away(
    here: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    data = os.urandom(1 << 20) * 25
    with here.storage.upload(here.key) as upload:
        for start in range(0, len(data), 3_000_000):
            upload.write(data[start : start + 3_000_000])
        assert len(os.listdir(tmp_path)) == 1
        assert isinstance(upload.commit(), Committed)
    assert here.storage.get(here.key).data == data
    assert os.listdir(tmp_path) == []
    dropped = here.storage.upload("host/run/dropped")
    dropped.write(data)
    del dropped
    assert os.listdir(tmp_path) == []
    assert list(Remote.store) == ["/run/model.index"]


def test_a_forked_child_takes_nothing_from_an_upload_of_its_parent(here: Location) -> None:
    data = os.urandom(1 << 20) * 33
    with here.storage.upload(here.key) as upload:
        upload.write(data[: 25 << 20])
        pid = os.fork()
        if pid == 0:
            try:
                upload.close()
                del upload
            finally:
                os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        upload.write(data[25 << 20 :])
        assert isinstance(upload.commit(), Committed)
    assert here.storage.get(here.key).data == data


def test_a_full_temporary_directory_is_a_full_storage(
    here: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", full)
    with pytest.raises(StorageFullError), here.storage.upload(here.key) as upload:
        upload.write(bytes(25 << 20))


def test_clients_that_wait_by_themselves_are_called_one_at_a_time(here: Location) -> None:
    here.storage.put_new(here.key, bytes(range(100)))
    inside: list[int] = []
    most = [0]

    def enter(call: str, path: str) -> None:
        if call == "cat_file":
            inside.append(1)
            most[0] = max(most[0], len(inside))
            threading.Event().wait(0.002)
            inside.pop()

    Remote.before = enter
    threads = [threading.Thread(target=here.storage.get, args=(here.key, ByteRange(0, 10))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
