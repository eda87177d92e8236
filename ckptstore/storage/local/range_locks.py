"""Locks on single bytes of a file, for those who share work: they may save it, and prove nothing.

On some file systems a lock is granted to everybody, or never. Whoever uses these must be right without them.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from contextlib import suppress

__all__ = ["RangeLocks"]

# In the file: when the holder of a byte got on last. Bytes share them, so that they take one block.
_BEATS = 512
_BEAT_SIZE_BYTES = 8


class RangeLocks:
    """The locks that one open file description holds; they end with `close`, or with the process.

    Those of two objects exclude each other also within a process. A forked child has those of its parent
    until the parent gives them up; if the parent is killed, as long as the child lives.

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
        self._pid = os.getpid()

    def close(self) -> None:
        """Give up all locks; in a forked child those of the parent stay."""
        if self._fd >= 0:
            # Closing alone would leave them to the children that were forked meanwhile.
            if self._pid == os.getpid():
                self._set(fcntl.F_UNLCK, 0, 0)
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

    def beat(self, offset: int) -> None:
        """Show those who wait for a byte that its holder gets on."""
        with suppress(OSError):
            beat = time.monotonic_ns().to_bytes(_BEAT_SIZE_BYTES, "little")
            os.pwrite(self._fd, beat, offset % _BEATS * _BEAT_SIZE_BYTES)

    def last_beat(self, offset: int) -> bytes:
        """Return what changes when the holder of a byte gets on; that of another byte may change it too."""
        with suppress(OSError):
            return os.pread(self._fd, _BEAT_SIZE_BYTES, offset % _BEATS * _BEAT_SIZE_BYTES)
        return b""

    def _set(self, kind: int, offset: int, size_bytes: int = 1) -> bool:
        command = getattr(fcntl, "F_OFD_SETLK", None)
        if command is None:
            return True
        # struct flock (fcntl(2)): type, whence, start, length (0: all), pid; the pid must be 0.
        try:
            fcntl.fcntl(self._fd, command, struct.pack("hhqqi4x", kind, os.SEEK_SET, offset, size_bytes, 0))
        except (BlockingIOError, PermissionError):
            return False
        except OSError:
            return True  # no locks here
        return True
