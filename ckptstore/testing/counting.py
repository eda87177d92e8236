"""A storage that records its calls."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from ckptstore.storage.base import Storage
from ckptstore.storage.values import GetResult
from ckptstore.storage.wrappers import StorageWrapper
from ckptstore.types import ByteRange

__all__ = ["Call", "CountingStorage"]

_T = TypeVar("_T")


class Call(NamedTuple):
    """One call: the primitive, and the key or prefix it was for."""

    primitive: str
    key: str


class CountingStorage(StorageWrapper):
    """Pass calls on to `inner` and count them, failed ones included.

    Attributes
    ----------
    calls : list of Call
        In order; a ``delete_many`` is one call for each of its keys here, and the methods of an upload are
        ``"upload.send"``, ``"upload.commit"``, ``"upload.abort"`` and ``"upload.close"``.
    counts : Counter
        Calls of each primitive; a ``delete_many`` counts once, whatever the number of its keys.
    read_bytes : int
        What `get`, `get_unless`, `get_into` and `read_into` were answered with.

    Threads
    -------
    Safe for concurrent use.
    """

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self._lock = threading.Lock()
        self.calls: list[Call] = []
        self.counts: Counter[str] = Counter()
        self.read_bytes = 0

    def intercept(self, primitive: str, keys: Sequence[str], call: Callable[[], _T]) -> _T:
        with self._lock:
            self.counts[primitive] += 1
            self.calls.extend(Call(primitive, key) for key in keys)
        result = call()
        if isinstance(result, GetResult):
            self._add(len(result.data))
        return result

    def get_into(self, key: str, byte_range: ByteRange, buffer: memoryview) -> tuple[str, int]:
        found = super().get_into(key, byte_range, buffer)
        self._add(len(buffer))
        return found

    def read_into(
        self,
        key: str,
        ranges: Sequence[ByteRange],
        buffers: Sequence[memoryview],
        *,
        version: str | None = None,
    ) -> None:
        super().read_into(key, ranges, buffers, version=version)
        self._add(sum(map(len, buffers)))

    def _add(self, size_bytes: int) -> None:
        with self._lock:
            self.read_bytes += size_bytes

    def keys(self, primitive: str) -> list[str]:
        """Return the keys of the calls of `primitive`, in order."""
        return [call.key for call in self.calls if call.primitive == primitive]

    def reset(self) -> None:
        """Start counting from zero."""
        with self._lock:
            self.calls.clear()
            self.counts.clear()
            self.read_bytes = 0
