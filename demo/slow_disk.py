"""A disk so slow that there is time to kill whoever writes to it: 16 KiB, a pause, 16 KiB, a pause."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from ckptstore.storage.base import PutOutcome, Storage, Upload
from ckptstore.storage.registry import use_wrapper
from ckptstore.storage.wrappers import StorageWrapper

if TYPE_CHECKING:
    from ckptstore.storage.base import Buffer

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
        return _SlowUpload(upload) if self._marker in key else upload


class _SlowUpload(Upload):
    def __init__(self, inner: Upload) -> None:
        self._inner = inner

    def write(self, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), PIECE_SIZE_BYTES):
            self._inner.write(view[start : start + PIECE_SIZE_BYTES])
            time.sleep(PAUSE_S)

    def commit(self) -> PutOutcome:
        return self._inner.commit()

    def abort(self) -> None:
        self._inner.abort()

    def close(self) -> None:
        self._inner.close()
