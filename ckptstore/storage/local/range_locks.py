"""Locks on single bytes of a file, for those who share work: they may save it, and prove nothing.

On some file systems a lock is granted to everybody, or never. Whoever uses these must be right without them.
"""

from __future__ import annotations

import fcntl
import os
import struct

__all__ = ["RangeLocks"]


class RangeLocks:
    """The locks that one open file description holds; they end when it is closed, whatever ends the process.

    Those of two objects exclude each other also within a process.

    Parameters
    ----------
    path : str
        The file; made if it is missing.

    Threads
    -------
    Safe for concurrent use.
    """

    _fd = -1

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def close(self) -> None:
        """Give up all locks."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __del__(self) -> None:
        self.close()

    def is_at(self, path: str) -> bool:
        """Return whether the file still has this name."""
        try:
            return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(self._fd))
        except FileNotFoundError:
            return False

    def acquire(self, offset: int, *, shared: bool = False) -> bool:
        """Lock one byte if nobody else has it; return whether it may be used as if it were."""
        return self._set(fcntl.F_RDLCK if shared else fcntl.F_WRLCK, offset)

    def release(self, offset: int) -> None:
        """Unlock one byte."""
        self._set(fcntl.F_UNLCK, offset)

    def _set(self, kind: int, offset: int) -> bool:
        command = getattr(fcntl, "F_OFD_SETLK", None)
        if command is None:
            return True
        # struct flock (fcntl(2)): type, whence, start, length, pid; the pid must be 0.
        try:
            fcntl.fcntl(self._fd, command, struct.pack("hhqqi4x", kind, os.SEEK_SET, offset, 1, 0))
        except (BlockingIOError, PermissionError):
            return False
        except OSError:
            return True  # no locks here
        return True
