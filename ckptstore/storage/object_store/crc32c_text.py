"""CRC32C as the headers and descriptions of S3 and GCS hold it: base64 of 4 bytes, big-endian."""

from __future__ import annotations

import base64
import binascii

__all__ = ["crc32c_of_text", "crc32c_text"]


def crc32c_text(crc32c: int) -> str:
    """Return a checksum as text."""
    return base64.b64encode(crc32c.to_bytes(4, "big")).decode()


def crc32c_of_text(text: str | None) -> int | None:
    """Return the checksum of a text; None if there is no text, or it is not a CRC32C."""
    try:
        raw = base64.b64decode(text or "", validate=True)
    except (binascii.Error, ValueError):
        return None
    return int.from_bytes(raw, "big") if len(raw) == 4 else None
