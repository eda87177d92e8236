"""What the machine allows: the bytes of a set to a disk and back, with checksums and nothing else.

No names, no index, no atomicity. Two threads, pieces of 8 MiB, CRC32C by the C extension that
ckptstore uses.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders.base import Contender

PIECE = 8 * 2**20
_BLOCK = 4096


class _Limit(Contender):
    libraries = ("numpy", "google-crc32c")

    def load(self) -> None:
        import google_crc32c

        self.crc32c = google_crc32c.value
        self.pool = ThreadPoolExecutor(2)
        for _ in self.pool.map(lambda _: None, range(2)):
            pass

    def close(self) -> None:
        self.pool.shutdown()

    def file(self, where: str) -> Path:
        return self.local_directory(where) / "data"

    def starts(self) -> range:
        return range(0, self.data.nbytes, PIECE)

    def each(self, action: Callable[[int], int]) -> list[int]:
        return list(self.pool.map(action, self.starts()))

    def bytes(self) -> np.ndarray:
        assert self.flat is not None
        return self.flat.view(np.uint8)


class Buffered(_Limit):
    """Buffered writes after fallocate; with the option ``sync``, fsync at the end."""

    def save(self, where: str) -> None:
        source = self.bytes()
        fd = os.open(self.file(where), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.posix_fallocate(fd, 0, source.size)

            def write(start: int) -> int:
                piece = source[start : start + PIECE]
                crc = self.crc32c(piece)
                _write_all(fd, piece.data, start)
                return int(crc)

            self.each(write)
            if self.options.get("sync"):
                os.fsync(fd)
        finally:
            os.close(fd)

    def restore_mapped(self, where: str) -> Mapping[str, Any]:
        with self.file(where).open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED)
        flat = np.frombuffer(mapped, np.uint8)
        self.each(lambda start: int(self.crc32c(flat[start : start + PIECE])))
        return self.data.views(flat.view(np.float32))

    def restore_new(self, where: str) -> Mapping[str, Any]:
        return self._read(where, np.empty(self.data.elements, np.float32))

    def restore_into(self, where: str) -> Mapping[str, Any]:
        assert self.flat is not None
        return self._read(where, self.flat)

    def _read(self, where: str, flat: np.ndarray) -> Mapping[str, Any]:
        target = flat.view(np.uint8)
        fd = os.open(self.file(where), os.O_RDONLY)
        try:

            def read(start: int) -> int:
                piece = target[start : start + PIECE]
                done = 0
                while done < piece.size:
                    done += os.preadv(fd, [piece.data[done:]], start + done)
                return int(self.crc32c(piece))

            self.each(read)
        finally:
            os.close(fd)
        return self.data.views(flat)


class Direct(_Limit):
    """Direct I/O: two threads copy pieces into aligned memory, check and write them; fsync at the end."""

    def load(self) -> None:
        super().load()
        self.rings = [mmap.mmap(-1, PIECE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for _ in range(2)]
        for ring in self.rings:
            ring[:] = bytes(PIECE)

    def save(self, where: str) -> None:
        source = self.bytes()
        path = self.file(where)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o644)
        try:
            os.posix_fallocate(fd, 0, source.size)
            free = [np.frombuffer(ring, np.uint8) for ring in self.rings]

            def write(start: int) -> int:
                piece = source[start : start + PIECE]
                buffer = free.pop()
                np.copyto(buffer[: piece.size], piece)
                crc = self.crc32c(buffer[: piece.size])
                length = -(-piece.size // _BLOCK) * _BLOCK
                _write_all(fd, buffer[:length].data, start)
                free.append(buffer)
                return int(crc)

            self.each(write)
            os.ftruncate(fd, source.size)
            os.fsync(fd)
        finally:
            os.close(fd)


class Memcpy(Contender):
    """One copy of the set into memory that is there: what a snapshot costs at least."""

    libraries = ("numpy",)

    def connect(self) -> None:
        self.staging = self.data.destination()

    def async_save(self, where: str) -> None:
        assert self.flat is not None
        np.copyto(self.staging[: self.flat.size], self.flat)


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)
