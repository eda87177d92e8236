"""Write the bytes of one shard in one pass.

Calls
-----
``ShardWriter(upload)``; `write` for planned tensors in data order, or `add` for one after the other;
`finish`; `close` when the upload is committed or given up. Committing the upload, building the index from the
`entries` of all shards (`index`) and publishing it is up to the caller: nothing here makes a file visible.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from ckptstore.bundle.write.index import IndexEntry
from ckptstore.bundle.write.item_bytes import byte_view, encoded, is_as_stored, stored_chunks
from ckptstore.bundle.write.pack import entries_of, gather, is_plain
from ckptstore.bundle.write.plan import ClaimedNames, WriteItem, write_item
from ckptstore.bundle.write.stage import StagedShard
from ckptstore.checksums import crc32c_of_each, crc32c_of_ranges
from ckptstore.format.crc32c import mask
from ckptstore.format.dtypes import item_size_bytes
from ckptstore.format.entry import (
    BundleEntry,
    name_to_key,
)
from ckptstore.format.slices import encode_slice_key
from ckptstore.storage.upload import Upload
from ckptstore.transfer.transfer import Transfer
from ckptstore.transfer.upload import BudgetLease, Checksum, PartSender
from ckptstore.types import DType, Slice

__all__ = ["ShardWriter"]

# Smaller tensors are collected and handed over together: a piece for each would cost more than their bytes.
_BATCHED_BELOW_BYTES = 256 * 1024
_BATCH_SIZE_BYTES = 4 * 1024 * 1024

# Fewer go with those before and behind them.
_GATHERED_FROM = 16

# What has to be converted is converted in chunks of this size.
_CHUNK_SIZE_BYTES = 8 * 1024 * 1024


class _Batch:
    """Small tensors that follow each other, and the checksums of those whose is not that of their bytes."""

    def __init__(self) -> None:
        self.items: list[WriteItem] = []
        self.size_bytes = 0
        self.crcs: dict[int, int] = {}

    def add(self, item: WriteItem, crc: int | None) -> None:
        if crc is not None:
            self.crcs[len(self.items)] = crc
        self.items.append(item)
        self.size_bytes += item.size_bytes


class ShardWriter:
    """The data file of one shard, tensor behind tensor, without padding.

    Parameters
    ----------
    upload : Upload
        Receives the bytes. Committing, aborting and closing it stays with the caller.
    shard_id : int
        The shard number in the entries; see `renumbered` if it is known only later.
    transfer : Transfer, optional
        Whose threads and memory to use.
    size_bytes : int, optional
        How many bytes there will be, if that is known.

    Format
    ------
    Mirrors ``BundleWriter`` in TensorFlow ``tensorflow/core/util/tensor_bundle/tensor_bundle.cc`` as
    measured on TensorFlow 2.21: no alignment, order of the calls, ``masked_crc32c`` over the bytes as they
    are in the file.

    Threads
    -------
    One thread at a time.
    """

    def __init__(
        self,
        upload: Upload,
        *,
        shard_id: int = 0,
        transfer: Transfer | None = None,
        size_bytes: int | None = None,
    ) -> None:
        self._sender = PartSender(upload, transfer or Transfer("save", ""), size_bytes)
        self._shard_id = shard_id
        self._expected_bytes = size_bytes
        self._names = ClaimedNames()
        self._entries: list[IndexEntry] = []
        self._unproved: dict[int, Checksum] = {}
        self._partitioned: dict[str, tuple[DType, tuple[int, ...], list[Slice]]] = {}
        self._batch = _Batch()
        self._raw: list[bytes] = []
        self._raw_lease: BudgetLease | None = None
        self._noted_bytes = 0

    def add(
        self,
        name: str,
        array: npt.ArrayLike,
        *,
        dtype: DType | str | None = None,
        shape: Sequence[int] | None = None,
        spec: str | Sequence[tuple[int, int]] | None = None,
    ) -> None:
        """Append one tensor, or one box of a partitioned one; parameters and errors as `write_item`.

        Raises
        ------
        UsageError
            Also if this tensor or slice was added before. Nothing was written then.
        """
        self.add_item(write_item(name, array, dtype=dtype, shape=shape, spec=spec))

    def add_item(self, item: WriteItem) -> None:
        """Append an item of `write_item`. The array may be changed again when this returns."""
        self._names.claim(item)
        if item.size_bytes < _BATCHED_BELOW_BYTES and is_plain(item):
            self._collect(item, item.array.tobytes())
            return
        self.write((item,))
        self._sender.detach_from_caller()

    def reserve(self, size_bytes: int) -> BudgetLease:
        """Acquire memory for what `add_stream` is given, waiting for room. Raises as `write`."""
        return self._sender.reserve(size_bytes)

    def add_stream(
        self,
        name: str,
        dtype: DType,
        shape: tuple[int, ...],
        pieces: Iterable[tuple[memoryview, BudgetLease]],
    ) -> None:
        """Append one tensor whose bytes come piece by piece; nobody changes them until the lease ends.

        Parameters
        ----------
        name : str
        dtype : DType
            Of numbers.
        shape : tuple of int
        pieces : iterable of (memoryview, BudgetLease)
            Flat bytes in C order, little-endian, and the memory of `reserve` that they lie in. The caller
            releases it.

        Raises
        ------
        UsageError
            If the name is not possible, or was added before. Nothing was written then.
        """
        name_to_key(name)
        size_bytes = math.prod(shape) * item_size_bytes(dtype)
        # What stands in the place of the array is not looked at.
        item = WriteItem(name, dtype, shape, None, shape, size_bytes, np.empty(0, np.uint8))
        self._names.claim(item)
        checksum = self._begin(item)
        for view, lease in pieces:
            self._sender.put(view, checksum=checksum, lease=lease)

    def write(self, items: Iterable[WriteItem]) -> None:
        """Append the tensors of a plan. The arrays stay as they are until `finish`, or `close`, returns.

        Raises
        ------
        BaseException
            The error of the first thread that failed. Only `close` may follow.
        """
        small: list[WriteItem] = []
        small_bytes = 0
        for item in items:
            array = item.array
            size_bytes = item.size_bytes
            if size_bytes < _BATCHED_BELOW_BYTES and is_plain(item):
                small.append(item)
                small_bytes += size_bytes
                if small_bytes >= _BATCH_SIZE_BYTES:
                    self._write_small(small, small_bytes)
                    small, small_bytes = [], 0
                continue
            if small:
                self._write_small(small, small_bytes)
                small, small_bytes = [], 0
            if array.dtype.hasobject:
                self._write_objects(item)
            elif not is_as_stored(item):
                self._write_converted(item)
            elif size_bytes < _BATCHED_BELOW_BYTES:
                self._collect(item, array.tobytes())
            else:
                self._sender.put(byte_view(array), checksum=self._begin(item))
        if small:
            self._write_small(small, small_bytes)

    def write_staged(self, items: Sequence[WriteItem], staged: StagedShard) -> None:
        """Append the tensors of a plan, with the bytes that were copied before; errors as `write`."""
        put, wait_for, take = self._sender.put, self._sender.wait_for, staged.take
        # Small tensors that lie in one block go together.
        batch = _Batch()
        room_bytes = 0

        def put_batch() -> None:
            nonlocal batch, room_bytes
            if batch.items:
                view, lease = take(batch.size_bytes)
                stops = list(accumulate(item.size_bytes for item in batch.items))
                self._note_batch(batch, crc32c_of_ranges(view, [0, *stops[:-1]], stops))
                put(view, lease=lease)
                room_bytes -= batch.size_bytes
                batch = _Batch()

        for index, item in enumerate(items):
            size_bytes = item.size_bytes
            if size_bytes > room_bytes - batch.size_bytes:
                put_batch()
                room_bytes = wait_for(staged.room)
            crc = staged.crc(index) if item.array.dtype.hasobject else None
            if size_bytes < _BATCHED_BELOW_BYTES and size_bytes <= room_bytes - batch.size_bytes:
                batch.add(item, crc)
                continue
            put_batch()
            checksum = self._begin(item, crc)
            while size_bytes:
                room_bytes = wait_for(staged.room)
                view, lease = take(min(size_bytes, room_bytes))
                put(view, checksum=checksum, lease=lease)
                size_bytes -= len(view)
                room_bytes -= len(view)
        put_batch()
        staged.end()

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors added so far."""
        return self._noted_bytes + self._batch.size_bytes

    def held_bytes(self) -> int:
        """Return how much memory is kept until more tensors come."""
        return self._sender.held_bytes

    @property
    def entries(self) -> list[IndexEntry]:
        """Key and entry of everything added, in no particular order; once `finish` returned.

        A partitioned tensor has one entry for each slice and one, without bytes, that lists the slices in
        the order in which they were added.
        """
        partitioned = [
            (
                name_to_key(name),
                BundleEntry(dtype.as_datatype_enum, shape, self._shard_id, slices=tuple(boxes)),
            )
            for name, (dtype, shape, boxes) in self._partitioned.items()
        ]
        return [*self._entries, *partitioned]

    @property
    def crc32c(self) -> int:
        """Unmasked CRC32C of the whole data file; once `finish` returned."""
        return self._sender.crc32c

    def finish(self) -> None:
        """Send what is left, and wait until all is sent. Raises as `write`."""
        self._flush()
        self._sender.finish()
        for index, checksum in self._unproved.items():
            key, entry = self._entries[index]
            self._entries[index] = key, entry._replace(masked_crc32c=mask(checksum.value))
        self._unproved.clear()

    def close(self) -> None:
        """Stop what is in progress; then nothing runs, and no array is needed any more."""
        self._sender.close()
        self._raw.clear()
        if self._raw_lease is not None:
            self._raw_lease.release()
            self._raw_lease = None

    def _write_small(self, items: Sequence[WriteItem], size_bytes: int) -> None:
        """Append tensors and slices that are in memory as in the file."""
        if len(items) < _GATHERED_FROM:
            for item in items:
                self._collect(item, item.array.tobytes())
            return
        self._flush()
        lease = self._sender.reserve(size_bytes)
        payload, entries = gather(items, shard_id=self._shard_id, offset=self._noted_bytes)
        self._note_slices(items)
        self._entries += entries
        self._noted_bytes += size_bytes
        self._sender.put(memoryview(payload), lease=lease)
        lease.release()

    def _write_objects(self, item: WriteItem) -> None:
        if item.size_bytes < _BATCHED_BELOW_BYTES:
            self._collect(item, *encoded(item))
            return
        self._flush()
        lease = self._sender.reserve(item.size_bytes)
        payload, crc = encoded(item)
        self._begin(item, crc)
        self._sender.put(memoryview(payload), lease=lease)
        lease.release()

    def _write_converted(self, item: WriteItem) -> None:
        if item.size_bytes < _BATCHED_BELOW_BYTES:
            self._collect(item, b"".join(map(byte_view, stored_chunks(item, _CHUNK_SIZE_BYTES))))
            return
        checksum = self._begin(item)
        chunks = stored_chunks(item, _CHUNK_SIZE_BYTES)
        left_bytes = item.size_bytes
        while left_bytes:
            lease = self._sender.reserve(min(left_bytes, _CHUNK_SIZE_BYTES))
            chunk = next(chunks)
            lease.shrink(chunk.nbytes)
            self._sender.put(byte_view(chunk), checksum=checksum, lease=lease)
            lease.release()
            left_bytes -= chunk.nbytes

    def _begin(self, item: WriteItem, crc: int | None = None) -> Checksum | None:
        """Make the entry of the tensor whose bytes come next; return the checksum to fill, if any."""
        self._flush()
        if crc is not None:
            self._note(item, item.size_bytes, crc)
            return None
        checksum = self._unproved[len(self._entries)] = Checksum()
        self._note(item, item.size_bytes, 0)
        return checksum

    def _key(self, item: WriteItem) -> bytes:
        """Return the key of the entry; of a slice, also note it for the entry that lists the slices."""
        if item.slice is None:
            return name_to_key(item.name)
        self._note_slices([item])
        return encode_slice_key(item.name, item.slice)

    def _note_slices(self, items: Iterable[WriteItem]) -> None:
        """Note slices for the entries that list them."""
        last = ""
        boxes: list[Slice] = []
        for name, dtype, _, box, full_shape, _, _ in items:
            if box is not None:
                if name != last:
                    last, boxes = name, self._partitioned.setdefault(name, (dtype, full_shape, []))[2]
                boxes.append(box)

    def _note(self, item: WriteItem, size_bytes: int, crc: int) -> None:
        enum = item.dtype.as_datatype_enum
        entry = BundleEntry(enum, item.shape, self._shard_id, self._noted_bytes, size_bytes, mask(crc))
        self._entries.append((self._key(item), entry))
        self._noted_bytes += size_bytes

    def _note_batch(self, batch: _Batch, crcs: list[int]) -> None:
        for index, crc in batch.crcs.items():
            crcs[index] = crc
        self._note_slices(batch.items)
        self._entries += entries_of(batch.items, crcs, shard_id=self._shard_id, offset=self._noted_bytes)
        self._noted_bytes += batch.size_bytes

    def _collect(self, item: WriteItem, raw: bytes, crc: int | None = None) -> None:
        if self._raw_lease is None:
            self._raw_lease = self._sender.reserve(self._batch_size_bytes())
        self._batch.add(item, crc)
        self._raw.append(raw)
        if self._batch.size_bytes >= _BATCH_SIZE_BYTES:
            self._flush()

    def _batch_size_bytes(self) -> int:
        most = _BATCH_SIZE_BYTES + _BATCHED_BELOW_BYTES
        return most if self._expected_bytes is None else min(most, self._expected_bytes - self.size_bytes)

    def _flush(self) -> None:
        if self._raw_lease is None:
            return
        batch, raw, lease = self._batch, self._raw, self._raw_lease
        self._batch, self._raw, self._raw_lease = _Batch(), [], None
        joined = b"".join(raw)
        lease.shrink(len(joined))
        self._note_batch(batch, crc32c_of_each(raw))
        self._sender.put(memoryview(joined), lease=lease)
        lease.release()
