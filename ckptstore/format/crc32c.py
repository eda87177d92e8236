"""CRC32C as files hold it: masked.

Format
------
Mirrors leveldb `util/crc32c.h`: a checksum in a file is *masked*, because the checksum of data that
contains its own checksum is weak. Only unmasked values are continued over more bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ckptstore.checksums import combine, crc32c, crc32c_of_each, crc32c_of_ranges

__all__ = ["combine", "crc32c", "crc32c_of_each", "crc32c_of_ranges", "mask", "mask_many", "unmask"]

_MASK_DELTA = 0xA282EAD8


def mask(crc: int) -> int:
    """Return the form of `crc` that is stored in files: rotated right by 15 bits, plus a constant."""
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def mask_many(crcs: Sequence[int]) -> npt.NDArray[np.uint32]:
    """Return the masked value of each."""
    plain = np.array(crcs, np.uint32)
    return (plain >> np.uint32(15) | plain << np.uint32(17)) + np.uint32(_MASK_DELTA)


def unmask(masked: int) -> int:
    """Return the CRC behind a stored, masked one."""
    rotated = (masked - _MASK_DELTA) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF
