"""What ranks hold and who writes what, as bytes of a message."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from ckptstore.bundle.write.shares import Deal, Holding, Manifest, Replica, Share
from ckptstore.errors import CorruptError

__all__ = ["decode_deal", "decode_manifest", "encode_deal", "encode_manifest", "fingerprint_of"]


def encode_manifest(manifest: Manifest) -> bytes:
    """Return what a rank holds, as columns of JSON."""
    boxes = [None if one.is_whole else [one.start, one.shape] for one in manifest]
    return _dump(
        {
            "names": [one.name for one in manifest],
            "types": [one.dtype for one in manifest],
            "shapes": [one.full_shape for one in manifest],
            "boxes": boxes,
            "sizes": [one.size_bytes for one in manifest],
        }
    )


def fingerprint_of(manifest: bytes) -> str:
    """Return a short text that differs for manifests that differ."""
    return hashlib.sha256(manifest).hexdigest()[:32]


def decode_manifest(data: bytes) -> tuple[Holding, ...]:
    """Return what `encode_manifest` encoded.

    Raises
    ------
    CorruptError
        If it is something else.
    """
    try:
        columns = json.loads(data)
        rows = zip(*(columns[name] for name in ("names", "types", "shapes", "boxes", "sizes")), strict=True)
        return tuple([_holding(*row) for row in rows])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _unreadable("what a rank holds", error) from error


def _holding(name: Any, dtype: Any, shape: Any, box: Any, size_bytes: Any) -> Holding:
    full = _sizes(shape)
    start, extent = ((0,) * len(full), full) if box is None else (_sizes(box[0]), _sizes(box[1]))
    if not (isinstance(name, str) and isinstance(dtype, str) and isinstance(size_bytes, int)):
        raise TypeError("a name, a type and a size")
    fits = len(start) == len(extent) == len(full) and all(
        begin + length <= size for begin, length, size in zip(start, extent, full, strict=True)
    )
    if not fits or size_bytes < 0:
        raise ValueError(f"a box that does not lie inside tensor {name!r}")
    return Holding(name, dtype, full, start, extent, size_bytes)


def _sizes(value: Any) -> tuple[int, ...]:
    sizes = tuple(value)
    if not all(isinstance(size, int) and 0 <= size < 1 << 63 for size in sizes):
        raise ValueError("sizes")
    return sizes


def encode_deal(deal: Deal, manifests: Sequence[Manifest]) -> bytes:
    """Return who writes what, for all ranks."""
    shares = [
        None
        # The usual case at a thousand ranks: what a rank holds, nobody else holds.
        if own == tuple([Share(item) for item in range(len(manifest))])
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
            tuple([Share(item) for item in range(count)] if own is None else [_share(*one) for one in own])
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
