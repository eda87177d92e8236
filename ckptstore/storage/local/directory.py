"""Directories of the local backend; versions and errors of files as the storage reports them."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from types import TracebackType

from ckptstore.errors import CkptStoreError, UsageError, from_os_error

__all__ = ["NO_ROOM", "Directory", "check_regular", "translate_errors", "version_of"]

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""The answers of a call that works and finds the disk full.

Where a call is only one way of several, every other answer leads to the next way: mounts of FUSE and of the
network refuse what they do not have with whatever error they like, EIO and EACCES included.
"""

# Answers of file systems that cannot sync a directory.
_NO_DIRECTORY_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})


def version_of(status: os.stat_result) -> str:
    """Return the version of the file with this status: the same on all hosts that share the directory.

    Without the number of the device, which each mount of a network file system gives anew.
    """
    return f"{status.st_ino}:{status.st_mtime_ns}:{status.st_size}"


def check_regular(status: os.stat_result, url: str) -> None:
    """Raise `UsageError` unless the status is that of a regular file."""
    if stat.S_ISDIR(status.st_mode):
        raise from_os_error(OSError(errno.EISDIR, os.strerror(errno.EISDIR)), "this is not a file", url)
    if not stat.S_ISREG(status.st_mode):
        raise UsageError("this is not a regular file", url=url, hint="Choose another path.")


class translate_errors:  # noqa: N801 (like those of contextlib)
    """Turn errors of the operating system into those of ckptstore.

    A class, not a generator: since Python 3.12 an error that a generator raises in `except` is in a cycle
    with its traceback. That keeps the frames of callers, and what they hold, until garbage is collected.
    """

    __slots__ = ("_url", "_what")

    def __init__(self, what: str, url: str) -> None:
        self._what = what
        self._url = url

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Several errors of ckptstore are OSErrors too.
        if isinstance(error, OSError) and not isinstance(error, CkptStoreError):
            raise from_os_error(error, self._what, self._url) from error


class Directory:
    """An open directory. Names in it stay valid if it is moved meanwhile. Close it.

    Parameters
    ----------
    is_synced : bool
        Whether changes in it wait for the disk.
    """

    fd = -1

    def __init__(self, path: str, *, is_synced: bool = True) -> None:
        self.path = path
        self.is_synced = is_synced
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    @classmethod
    def open_or_make(cls, path: str, *, is_synced: bool = True) -> Directory:
        """Open the directory; make it first, durably, if it is missing."""
        try:
            return cls(path, is_synced=is_synced)
        except FileNotFoundError:
            _make_directories(path, is_synced=is_synced)
            return cls(path, is_synced=is_synced)

    def close(self) -> None:
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            # An error loses nothing: everything that matters was synced.
            with suppress(OSError):
                os.close(fd)

    def __del__(self) -> None:
        self.close()

    def __enter__(self) -> Directory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def status(self, name: str) -> os.stat_result | None:
        """Return the status of the file `name`, through a symbolic link; None if there is none.

        Raises
        ------
        UsageError
            If it is a directory or another thing without bytes.
        """
        try:
            status = os.stat(name, dir_fd=self.fd)
        except FileNotFoundError:
            return None
        check_regular(status, f"{self.path}/{name}")
        return status

    def unlink(self, name: str) -> None:
        """Remove `name`, even after `close`."""
        if self.fd >= 0:
            os.unlink(name, dir_fd=self.fd)
        else:
            os.unlink(f"{self.path}/{name}")

    def sync(self) -> None:
        """Make the names in it durable."""
        if not self.is_synced:
            return
        try:
            os.fsync(self.fd)
        except OSError as error:
            if error.errno not in _NO_DIRECTORY_SYNC:
                raise


def _make_directories(path: str, *, is_synced: bool) -> None:
    # Not os.makedirs: each new name must be durable in its parent before anything relies on it.
    pending = [path]
    visited: set[str] = set()
    while pending:
        current = pending[-1]
        parent = os.path.dirname(current)
        try:
            os.mkdir(current)
        except FileNotFoundError:
            if parent in visited:
                # It exists, but nothing can be made in it: a broken symbolic link, or it was removed again.
                raise
            visited.add(parent)
            pending.append(parent)
            continue
        except FileExistsError:
            # Another process made it, perhaps so recently that it is not synced yet.
            pass
        pending.pop()
        # A parent that may be entered but not read belongs to somebody else, who is responsible for it.
        with suppress(PermissionError), Directory(parent, is_synced=is_synced) as holder:
            holder.sync()
