"""Stored pieces, tensors and slices of partitioned ones, as the cache sees them: bytes with a checksum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ckptstore.bundle.read.batch import NATIVE
from ckptstore.bundle.read.index_check import IndexCheck
from ckptstore.bundle.read.parallel_checksums import crc32c_of_many
from ckptstore.bundle.read.shard_files import ShardFile, WantedBytes
from ckptstore.errors import CkptStoreError
from ckptstore.format import dtypes
from ckptstore.format.crc32c import mask
from ckptstore.format.entry import element_count
from ckptstore.format.strings import decode_strings, decode_variants

__all__ = ["Memory", "Place", "are_right", "check", "ends_of", "has_strings", "place_of", "stop_of"]

Memory: TypeAlias = npt.NDArray[np.uint8]

Place: TypeAlias = tuple[int, int]
"""Shard and offset of a piece."""


def place_of(piece: WantedBytes) -> Place:
    """Return where a piece begins."""
    return piece.entry.shard_id, piece.entry.offset


def stop_of(piece: WantedBytes) -> int:
    """Return where it ends in its data file."""
    return piece.entry.offset + piece.entry.size_bytes


def ends_of(index: IndexCheck) -> dict[int, int]:
    """Return for each shard that holds something where the last piece in it ends."""
    columns = index.columns
    stops = columns.offsets + columns.sizes_bytes
    ends: dict[int, int] = {}
    for shard_id in np.unique(columns.shard_ids[columns.sizes_bytes > 0]).tolist():
        ends[shard_id] = int(stops[columns.shard_ids == shard_id].max())
    for row in np.flatnonzero(columns.kind_ids < 0).tolist()[1:]:
        entry = index.entry(row)
        if entry.size_bytes:
            ends[entry.shard_id] = max(ends.get(entry.shard_id, 0), entry.offset + entry.size_bytes)
    return ends


def are_right(
    pieces: Sequence[WantedBytes], memories: Sequence[Memory], big_endian: bool, parallel: int
) -> list[bool]:
    """Return whether the bytes of each piece are those that were saved."""
    crcs = crc32c_of_many(memories, parallel)
    return [
        _strings_are_right(piece, memory, big_endian)
        if has_strings(piece)
        else mask(crc) == piece.entry.masked_crc32c
        for piece, memory, crc in zip(pieces, memories, crcs, strict=True)
    ]


def check(piece: WantedBytes, crc: int, memory: Memory | None, big_endian: bool, file: ShardFile) -> None:
    """Raise unless the bytes of a piece are those that were saved.

    Parameters
    ----------
    crc : int
        Unmasked, of the bytes.
    memory : ndarray or None
        The bytes; needed for strings only, whose checksum is of another kind.
    """
    if has_strings(piece):
        assert memory is not None
        _decode(piece, memory, big_endian, file.url)
    else:
        file.check_crc32c(piece.entry, crc, piece.tensor)


def has_strings(piece: WantedBytes) -> bool:
    """Return whether its elements are strings or variants."""
    return NATIVE[piece.entry.dtype_enum].hasobject


def _strings_are_right(piece: WantedBytes, memory: Memory, big_endian: bool) -> bool:
    try:
        _decode(piece, memory, big_endian, "")
    except CkptStoreError:
        return False
    return True


def _decode(piece: WantedBytes, memory: Memory, big_endian: bool, source: str) -> None:
    entry = piece.entry
    decode = decode_strings if entry.dtype_enum == dtypes.STRING.as_datatype_enum else decode_variants
    decode(
        memory.data,
        element_count(entry.shape),
        big_endian=big_endian,
        masked_crc32c=entry.masked_crc32c,
        source=source,
        tensor=piece.tensor,
        offset=entry.offset,
    )
