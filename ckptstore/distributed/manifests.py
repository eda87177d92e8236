"""What ranks hold and who writes what, as bytes of a message."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import sys
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from ckptstore.bundle.write.manifest import Manifest, Tensors
from ckptstore.bundle.write.shares import Deal, Replica, Share, whole_shares
from ckptstore.errors import CorruptError

__all__ = ["decode_deal", "decode_manifest", "encode_deal", "encode_manifest", "fingerprint_of"]

_SIZE_BYTES: Final = 4

# Lists of tensors that are remembered.
_MOST_KINDS: Final = 16


def encode_manifest(manifest: Manifest) -> bytes:
    """Return what a rank holds.

    Format
    ------
    size of the tensors: u32 LE | tensors: JSON | boxes | sizes: i64 LE each

    The boxes of tensors of fewer dimensions come first: start and length in each dimension, i64 LE.
    """
    tensors = _encode_tensors(manifest.tensors)
    boxes = [manifest.boxes[ndim] for ndim in manifest.tensors.rows_by_ndim]
    numbers = [each.astype("<i8").tobytes() for each in (*boxes, manifest.sizes_bytes)]
    return b"".join([len(tensors).to_bytes(_SIZE_BYTES, "little"), tensors, *numbers])


def _encode_tensors(tensors: Tensors) -> bytes:
    return _dump({"names": tensors.names, "types": tensors.dtypes, "shapes": tensors.shapes})


def fingerprint_of(manifest: bytes) -> str:
    """Return a short text that differs for manifests that differ."""
    return hashlib.sha256(manifest).hexdigest()[:32]


def decode_manifest(data: bytes) -> Manifest:
    """Return what `encode_manifest` encoded.

    Raises
    ------
    CorruptError
        If it is something else.
    """
    try:
        end = _SIZE_BYTES + int.from_bytes(data[:_SIZE_BYTES], "little")
        if end > len(data):
            raise ValueError("a length beyond the end")
        tensors = _decode_tensors(data[_SIZE_BYTES:end])
        numbers = np.frombuffer(data, "<i8", offset=end).astype(np.int64)
        boxes = {}
        at = 0
        for ndim, shapes in tensors.shapes_by_ndim.items():
            table = numbers[at : at + 2 * shapes.size].reshape(len(shapes), 2 * ndim)
            at += table.size
            starts, lengths = table[:, :ndim], table[:, ndim:]
            fits = ((starts >= 0) & (lengths >= 0) & (starts <= shapes - lengths)).all(axis=1)
            if not fits.all():
                row = tensors.rows_by_ndim[ndim][int(np.flatnonzero(~fits)[0])]
                raise ValueError(f"a box that does not lie inside tensor {tensors.names[row]!r}")
            boxes[ndim] = table
        sizes_bytes = numbers[at:]
        if len(sizes_bytes) != len(tensors.names) or (sizes_bytes < 0).any():
            raise ValueError("sizes")
        return Manifest(tensors, boxes, sizes_bytes)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _unreadable("what a rank holds", error) from error


# Most ranks have the same tensors.
@functools.lru_cache(maxsize=_MOST_KINDS)
def _decode_tensors(data: bytes) -> Tensors:
    columns = json.loads(data)
    names, dtypes, shapes = (columns[name] for name in ("names", "types", "shapes"))
    if not all(isinstance(text, str) for text in (*names, *dtypes)):
        raise TypeError("a name and a type")
    known: dict[tuple[int, ...], tuple[int, ...]] = {}
    sizes = [known.setdefault(shape, shape) for shape in map(_shape, shapes)]
    if not len(names) == len(dtypes) == len(sizes):
        raise ValueError("columns of different lengths")
    return Tensors(tuple(names), tuple(map(sys.intern, dtypes)), tuple(sizes))


def _shape(value: Any) -> tuple[int, ...]:
    shape = tuple(value)
    if not all(isinstance(size, int) and size >= 0 for size in shape) or math.prod(shape) >= 1 << 63:
        raise ValueError("a shape")
    return shape


def encode_deal(deal: Deal, manifests: Sequence[Manifest]) -> bytes:
    """Return who writes what, for all ranks."""
    shares = [
        None
        # The usual case at a thousand ranks: what a rank holds, nobody else holds.
        if own == whole_shares(len(manifest))
        else [[share.item, *(share.rows or ())] for share in own]
        for own, manifest in zip(deal.shares, manifests, strict=True)
    ]
    replicas = [[each.name, each.rows, each.holders] for each in deal.replicas]
    return _dump({"items": [len(one) for one in manifests], "shares": shares, "replicas": replicas})


def decode_deal(data: bytes) -> Deal:
    """Return what `encode_deal` encoded.

    Raises
    ------
    CorruptError
        If it is something else.
    """
    try:
        columns = json.loads(data)
        shares = tuple(
            whole_shares(count) if own is None else tuple([_share(*one) for one in own])
            for count, own in zip(columns["items"], columns["shares"], strict=True)
        )
        replicas = tuple(
            Replica(
                str(name),
                None if rows is None else (int(rows[0]), int(rows[1])),
                tuple((int(rank), int(item)) for rank, item in holders),
            )
            for name, rows, holders in columns["replicas"]
        )
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise _unreadable("who writes what", error) from error
    return Deal(shares, replicas)


def _share(item: int, *rows: int) -> Share:
    if not rows:
        return Share(int(item))
    start, stop = rows
    return Share(int(item), (int(start), int(stop)))


def _dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _unreadable(what: str, error: Exception) -> CorruptError:
    return CorruptError(
        f"a message between ranks does not say {what}",
        actual=str(error),
        hint="All ranks must run the same version of ckptstore.",
    )
