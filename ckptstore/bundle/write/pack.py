"""The bytes and entries of many small tensors at once.

For tensors by the ten thousand, where one call of Python for each costs more than its kilobyte.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from ckptstore.bundle.write.plan import WriteItem
from ckptstore.format import dtypes
from ckptstore.format.crc32c import crc32c_of_ranges, mask_many
from ckptstore.format.entry import BundleEntry, name_to_key
from ckptstore.format.slice_columns import slice_key_prefix
from ckptstore.format.slices import encode_extents

__all__ = ["Gathered", "entries_of", "gather", "is_plain"]


def _exports_memory(dtype: np.dtype[Any]) -> bool:
    try:
        np.empty(1, dtype).data  # noqa: B018 - tested for the exception
    except ValueError:
        return False
    return True


# Those of ml_dtypes do not.
_EXPORTS_MEMORY = {
    dtype.as_datatype_enum: _exports_memory(dtypes.storage_dtype(dtype)) for dtype in dtypes.ALL
}


_PLAIN = frozenset(dtypes.STORED_AS_IS)


def is_plain(item: WriteItem) -> bool:
    """Return whether `gather` accepts this."""
    array = item.array
    return array.dtype in _PLAIN and array.flags.c_contiguous


class Gathered(NamedTuple):
    """Tensors behind each other.

    Attributes
    ----------
    entries : list of (bytes, BundleEntry)
        Key and entry of each.
    """

    payload: bytes
    entries: list[tuple[bytes, BundleEntry]]


def gather(items: Sequence[WriteItem], *, shard_id: int, offset: int) -> Gathered:
    """Copy the bytes of tensors or slices, and make their entries.

    Parameters
    ----------
    items : sequence of WriteItem
        That are plain.
    shard_id : int
    offset : int, bytes
        Where the first one begins in its data file.
    """
    buffers = [
        item.array if _EXPORTS_MEMORY[item.dtype.as_datatype_enum] else dtypes.as_bytes_view(item.array)
        for item in items
    ]
    payload = b"".join(cast("list[bytes]", buffers))
    stops = [*itertools.accumulate(item.size_bytes for item in items)]
    # Of the copy: the arrays may change against the rules, but never the checkpoint.
    crcs = crc32c_of_ranges(payload, [0, *stops][:-1], stops)
    return Gathered(payload, entries_of(items, crcs, shard_id=shard_id, offset=offset))


def entries_of(
    items: Sequence[WriteItem], crcs: Sequence[int], *, shard_id: int, offset: int
) -> list[tuple[bytes, BundleEntry]]:
    """Return key and entry of tensors or slices that lie behind each other from `offset` on.

    `crcs` are not masked.
    """
    starts = itertools.accumulate([item.size_bytes for item in items], initial=offset)
    masked = mask_many(crcs).tolist()
    new = tuple.__new__
    return [
        (key, new(BundleEntry, (item[1].as_datatype_enum, item[2], shard_id, start, item[5], crc, ())))
        for key, item, start, crc in zip(_keys_of(items), items, starts, masked, strict=False)
    ]


def _keys_of(items: Sequence[WriteItem]) -> list[bytes]:
    """Return the key of each item."""
    keys = []
    # Slices of a tensor follow each other, and many tensors of a model are cut alike, by the same objects.
    last: tuple[str, int] = "", 0
    prefix = b""
    extents: dict[int, bytes] = {}
    for name, _, _, box, _, _, _ in items:
        if box is None:
            keys.append(name_to_key(name))
            continue
        tail = extents.get(id(box))
        if tail is None:
            tail = extents[id(box)] = encode_extents(box)
        if (name, len(box.extents)) != last:
            last = name, len(box.extents)
            prefix = slice_key_prefix(name_to_key(name), len(box.extents))
        keys.append(prefix + tail)
    return keys
