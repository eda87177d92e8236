"""Unfinished files of the local backend: written, made durable, then published or removed."""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING

from ckptstore.config import host_id
from ckptstore.errors import TransientError, UsageError
from ckptstore.storage.local.direct_io import DirectWriter, copy_through, direct_rules, write_all
from ckptstore.storage.local.directory import NO_ROOM, Directory, version_of
from ckptstore.storage.local.freeing import room_is_coming
from ckptstore.storage.local.locks import hold, lock_directory, mark_upload, release, writer_is_dead
from ckptstore.storage.local.mounts import file_system_type
from ckptstore.storage.values import Ambiguous, Committed, Lost

if TYPE_CHECKING:
    from ckptstore.storage.values import PutOutcome

__all__ = ["TempFile", "parse_temp_name", "stale_file"]

_TEMP_NAME = re.compile(r"(?P<final>.+)\.tmp-(?P<host>[0-9a-f]{8})-[0-9a-f]{16}", re.DOTALL)

_RESERVES = frozenset({"btrfs", "ext4", "f2fs", "tmpfs", "xfs"})
_WORTH_RESERVING_BYTES = 1 << 20


def parse_temp_name(name: str) -> tuple[str, str] | None:
    """Return the final name and the writer's host id if `name` is the name of an unfinished file."""
    match = _TEMP_NAME.fullmatch(name)
    return (match["final"], match["host"]) if match else None


