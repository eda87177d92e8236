"""One large file that is being written to a local disk."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress

from ckptstore.storage.local.direct_io import PARALLEL_WRITES
from ckptstore.storage.local.directory import Directory, translate_errors
from ckptstore.storage.local.temp_file import TempFile
from ckptstore.storage.upload import Upload
from ckptstore.storage.values import Committed, PutOutcome

__all__ = ["LocalUpload"]

_LOG = logging.getLogger("ckptstore")

# Smaller files are written as fast through the page cache, without preparation.
_WORTH_DIRECT_BYTES = 1 << 20

_PARALLEL_BUFFERED = 2


class LocalUpload(Upload):
    """A file under a temporary name, locked until `close`.

    `close` without `commit` or `abort` leaves the unfinished file, as the death of the process does. An
    upload that is dropped without any of the three is aborted.

    In a synced directory a large file of known size is written past the page cache; `direct_io` has the
    measurements.
    """

    part_size_bytes = 8 * 1024 * 1024

    def __init__(self, directory: Directory, name: str, url: str, size_bytes: int | None) -> None:
        super().__init__(url)
        self._directory = directory
        # While `_is_open`, the temporary file exists, and this process holds its lock.
        self._temp = TempFile(directory, name, is_upload=True)
        self.parallel = _PARALLEL_BUFFERED
        if size_bytes is None:
            return
        try:
            self._temp.reserve(size_bytes)
            if directory.is_synced and size_bytes >= _WORTH_DIRECT_BYTES:
                self._go_direct()
        except BaseException:
            self._give_up()
            self._temp.close()
            raise

    def _go_direct(self) -> None:
        reason = self._temp.use_direct_io()
        if reason is None:
            self.parallel = PARALLEL_WRITES
        else:
            _LOG.debug("%s: direct I/O is %s: written through the page cache", self._url, reason)

    def _send(self, number: int, pieces: Sequence[memoryview], crc32c: int, is_last: bool) -> None:
        with translate_errors("cannot write", self._url):
            self._temp.write_at(number * self.part_size_bytes, pieces)

    def _send_shared(self, number: int, pieces: Sequence[memoryview], is_last: bool) -> Sequence[int]:
        with translate_errors("cannot write", self._url):
            return self._temp.write_copies_at(number * self.part_size_bytes, pieces)

    def _on_failed_part(self) -> None:
        self._give_up()

    def _commit(self, size_bytes: int, crc32c: int) -> PutOutcome:
        try:
            with translate_errors("cannot create", self._url):
                self._temp.seal(size_bytes)
                outcome = self._temp.publish()
        except BaseException:
            self._give_up()
            raise
        if isinstance(outcome, Committed):
            # One descriptor per data file stays open until the index is published: the one with the lock.
            self._directory.close()
        else:
            self._give_up()
        return outcome

    def _give_up(self) -> None:
        # The first error counts. A file that cannot be removed now is left to `abort_stale_uploads`.
        with suppress(OSError):
            self._temp.discard()

    def _abort(self) -> None:
        with translate_errors("cannot remove the unfinished file", self._url):
            self._temp.discard()

    def _close(self) -> None:
        self._temp.close()
        self._directory.close()
