"""A large file for a file system of fsspec: collected on this machine, written when it is complete."""

from __future__ import annotations

import tempfile
import time
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
    key, url : str
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

    def _send(self, number: int, pieces: Sequence[memoryview], crc32c: int, is_last: bool) -> None:
        size_bytes = len(self._data) + sum(map(len, pieces))
        if self._file is None and size_bytes <= _IN_MEMORY_BYTES:
            for piece in pieces:
                self._data += piece
            return
        try:
            if self._file is None:
                self._file = tempfile.NamedTemporaryFile(prefix="ckptstore-")  # noqa: SIM115 - closed at the end
                self._file.write(self._data)
                self._data = bytearray()
            for piece in pieces:
                self._file.write(piece)
        except OSError as error:
            raise from_os_error(error, "cannot collect the upload", tempfile.gettempdir()) from error

    def _on_failed_part(self) -> None:
        self._release()

    def _commit(self, size_bytes: int, crc32c: int) -> PutOutcome:
        try:
            if self._file is None:
                return self._put(bytes(self._data), "")
            self._file.flush()
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
        file, self._file = self._file, None
        # A child must not remove the parent's file.
        if file is not None and self.is_ours:
            file.close()
