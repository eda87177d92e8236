"""An index and where the checksums of its entries stand: most saves of a job change nothing else in it.

Format
------
The checksum of an entry is its field 6, a fixed32: other checksums have the same size, so every byte of the
index stays in its place. Only the checksums of the blocks around them change, too.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ckptstore.format.block import TRAILER_SIZE_BYTES
from ckptstore.format.block_builder import RESTART_INTERVAL
from ckptstore.format.crc32c import crc32c, mask
from ckptstore.format.entry import BundleHeader, encode_header
from ckptstore.format.entry_columns import Integers, usual_heads, varint_field
from ckptstore.format.table import Table

__all__ = ["PatchableIndex"]

_Octets = npt.NDArray[np.uint8]

_CHECKSUM_BYTES = 4

# Entries whose fields are looked at together: their numbers fill some megabytes.
_ENTRIES_AT_ONCE = 1 << 17

_MAX_VARINT_BYTES = 5


@dataclass(frozen=True, slots=True)
class PatchableIndex:
    """An index as `ckptstore.format.entry_columns.encode_index` makes it.

    Attributes
    ----------
    data : bytes
    header : (int, int)
        Where the value of the header entry begins and ends.
    blocks : list of (int, int)
        Where the contents of each block of entries begin and end.
    positions : ndarray of int64
        Of the checksum of each entry that has bytes, in the order of the keys.
    shard_ids : ndarray of int64
        Of each of these entries.
    """

    data: bytes
    header: tuple[int, int]
    blocks: list[tuple[int, int]]
    positions: Integers
    shard_ids: Integers

    @classmethod
    def of(cls, data: bytes) -> PatchableIndex | None:
        """Return the places of the checksums in an index; None if an entry has none, or an unusual form.

        A checksum that happens to be 0 is not there: it is the default of its field.

        Raises
        ------
        TruncatedFileError, FormatError, ChecksumError
            If it is no table. Blocks of entries are not checked: the index is one of this process.
        """
        handles = Table.from_bytes(data, source="<index>").data_blocks
        blocks = [(handle.offset, handle.offset + handle.size_bytes) for handle in handles]
        octets = np.frombuffer(data, np.uint8)
        found = _values(octets, blocks)
        if found is None or not len(found[0]):
            return None
        starts, stops = found
        places = _checksums(octets, starts[1:], stops[1:])
        if places is None:
            return None
        return cls(data, (int(starts[0]), int(stops[0])), blocks, *places)

    def checksums(self) -> npt.NDArray[np.uint32]:
        """Return the checksums, masked as they are in the index."""
        octets = np.frombuffer(self.data, np.uint8)
        columns = [octets[self.positions + place] for place in range(_CHECKSUM_BYTES)]
        return np.stack(columns, axis=1).view("<u4").reshape(-1).astype(np.uint32)

    def layout(self) -> str:
        """Return a short text that differs for indexes that differ in anything but checksums."""
        data = bytearray(self.data)
        octets = np.frombuffer(data, np.uint8)
        for place in range(_CHECKSUM_BYTES):
            octets[self.positions + place] = 0
        for _, stop in self.blocks:
            octets[stop + 1 : stop + TRAILER_SIZE_BYTES] = 0
        return hashlib.sha256(data).hexdigest()[:32]

    def can_have(self, header: BundleHeader) -> bool:
        """Return whether `patched` can replace the header."""
        start, stop = self.header
        return len(encode_header(header)) == stop - start

    def patched(self, checksums: npt.NDArray[np.uint32], header: BundleHeader | None = None) -> bytes:
        """Return the index with other checksums: what `encode_index` makes of such entries.

        Parameters
        ----------
        checksums : ndarray of uint32
            Masked, none of them 0, for each of `positions`.
        header : BundleHeader, optional
            Another one, if it `can_have` it.
        """
        data = bytearray(self.data)
        octets = np.frombuffer(data, np.uint8)
        columns = checksums.astype("<u4").view(np.uint8).reshape(-1, _CHECKSUM_BYTES).T
        for place, column in enumerate(columns):
            octets[self.positions + place] = column
        if header is not None:
            data[slice(*self.header)] = encode_header(header)
        for start, stop in self.blocks:
            masked = mask(crc32c(octets[start : stop + 1]))
            data[stop + 1 : stop + TRAILER_SIZE_BYTES] = masked.to_bytes(_CHECKSUM_BYTES, "little")
        return bytes(data)


def _values(octets: _Octets, blocks: list[tuple[int, int]]) -> tuple[Integers, Integers] | None:
    """Return where the value of each entry begins and ends; None if these are not blocks of `BlockBuilder`.

    Format
    ------
    entry   shared: varint | unshared: varint | value length: varint | key[shared:] | value
    block   entries | restart offsets: u32 LE each | number of restarts: u32 LE
    """
    begins, ends = [], []
    for start, stop in blocks:
        count = int(octets[stop - 4 : stop].view("<u4")[0])
        end = stop - 4 - 4 * count
        restarts = start + octets[end : stop - 4].view("<u4").astype(np.int64)
        begins.append(restarts)
        ends.append(np.append(restarts[1:], end))
    at, ends_at = np.concatenate(begins), np.concatenate(ends)
    # From restart to restart the entries follow each other: all of these rows take their next step at once.
    starts = np.zeros((len(at), RESTART_INTERVAL), np.int64)
    stops = np.zeros_like(starts)
    is_there = np.zeros(starts.shape, np.bool_)
    for step in range(RESTART_INTERVAL):
        rows = np.flatnonzero(at < ends_at)
        pos = at[rows]
        _, pos = _varints(octets, pos)
        unshared, pos = _varints(octets, pos)
        size, pos = _varints(octets, pos)
        starts[rows, step] = pos + unshared
        stops[rows, step] = at[rows] = pos + unshared + size
        is_there[rows, step] = True
    return (starts[is_there], stops[is_there]) if (at == ends_at).all() else None


def _varints(octets: _Octets, at: Integers) -> tuple[Integers, Integers]:
    """Return the numbers at these positions, and the positions after them."""
    numbers = np.zeros(len(at), np.int64)
    at = at.copy()
    rows: Integers = np.arange(len(at))
    for place in range(_MAX_VARINT_BYTES):
        some = octets[at[rows]]
        numbers[rows] |= (some & 127).astype(np.int64) << 7 * place
        at[rows] += 1
        rows = rows[some > 127]
        if not len(rows):
            break
    return numbers, at


def _checksums(octets: _Octets, starts: Integers, stops: Integers) -> tuple[Integers, Integers] | None:
    """Return the positions of the checksums in these entries, and shard numbers; None if one has none."""
    positions, shard_ids = [], []
    for first in range(0, len(starts), _ENTRIES_AT_ONCE):
        begin, stop = starts[first : first + _ENTRIES_AT_ONCE], stops[first : first + _ENTRIES_AT_ONCE]
        is_usual, at = usual_heads(octets, begin, stop)
        if not is_usual.all():
            return None
        shards, at = varint_field(0x18, octets, at, stop)
        has_bytes = (at >= stop) | (octets[np.minimum(at, stop)] != 0x3A)
        at, shards, stop = at[has_bytes], shards[has_bytes], stop[has_bytes]
        _, at = varint_field(0x20, octets, at, stop)
        _, at = varint_field(0x28, octets, at, stop)
        if not ((at + 1 + _CHECKSUM_BYTES == stop) & (octets[np.minimum(at, stop)] == 0x35)).all():
            return None
        positions.append(at + 1)
        shard_ids.append(shards)
    none = np.zeros(0, np.int64)
    return np.concatenate([none, *positions]), np.concatenate([none, *shard_ids])
