"""The bytes of one tensor as in a data file, a few at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ckptstore.bundle.write.plan import WriteItem
from ckptstore.checksums import crc32c
from ckptstore.format.dtypes import as_bytes_view, storage_dtype
from ckptstore.format.strings import encode_strings, encode_variants

__all__ = ["byte_view", "encoded", "entry_crc32c", "is_as_stored", "stored_chunks"]

_CHUNK_SIZE_BYTES = 8 * 1024 * 1024


def is_as_stored(item: WriteItem) -> bool:
    """Return whether the memory of the array is exactly what the file holds."""
    array = item.array
    return array.flags.c_contiguous and array.dtype.isnative


def byte_view(array: npt.NDArray[Any]) -> memoryview:
    """Return the memory of an array in C order as bytes."""
    # numpy's type stubs declare the buffer protocol from Python 3.12 on.
    return memoryview(cast("bytes", as_bytes_view(array)))


def encoded(item: WriteItem) -> tuple[bytes, int]:
    """Return what the file holds of strings or variants, and the unmasked checksum of the entry.

    The checksum of strings runs over their lengths in another form than the file's: it is not that of the
    bytes.
    """
    encode = encode_strings if item.dtype.name == "string" else encode_variants
    return encode(item.array.ravel().tolist())


def entry_crc32c(item: WriteItem) -> int:
    """Return the checksum of what the file holds of `item`, as its entry has it, unmasked."""
    if item.array.dtype.hasobject:
        return encoded(item)[1]
    if is_as_stored(item):
        return crc32c(byte_view(item.array))
    crc = 0
    for chunk in stored_chunks(item, _CHUNK_SIZE_BYTES):
        crc = crc32c(byte_view(chunk), crc)
    return crc


def stored_chunks(item: WriteItem, most_bytes: int) -> Iterator[npt.NDArray[Any]]:
    """Yield copies of the elements in their order, converted, of up to `most_bytes` or one element."""
    stored = storage_dtype(item.dtype)
    pending = [item.array]
    while pending:
        array = pending.pop()
        if not array.size:
            continue
        if array.nbytes <= most_bytes or array.ndim == 0:
            yield np.array(array, stored, order="C", ndmin=1)
            continue
        rows = max(1, most_bytes // array[0].nbytes)
        if rows == 1 and array[0].nbytes > most_bytes:
            # A row is too long by itself.
            pending.extend(array[row] for row in reversed(range(len(array))))
            continue
        for start in range(0, len(array), rows):
            yield np.array(array[start : start + rows], stored, order="C")