class TempFile:
    """A file under a temporary name beside its final one, locked while it is open.

    Leaving the ``with`` block removes a file that was not published, and closes it. So does dropping the
    object, which happens when an interrupt arrives before the block is entered. In a forked child nothing
    is removed and no lock is released: both belong to the parent.

    Threads
    -------
    One thread at a time, except for `write_at`.
    """

    fd = -1

    def __init__(self, directory: Directory, final: str, *, is_upload: bool = False) -> None:
        # "" until `seal`; nothing is written after it is set.
        self.version = ""
        self._reserved_bytes = 0
        # Set at most once, before the first write; then it does all of them.
        self._direct: DirectWriter | None = None
        self._directory = directory
        self._final = final
        self._pid = os.getpid()
        # Set before the file exists, None once the name is gone from the directory. While it is set, `fd`
        # is open and locked by the process `_pid`, except between the lines of `_create` and after `close`.
        self._name: str | None = None
        try:
            # Again, if a search for leftovers found the file before it was locked.
            while self.fd < 0:
                self._create()
            if is_upload:
                mark_upload(self.fd)
        except BaseException:
            self.discard()
            self.close()
            raise

    def _create(self) -> None:
        # Before the file exists, so that an interrupt between the two lines leaves nothing behind.
        self._name = f"{self._final}.tmp-{host_id()}-{os.urandom(8).hex()}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self.fd = os.open(self._name, flags, 0o666, dir_fd=self._directory.fd)
        except OSError as error:
            # Nothing is read from it. rclone without a cache and Mountpoint for S3 refuse to open for both.
            self._create_for_writing(flags & ~os.O_RDWR | os.O_WRONLY, error)
        if not hold(self.fd):
            self.discard()
            self.close()
            return
        try:
            os.lstat(self._name, dir_fd=self._directory.fd)
        except FileNotFoundError:
            # Removed as a leftover before it was locked.
            self.close()

    def _create_for_writing(self, flags: int, refusal: OSError) -> None:
        if refusal.errno in (errno.ENOENT, errno.ENOTDIR, *NO_ROOM):
            raise refusal
        with suppress(OSError):
            self.discard()
        self._name = f"{self._final}.tmp-{host_id()}-{os.urandom(8).hex()}"
        try:
            self.fd = os.open(self._name, flags, 0o666, dir_fd=self._directory.fd)
        except OSError:
            raise refusal from None

    @property
    def is_ours(self) -> bool:
        """False in a forked child."""
        return self._pid == os.getpid()

    def reserve(self, size_bytes: int) -> None:
        """Reserve room for `size_bytes`, where the file system can without writing.

        A full disk then fails before the first byte is written, and the blocks of a large file lie together
        and are allocated at once: 1 GiB written and synced in 0.42 s instead of 0.52 s.
        """
        # On other file systems the C library writes into every block instead.
        if size_bytes >= _WORTH_RESERVING_BYTES and file_system_type(self.fd) in _RESERVES:
            # Before the call: it may have made the file longer, and fail all the same.
            self._reserved_bytes = size_bytes
            while True:
                try:
                    os.posix_fallocate(self.fd, 0, size_bytes)
                except OSError as error:
                    if error.errno == errno.ENOSPC and room_is_coming(self.fd):
                        continue
                    if error.errno in NO_ROOM:
                        raise
                break

    def use_direct_io(self) -> str | None:
        """Let `write_at` write past the page cache from now on; return the reason if that is not possible.

        Every offset must then be a multiple of a large power of two.
        """
        rules = direct_rules(self.fd)
        if isinstance(rules, str):
            return rules
        self._direct = DirectWriter(self.fd, rules, f"{self._directory.path}/{self._final}")
        return None

    def write_at(self, offset: int, pieces: Sequence[memoryview]) -> None:
        """Write all of `pieces`, flat views of bytes, one after another from byte `offset` on.

        Threads
        -------
        Several at the same time, at different offsets.
        """
        if self._direct is None:
            write_all(self.fd, offset, pieces)
        else:
            self._direct.write_at(offset, pieces)

    def write_copies_at(self, offset: int, pieces: Sequence[memoryview]) -> list[int]:
        """Write as `write_at`, a copy; return the CRC32C of each piece as it was written."""
        if self._direct is None:
            return copy_through(offset, pieces, lambda at, data: write_all(self.fd, at, (data,)))
        return self._direct.write_copies_at(offset, pieces)

    def seal(self, size_bytes: int, *, replaces: os.stat_result | None = None) -> None:
        """Make the bytes durable, if the directory is synced, and fix the version.

        Nothing may be written after that.

        Parameters
        ----------
        size_bytes : int
            How many were written.
        replaces : os.stat_result, optional
            The file that this one is to replace: its mode is kept, and its version never returns.
        """
        if self._direct is not None:
            self._direct.finish()
        if size_bytes < self._reserved_bytes:
            os.ftruncate(self.fd, size_bytes)
        stamp_ns = time.time_ns()
        if replaces is not None:
            mode = stat.S_IMODE(replaces.st_mode)
            if mode != stat.S_IMODE(os.fstat(self.fd).st_mode):
                # A mount that refuses it gives all its files one mode.
                with suppress(OSError):
                    os.fchmod(self.fd, mode)
            stamp_ns = max(stamp_ns, replaces.st_mtime_ns + 1)
        # The system's own stamps may repeat within a timer tick (Linux before 6.13: 1 to 10 ms), and inodes
        # are reused: if A, B and C are written within a tick, C could get the version of A, and a swap that
        # expects A would destroy C.
        with suppress(OSError):
            os.utime(self.fd, ns=(stamp_ns, stamp_ns))
        if self._directory.is_synced:
            os.fsync(self.fd)
        self.version = version_of(os.fstat(self.fd))

    def publish(self) -> PutOutcome:
        """Give the sealed file its final name if that is free; durable when the answer is `Committed`."""
        # Not rename, which replaces an existing file.
        problem = self._give_name(os.link)
        if isinstance(problem, FileExistsError) and self._exists(self._final):
            return self._lost_to()
        if isinstance(problem, FileNotFoundError) and not self._exists(str(self._name)):
            raise TransientError(
                "the unfinished file was removed while it was written",
                url=f"{self._directory.path}/{self._final}",
                hint="A clean-up took it for a leftover: raise its minimum age above the longest save.",
            ) from problem
        if isinstance(problem, OSError):
            if problem.errno in NO_ROOM:
                raise problem
            return self._publish_without_link()
        return problem or self._sync_directory()

    def _exists(self, name: str) -> bool:
        try:
            os.lstat(name, dir_fd=self._directory.fd)
        except FileNotFoundError:
            return False
        return True

    def _publish_without_link(self) -> PutOutcome:
        with lock_directory(self._directory.fd, self._directory.path):
            if self._exists(self._final):
                return self._lost_to()
            unknown = self._rename()
        return unknown or self._sync_directory()

    def replace(self, version: str) -> PutOutcome:
        """Put the sealed file in the place of `version`; durable when the answer is `Committed`."""
        with lock_directory(self._directory.fd, self._directory.path):
            status = self._directory.status(self._final)
            if status is None or version_of(status) != version:
                return Lost(None if status is None else version_of(status))
            unknown = self._rename()
        return unknown or self._sync_directory()

    def _rename(self) -> Ambiguous | None:
        problem = self._give_name(os.rename)
        if isinstance(problem, OSError):
            raise problem
        if problem is None:
            self._name = None
        return problem

    def _give_name(self, call: Callable[..., None]) -> OSError | Ambiguous | None:
        """Link or rename to the final name; return the error if that did not happen, None if it did."""
        fd = self._directory.fd
        try:
            call(self._name, self._final, src_dir_fd=fd, dst_dir_fd=fd)
        except OSError as error:
            # On a network file system the answer may be lost, or the call repeated, so that the second one
            # finds the file of the first. A false error would make the caller delete what a visible file
            # needs. Without following a symbolic link: the file is never one, and a loop of links is an
            # error.
            try:
                if version_of(os.lstat(self._final, dir_fd=fd)) != self.version:
                    return error
            except FileNotFoundError:
                return error
            except OSError as second:
                return Ambiguous(f"{error.strerror}; whether the file is in place: {second.strerror}")
        return None

    def _lost_to(self) -> Lost:
        status = self._directory.status(self._final)
        if status is not None:
            return Lost(version_of(status))
        try:
            os.lstat(self._final, dir_fd=self._directory.fd)
        except FileNotFoundError:
            return Lost(None)
        raise UsageError(
            "a broken symbolic link has the name of the file",
            url=f"{self._directory.path}/{self._final}",
            hint="Restore its target, or save under another name.",
        )

    def _sync_directory(self) -> PutOutcome:
        """Make the final name durable, after the temporary one is gone."""
        # A name that cannot be removed is left to `abort_stale_uploads`.
        with suppress(OSError):
            self.discard()
        self._name = None
        try:
            self._directory.sync()
        except OSError as error:
            # Readers already see the file, so the caller must not clean up as after a failure.
            return Ambiguous(f"the file is in place, but its directory could not be synced: {error.strerror}")
        return Committed(self.version)

    def discard(self) -> None:
        """Remove the temporary name, if it is still there."""
        # May run in several threads at once, whose writes failed together on a full disk.
        name = self._name
        if name is not None and self.is_ours:
            with suppress(FileNotFoundError):
                self._directory.unlink(name)
            self._name = None

    def close(self) -> None:
        """Release the lock; the file stays as it is."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            if self.is_ours:
                release(fd)
            with suppress(OSError):
                os.close(fd)

    def __del__(self) -> None:
        if self.fd >= 0:
            with suppress(OSError):
                self.discard()
            self.close()

    def __enter__(self) -> TempFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.discard()
        except OSError as failure:
            if error is None:
                raise
            error.add_note(f"the unfinished file {self._name} could not be removed: {failure.strerror}")
        finally:
            self.close()


@contextmanager
def stale_file(
    directory: Directory, name: str, host: str, min_age_s: float
) -> Iterator[os.stat_result | None]:
    """Give the status of an unfinished file whose writer is provably dead, or wrote last so long ago.

    None of any other. Within the block a dead writer's file is locked: a writer that has just made it fails
    to lock it and makes another, so it may be removed there.
    """
    with ExitStack() as stack:
        stale = None
        try:
            status = os.lstat(name, dir_fd=directory.fd)
            if stat.S_ISREG(status.st_mode):
                if time.time() - status.st_mtime >= min_age_s:
                    stale = status
                else:
                    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                    fd = os.open(name, flags, dir_fd=directory.fd)
                    stack.callback(os.close, fd)
                    stale = status if stack.enter_context(writer_is_dead(fd, host)) else None
        except FileNotFoundError:
            pass
        yield stale
