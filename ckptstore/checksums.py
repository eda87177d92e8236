"""CRC32C (Castagnoli), for files and for uploads: calculate, and combine."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import google_crc32c
import numpy as np
import numpy.typing as npt

from ckptstore.errors import UsageError

__all__ = ["combine", "crc32c", "crc32c_of_each", "crc32c_of_ranges"]

_BytesLike: TypeAlias = bytes | bytearray | memoryview

_POLYNOMIAL = 0x82F63B78  # Castagnoli, bits reversed: the lowest bit is the highest power

_extend = google_crc32c.extend

# google_crc32c computes with the interpreter locked: no other thread runs meanwhile. From this size on the
# detour through ctypes, 1 µs, is less than what waiting threads lose.
_LARGE_SIZE_BYTES = 256 * 1024


def _find_unlocked() -> Callable[[int, int, int], int] | None:
    """Return ``extend(crc, address, size_bytes)`` that leaves the interpreter to others, if there is one.

    It is the C library inside the google_crc32c package. 1 GiB takes one thread 0.06 s either way, and two
    threads 0.035 s.
    """
    try:
        import ctypes

        library = ctypes.CDLL(sys.modules["google_crc32c._crc32c"].__file__)
        extend = library.crc32c_extend
    except (ImportError, KeyError, OSError, AttributeError, TypeError):
        return None
    extend.restype = ctypes.c_uint32
    extend.argtypes = (ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t)
    sample = np.frombuffer(b"123456789", np.uint8)
    return extend if extend(0, sample.ctypes.data, len(sample)) == 0xE3069283 else None


_extend_unlocked = _find_unlocked()


def crc32c(data: _BytesLike | npt.NDArray[Any], crc: int = 0) -> int:
    """Return the CRC32C of `data`, continuing from `crc`.

    Parameters
    ----------
    data : bytes-like or ndarray
        Any C-contiguous buffer, of any dtype and shape; it is not copied.
    crc : int
        Unmasked CRC of the bytes before, 0 at the start.

    Raises
    ------
    UsageError
        If the buffer is not C-contiguous, or an array of objects.

    Threads
    -------
    Safe for concurrent use.
    """
    if type(data) is bytes:
        return int(_extend(crc, data))
    if isinstance(data, np.ndarray):
        if not data.flags.c_contiguous or data.dtype.hasobject:
            raise UsageError("a checksum needs a C-contiguous array of plain numbers", actual=data.dtype)
        # ml_dtypes arrays do not export the buffer protocol; as bytes they do.
        view = data.reshape(-1).view(np.uint8)
    else:
        # google_crc32c refuses bytearray and memoryview, but takes an array over the same memory.
        try:
            view = np.frombuffer(data, np.uint8)
        except (ValueError, BufferError) as error:
            raise UsageError("a checksum needs a C-contiguous buffer") from error
    if _extend_unlocked is not None and view.nbytes >= _LARGE_SIZE_BYTES:
        return _extend_unlocked(crc, view.ctypes.data, view.nbytes)
    return int(_extend(crc, view))


def crc32c_of_each(buffers: Iterable[_BytesLike | npt.NDArray[Any]]) -> list[int]:
    """Return the CRC32C of each of many C-contiguous arrays of plain numbers (no ml_dtypes) or bytes."""
    return [_extend(0, buffer) for buffer in buffers]


def crc32c_of_ranges(
    data: _BytesLike | npt.NDArray[np.uint8], starts: Iterable[int], stops: Iterable[int]
) -> list[int]:
    """Return the CRC32C of each range ``[start, stop)`` of a buffer, without copying it.

    Parameters
    ----------
    data : bytes-like or ndarray of uint8, C-contiguous
    starts, stops : iterable of int, bytes
        As many of each; ranges may be empty, overlap and come in any order, but lie inside `data`.
    """
    view = data if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)
    return [_extend(0, view[start:stop]) for start, stop in zip(starts, stops, strict=True)]


def combine(crc_a: int, crc_b: int, size_b_bytes: int) -> int:
    """Return the CRC of A followed by B, from the CRCs of both and the length of B.

    Parameters
    ----------
    crc_a, crc_b : int
        Unmasked.
    size_b_bytes : int
        Length of B in bytes, any size; the time grows with its logarithm.

    Notes
    -----
    Appending n zero bytes to a message is a linear map of its CRC over GF(2). The map for each power of two
    is kept as four tables of 256 numbers, one a byte of the CRC, so that one application takes four look-ups.
    """
    if size_b_bytes < 0:
        raise ValueError(f"a length is not negative: {size_b_bytes}")
    if not crc_a:
        # Zero is mapped to zero. The tables, which take 4 ms to make, are for more than one part.
        return crc_b
    power = 0
    crc = crc_a
    while size_b_bytes:
        if size_b_bytes & 1:
            t0, t1, t2, t3 = _zero_bytes_tables(power)
            crc = t0[crc & 255] ^ t1[crc >> 8 & 255] ^ t2[crc >> 16 & 255] ^ t3[crc >> 24]
        size_b_bytes >>= 1
        power += 1
    return crc ^ crc_b


_Tables = tuple[list[int], list[int], list[int], list[int]]


@functools.cache
def _zero_bytes_tables(power: int) -> _Tables:
    """Return the tables of the map "append 2**power zero bytes"."""
    if power == 0:
        return _expand([_append_zero_byte(1 << bit) for bit in range(32)])
    half = _zero_bytes_tables(power - 1)
    return _expand([_apply(half, _apply(half, 1 << bit)) for bit in range(32)])


def _append_zero_byte(crc: int) -> int:
    for _ in range(8):
        crc = crc >> 1 ^ _POLYNOMIAL if crc & 1 else crc >> 1
    return crc


def _apply(tables: _Tables, crc: int) -> int:
    t0, t1, t2, t3 = tables
    return t0[crc & 255] ^ t1[crc >> 8 & 255] ^ t2[crc >> 16 & 255] ^ t3[crc >> 24]


def _expand(columns: list[int]) -> _Tables:
    """Return the four byte tables of a linear map, given its values on the 32 single bits."""

    def table(first: int) -> list[int]:
        values = [0]
        for column in columns[first : first + 8]:
            values += [column ^ value for value in values]
        return values

    return table(0), table(8), table(16), table(24)
