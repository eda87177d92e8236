"""Read a V2 bundle: ``PREFIX.index`` and its data files."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptstore.bundle.read.batch import NATIVE, Jobs, SmallTensors
from ckptstore.bundle.read.bulk_lookup import find_small, have_small
from ckptstore.bundle.read.fetch import byte_order_unit, fetch
from ckptstore.bundle.read.fetch_box import fetch_box
from ckptstore.bundle.read.index_file import IndexFile
from ckptstore.bundle.read.indexing import Axis, Box, as_slices, view_of
from ckptstore.bundle.read.reader import (
    BundleReader,
    StoredTensor,
    check_destination,
    check_partition,
    key_of,
)
from ckptstore.bundle.read.shard_files import ShardFiles
from ckptstore.errors import CorruptError, FormatError
from ckptstore.format import dtypes
from ckptstore.format.entry import HEADER_KEY, BundleEntry, check_entry, key_to_name, name_to_key
from ckptstore.format.slices import decode_slice_key, encode_slice_key, format_slice
from ckptstore.storage.base import Location
from ckptstore.transfer.ranges import REQUEST_SIZE_BYTES
from ckptstore.transfer.transfer import Transfer
from ckptstore.types import Slice, TensorSpec

__all__ = ["ReaderV2"]

# Who asks for so many tensors at a time gets them from the whole index.
_MANY_NAMES = 64


class ReaderV2(BundleReader):
    """A bundle with an index.

    Parameters
    ----------
    location : Location
        The prefix.
    index : IndexFile

    Attributes
    ----------
    index : IndexFile
    shards : ShardFiles
    """

    def __init__(self, location: Location, index: IndexFile) -> None:
        self.location = location
        self.url = index.url
        self.header = index.header
        self.index_version = index.version
        self.index = index
        self._is_foreign = index.header.big_endian != (sys.byteorder == "big")
        self.shards = ShardFiles(location, index.header.num_shards, index.is_current)
        self._partitioned: dict[str, StoredTensor] = {}
        self._names: list[str] | None = None

    def is_current(self) -> bool:
        return self.index.is_current()

    def raw_keys(self) -> list[bytes]:
        partitioned = {key_of(name) for name in self._partitions()[0]}
        return [key for key in self.index.rows().keys if key != HEADER_KEY and key not in partitioned]

    def names(self) -> list[str]:
        if self._names is None:
            keys = self.index.rows().keys
            # A tensor's own name may look like the key of a slice; only those that a tensor lists are none.
            of_slices: set[bytes] = set()
            partitioned, of_damaged = self._partitions()
            of_slices.update(of_damaged)
            for name in partitioned:
                boxes = self.entry(name).slices
                of_slices.update(encode_slice_key(name, box) for box in boxes)
            # Sorted once more: bytes that are no UTF-8 stand elsewhere as text.
            self._names = sorted(
                [key_to_name(key) for key in keys if key != HEADER_KEY and key not in of_slices]
            )
        return list(self._names)

    def _partitions(self) -> tuple[set[str], list[bytes]]:
        """Return the tensors that list slices, and what seem to be slices of a tensor whose entry is damaged.

        They are found by the keys of the slices: all begin with byte 0.
        """
        names: set[str] = set()
        damaged: set[str] = set()
        of_damaged: list[bytes] = []
        for key in self.index.rows().keys:
            if key[:1] == b"\x00":
                try:
                    name = decode_slice_key(key, source=self.url)[0]
                except FormatError:
                    continue
                if name and name not in names and name not in damaged:
                    try:
                        entry = self.index.entry(name_to_key(name))
                    except FormatError:
                        # Raised when the tensor is asked for; here it would hide all the others.
                        damaged.add(name)
                    else:
                        if entry is not None and entry.slices:
                            names.add(name)
                if name in damaged:
                    of_damaged.append(key)
            elif key != HEADER_KEY:
                break
        return names, of_damaged

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
        if found is None:
            dtype = check_entry(entry, source=self.url, tensor=name)
            pieces = tuple(self._slice_entry(name, entry, box) for box in entry.slices)
            found = StoredTensor(name, dtype, entry.shape, entry.slices, pieces)
            check_partition(found, self.url)
            self._partitioned[name] = found
        return found

    def stored_many(self, names: Iterable[str]) -> list[StoredTensor | None]:
        names = list(names)
        if len(names) < _MANY_NAMES:
            return super().stored_many(names)
        try:
            rows = self.index.rows()
        except CorruptError:
            # One by one those can be found that the damage is not near to.
            return super().stored_many(names)
        columns, row_of = rows.columns, rows.row_of
        kinds, kind_ids, sizes_bytes = columns.kinds, columns.kind_ids, columns.sizes_bytes
        found: list[StoredTensor | None] = []
        for name in names:
            key = key_of(name)
            row = row_of.get(key) if key else None
            if row is None:
                found.append(None)
                continue
            number, size = kind_ids[row], sizes_bytes[row]
            if number < 0 or kinds[number].size_bytes != size:
                found.append(self.stored(name))
                continue
            # What `check_entry` would look at was looked at once for all tensors of this kind.
            enum, shape, dtype, _ = kinds[number]
            place = (columns.shard_ids[row], columns.offsets[row], size, columns.masked_crc32cs[row])
            entry = tuple.__new__(BundleEntry, (enum, shape, *place, ()))
            found.append(tuple.__new__(StoredTensor, (name, dtype, shape, (), (entry,))))
        return found

    def find_small(self, names: Sequence[str]) -> SmallTensors | None:
        if len(names) < _MANY_NAMES or self._is_foreign or len(set(names)) < len(names):
            return None
        try:
            return find_small(self.index.rows(), names)
        except CorruptError:
            return None

    def have_small(self, small: Jobs, others: Iterable[StoredTensor]) -> bool:
        return have_small(self.shards, small, others)

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

    def _check_present(self, tensor: StoredTensor, pieces: Sequence[int], box: Box | None = None) -> None:
        byte_order_unit(tensor.dtype, self.header.big_endian, source=self.url, tensor=tensor.name)
        if box is not None and len(pieces) == 1 and self._is_short(tensor, tensor.entries[pieces[0]], box):
            return  # the first answer tells soon enough
        for piece in pieces:
            entry = tensor.entries[piece]
            self.shards[entry.shard_id].check_inside(entry, tensor.name)
        if len(pieces) > 1:
            self._check_not_shared([tensor])

    def _is_short(self, tensor: StoredTensor, entry: BundleEntry, box: Box) -> bool:
        """Tell whether a box is read with one request and needs little memory."""
        item_size = dtypes.item_size_bytes(tensor.dtype)
        size = math.prod(box.counts) * item_size if item_size else entry.size_bytes
        return size <= REQUEST_SIZE_BYTES

    def _check_not_shared(self, tensors: Iterable[StoredTensor]) -> None:
        """Raise if tensors claim more bytes of a file than it has: it must not fill the memory."""
        claimed: dict[int, int] = {}
        last: dict[int, str] = {}
        for tensor in tensors:
            for entry in tensor.entries:
                if entry.size_bytes:
                    claimed[entry.shard_id] = claimed.get(entry.shard_id, 0) + entry.size_bytes
                    last[entry.shard_id] = tensor.name
        for shard_id, total in claimed.items():
            shard, name = self.shards[shard_id], last[shard_id]
            if total > shard.size_bytes(name):
                raise FormatError(
                    "several tensors or slices claim the same bytes of a data file",
                    url=shard.url,
                    tensor=name,
                    expected=f"at most {shard.size_bytes(name)} bytes",
                    actual=f"{total} bytes",
                    hint="No writer of checkpoints makes such files.",
                )

    def _read_piece(
        self, tensor: StoredTensor, piece: int, axes: tuple[Axis, ...], target: npt.NDArray[Any]
    ) -> None:
        entry = tensor.entries[piece]
        big_endian = self.header.big_endian
        covers = all(axis.size == size for axis, size in zip(axes, entry.shape, strict=True))
        budget = self.memory_budget
        if covers or target.dtype.hasobject:
            select = None
            if target.dtype.hasobject:
                # Strings lie behind their lengths, so there is no way to only one of them.
                select = as_slices(axes)
            else:
                target = view_of(
                    target, tuple(slice(None, None, -1 if axis.step < 0 else 1) for axis in axes)
                )
            jobs = Jobs()
            jobs.add(tensor.name, entry, tensor.dtype, target, select)
            fetch(jobs, self.shards, big_endian=big_endian, memory_budget=budget)
        else:
            fetch_box(
                tensor.name,
                entry,
                tensor.dtype,
                axes,
                target,
                self.shards[entry.shard_id],
                big_endian=big_endian,
                parallel=self.shards.parallel_reads,
                memory_budget=budget,
            )

    def read_stored(
        self,
        requests: Sequence[tuple[StoredTensor, npt.NDArray[Any] | None]],
        *,
        small: Jobs | None = None,
        transfer: Transfer | None = None,
    ) -> list[npt.NDArray[Any]]:
        if not self._are_plain(requests):
            self.shards.look_at(
                (entry.shard_id, tensor.name)
                for tensor, _ in requests
                for entry in tensor.entries
                if entry.size_bytes
            )
            for tensor, out in requests:
                self._check_present(tensor, range(len(tensor.entries)))
                if out is not None:
                    check_destination(out, tensor.shape, tensor.dtype, tensor=tensor.name)
                self._check_covered(tensor)
            self._check_not_shared({tensor.name: tensor for tensor, _ in requests}.values())
        results: list[npt.NDArray[Any]] = []
        jobs = Jobs() if small is None else small
        for tensor, out in requests:
            name, dtype, shape, slices, entries = tensor
            result = np.empty(shape, NATIVE[dtype.as_datatype_enum]) if out is None else out
            results.append(result)
            if not slices:
                jobs.add(name, entries[0], dtype, result)
                continue
            for box, entry in zip(tensor.slices, tensor.entries, strict=True):
                where = tuple(slice(start, start + length) for start, length in box.resolve(tensor.shape))
                jobs.add(name, entry, dtype, view_of(result, where))
        fetch(
            jobs,
            self.shards,
            big_endian=self.header.big_endian,
            transfer=transfer,
            memory_budget=self.memory_budget,
        )
        return results

    def _are_plain(self, requests: Sequence[tuple[StoredTensor, npt.NDArray[Any] | None]]) -> bool:
        """Tell whether all tensors are in one piece and all that has to hold does, at one look for each.

        Where it returns False there may be an error or not, and the longer way has to say.

        Raises
        ------
        IncompleteBundleError, NotFoundError
            If a data file is missing.
        """
        if self._is_foreign:
            return False
        # For each shard: the first tensor with bytes in it, the bytes of all, and where the last one ends.
        shards: dict[int, list[Any]] = {}
        seen: set[str] = set()
        for (name, dtype, shape, slices, entries), out in requests:
            if slices or name in seen:
                return False
            seen.add(name)
            if out is not None and not (
                type(out) is np.ndarray
                and out.shape == shape
                and out.dtype == NATIVE[dtype.as_datatype_enum]
                and out.flags.writeable
            ):
                return False
            _, _, shard_id, offset, size, _, _ = entries[0]
            if not size:
                continue
            shard = shards.get(shard_id)
            if shard is None:
                shards[shard_id] = [name, size, offset + size]
                continue
            shard[1] += size
            if offset + size > shard[2]:
                shard[2] = offset + size
        self.shards.look_at((shard_id, name) for shard_id, (name, _, _) in shards.items())
        for shard_id, (name, total, end) in shards.items():
            if max(total, end) > self.shards[shard_id].size_bytes(name):
                return False
        return True
