"""Read a V1 checkpoint: one table that holds everything, or several that hold some slices each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from ckptstore.bundle.read.index_file import TableFile
from ckptstore.bundle.read.indexing import Box, as_slices, view_of
from ckptstore.bundle.read.reader import BundleReader, Overlap, StoredTensor, check_partition
from ckptstore.errors import FormatError
from ckptstore.format import dtypes
from ckptstore.format.entry import HEADER_KEY, BundleEntry, BundleHeader, element_count
from ckptstore.format.legacy_v1 import V1Tensor, parse_v1_table, read_v1_slice
from ckptstore.format.slices import encode_slice_key, full_slice
from ckptstore.storage.base import Location
from ckptstore.types import Slice, TensorSpec

__all__ = ["ReaderV1"]


@dataclass(slots=True)
class _CollectedTensor:
    """A tensor as the meta data of all files together describe it; `homes` has the file of each slice."""

    shape: tuple[int, ...]
    dtype_enum: int
    slices: list[Slice]
    homes: list[tuple[int, V1Tensor]]


class ReaderV1(BundleReader):
    """A checkpoint of the format before indexes.

    Parameters
    ----------
    location : Location
        The prefix, as the user named it.
    files : sequence of TableFile
        In the order of their shard numbers.

    Raises
    ------
    FormatError
        If one of them is not a V1 checkpoint, or they contradict each other.
    """

    def __init__(self, location: Location, files: Sequence[TableFile]) -> None:
        self.location = location
        self.url = location.url
        self.header = BundleHeader(len(files))
        self.index_version = "+".join(file.version for file in files)
        self.files = files
        self._tensors: dict[str, _CollectedTensor] = {}
        self._stored: dict[str, StoredTensor] = {}
        for number, file in enumerate(files):
            for name, found in parse_v1_table(file.table, source=file.url).items():
                self._take(number, name, found)

    def _take(self, number: int, name: str, found: V1Tensor) -> None:
        known = self._tensors.get(name)
        if known is None:
            known = self._tensors[name] = _CollectedTensor(found.shape, found.dtype_enum, [], [])
        elif (known.shape, known.dtype_enum) != (found.shape, found.dtype_enum):
            raise FormatError(
                "two files of the checkpoint do not agree on a tensor",
                url=self.files[number].url,
                tensor=name,
                expected=f"type {known.dtype_enum} {list(known.shape)}",
                actual=f"type {found.dtype_enum} {list(found.shape)}",
            )
        known.slices += found.slices
        known.homes += [(number, found)] * len(found.slices)

    def close(self) -> None:
        pass

    def is_current(self) -> bool:
        return all(file.is_current() for file in self.files)

    def names(self) -> list[str]:
        return sorted(self._tensors)

    def raw_keys(self) -> list[bytes]:
        keys = (key for file in self.files for key, _ in file.table.items())
        return sorted(key for key in keys if key != HEADER_KEY)

    def has(self, name: str) -> bool:
        return name in self._tensors

    def _tensor(self, name: str) -> _CollectedTensor:
        found = self._tensors.get(name) if isinstance(name, str) else None
        if found is None:
            raise self.tensor_not_found(name)
        return found

    def entry(self, name: str) -> BundleEntry:
        """Return shape, type and slices; the format has no offsets, sizes or checksums of tensors."""
        found = self._tensor(name)
        is_whole = found.slices == [full_slice(len(found.shape))]
        return BundleEntry(found.dtype_enum, found.shape, slices=() if is_whole else tuple(found.slices))

    def stored(self, name: str) -> StoredTensor:
        stored = self._stored.get(name)
        if stored is None:
            found = self._tensor(name)
            dtype = dtypes.by_enum(found.dtype_enum, source=self.url, tensor=name)
            dtypes.check_array_shape(found.shape, dtype, source=self.url, tensor=name)
            if not found.slices:
                raise FormatError("the meta data names no slice of this tensor", url=self.url, tensor=name)
            entries = tuple(
                BundleEntry(found.dtype_enum, box.shape_within(found.shape), number)
                for box, (number, _) in zip(found.slices, found.homes, strict=True)
            )
            stored = StoredTensor(name, dtype, found.shape, self.entry(name).slices, entries)
            check_partition(stored, self.url)
            self._stored[name] = stored
        return stored

    def spec(self, name: str) -> TensorSpec:
        found = self._tensor(name)
        dtype = dtypes.by_enum(found.dtype_enum, source=self.url, tensor=name)
        size = dtypes.item_size_bytes(dtype) * element_count(found.shape)
        if dtype == dtypes.STRING:
            size = sum(
                len(self.files[number].table.get(encode_slice_key(name, box)) or b"")
                for box, (number, _) in zip(found.slices, found.homes, strict=True)
            )
        shards = tuple(sorted({number for number, _ in found.homes}))
        return TensorSpec(name, found.shape, dtype, size, shards, self.entry(name).slices)

    def _check_present(self, tensor: StoredTensor, pieces: Sequence[int], box: Box | None = None) -> None:
        """Raise `FormatError` if a slice is missing, or has fewer bytes than elements.

        Numbers may be packed to one byte each, so eight times the size of the file is what a tensor may take.
        """
        found = self._tensors[tensor.name]
        for piece in pieces:
            number, _ = found.homes[piece]
            file = self.files[number]
            value = file.table.get(encode_slice_key(tensor.name, found.slices[piece]))
            if value is None or element_count(tensor.entries[piece].shape) > len(value):
                raise FormatError(
                    "the file does not have the values that its meta data announces",
                    url=file.url,
                    tensor=tensor.name,
                    expected=f"at least {element_count(tensor.entries[piece].shape)} bytes",
                    actual="no entry" if value is None else f"{len(value)} bytes",
                )

    def _read_box(
        self, tensor: StoredTensor, box: Box, overlaps: Sequence[Overlap], target: npt.NDArray[Any]
    ) -> None:
        found = self._tensors[tensor.name]
        for piece, where, axes in overlaps:
            number, meta = found.homes[piece]
            file = self.files[number]
            values = read_v1_slice(file.table, meta, found.slices[piece], source=file.url)
            view_of(target, where)[...] = values[as_slices(axes)]
