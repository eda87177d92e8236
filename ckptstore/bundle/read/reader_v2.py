"""Read a V2 bundle: ``PREFIX.index`` and its data files."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptstore.bundle.read.batch import NATIVE, BulkTensors, DeviceTensor, ReadBatch, Taker
from ckptstore.bundle.read.box_plan import (
    BoxPlan,
    PieceCounts,
    TensorPieces,
    WantedBox,
    plan_boxes,
    upright,
)
from ckptstore.bundle.read.bulk_lookup import find_bulk
from ckptstore.bundle.read.claims import check_claims
from ckptstore.bundle.read.fetch import byte_order_unit, fetch
from ckptstore.bundle.read.index_check import IndexCheck, Partition, key_of
from ckptstore.bundle.read.index_file import IndexFile
from ckptstore.bundle.read.indexing import Box, view_of
from ckptstore.bundle.read.partial_reads import PartialRead
from ckptstore.bundle.read.reader import (
    BundleReader,
    Overlap,
    StoredTensor,
    check_destination,
    check_partition,
    insufficient_slices,
    pieces_of,
)
from ckptstore.bundle.read.shard_files import ShardFiles
from ckptstore.errors import CorruptError, FormatError, NotFoundError
from ckptstore.format import dtypes
from ckptstore.format.entry import BundleEntry, check_entry, element_count
from ckptstore.format.slices import encode_slice_key, format_slice
from ckptstore.storage.base import Location
from ckptstore.transfer.ranges import REQUEST_SIZE_BYTES
from ckptstore.transfer.transfer import Transfer
from ckptstore.types import Slice, TensorSpec

__all__ = ["ReaderV2"]

# From so many names on the whole index is read.
_MANY_NAMES = 64

# From so many slices of a tensor on they are looked up together.
_MANY_SLICES = 16


class ReaderV2(BundleReader):
    """A bundle with an index.

    Parameters
    ----------
    location : Location
        The prefix.
    index : IndexFile
    shards : ShardFiles, optional
        Its data files, where others than those of the storage are read.
    """

    def __init__(self, location: Location, index: IndexFile, shards: ShardFiles | None = None) -> None:
        self.location = location
        self.url = index.url
        self.header = index.header
        self.index_version = index.version
        self.index = index
        self._is_foreign = index.header.big_endian != (sys.byteorder == "big")
        self.shards = shards or ShardFiles(location, index.header, index.is_current)
        self._partitioned: dict[str, StoredTensor] = {}
        self._complete: set[str] = set()
        self._names: list[str] | None = None

    def close(self) -> None:
        self.shards.close()

    def is_current(self) -> bool:
        return self.index.is_current()

    def raw_keys(self) -> list[bytes]:
        index = self.index.rows()
        partitioned = index.partitioned_rows()
        return [key for row, key in enumerate(index.keys) if row and row not in partitioned]

    def names(self) -> list[str]:
        if self._names is None:
            self._names = self.index.rows().names()
        return list(self._names)

    def has(self, name: str) -> bool:
        return self.index.has(key_of(name))

    def entry(self, name: str) -> BundleEntry:
        found = self.index.entry(key_of(name))
        if found is None:
            raise self.tensor_not_found(name)
        return found

    def stored(self, name: str) -> StoredTensor:
        entry = self.entry(name)
        if not entry.slices:
            dtype = check_entry(entry, source=self.url, tensor=name)
            return StoredTensor(name, dtype, entry.shape, (), (entry,))
        found = self._partitioned.get(name)
        if found is None and len(entry.slices) >= _MANY_SLICES:
            found = self._stored_with_slices(name)
        if found is None:
            dtype = check_entry(entry, source=self.url, tensor=name)
            pieces = tuple(self._slice_entry(name, entry, box) for box in entry.slices)
            found = StoredTensor(name, dtype, entry.shape, entry.slices, pieces)
            check_partition(found, self.url)
            self._partitioned[name] = found
        return found

    def _stored_with_slices(self, name: str) -> StoredTensor | None:
        """Return a partitioned tensor, its slices looked up together; None if one by one tells more."""
        key = key_of(name)
        try:
            index = self.index.rows_with_slices(key)
        except CorruptError:
            return None
        row = index.row(key)
        partition = index.partitions([row]).get(row)
        return None if partition is None else self._stored_partition(name, partition, index)

    def stored_many(self, names: Iterable[str]) -> list[StoredTensor | None]:
        names = list(names)
        index = self._index_of_many(names)
        if index is None:
            return super().stored_many(names)
        rows = index.rows_of(names)
        partitions, kinds, new = index.partitions(rows), index.columns.kinds, tuple.__new__
        found: list[StoredTensor | None] = []
        for name, row, is_sound, (kind_id, *place) in zip(
            names, rows, index.is_sound[rows].tolist(), index.places(np.array(rows, np.int64)), strict=True
        ):
            if is_sound:
                # `check_entry` was called once for all tensors of this kind.
                dtype_enum, shape, dtype, _ = kinds[kind_id]
                entry = new(BundleEntry, (dtype_enum, shape, *place, ()))
                found.append(new(StoredTensor, (name, dtype, shape, (), (entry,))))
                continue
            partition = partitions.get(row)
            if partition is not None:
                found.append(self._stored_partition(name, partition, index))
            else:
                found.append(self.stored(name) if row else None)
        return found

    def _index_of_many(self, names: Sequence[str]) -> IndexCheck | None:
        """Return the whole index for a lookup of many names; None if it is for few, or damaged."""
        if len(names) < _MANY_NAMES:
            return None
        try:
            return self.index.rows()
        except CorruptError:
            # One by one those can be found that are in undamaged blocks.
            return None

    def pieces_many(self, names: Sequence[str]) -> list[TensorPieces | None]:
        index = self._index_of_many(names)
        if index is None:
            return super().pieces_many(names)
        rows = index.rows_of(names)
        partitions, columns = index.partitions(rows), index.columns
        found: list[TensorPieces | None] = []
        for name, row, is_sound in zip(names, rows, index.is_sound[rows].tolist(), strict=True):
            partition = partitions.get(row)
            if partition is not None:
                kind, at = partition.kind, partition.rows
                starts, lengths = partition.starts, partition.sizes
            elif is_sound:
                kind, at = columns.kinds[int(columns.kind_ids[row])], np.array([row])
                lengths = np.array([kind.shape], np.int64).reshape(1, len(kind.shape))
                starts = np.zeros_like(lengths)
            else:
                tensor = self.stored(name) if row else None
                found.append(None if tensor is None else pieces_of(tensor))
                continue
            assert kind.dtype is not None
            found.append(
                TensorPieces(
                    name,
                    kind.dtype,
                    kind.shape,
                    starts,
                    lengths,
                    columns.shard_ids[at],
                    columns.offsets[at],
                    columns.sizes_bytes[at],
                    columns.masked_crc32cs[at],
                )
            )
        return found

    def partitioned_among(self, names: Sequence[str]) -> set[str]:
        index = self._index_of_many(names)
        if index is None:
            return set()
        at = index.columns.slices_at[index.rows_of(names)]
        return {names[number] for number in np.flatnonzero(at).tolist()}

    def _stored_partition(self, name: str, partition: Partition, index: IndexCheck) -> StoredTensor:
        found = self._partitioned.get(name)
        if found is None:
            kind = partition.kind
            assert kind.dtype is not None
            entries = index.slice_entries(partition)
            found = StoredTensor(name, kind.dtype, kind.shape, index.slices(partition), entries)
            self._partitioned[name] = found
            if partition.is_complete:
                self._complete.add(name)
        return found

    def find_bulk(self, names: Sequence[str]) -> BulkTensors | None:
        if self._is_foreign or len(set(names)) < len(names):
            return None
        index = self._index_of_many(names)
        return None if index is None else find_bulk(index, names)

    def bulk_is_there(self, batch: ReadBatch, others: Iterable[StoredTensor]) -> bool:
        claims = _columns_of([(tensor.name, entry) for tensor in others for entry in tensor.entries])
        columns = (batch.tensors, batch.shard_ids, batch.offsets, batch.sizes_bytes)
        try:
            check_claims(self.shards, *map(operator.add, columns, claims))
        except (CorruptError, NotFoundError):
            return False
        return True

    def _slice_entry(self, name: str, whole: BundleEntry, box: Slice) -> BundleEntry:
        entry = self.index.entry(encode_slice_key(name, box))
        if entry is None:
            raise FormatError(
                "the index lists a slice, but does not say where its bytes are",
                url=self.url,
                tensor=name,
                expected=f"an entry for slice {format_slice(box)}",
            )
        shape = box.shape_within(whole.shape)
        if entry.slices or entry.dtype_enum != whole.dtype_enum or entry.shape != shape:
            raise FormatError(
                f"the entry of slice {format_slice(box)} contradicts that of its tensor",
                url=self.url,
                tensor=name,
                expected=f"type {whole.dtype_enum} {list(shape)}",
                actual=f"type {entry.dtype_enum} {list(entry.shape)}",
            )
        check_entry(entry, source=self.url, tensor=name)
        return entry

    def spec(self, name: str) -> TensorSpec:
        entry = self.entry(name)
        if not entry.slices:
            dtype = dtypes.by_enum(entry.dtype_enum, source=self.url, tensor=name)
            return TensorSpec(name, entry.shape, dtype, entry.size_bytes, (entry.shard_id,))
        tensor = self.stored(name)
        size_bytes = sum(piece.size_bytes for piece in tensor.entries)
        shards = tuple(sorted({piece.shard_id for piece in tensor.entries}))
        return TensorSpec(name, entry.shape, tensor.dtype, size_bytes, shards, entry.slices)

    def specs(self) -> dict[str, TensorSpec]:
        index, names = self.index.rows(), self.names()
        rows = index.rows_of(names)
        columns, partitions = index.columns, index.partitions(rows)
        sizes_bytes, shard_ids = columns.sizes_bytes.tolist(), columns.shard_ids.tolist()
        kind_ids = columns.kind_ids.tolist()
        found: dict[str, TensorSpec] = {}
        for name, row in zip(names, rows, strict=True):
            partition = partitions.get(row)
            if partition is not None:
                kind = partition.kind
                assert kind.dtype is not None
                pieces = partition.rows.tolist()
                size_bytes = sum([sizes_bytes[piece] for piece in pieces])
                shards = tuple(sorted({shard_ids[piece] for piece in pieces}))
                found[name] = TensorSpec(
                    name, kind.shape, kind.dtype, size_bytes, shards, index.slices(partition)
                )
            elif index.is_sound[row]:
                kind = columns.kinds[kind_ids[row]]
                assert kind.dtype is not None
                found[name] = TensorSpec(name, kind.shape, kind.dtype, sizes_bytes[row], (shard_ids[row],))
            else:
                found[name] = self.spec(name)
        return found

    def _check_covered(self, tensor: StoredTensor) -> None:
        if tensor.name not in self._complete:
            super()._check_covered(tensor)

    def _check_present(self, tensor: StoredTensor, pieces: Sequence[int], box: Box | None = None) -> None:
        byte_order_unit(tensor.dtype, self.header.big_endian, source=self.url, tensor=tensor.name)
        entries = [tensor.entries[piece] for piece in pieces]
        if len(entries) > 1:
            check_claims(self.shards, *_columns_of([(tensor.name, entry) for entry in entries]))
        elif entries and (box is None or not self._is_short(tensor, entries[0], box)):
            # If it is short, the answer to the read shows soon enough whether the file has it.
            entry = entries[0]
            self.shards[entry.shard_id].check_inside(entry.offset, entry.size_bytes, tensor.name)

    def _is_short(self, tensor: StoredTensor, entry: BundleEntry, box: Box) -> bool:
        """Return whether a box is read with one request and needs little memory."""
        item_size = dtypes.item_size_bytes(tensor.dtype)
        size = math.prod(box.counts) * item_size if item_size else entry.size_bytes
        return size <= REQUEST_SIZE_BYTES

    def _read_box(
        self, tensor: StoredTensor, box: Box, overlaps: Sequence[Overlap], target: npt.NDArray[Any]
    ) -> None:
        axes, target = upright(box.axes, target)
        batch = ReadBatch()
        if len(overlaps) > 1:
            plan = plan_boxes([WantedBox(pieces_of(tensor), axes, target)], batch, is_far=self.shards.are_far)
            fetch(batch, self.shards, partials=plan.partials, memory_budget=self.memory_budget)
            return
        partials = []
        for piece, _, inside in overlaps:
            entry = tensor.entries[piece]
            axes, _ = upright(inside, target)
            if all(axis.size == size for axis, size in zip(axes, entry.shape, strict=True)):
                batch.add(tensor.name, entry, tensor.dtype, target)
            elif target.dtype.hasobject:
                # Strings lie behind their lengths, so a single one cannot be located.
                batch.add(tensor.name, entry, tensor.dtype, None, [Taker(axes, target)])
            else:
                # No byte more than is needed, even if it is then not verified.
                partials.append(PartialRead(tensor.name, entry, tensor.dtype, Taker(axes, target)))
        fetch(batch, self.shards, partials=partials, memory_budget=self.memory_budget)

    def read_stored(
        self,
        requests: Sequence[tuple[StoredTensor, npt.NDArray[Any] | None]],
        *,
        bulk: ReadBatch | None = None,
        boxes: Sequence[WantedBox] = (),
        on_devices: Sequence[tuple[StoredTensor, DeviceTensor]] = (),
        transfer: Transfer | None = None,
        counts: PieceCounts | None = None,
    ) -> list[npt.NDArray[Any]]:
        stored = {tensor.name: tensor for tensor, _ in [*requests, *on_devices]}
        for name, dtype in {name: tensor.dtype for name, tensor in stored.items()}.items():
            byte_order_unit(dtype, self.header.big_endian, source=self.url, tensor=name)
        batch = ReadBatch() if bulk is None else bulk
        before = len(batch)
        plan = self._plan_boxes(boxes, batch, transfer)
        claimed = [(tensor.name, entry) for tensor in stored.values() for entry in tensor.entries]
        # A part may be wanted by several boxes, its bytes are claimed once.
        read_in_part = {(part.entry.shard_id, part.entry.offset): part for part in plan.partials}.values()
        claimed += [(part.tensor, part.entry) for part in read_in_part]
        # In this order: a missing file, slices that are missing, a file that is too short.
        wanted: dict[int, str] = {}
        for name, entry in claimed:
            if entry.size_bytes:
                wanted.setdefault(entry.shard_id, name)
        self.shards.request_sizes(wanted.items())
        for shard_id, name in wanted.items():
            self.shards[shard_id].size_bytes(name)
        for tensor in stored.values():
            self._check_covered(tensor)
        whole = (batch.tensors, batch.shard_ids, batch.offsets, batch.sizes_bytes)
        in_boxes = [column[before:] for column in whole]
        check_claims(self.shards, *map(operator.add, _columns_of(claimed), in_boxes))
        for tensor, out in requests:
            if out is not None:
                check_destination(out, tensor.shape, tensor.dtype, tensor=tensor.name)
        results: list[npt.NDArray[Any]] = []
        for tensor, out in requests:
            name, dtype, shape, slices, entries = tensor
            result = np.empty(shape, NATIVE[dtype.as_datatype_enum]) if out is None else out
            results.append(result)
            if not slices:
                batch.add(name, entries[0], dtype, result)
                continue
            for box, entry in zip(slices, entries, strict=True):
                where = tuple(slice(start, start + length) for start, length in box.resolve(shape))
                batch.add(name, entry, dtype, view_of(result, where))
        for tensor, receiver in on_devices:
            _add_device_tensor(batch, tensor, receiver)
        fetch(
            batch,
            self.shards,
            partials=plan.partials,
            transfer=transfer,
            memory_budget=self.memory_budget,
        )
        if counts is not None:
            counts.verified += len(batch)
            counts.unverified += plan.unverified
        return results

    def _plan_boxes(self, boxes: Sequence[WantedBox], batch: ReadBatch, transfer: Transfer | None) -> BoxPlan:
        before = len(batch)
        for name, dtype in {box.tensor.name: box.tensor.dtype for box in boxes}.items():
            byte_order_unit(dtype, self.header.big_endian, source=self.url, tensor=name)
        plan = plan_boxes(boxes, batch, is_far=self.shards.are_far)
        for number, found in plan.missing[:1]:
            tensor, axes, _ = boxes[number]
            raise insufficient_slices(tensor.name, tensor.shape, axes, found, self.url)
        if transfer is not None and transfer.total_bytes is not None:
            # Some pieces are read whole although only a part is wanted.
            planned = sum(batch.sizes_bytes[before:])
            planned += sum(part.taker.target.nbytes for part in plan.partials)
            transfer.expect(transfer.total_bytes + planned - sum(box.size_bytes for box in boxes))
        return plan


def _add_device_tensor(batch: ReadBatch, tensor: StoredTensor, out: DeviceTensor) -> None:
    name, dtype, shape, slices, entries = tensor
    if not slices:
        # With one dimension it can be cut where the object was.
        whole = entries[0]._replace(shape=(element_count(shape),))
        batch.add_device_tensor(name, whole, dtype, out.flat())
        return
    for box, entry in zip(slices, entries, strict=True):
        where = tuple(slice(start, start + length) for start, length in box.resolve(shape))
        batch.add_device_tensor(name, entry, dtype, out.part(where))


def _columns_of(
    claimed: Sequence[tuple[str, BundleEntry]],
) -> tuple[list[str], list[int], list[int], list[int]]:
    """Return names, shards, offsets and sizes, as `check_claims` takes them."""
    entries = [entry for _, entry in claimed]
    return (
        [name for name, _ in claimed],
        [entry.shard_id for entry in entries],
        [entry.offset for entry in entries],
        [entry.size_bytes for entry in entries],
    )
