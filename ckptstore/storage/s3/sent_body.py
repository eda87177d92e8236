"""A body that the service's client sends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from ckptstore.storage.object_store.attempts import Attempts

__all__ = ["SentBody"]

_PIECE_BYTES = 64 * 1024


class SentBody:
    """A body that is sent piece by piece out of the caller's memory, and can be sent again.

    botocore asks for ``read``, ``seek``, ``tell`` and the length, and never reads, as the checksum is given;
    aiohttp iterates.
    """

    def __init__(self, pieces: Sequence[memoryview], attempts: Attempts) -> None:
        self._pieces = pieces
        self._size_bytes = sum(map(len, pieces))
        self._attempts = attempts
        self._position = 0

    def __len__(self) -> int:
        return self._size_bytes

    def seek(self, offset: int, whence: int = 0) -> int:
        base = (0, self._position, self._size_bytes)[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        whole = b"".join(self._pieces)
        stop = self._size_bytes if size < 0 else min(self._size_bytes, self._position + size)
        piece = whole[self._position : stop]
        self._position = stop
        return piece

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        # Each pass from the start: a repeated request iterates again.
        position = 0
        for whole in self._pieces:
            for start in range(0, len(whole), _PIECE_BYTES):
                piece = whole[start : start + _PIECE_BYTES]
                yield piece
                position += len(piece)
                self._attempts.record_sent(position)
