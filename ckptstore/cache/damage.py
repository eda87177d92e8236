"""Which bytes of a checkpoint in the cache are wrong."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ckptstore.bundle.read.index_file import IndexFile
from ckptstore.bundle.read.shard_files import WantedBytes
from ckptstore.cache.copy import Copy
from ckptstore.cache.pieces import are_right
from ckptstore.errors import CkptStoreError
from ckptstore.format.slices import shown_name
from ckptstore.storage.local.sparse_file import SparseFile
from ckptstore.storage.registry import locate

__all__ = ["damage_in"]


def damage_in(copy: Copy) -> Iterator[str]:
    """Yield what is wrong; what was never fetched is not.

    Raises
    ------
    OSError
        If a file cannot be read.
    """
    content = copy.index()
    if content is None:
        yield f"{copy.index_path}: it is not the index that was fetched"
        return
    try:
        index = IndexFile(locate(copy.index_path), content)
        rows = index.rows()
        entries = [(key, rows.entry(row)) for row, key in enumerate(rows.keys) if row]
    except CkptStoreError as error:
        yield f"{copy.index_path}: {error}"
        return
    missing = list(copy.missing())
    files: dict[int, SparseFile] = {}
    for key, entry in entries:
        if not entry.size_bytes or entry.slices:
            continue
        stop = entry.offset + entry.size_bytes
        if any(
            shard == entry.shard_id and low < stop and high > entry.offset for shard, low, high in missing
        ):
            continue
        memory = np.empty(entry.size_bytes, np.uint8)
        if entry.shard_id not in files:
            files[entry.shard_id] = SparseFile.existing(copy.data_path(entry.shard_id))
        files[entry.shard_id].read_into(entry.offset, memory.data)
        piece = WantedBytes(entry, shown_name(key), entry.size_bytes)
        # Where small tensors share a block of the disk, zeros are what was never fetched.
        if not are_right([piece], [memory], index.header.big_endian, 1)[0] and memory.any():
            yield f"{copy.data_path(entry.shard_id)}: bytes {entry.offset} to {stop}, tensor {piece.tensor!r}"
