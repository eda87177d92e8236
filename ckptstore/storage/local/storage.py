"""Files on a disk of this machine, or on one that it has mounted.

Guarantees
----------
Acknowledged changes are on the disk: data and directory entries are synced first. (The `without_sync`
storage leaves that to the system: after a power cut its files may be empty or missing.) Whatever call the
process dies in, a reader sees the old file or the new one. What can be left behind is a file named
``<final>.tmp-<host>-<random>``, which no listing shows and `abort_stale_uploads` removes.

A directory gets at most one additional file: the lock, made by the first `put_if` or `delete_if`. Reading
needs neither a lock nor the right to write.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from ckptstore.errors import CkptStoreError, UsageError, from_os_error
from ckptstore.storage.abilities import (
    Diagnosable,
    KnowsWriters,
    ListsUploads,
    MarksUploads,
    SupportsCopies,
    SupportsRelaxedDurability,
    SupportsViews,
)
from ckptstore.storage.base import Storage
from ckptstore.storage.checks import byte_view, check_pin, resolve_range, resolve_reads, truncated
from ckptstore.storage.local.clone import age_stamp_s, copy_file
from ckptstore.storage.local.diagnosis import diagnose_directory, scratch_directory
from ckptstore.storage.local.directory import Directory, check_regular, translate_errors, version_of
from ckptstore.storage.local.freeing import free_later, hold_blocks
from ckptstore.storage.local.locks import (
    LOCK_NAME,
    is_held,
    lock_directory,
    mark_needed,
    upload_mark,
    writer_is_dead,
)
from ckptstore.storage.local.mapping import map_file
from ckptstore.storage.local.temp_file import TempFile, parse_temp_name, stale_file
from ckptstore.storage.local.upload import LocalUpload
from ckptstore.storage.values import Capabilities, GetResult, Lost, ObjectInfo, PutOutcome, SuffixRange

if TYPE_CHECKING:
    from ckptstore.storage.finding import Finding
    from ckptstore.storage.values import Buffer
    from ckptstore.types import ByteRange

__all__ = ["LocalStorage"]

# Linux moves at most 2 GiB in one call.
_MAX_READ_BYTES = 1 << 29
_MAX_BUFFERS = 1024  # IOV_MAX

_LARGE_READ_BYTES = 1 << 20


class LocalStorage(
    Storage,
    SupportsViews,
    SupportsCopies,
    SupportsRelaxedDurability,
    KnowsWriters,
    ListsUploads,
    MarksUploads,
    Diagnosable,
):
    """The file system of this machine; keys are absolute POSIX paths."""

    capabilities = Capabilities(
        backend="local",
        create_if_absent=True,
        compare_and_swap=True,
        conditional_delete=True,
        durable_when_acknowledged=True,
        checksum_proved_by_store=False,
        several_hosts=False,
    )
    parallel_reads = min(4, os.cpu_count() or 1)

    def __init__(self, *, is_synced: bool = True) -> None:
        self._is_synced = is_synced
        self._unsynced = self if not is_synced else type(self)(is_synced=False)
        if not is_synced:
            self.capabilities = replace(type(self).capabilities, durable_when_acknowledged=False)

    def without_sync(self) -> LocalStorage:
        return self._unsynced

    @property
    def server(self) -> str:
        return ""

    def url_of(self, key: str) -> str:
        return key or "/"

    def get(
        self, key: str, byte_range: ByteRange | SuffixRange | None = None, *, version: str | None = None
    ) -> GetResult:
        with _open_file(key, version) as (fd, status):
            start, stop = resolve_range(byte_range, status.st_size, key)
            return GetResult(_read(fd, start, stop, key), version_of(status), status.st_size)

    def read_into(
        self,
        key: str,
        ranges: Sequence[ByteRange],
        buffers: Sequence[memoryview],
        *,
        version: str | None = None,
    ) -> None:
        with _open_file(key, version) as (fd, status):
            reads = resolve_reads(ranges, buffers, status.st_size, key)
            if reads and reads[-1][1] - reads[0][0] >= _LARGE_READ_BYTES:
                _expect_large_reads(fd)
            # Neighbours in the file are read by one call: a hundred thousand small tensors lie end to end.
            start = stop = 0
            batch: list[memoryview] = []
            for range_start, range_stop, buffer in reads:
                if range_start != stop or len(batch) == _MAX_BUFFERS or stop - start >= _MAX_READ_BYTES:
                    _fill(fd, start, stop, batch, key)
                    start, batch = range_start, []
                batch.append(buffer)
                stop = range_stop
            _fill(fd, start, stop, batch, key)

    def view(self, key: str, *, version: str) -> memoryview | None:
        """Return the file as mapped memory; the module `mapping` says what can go wrong with that."""
        with _open_file(key, version) as (fd, status):
            return map_file(fd, status.st_size)

    def head(self, key: str) -> ObjectInfo:
        _split(key)
        with translate_errors("cannot read", key):
            status = os.stat(key)
            check_regular(status, key)
        return _info(key, status)

    def put_new(self, key: str, data: Buffer) -> PutOutcome:
        path, name = _split(key)
        view = byte_view(data)
        with (
            translate_errors("cannot create", key),
            Directory.open_or_make(path, is_synced=self._is_synced) as directory,
            TempFile(directory, name) as temp,
        ):
            temp.write_at(0, (view,))
            temp.seal(len(view))
            return temp.publish()

    def put_if(self, key: str, data: Buffer, version: str) -> PutOutcome:
        path, name = _split(key)
        view = byte_view(data)
        with translate_errors("cannot replace", key):
            try:
                directory = Directory(path, is_synced=self._is_synced)
            except FileNotFoundError:
                return Lost(None)
            with directory:
                old = directory.status(name)
                if old is None or version_of(old) != version:
                    return Lost(None if old is None else version_of(old))
                with TempFile(directory, name) as temp:
                    temp.write_at(0, (view,))
                    temp.seal(len(view), replaces=old)
                    return temp.replace(version)

    def upload(self, key: str, size_bytes: int | None = None) -> LocalUpload:
        path, name = _split(key)
        with translate_errors("cannot create", key):
            directory = Directory.open_or_make(path, is_synced=self._is_synced)
            try:
                return LocalUpload(directory, name, key, size_bytes)
            except BaseException:
                directory.close()
                raise

    def copy_from(self, source_key: str, target_key: str, version: str) -> PutOutcome | None:
        path, name = _split(target_key)
        with (
            _open_file(source_key, version) as (fd, status),
            translate_errors("cannot create", target_key),
            Directory.open_or_make(path, is_synced=self._is_synced) as directory,
        ):
            return copy_file(fd, status, directory, name)

    def make_durable(self, key: str, version: str) -> None:
        if not self._is_synced:
            return
        path, _ = _split(key)
        with (
            _open_file(key, version) as (fd, _status),
            translate_errors("cannot make durable", key),
            Directory(path) as directory,
        ):
            os.fsync(fd)
            directory.sync()

    def delete_if(self, key: str, version: str) -> bool:
        path, name = _split(key)
        with translate_errors("cannot delete", key):
            try:
                directory = Directory(path, is_synced=self._is_synced)
            except FileNotFoundError:
                return True
            with directory:
                status = directory.status(name)
                if status is None or version_of(status) != version:
                    return status is None
                with lock_directory(directory.fd, path):
                    status = directory.status(name)
                    if status is None or version_of(status) != version:
                        return status is None
                    os.unlink(name, dir_fd=directory.fd)
                # The next deletes may be of files that this one names: a power cut must not reorder them.
                directory.sync()
        return True

    def delete_many(self, keys: Sequence[str]) -> None:
        failures: list[CkptStoreError] = []
        touched: set[str] = set()
        held: list[int] = []
        try:
            for key in keys:
                path, _ = _split(key)
                fd = hold_blocks(key)
                if fd is not None:
                    held.append(fd)
                try:
                    os.unlink(key)
                    touched.add(path)
                except FileNotFoundError:
                    pass
                except OSError as error:
                    failures.append(from_os_error(error, "cannot delete", key))
            self._sync(touched, failures)
        finally:
            free_later(held)
        if failures:
            for other in failures[1:]:
                failures[0].add_note(str(other))
            raise failures[0]

    def _sync(self, paths: Iterable[str], failures: list[CkptStoreError]) -> None:
        """Make deletes in these directories durable; add what fails to `failures`."""
        for path in paths:
            try:
                with Directory(path, is_synced=self._is_synced) as directory:
                    directory.sync()
            except FileNotFoundError:
                pass
            except OSError as error:
                failures.append(from_os_error(error, "cannot make deletes durable", path))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        path, start = _split(prefix, is_prefix=True)
        with translate_errors("cannot list", path):
            return iter(_children(path, prefix[: len(prefix) - len(start)], start))

    def abort_stale_uploads(self, prefix: str, min_age_s: float) -> int:
        dropped = 0
        with translate_errors("cannot clean up unfinished uploads", _split(prefix, is_prefix=True)[0]):
            for directory, name, _ in _stale_files(prefix, min_age_s):
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=directory.fd)
                    dropped += 1
        return dropped

    def stale_uploads(self, prefix: str, min_age_s: float) -> Sequence[ObjectInfo]:
        path, start = _split(prefix, is_prefix=True)
        root = prefix[: len(prefix) - len(start)]
        with translate_errors("cannot look at unfinished uploads", path):
            return [
                ObjectInfo(root + name, status.st_size, version_of(status), status.st_mtime_ns / 1e9)
                for _, name, status in _stale_files(prefix, min_age_s)
            ]

    def is_abandoned(self, key: str) -> bool:
        """Return whether an upload made this file and its writer is provably dead.

        That is: its lock is free, and it was made on this machine since the last boot, or lies on a file
        system that only this machine can have mounted. False for files that no upload made, whose writers
        take no locks, for those that an index names, and where files cannot be marked.
        """
        _split(key)
        try:
            fd = os.open(key, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            host = upload_mark(fd)
            if host is None:
                return False
            with writer_is_dead(fd, host) as dead:
                return dead
        finally:
            os.close(fd)

    def mark_needed(self, keys: Sequence[str]) -> None:
        for key in keys:
            mark_needed(key, is_needed=True)

    def mark_unneeded(self, keys: Sequence[str]) -> None:
        for key in keys:
            mark_needed(key, is_needed=False)

    def is_upload(self, key: str) -> bool:
        """Return whether an upload made this file; where files cannot be marked, whether it is open still."""
        _split(key)
        try:
            fd = os.open(key, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.ELOOP:
                # A symbolic link, such as git-annex makes.
                return False
            raise from_os_error(error, "cannot see who wrote the file", key) from error
        try:
            with translate_errors("cannot see who wrote the file", key):
                return bool(upload_mark(fd)) or is_held(fd)
        finally:
            os.close(fd)

    def diagnose(self, directory_key: str, *, read_only: bool = False) -> Sequence[Finding]:
        return list(diagnose_directory(directory_key, read_only=read_only))

    def scratch(self, directory_key: str) -> AbstractContextManager[str]:
        return scratch_directory(directory_key)

    def is_in_use(self, key: str) -> bool:
        _split(key)
        try:
            fd = os.open(key, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            with translate_errors("cannot see whether the file is in use", key):
                return is_held(fd)
        finally:
            os.close(fd)


def _split(key: str, *, is_prefix: bool = False) -> tuple[str, str]:
    """Return the path of the directory and the name (or its beginning) in it."""
    head, slash, name = key.rpartition("/")
    try:
        os.fsencode(key)
    except UnicodeEncodeError as error:
        raise UsageError(
            "this path cannot be expressed in the encoding of the file system", url=ascii(key)
        ) from error
    if "\0" in key:
        raise UsageError("a path cannot hold a NUL character", url=ascii(key), hint="Choose another name.")
    if not key.startswith("/") or (not is_prefix and name in ("", ".", "..")):
        raise UsageError("this is not the absolute path of a file", url=key)
    return head or slash, name


def _info(key: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, status.st_size, version_of(status), age_stamp_s(key, status))


def _stale_files(prefix: str, min_age_s: float) -> Iterator[tuple[Directory, str, os.stat_result]]:
    """Yield unfinished files of names that begin with `prefix`; that of a dead writer is locked meanwhile."""
    path, start = _split(prefix, is_prefix=True)
    try:
        directory = Directory(path)
    except FileNotFoundError:
        return
    with directory:
        for name in sorted(os.listdir(directory.fd)):
            parsed = parse_temp_name(name) if name.startswith(start) else None
            if parsed is not None and parsed[0].startswith(start):
                with stale_file(directory, name, parsed[1], min_age_s) as status:
                    if status is not None:
                        yield directory, name, status


def _children(path: str, shown: str, start: str) -> list[ObjectInfo]:
    found: list[ObjectInfo] = []
    try:
        entries = os.scandir(path)
    except FileNotFoundError:
        return found
    with entries:
        for entry in entries:
            name = entry.name
            if not name.startswith(start) or name == LOCK_NAME or parse_temp_name(name):
                continue
            try:
                if entry.is_file():
                    found.append(_info(shown + name, entry.stat()))
            except OSError as error:
                # Deleted since the directory was read, or a symbolic link in a circle.
                if error.errno not in (errno.ENOENT, errno.ESTALE, errno.ELOOP):
                    raise
    found.sort(key=lambda info: info.key)
    return found


@contextmanager
def _open_file(key: str, version: str | None) -> Iterator[tuple[int, os.stat_result]]:
    _split(key)
    with translate_errors("cannot read", key):
        # Not blocking: opening a named pipe would wait for its writer.
        fd = os.open(key, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            check_regular(status, key)
            check_pin(version, version_of(status), key)
            yield fd, status
        finally:
            # An error here takes nothing back: the bytes were read, or the copy was made.
            with suppress(OSError):
                os.close(fd)


def _expect_large_reads(fd: int) -> None:
    """Let the system read twice as far ahead.

    1 GiB that is not in the page cache, by ranges of 8 MiB: a quarter faster with two threads, an eighth
    with four. WILLNEED is no better, and cached files take as long as before. Direct I/O would save another
    third, but leave nothing in the cache for other processes that restore the same file.
    """
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)


def _read(fd: int, start: int, stop: int, url: str) -> bytes:
    pieces = []
    at = start
    while at < stop:
        piece = os.pread(fd, min(stop - at, _MAX_READ_BYTES), at)
        if not piece:
            raise truncated(url, start, stop, at)
        at += len(piece)
        pieces.append(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _fill(fd: int, start: int, stop: int, buffers: list[memoryview], url: str) -> None:
    at = start
    while at < stop:
        count = os.preadv(fd, buffers, at)
        if not count:
            raise truncated(url, start, stop, at)
        at += count
        if at < stop:
            buffers = _unfilled(buffers, count)


def _unfilled(buffers: list[memoryview], count: int) -> list[memoryview]:
    """Return `buffers` without their first `count` bytes."""
    for position, buffer in enumerate(buffers):
        if count < buffer.nbytes:
            return [buffer.cast("B")[count:], *buffers[position + 1 :]]
        count -= buffer.nbytes
    return []
