"""The bodies of answers that clients for asyncio read whole: piece by piece, up to a limit."""

from __future__ import annotations

from typing import Any

from ckptstore.storage.object_store.attempts import Attempts
from ckptstore.storage.object_store.faults import Fault, Kind

__all__ = ["LONGEST_BODY_BYTES", "LONGEST_REFUSAL_BYTES", "read_body"]

LONGEST_REFUSAL_BYTES = 1024 * 1024
"""Of the body of a refusal, what is read."""

LONGEST_BODY_BYTES = 64 * 1024 * 1024
"""Of any other body that is read whole. A page of 1000 names of 1024 bytes has about 2 MiB."""


async def read_body(response: Any, attempts: Attempts) -> bytes:
    """Return the body of an `aiohttp.ClientResponse`; of a refusal the beginning.

    Raises
    ------
    Fault
        `Kind.GARBLED` if it is longer than the limit.
    """
    limit_bytes = LONGEST_BODY_BYTES if response.status < 300 else LONGEST_REFUSAL_BYTES
    pieces: list[bytes] = []
    left_bytes = limit_bytes
    async for piece in response.content.iter_any():
        pieces.append(piece[:left_bytes])
        left_bytes -= len(piece)
        if left_bytes < 0:
            # The rest of it would block the connection for the next request.
            response.close()
            if response.status < 300:
                raise Fault(Kind.GARBLED, f"the answer is longer than {limit_bytes >> 20} MiB")
            break
        attempts.record_received(len(piece))
    return b"".join(pieces)
