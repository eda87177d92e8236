"""A disk so slow that there is time to kill its writer: 16 KiB, a pause, 16 KiB, a pause."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager

from ckptstore.storage.base import Storage
from ckptstore.storage.registry import use_wrapper
from ckptstore.storage.upload import Upload
from ckptstore.storage.values import PutOutcome
from ckptstore.storage.wrappers import StorageWrapper

PIECE_SIZE_BYTES = 16 * 1024
PAUSE_S = 0.2


def slow_for(checkpoint: str) -> AbstractContextManager[None]:
    """Write the data files of one checkpoint slowly while the block runs."""
    return use_wrapper(lambda storage: SlowDisk(storage, f"/{checkpoint}.data-"))


class SlowDisk(StorageWrapper):
    """Pass every call on; the bytes of files whose path contains `marker` in small pieces."""

    def __init__(self, inner: Storage, marker: str) -> None:
        super().__init__(inner)
        self._marker = marker

    def upload(self, key: str, size_bytes: int | None = None) -> Upload:
        upload = self.inner.upload(key, size_bytes)
        return _SlowUpload(upload, self.url_of(key)) if self._marker in key else upload


class _SlowUpload(Upload):
    part_size_bytes = PIECE_SIZE_BYTES

    def __init__(self, inner: Upload, url: str) -> None:
        super().__init__(url)
        inner.part_size_bytes = PIECE_SIZE_BYTES
        self._inner = inner

    def _send(self, number: int, pieces: Sequence[memoryview], crc32c: int, is_last: bool) -> None:
        self._inner.send(number, pieces, crc32c, is_last=is_last)
        time.sleep(PAUSE_S)

    def _commit(self, size_bytes: int, crc32c: int) -> PutOutcome:
        return self._inner.commit()

    def _abort(self) -> None:
        self._inner.abort()

    def _close(self) -> None:
        self._inner.close()
