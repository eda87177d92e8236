"""A file of which only some ranges were written: it grows, is read, mapped, and never cut."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from ckptstore.storage.local.mapping import map_file

__all__ = ["SparseFile"]

_MAX_WRITE_BYTES = 1 << 29  # Linux moves at most 2 GiB in one call

# What lseek answers if there is nothing but a hole up to the end.
_NO_DATA = errno.ENXIO


class SparseFile:
    """An open file that is filled range by range, by several processes.

    A range that was never written is a hole. It reads as zeros, and must not be touched through `view`: on a
    full tmpfs that ends the process with SIGBUS. Bytes that were written can be.

    Parameters
    ----------
    path : str
        Made if it is missing, for its owner alone.
    flags : int
        Of `os.open`.

    Raises
    ------
    OSError
        Every method.

    Threads
    -------
    Safe for concurrent use. After a fork both processes may go on.
    """

    _fd = -1

    def __init__(self, path: str, flags: int = os.O_RDWR | os.O_CREAT) -> None:
        self._fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    @classmethod
    def existing(cls, path: str) -> SparseFile:
        """Open a file to read it.

        Raises
        ------
        FileNotFoundError
            If it is missing.
        """
        return cls(path, os.O_RDONLY)

    @staticmethod
    def length(path: str) -> int | None:
        """Return the length of a file, holes included, without opening it; None if it is missing."""
        try:
            return os.stat(path, follow_symlinks=False).st_size
        except FileNotFoundError:
            return None

    @property
    def size_bytes(self) -> int:
        """The length, holes included."""
        return os.fstat(self._fd).st_size

    def grow(self, size_bytes: int) -> None:
        """Make it at least so long; what is added is a hole."""
        if self.size_bytes < size_bytes:
            os.truncate(self._fd, size_bytes)

    def view(self) -> memoryview | None:
        """Return all of it as read-only memory; None where it cannot be mapped."""
        return map_file(self._fd, self.size_bytes)

    def holes(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges in ``[start, stop)`` that were never written, as far as the file system tells."""
        at = start
        while at < stop:
            low = os.lseek(self._fd, at, os.SEEK_HOLE)
            if low >= stop:
                return
            try:
                at = os.lseek(self._fd, low, os.SEEK_DATA)
            except OSError as error:
                if error.errno != _NO_DATA:
                    raise
                at = stop
            yield low, min(at, stop)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`; a hole gives zeros.

        Raises
        ------
        OSError
            Also if the file ends before.
        """
        while len(buffer):
            count = os.preadv(self._fd, [buffer[:_MAX_WRITE_BYTES]], offset)
            if not count:
                raise OSError(errno.EIO, "the file ends before the range does")
            buffer, offset = buffer[count:], offset + count

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of `data`; some of it may be there after an error."""
        while len(data):
            count = os.pwrite(self._fd, data[:_MAX_WRITE_BYTES], offset)
            data, offset = data[count:], offset + count
