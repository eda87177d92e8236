"""CRC32C as files hold it: masked.

Format
------
Mirrors leveldb `util/crc32c.h`: what is stored in a file is *masked*, because the checksum of data that holds
its own checksum is a bad one. What is continued over more bytes is always the unmasked value.
"""

from __future__ import annotations

from ckptstore.checksums import combine, crc32c

__all__ = ["combine", "crc32c", "mask", "unmask"]

_MASK_DELTA = 0xA282EAD8


def mask(crc: int) -> int:
    """Return the form of `crc` that is stored in files: rotated right by 15 bits, plus a constant."""
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def unmask(masked: int) -> int:
    """Return the CRC behind a stored, masked one."""
    rotated = (masked - _MASK_DELTA) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF
