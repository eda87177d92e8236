"""A large file for a file system of fsspec: collected on this machine, written when it is complete."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from typing import IO

from ckptstore.errors import from_os_error
from ckptstore.storage.upload import Upload
from ckptstore.storage.values import PutOutcome

__all__ = ["GenericUpload"]

# More than that goes to the temporary directory: several shards may be under way.
_IN_MEMORY_BYTES = 16 * 1024 * 1024


class GenericUpload(Upload):
    """Bytes in memory, or in a temporary file.

    fsspec's own writers are not used: they publish what they have after an exception or when collected.

    Parameters
    ----------
    put : callable
        ``put(data, local_path)`` writes one of the two.
    forget : callable
        Called when the upload is over, at least once.
    """

    def __init__(
        self,
        key: str,
        url: str,
        put: Callable[[bytes | None, str], PutOutcome],
        forget: Callable[[GenericUpload], object],
    ) -> None:
        super().__init__(url)
        self.key = key
        self.started_s = time.monotonic()
        self._put = put
        self._forget = forget
        self._data = bytearray()
        self._file: IO[bytes] | None = None
        self._remove_file: Callable[[], object] = lambda: None

    def _send(self, number: int, pieces: Sequence[memoryview], crc32c: int, is_last: bool) -> None:
        size_bytes = len(self._data) + sum(map(len, pieces))
        if self._file is None and size_bytes <= _IN_MEMORY_BYTES:
            for piece in pieces:
                self._data += piece
            return
        try:
            if self._file is None:
                # Python would delete the file when a forked child drops its copy of the upload.
                self._file = tempfile.NamedTemporaryFile(prefix="ckptstore-", delete=False)  # noqa: SIM115
                self._remove_file = weakref.finalize(self, _remove, self._file, os.getpid())
                self._file.write(self._data)
                self._data = bytearray()
            for piece in pieces:
                self._file.write(piece)
            # A child has a copy of what is still in the buffer, and would write it when it ends.
            self._file.flush()
        except OSError as error:
            raise from_os_error(error, "cannot collect the upload", tempfile.gettempdir()) from error

    def _on_failed_part(self) -> None:
        self._release()

    def _commit(self, size_bytes: int, crc32c: int) -> PutOutcome:
        try:
            if self._file is None:
                return self._put(bytes(self._data), "")
            return self._put(None, self._file.name)
        finally:
            self._release()

    def _abort(self) -> None:
        self._release()

    def _close(self) -> None:
        self._release()

    def _release(self) -> None:
        self._forget(self)
        self._data = bytearray()
        self._file = None
        self._remove_file()


def _remove(file: IO[bytes], pid: int) -> None:
    """Close and delete a temporary file, in the process that made it."""
    if os.getpid() != pid:
        return
    # What could not be written was reported already.
    with contextlib.suppress(OSError):
        file.close()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(file.name)
