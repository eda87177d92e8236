"""What doctor tries out, and what it concludes; nothing is left behind."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ckptstore import errors
from ckptstore.storage.abilities import Diagnosable, KnowsServerTime
from ckptstore.storage.diagnosis import diagnose
from ckptstore.storage.finding import Finding
from ckptstore.storage.local import diagnosis
from ckptstore.storage.local.directory import Directory
from ckptstore.storage.local.mounts import Mount, mount_of
from ckptstore.storage.local.storage import LocalStorage
from ckptstore.storage.memory import MemoryStorage
from ckptstore.storage.object_store.attempts import RetryPolicy
from ckptstore.storage.object_store.faults import Kind
from ckptstore.storage.object_store.storage import ObjectStorage
from ckptstore.storage.values import Capabilities, Committed, Lost
from ckptstore.storage.wrappers import StorageWrapper
from tests.unit.storage.object_store.scripted_transport import ScriptedTransport, before

TRIED = [
    "write",
    "clock",
    "create if absent",
    "read",
    "list",
    "compare and swap",
    "conditional delete",
    "upload",
]


def states(findings: list[Finding]) -> dict[str, str]:
    return {finding.check: finding.state for finding in findings}


def of(findings: list[Finding], check: str) -> Finding:
    (found,) = [finding for finding in findings if finding.check == check]
    return found


class TestTrial:
    """On a memory storage that fails as it is told."""

    @pytest.fixture(autouse=True)
    def _nothing_is_left(self) -> Iterator[None]:
        yield
        assert list(MemoryStorage().list("/doctor/")) == []

    def run(self, wrap: type[StorageWrapper] = StorageWrapper) -> list[Finding]:
        return diagnose(wrap(MemoryStorage()), "/doctor")

    def test_all_is_tried(self) -> None:
        findings = self.run()
        assert list(states(findings)) == [*TRIED, "delete", "several writers", "durable"]
        assert {name for name, state in states(findings).items() if state != "ok"} == {"durable"}

    @pytest.mark.parametrize(
        ("primitive", "check"),
        [
            ("put_new", "write"),
            ("head", "write"),
            ("get", "create if absent"),
            ("read_into", "read"),
            ("put_if", "compare and swap"),
            ("upload", "upload"),
            ("upload.commit", "upload"),
        ],
    )
    @pytest.mark.parametrize("error", [errors.AccessError, errors.TransientError, errors.StorageFullError])
    def test_what_fails_is_named_and_ends_the_trial(
        self, primitive: str, check: str, error: type[errors.CkptStoreError]
    ) -> None:
        class Failing(StorageWrapper):
            def intercept(self, name, keys, call):
                if name == primitive:
                    raise error("no", url=keys[0])
                return call()

        findings = self.run(Failing)
        finding = of(findings, check)
        assert finding.state == "failed"
        assert isinstance(finding.error, error)
        # After a refusal to write, reading is tried, too.
        assert next(name for name, state in states(findings).items() if state == "failed") == check
        assert "several writers" not in states(findings)

    def test_no_listing_is_a_limit(self) -> None:
        class Unlisted(StorageWrapper):
            def intercept(self, name, keys, call):
                if name == "list":
                    raise errors.AccessError("cannot list", url=keys[0])
                return call()

        findings = self.run(Unlisted)
        assert of(findings, "list").state == "degraded"
        assert "Saving works" in (of(findings, "list").hint or "")
        assert of(findings, "upload").state == "ok"

    def test_a_stale_listing_is_a_limit(self) -> None:
        class Stale(StorageWrapper):
            def list(self, prefix):
                return iter(())

        assert of(self.run(Stale), "list").state == "degraded"

    def test_no_deleting_is_a_limit_and_names_what_is_left(self) -> None:
        class Undeleted(StorageWrapper):
            def intercept(self, name, keys, call):
                if name == "delete_many":
                    raise errors.AccessError("cannot delete", url=keys[0])
                return call()

        finding = of(self.run(Undeleted), "delete")
        assert finding.state == "degraded"
        assert "memory://doctor/.ckptstore-doctor-" in (finding.hint or "")
        storage = MemoryStorage()
        storage.delete_many([info.key for info in storage.list("/doctor/")])

    def test_deletes_that_do_nothing(self) -> None:
        class Lazy(StorageWrapper):
            def delete_many(self, keys):
                pass

        assert of(self.run(Lazy), "delete").state == "degraded"
        storage = MemoryStorage()
        storage.delete_many([info.key for info in storage.list("/doctor/")])

    def test_a_proxy_that_ignores_ranges(self) -> None:
        class Ranged(StorageWrapper):
            def read_into(self, key, ranges, buffers, *, version=None):
                for part, buffer in zip(ranges, buffers, strict=True):
                    buffer[:] = self.inner.get(key).data[: part.stop - part.start]

        finding = of(self.run(Ranged), "read")
        assert finding.state == "failed"
        assert isinstance(finding.error, errors.ChecksumError)

    def test_a_promise_that_is_not_kept_fails(self) -> None:
        class Replacing(StorageWrapper):
            def put_new(self, key, data):
                self.inner.delete_many([key])
                return self.inner.put_new(key, data)

        finding = of(self.run(Replacing), "create if absent")
        assert finding.state == "failed"
        assert isinstance(finding.error, errors.UnsupportedError)

        class Swapping(StorageWrapper):
            def put_if(self, key, data, version):
                self.inner.delete_many([key])
                return self.inner.put_new(key, data)

        assert of(self.run(Swapping), "compare and swap").state == "failed"

    def test_where_nothing_is_promised_it_is_a_limit(self) -> None:
        class Weak(StorageWrapper):
            capabilities = Capabilities("weak", False, False, False, True, False, True)

            def put_new(self, key, data):
                self.inner.delete_many([key])
                return self.inner.put_new(key, data)

            def put_if(self, key, data, version):
                return self.put_new(key, data)

            def delete_if(self, key, version):
                self.inner.delete_many([key])
                return True

        found = states(self.run(Weak))
        limits = {name for name, state in found.items() if state == "degraded"}
        assert limits == {
            *("create if absent", "compare and swap", "conditional delete"),
            *("several writers", "delete by version", "proved upload"),
        }
        assert "failed" not in found.values()
        assert "single-writer" in of(self.run(Weak), "several writers").detail

    @pytest.mark.parametrize(
        ("skew_s", "state", "said"),
        [
            (0.0, "ok", "as on"),
            (-30.0, "ok", "30 s behind"),
            (90.0, "degraded", "90 s ahead"),
            (-1e6, "degraded", "s behind"),
        ],
    )
    def test_the_clock_of_the_server(self, skew_s: float, state: str, said: str) -> None:
        class Skewed(StorageWrapper, KnowsServerTime):
            def now_s(self) -> float:
                return time.time() + skew_s

        finding = of(self.run(Skewed), "clock")
        assert (finding.state, said in finding.detail) == (state, True)

    def test_the_clock_of_a_file_server(self) -> None:
        class Stamping(StorageWrapper):
            def head(self, key):
                info = self.inner.head(key)
                return SimpleNamespace(**{"version": info.version, "mtime_s": info.mtime_s + 3600})

        finding = of(self.run(Stamping), "clock")
        assert (finding.state, "3600 s ahead" in finding.detail) == ("degraded", True)

    def test_somebody_else_at_the_random_name(self) -> None:
        class Taken(StorageWrapper):
            def put_new(self, key, data):
                return Lost("1")

        assert isinstance(of(self.run(Taken), "write").error, errors.ConflictError)

    def test_an_interrupt_leaves_nothing(self) -> None:
        class Interrupted(StorageWrapper):
            def intercept(self, name, keys, call):
                if name == "put_if":
                    raise KeyboardInterrupt
                return call()

        with pytest.raises(KeyboardInterrupt):
            self.run(Interrupted)


class TestPromises:
    """What a power cut or the end of the process may take."""

    @pytest.mark.parametrize(
        ("backend", "said"),
        [
            ("memory", "nothing here outlives this process"),
            # Whatever lies behind it, a file server or a disk, it is not this process.
            ("sftp", "a power cut may take what was acknowledged"),
        ],
    )
    def test_what_is_not_durable_is_told_as_it_is(self, backend: str, said: str) -> None:
        class Named(StorageWrapper):
            capabilities = replace(MemoryStorage.capabilities, backend=backend)

        assert of(diagnose(Named(MemoryStorage()), "/promises"), "durable").detail == said


class TestObjectStores:
    def storage(self, **transport: Any) -> tuple[ScriptedTransport, ObjectStorage]:
        fake = ScriptedTransport(**transport)
        return fake, ObjectStorage(fake, RetryPolicy(pause_scale=0.0))

    def test_endpoint_bucket_and_conditions(self) -> None:
        fake, storage = self.storage()
        findings = diagnose(storage, "bucket/run")
        assert list(states(findings))[:4] == ["endpoint", "bucket", "large objects", "conditions"]
        assert of(findings, "endpoint").detail == fake.endpoint
        assert of(findings, "conditions").detail == (
            "create honoured, swap honoured (of nothing: 404), delete honoured"
        )
        assert states(findings)["several writers"] == states(findings)["proved upload"] == "ok"
        assert fake.objects == {}

    def test_the_bucket_itself(self) -> None:
        fake, storage = self.storage()
        assert "failed" not in states(diagnose(storage, "bucket")).values()
        assert fake.objects == {}

    def test_objects_lie_beside_the_checkpoints(self) -> None:
        fake, storage = self.storage()
        diagnose(storage, "bucket/a/run")
        names = {name for call, name in fake.calls if call == "put"}
        assert {name.rpartition("/")[0] for name in names} == {"a/run"}

    @pytest.mark.filterwarnings("ignore:.*single-writer")
    def test_a_server_that_ignores_conditions(self) -> None:
        fake, storage = self.storage(
            honours_create=False, honours_swap=False, honours_delete=False, creates_missing=True
        )
        findings = diagnose(storage, "bucket/run")
        found = states(findings)
        assert "failed" not in found.values()
        assert (found["conditions"], found["several writers"], found["delete by version"]) == (
            "degraded",
        ) * 3
        assert of(findings, "conditions").detail == (
            "create ignored, swap ignored (of nothing: created nevertheless), delete not relied on"
        )
        assert fake.objects == {}

    def test_a_server_that_tells_no_checksum(self) -> None:
        _, storage = self.storage(returns_checksum=False)
        assert states(diagnose(storage, "bucket/run"))["proved upload"] == "degraded"

    @pytest.mark.parametrize(
        ("kind", "error"),
        [
            (Kind.NO_BUCKET, errors.NotFoundError),
            (Kind.UNTRUSTED, errors.AccessError),
            (Kind.NOT_SENT, errors.TransientError),
            (Kind.THROTTLED, errors.TransientError),
            (Kind.BAD_REQUEST, errors.UsageError),
        ],
    )
    def test_a_bucket_that_does_not_answer(self, kind: Kind, error: type[errors.CkptStoreError]) -> None:
        fake, storage = self.storage()
        fake.script("list_page", *[before(kind)] * 20)
        *rest, finding = diagnose(storage, "bucket/run")
        # An endpoint that does not answer is not called "ok".
        is_silent = kind in (Kind.UNTRUSTED, Kind.NOT_SENT)
        assert [each.check for each in rest] == ([] if is_silent else ["endpoint"])
        assert (finding.check, finding.state) == ("endpoint" if is_silent else "bucket", "failed")
        assert isinstance(finding.error, error)
        assert finding.error.hint

    def test_listing_denied_and_writing_allowed(self) -> None:
        fake, storage = self.storage()
        fake.script("list_page", *[before(Kind.FORBIDDEN)] * 3)
        found = states(diagnose(storage, "bucket/run"))
        assert (found["bucket"], found["list"], found["upload"]) == ("degraded", "degraded", "ok")

    def test_writing_denied(self) -> None:
        fake, storage = self.storage()
        fake.script("put", before(Kind.FORBIDDEN))
        findings = diagnose(storage, "bucket/run")
        finding = of(findings, "conditions")
        assert finding.state == "failed"
        assert isinstance(finding.error, errors.AccessError)
        # Reading is tried all the same.
        assert of(findings, "list").state == "ok"


class TestLocal:
    def run(self, path: Path) -> list[Finding]:
        return diagnose(LocalStorage(), str(path))

    def tree(self, path: Path) -> set[tuple[str, int]]:
        return {(str(each), each.stat().st_mtime_ns) for each in path.rglob("*")}

    def test_nothing_is_left_and_nothing_made(self, tmp_path: Path) -> None:
        (tmp_path / "model-1.index").write_bytes(b"x")
        before = self.tree(tmp_path)
        findings = self.run(tmp_path)
        checks = [
            "directory",
            "file system",
            "free space",
            *(["inodes"] if os.statvfs(tmp_path).f_files else []),
            "fsync",
            "locks",
            "hard links",
            "large files",
            "extended attributes",
        ]
        assert list(states(findings)) == [*checks, *TRIED, "delete", "several writers", "durable"]
        assert "failed" not in states(findings).values()
        assert self.tree(tmp_path) == before

    def test_a_directory_that_is_not_there_yet(self, tmp_path: Path) -> None:
        findings = self.run(tmp_path / "a" / "b")
        assert str(tmp_path) in of(findings, "directory").detail
        assert "failed" not in states(findings).values()
        assert list(tmp_path.iterdir()) == []

    def test_a_file_in_its_place(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"x")
        for path in (tmp_path / "file", tmp_path / "file" / "run"):
            (finding,) = self.run(path)
            assert finding.state == "failed"
            assert isinstance(finding.error, errors.UsageError)
        assert (tmp_path / "file").read_bytes() == b"x"

    def test_no_permission(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def denied(path: str, *args: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied", path)

        monkeypatch.setattr(os, "mkdir", denied)
        finding = of(self.run(tmp_path), "write")
        assert finding.state == "failed"
        assert isinstance(finding.error, errors.AccessError)

    @pytest.mark.parametrize(
        ("kind", "state", "said"),
        [
            ("tmpfs", "degraded", "in memory"),
            ("fuse.rclone", "degraded", "not known"),
            ("fuse", "degraded", "not known"),
            ("nfs4", "ok", "the server has the bytes"),
            ("ext4", "ok", "A power cut was not tried"),
        ],
    )
    def test_durability_is_said_by_file_system(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, state: str, said: str
    ) -> None:
        self.mounted(monkeypatch, kind)
        finding = of(self.run(tmp_path), "durable")
        assert (finding.state, said in finding.detail) == (state, True)

    def mounted(self, monkeypatch: pytest.MonkeyPatch, kind: str, source: str = "x") -> None:
        mount = Mount("/mnt with space", kind, source)
        monkeypatch.setattr(diagnosis, "mount_of", lambda fd: mount)

    @pytest.mark.parametrize(
        ("kind", "source", "advice"),
        [
            ("fuse.gcsfuse", "bucket", "gs://"),
            ("fuse.s3fs", "s3fs", "s3://"),
            ("fuse", "mountpoint-s3", "s3://"),
            ("fuse.blobfuse2", "x", "own URL"),
        ],
    )
    def test_a_mounted_bucket(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, source: str, advice: str
    ) -> None:
        self.mounted(monkeypatch, kind, source)
        finding = of(self.run(tmp_path), "file system")
        assert finding.state == "degraded"
        assert advice in (finding.hint or "")

    @pytest.mark.parametrize(
        ("kind", "state"), [("tmpfs", "degraded"), ("nfs4", "ok"), ("ext4", "ok"), ("fuse.sshfs", "ok")]
    )
    def test_other_file_systems(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, state: str
    ) -> None:
        self.mounted(monkeypatch, kind)
        finding = of(self.run(tmp_path), "file system")
        assert (finding.state, kind in finding.detail) == (state, True)

    def test_the_mount_table_is_read(self, tmp_path: Path) -> None:
        with Directory(str(tmp_path)) as directory:
            mount = mount_of(directory.fd)
        if mount is None:
            pytest.skip("there is no /proc here")
        assert str(tmp_path).startswith(mount.point.rstrip("/"))

    @pytest.mark.parametrize(
        ("free", "inodes", "state"),
        [(0, 9, "failed"), (9, 9, "degraded"), (1 << 20, 9, "ok"), (1 << 20, 0, "ok")],
    )
    def test_free_space(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, inodes: int, state: str
    ) -> None:
        def status(path: str) -> SimpleNamespace:
            return SimpleNamespace(
                f_bavail=free, f_frsize=4096, f_blocks=1 << 21, f_files=99, f_favail=inodes
            )

        monkeypatch.setattr(os, "statvfs", status)
        findings = self.run(tmp_path)
        finding = of(findings, "free space")
        assert finding.state == state
        assert isinstance(finding.error, errors.StorageFullError) == (state == "failed")
        # Some mounts report none, and files can be made: that is what was looked at.
        assert of(findings, "inodes").state == "degraded"
        assert f"{inodes} of 99" in of(findings, "inodes").detail

    def test_no_locks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(fd: int, operation: int) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", refuse)
        finding = of(self.run(tmp_path), "locks")
        assert isinstance(finding.error, errors.UnsupportedError)
        assert list(tmp_path.iterdir()) == []

    def test_no_extended_attributes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*args: object) -> None:
            raise OSError(errno.ENOTSUP, "Operation not supported")

        monkeypatch.setattr(os, "setxattr", refuse)
        monkeypatch.setattr(os, "getxattr", refuse)
        assert of(self.run(tmp_path), "extended attributes").state == "degraded"

    def test_no_hard_links(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*args: object, **options: object) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
        findings = self.run(tmp_path)
        assert "EPERM" in of(findings, "hard links").detail
        assert "failed" not in states(findings).values()

    def test_directories_that_cannot_be_synced(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fsync = os.fsync

        def files_only(fd: int) -> None:
            if os.path.isdir(f"/proc/self/fd/{fd}"):
                raise OSError(errno.EINVAL, "Invalid argument")
            fsync(fd)

        if not os.path.exists("/proc/self/fd"):
            pytest.skip("there is no /proc here")
        monkeypatch.setattr(os, "fsync", files_only)
        assert of(self.run(tmp_path), "fsync").state == "degraded"

    def test_what_a_killed_doctor_left_is_swept_away_after_an_hour(self, tmp_path: Path) -> None:
        for number, age_s in ((0, 7200), (1, 10)):
            left = tmp_path / f".ckptstore-doctor-{number:012x}"
            left.mkdir()
            (left / "trial").write_bytes(b"x")
            os.utime(left, (time.time() - age_s,) * 2)
        (tmp_path / ".ckptstore-doctor-mine").mkdir()
        self.run(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            f".ckptstore-doctor-{1:012x}",
            ".ckptstore-doctor-mine",
        ]

    def test_an_interrupt_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(*args: object, **options: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "link", interrupt)
        with pytest.raises(KeyboardInterrupt):
            self.run(tmp_path)
        assert list(tmp_path.iterdir()) == []


def test_a_wrapper_passes_the_questions_on(tmp_path: Path) -> None:
    wrapper = StorageWrapper(LocalStorage())
    assert isinstance(wrapper, Diagnosable)
    assert next(iter(wrapper.diagnose(str(tmp_path)))).check == "directory"
    with wrapper.scratch(str(tmp_path)) as place:
        assert isinstance(wrapper.put_new(f"{place}/x", b"x"), Committed)
    assert list(tmp_path.iterdir()) == []


def test_the_scratch_directory_is_the_directory_itself_where_none_need_be_made() -> None:
    with ObjectStorage(ScriptedTransport()).scratch("a/b") as place:
        assert place == "a/b"
