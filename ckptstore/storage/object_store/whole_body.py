"""A body of an answer that is read whole, over connections of our own."""

from __future__ import annotations

from ckptstore.storage.object_store.bodies import LONGEST_BODY_BYTES
from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.object_store.transport import Sink

__all__ = ["WholeBody"]

_READ_BYTES = 256 * 1024


class WholeBody(Sink):
    """Piece by piece, up to a limit."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self._left_bytes = LONGEST_BODY_BYTES

    def data(self) -> bytes:
        """Return what came so far."""
        return b"".join(self._pieces)

    def get_buffer(self) -> memoryview:
        return self._buffer

    def buffer_updated(self, size_bytes: int) -> None:
        self._left_bytes -= size_bytes
        if self._left_bytes < 0:
            raise Fault(Kind.GARBLED, f"the answer is longer than {LONGEST_BODY_BYTES >> 20} MiB")
        self._pieces.append(bytes(self._buffer[:size_bytes]))
