"""Directories of the local backend, and how what the system says of files is put."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType

from ckptstore.errors import CkptStoreError, UsageError, from_os_error

__all__ = ["Directory", "check_regular", "translated", "version_of"]

# What file systems answer that have nothing to sync in a directory.
_NO_DIRECTORY_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP})


def version_of(status: os.stat_result) -> str:
    """Return the version of the file with this status."""
    return f"{status.st_dev}:{status.st_ino}:{status.st_mtime_ns}:{status.st_size}"


def check_regular(status: os.stat_result, url: str) -> None:
    """Raise `UsageError` if the status is not that of a regular file."""
    if stat.S_ISDIR(status.st_mode):
        raise from_os_error(OSError(errno.EISDIR, os.strerror(errno.EISDIR)), "this is not a file", url)
    if not stat.S_ISREG(status.st_mode):
        raise UsageError("this is not a regular file", url=url, hint="Remove it or choose another path.")


@contextmanager
def translated(what: str, url: str) -> Iterator[None]:
    """Turn errors of the operating system into those of ckptstore."""
    try:
        yield
    except CkptStoreError:
        # Several of them are OSErrors too.
        raise
    except OSError as error:
        raise from_os_error(error, what, url) from error


class Directory:
    """An open directory: names in it keep their meaning when it is moved meanwhile. Close it.

    Parameters
    ----------
    path : str
    is_synced : bool
        Whether what is done in it waits for the disk.
    """

    fd = -1

    def __init__(self, path: str, *, is_synced: bool = True) -> None:
        self.path = path
        self.is_synced = is_synced
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    @classmethod
    def made(cls, path: str, *, is_synced: bool = True) -> Directory:
        """Open the directory; where it is missing, make it first, durably."""
        try:
            return cls(path, is_synced=is_synced)
        except FileNotFoundError:
            _make_directories(path, is_synced=is_synced)
            return cls(path, is_synced=is_synced)

    def close(self) -> None:
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            # Whatever it says, there is nothing more to lose: what counts was synced.
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
        """Return the status of the file `name`, through a symbolic link; None if nothing is there.

        Raises
        ------
        UsageError
            If a directory or another thing without bytes is there.
        """
        try:
            status = os.stat(name, dir_fd=self.fd)
        except FileNotFoundError:
            return None
        check_regular(status, f"{self.path}/{name}")
        return status

    def unlink(self, name: str) -> None:
        """Remove `name`, even when the directory was closed before."""
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
                # It is there, yet nothing can be made in it: a symbolic link to nowhere, or removed again.
                raise
            visited.add(parent)
            pending.append(parent)
            continue
        except FileExistsError:
            # Another maker was faster, perhaps by so little that its sync is still to come.
            pass
        pending.pop()
        # A directory above that we may enter but not read is not ours; its owner sees to it.
        with suppress(PermissionError), Directory(parent, is_synced=is_synced) as holder:
            holder.sync()
