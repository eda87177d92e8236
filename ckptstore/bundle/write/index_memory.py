"""The indexes of saves that follow each other: where only checksums change, nothing else is sent or replaced.

A writer reports an index of its data file, or, if it is that of its last report but for the checksums, those
alone. `IndexMemory` has the reports of one save and what was made of them. The bytes are always those of
`merge_partial_indexes`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ckptstore.bundle.write.partial_indexes import merge_partial_indexes
from ckptstore.errors import CorruptError
from ckptstore.format.entry import BundleHeader
from ckptstore.format.entry_columns import Integers
from ckptstore.format.patchable_index import PatchableIndex

__all__ = ["Checksums", "IndexMemory", "IndexPart", "IndexReporter", "deflated"]

Checksums: TypeAlias = npt.NDArray[np.uint32]
"""Masked, of the entries of a data file in the order of their keys."""

IndexPart: TypeAlias = bytes | Checksums
"""An index of one data file, deflated; or its checksums, where everything else is remembered."""

# Of so many whole indexes it is found out whether only their checksums have changed; to merge more of them
# takes no longer.
_FEW = 16

# An index of one data file shrinks to a tenth; what does not fit in here is an attack.
_MOST_INDEX_BYTES = 1 << 30


def deflated(index: bytes) -> bytes:
    """Return an index of one data file as a part of the whole."""
    return zlib.compress(index, 1)


def _inflated(number: int, part: bytes) -> bytes:
    try:
        unpacker = zlib.decompressobj()
        index = unpacker.decompress(part, _MOST_INDEX_BYTES)
        if not unpacker.eof or unpacker.unused_data:
            raise ValueError("another length than it says")
    except (ValueError, zlib.error) as error:
        raise CorruptError(f"the index of data file {number} cannot be read", actual=str(error)) from error
    return index


class IndexReporter:
    """Remembers what one writer has reported.

    Threads
    -------
    One thread at a time.
    """

    def __init__(self) -> None:
        # Name of a report → its layout.
        self._layouts: dict[str, str | None] = {}

    def part(self, whole: bytes, *, name: str, like: str) -> IndexPart:
        """Return what to report of a data file.

        Parameters
        ----------
        whole : bytes
            Its index, deflated.
        name : str
            Of this report.
        like : str
            Name of a report which whoever hears this one remembers; empty if there is none.
        """
        found = PatchableIndex.of(_inflated(0, whole))
        layout = None if found is None else found.layout()
        known = self._layouts.get(like)
        self._layouts = {like: known, name: layout}
        return whole if found is None or layout != known else found.checksums()


class IndexMemory:
    """Makes indexes of parts, and remembers the parts of the last one that was merged.

    Attributes
    ----------
    name : str
        Of the save whose parts are remembered; empty if there is none.

    Threads
    -------
    One thread at a time.
    """

    def __init__(self) -> None:
        self.name = ""
        self._next_name = ""
        # Number of a data file → its index when it was merged last; and layouts of some of them.
        self._parts: dict[int, bytes] = {}
        self._layouts: dict[int, str] = {}
        # The last index, and once it was asked for, where its checksums stand.
        self._index = b""
        self._places: _Places | None = None

    def begin(self, name: str) -> None:
        """Take `name` for the parts of the next `build`."""
        self._next_name = name

    def build(self, parts: Iterable[tuple[int, IndexPart]], num_shards: int) -> bytes:
        """Return the index of all data files; parameters and errors as `merge_partial_indexes`.

        Parameters
        ----------
        parts : iterable of (int, bytes or ndarray)
            Number of a data file and its part; checksums refer to the part of the save `name`.

        Raises
        ------
        CorruptError
            Also if there are checksums of something else than is remembered.
        """
        given = sorted(parts, key=lambda part: part[0])
        patched = self._patched(given, BundleHeader(num_shards))
        if patched is not None:
            self._index = patched
            return patched
        whole = [
            (number, part if isinstance(part, bytes) else self._restored(number, part))
            for number, part in given
        ]
        # Before the merge, which needs memory too.
        self._index, self._places = b"", None
        index = merge_partial_indexes(
            ((number, _inflated(number, part)) for number, part in whole), num_shards
        )
        self.name, self._index = self._next_name, index
        self._parts, self._layouts = dict(whole), {}
        return index

    def _patched(self, parts: Sequence[tuple[int, IndexPart]], header: BundleHeader) -> bytes | None:
        """Return the last index with other checksums; None if more than that differs."""
        if not self._index or [number for number, _ in parts] != list(self._parts):
            return None
        if sum(isinstance(part, bytes) for _, part in parts) > _FEW:
            return None
        short = [(number, self._shortened(number, part)) for number, part in parts]
        checksums = [part for _, part in short if part is not None]
        if len(checksums) < len(short):
            return None
        self._places = self._places or _Places.of(self._index)
        if self._places is None or not self._places.index.can_have(header):
            return None
        for (number, _), own in zip(short, checksums, strict=True):
            _check(number, own, self._places.counts.get(number, 0))
        index = self._places.patched(checksums, header)
        self._places = replace(self._places, index=replace(self._places.index, data=index))
        return index

    def _shortened(self, number: int, part: IndexPart) -> Checksums | None:
        """Return the checksums in a part; None if it is not like the one that is remembered."""
        if not isinstance(part, bytes):
            return part
        found = PatchableIndex.of(_inflated(number, part))
        if number not in self._layouts:
            known = self._remembered(number)
            self._layouts[number] = "" if known is None else known.layout()
        return None if found is None or found.layout() != self._layouts[number] else found.checksums()

    def _remembered(self, number: int) -> PatchableIndex | None:
        return PatchableIndex.of(_inflated(number, self._parts[number]))

    def _restored(self, number: int, part: Checksums) -> bytes:
        """Return the whole index of a data file of which there are checksums."""
        known = self._remembered(number) if number in self._parts else None
        _check(number, part, 0 if known is None else len(known.positions))
        return b"" if known is None else deflated(known.patched(part))


@dataclass(frozen=True, slots=True)
class _Places:
    """Where in a merged index the checksums of each data file stand.

    Attributes
    ----------
    order : ndarray of int64
        Rows of the index: those of the first data file in the order of their keys, those of the second, ….
    counts : dict
        Number of a data file → how many rows it has.
    """

    index: PatchableIndex
    order: Integers
    counts: dict[int, int]

    @classmethod
    def of(cls, data: bytes) -> _Places | None:
        index = PatchableIndex.of(data)
        if index is None:
            return None
        numbers, counts = np.unique(index.shard_ids, return_counts=True)
        order = np.argsort(index.shard_ids, kind="stable")
        return cls(index, order, dict(zip(numbers.tolist(), counts.tolist(), strict=True)))

    def patched(self, checksums: Sequence[Checksums], header: BundleHeader) -> bytes:
        ordered = np.empty(len(self.order), np.uint32)
        ordered[self.order] = np.concatenate(checksums)
        return self.index.patched(ordered, header)


def _check(number: int, checksums: Checksums, count: int) -> None:
    """Raise unless these can be the checksums of the entries of a data file."""
    if not count or len(checksums) != count or not checksums.all():
        raise CorruptError(
            f"data file {number} is reported with checksums of something else than before",
            expected=f"{count} checksums, none of them 0",
            actual=f"{len(checksums)} checksums",
        )
