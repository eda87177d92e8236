"""Write the bytes of one shard in one pass, and the index over all of them.

Calls
-----
``ShardWriter(upload)``; ``add`` or ``add_item`` for every tensor in data order; ``finish``. Committing the
upload, building the index from the `entries` of all shards (`build_index`) and publishing it is up to the
caller: nothing here makes a file visible.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any, TypeAlias

import numpy.typing as npt

from ckptstore.bundle.plan import ClaimedNames, WriteItem, write_item
from ckptstore.errors import UsageError
from ckptstore.format.crc32c import combine, crc32c, mask
from ckptstore.format.dtypes import as_bytes_view
from ckptstore.format.entry import (
    HEADER_KEY,
    BundleEntry,
    BundleHeader,
    encode_entry,
    encode_header,
    key_to_name,
    name_to_key,
)
from ckptstore.format.slices import encode_slice_key
from ckptstore.format.strings import encode_strings, encode_variants
from ckptstore.format.table_builder import TableBuilder
from ckptstore.storage.base import Upload
from ckptstore.types import DType, Slice

__all__ = ["IndexEntry", "ShardWriter", "build_index", "merge_slices", "renumbered"]

IndexEntry: TypeAlias = tuple[bytes, BundleEntry]
"""A key of the index and what it says."""

# Smaller tensors are collected and handed over together: one write a tensor would cost more than its bytes.
_BATCHED_BELOW_BYTES = 256 * 1024
_BATCH_SIZE_BYTES = 4 * 1024 * 1024

# Large tensors go through in pieces that stay in the processor's cache between the checksum and the write.
_CHUNK_SIZE_BYTES = 8 * 1024 * 1024


class ShardWriter:
    """The data file of one shard, tensor behind tensor, without padding.

    Parameters
    ----------
    upload : Upload
        Receives the bytes. Committing, aborting and closing it stays with the caller.
    shard_id : int
        What the entries say; see `renumbered` if it is known only later.

    Attributes
    ----------
    size_bytes : int
        Bytes of all tensors added so far.

    Format
    ------
    Mirrors ``BundleWriter`` in TensorFlow ``tensorflow/core/util/tensor_bundle/tensor_bundle.cc`` as
    measured on TensorFlow 2.21: no alignment, order of the calls, ``masked_crc32c`` over the bytes as they
    are in the file.

    Threads
    -------
    One thread at a time.
    """

    def __init__(self, upload: Upload, *, shard_id: int = 0) -> None:
        self._upload = upload
        self._shard_id = shard_id
        self._names = ClaimedNames()
        self._entries: list[IndexEntry] = []
        self._partitioned: dict[bytes, tuple[DType, tuple[int, ...], list[Slice]]] = {}
        self._batch: list[bytes] = []
        self._batch_size_bytes = 0
        self._crc = 0
        self.size_bytes = 0

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
        """Append what `write_item` made. The array may be changed again when this returns."""
        self._names.claim(item)
        key = name_to_key(item.name)
        enum = item.dtype.as_datatype_enum
        if item.slice is not None:
            self._partitioned.setdefault(key, (item.dtype, item.full_shape, []))[2].append(item.slice)
            key = encode_slice_key(item.name, item.slice)
        offset = self.size_bytes
        crc, size = self._append(item.array, item.dtype)
        self._entries.append((key, BundleEntry(enum, item.shape, self._shard_id, offset, size, mask(crc))))

    @property
    def entries(self) -> list[IndexEntry]:
        """Key and entry of everything added so far, in no particular order.

        A partitioned tensor has one entry for each slice and one, without bytes, that lists the slices in
        the order in which they were added.
        """
        partitioned = [
            (key, BundleEntry(dtype.as_datatype_enum, shape, self._shard_id, 0, 0, 0, tuple(boxes)))
            for key, (dtype, shape, boxes) in self._partitioned.items()
        ]
        return [*self._entries, *partitioned]

    @property
    def crc32c(self) -> int:
        """Unmasked CRC32C of the whole data file so far."""
        return crc32c(b"".join(self._batch), self._crc)

    def finish(self) -> None:
        """Hand over what is still collected here."""
        self._flush()

    def _append(self, array: npt.NDArray[Any], dtype: DType) -> tuple[int, int]:
        """Write the bytes; return the checksum that the entry stores (unmasked) and the size."""
        if array.dtype == object:
            encode = encode_strings if dtype.name == "string" else encode_variants
            payload, crc = encode(array.ravel().tolist())
            if len(payload) < _BATCHED_BELOW_BYTES:
                self._collect(payload)
            else:
                self._flush()
                # The checksum of strings runs over their lengths in another form than the file's: not to be
                # combined.
                self._crc = crc32c(payload, self._crc)
                self._upload.write(payload)
                self.size_bytes += len(payload)
            return crc, len(payload)
        size = array.nbytes
        if size < _BATCHED_BELOW_BYTES:
            raw = array.tobytes()
            self._collect(raw)
            return crc32c(raw), size
        self._flush()
        view = as_bytes_view(array)
        crc = 0
        for start in range(0, size, _CHUNK_SIZE_BYTES):
            chunk = view[start : start + _CHUNK_SIZE_BYTES]
            crc = crc32c(chunk, crc)
            self._upload.write(chunk)
        self._crc = combine(self._crc, crc, size)
        self.size_bytes += size
        return crc, size

    def _collect(self, raw: bytes) -> None:
        self._batch.append(raw)
        self._batch_size_bytes += len(raw)
        self.size_bytes += len(raw)
        if self._batch_size_bytes >= _BATCH_SIZE_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._batch:
            joined = b"".join(self._batch)
            # At 26 GB/s a second checksum over small tensors costs less than combining those of each.
            self._crc = crc32c(joined, self._crc)
            self._batch.clear()
            self._batch_size_bytes = 0
            self._upload.write(joined)


def renumbered(entries: Iterable[IndexEntry], shard_id: int) -> list[IndexEntry]:
    """Return the entries of one shard under another shard number."""
    return [(key, entry._replace(shard_id=shard_id)) for key, entry in entries]


def merge_slices(first: BundleEntry, second: BundleEntry, key: bytes) -> BundleEntry:
    """Return the entry of a partitioned tensor whose slices two shards or bundles list.

    The slices of `second` follow those of `first`, whose shard number stays, as in TensorFlow's merge.

    Raises
    ------
    UsageError
        If one of them is not a partitioned tensor, or type or shape differ.
    """
    if not first.slices or not second.slices:
        name = key_to_name(key)
        raise UsageError(
            f"Adding duplicate key: {name}", tensor=name, hint="Every tensor needs its own name."
        )
    if first.dtype_enum != second.dtype_enum or first.shape != second.shape:
        raise UsageError(
            "the slices of one tensor do not agree on its type and full shape",
            tensor=key_to_name(key),
            expected=f"type {first.dtype_enum} {list(first.shape)}",
            actual=f"type {second.dtype_enum} {list(second.shape)}",
        )
    return first._replace(slices=first.slices + second.slices)


def build_index(
    entries: Iterable[IndexEntry], num_shards: int, *, header: BundleHeader | None = None
) -> bytes:
    """Return the bytes of the ``.index`` file.

    Parameters
    ----------
    entries : iterable of (key, BundleEntry)
        Of all shards, in any order; those of one partitioned tensor in the order of the shards.
    num_shards : int
        The count in the names of the data files; TensorFlow does not ask that so many exist.
    header : BundleHeader, optional
        Endianness and version of a bundle that is merged; `num_shards` replaces its own.

    Raises
    ------
    UsageError
        If a key comes twice and is not that of a partitioned tensor.

    Format
    ------
    Header under the empty key, then the entries ascending by key as unsigned bytes.
    """
    ordered = sorted(entries, key=itemgetter(0))
    if header is None:
        header = BundleHeader(num_shards)
    else:
        header = BundleHeader(
            num_shards, header.big_endian, header.producer, header.min_consumer, header.bad_consumers
        )
    builder = TableBuilder()
    add = builder.add
    add(HEADER_KEY, encode_header(header))
    last: IndexEntry | None = None
    for item in ordered:
        if last is not None:
            if item[0] == last[0]:
                last = (last[0], merge_slices(last[1], item[1], last[0]))
                continue
            add(last[0], encode_entry(last[1]))
        last = item
    if last is not None:
        add(last[0], encode_entry(last[1]))
    return builder.finish()
