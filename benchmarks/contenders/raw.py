"""What raw clients have in common: one object with all bytes of the set, sent and fetched in parts."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.contenders.base import Contender

PART = 16 * 2**20
THREADS = 8


class RawClient(Contender, ABC):
    """A subclass sends and fetches one object; tensors are only cut out of it."""

    @abstractmethod
    def upload(self, key: str, data: memoryview) -> None:
        """Put one large object."""

    @abstractmethod
    def download(self, key: str, into: memoryview) -> None:
        """Get one large object into memory that is there."""

    def key(self, where: str) -> str:
        return self.place.object_key(f"{where}/data")

    def save(self, where: str) -> None:
        assert self.flat is not None
        self.upload(self.key(where), self.flat.data.cast("B"))

    def restore_into(self, where: str) -> Mapping[str, Any]:
        assert self.flat is not None
        self.download(self.key(where), self.flat.data.cast("B"))
        return self.data.views(self.flat)

    def restore_new(self, where: str) -> Mapping[str, Any]:
        flat = np.empty(self.data.elements, np.float32)
        self.download(self.key(where), flat.data.cast("B"))
        return self.data.views(flat)


def part_ranges(size: int) -> list[tuple[int, int]]:
    """Return start and end of each part."""
    return [(start, min(size, start + PART)) for start in range(0, size, PART)]


class MemoryFile(io.RawIOBase):
    """A file over memory that is there, to read from and to write into."""

    def __init__(self, memory: memoryview) -> None:
        self.memory = memory
        self.position = 0

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = 0) -> int:
        self.position = (0, self.position, len(self.memory))[whence] + offset
        return self.position

    def read(self, size: int = -1) -> bytes:
        stop = len(self.memory) if size is None or size < 0 else min(len(self.memory), self.position + size)
        piece = bytes(self.memory[self.position : stop])
        self.position = stop
        return piece

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), len(self.memory) - self.position)
        buffer[:count] = self.memory[self.position : self.position + count]
        self.position += count
        return count

    def write(self, data: Any) -> int:
        self.memory[self.position : self.position + len(data)] = data
        self.position += len(data)
        return len(data)
