"""The slices of partitioned tensors by the ten thousand, as columns of numbers, and their keys.

`shape_proto` and `slices` define what a slice is, and alone decide what is wrong with one. This module
handles the form that nearly all slices have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ckptstore.format.entry_columns import Integers, varint_field
from ckptstore.format.ordered_code import encode_num, encode_signed_columns, encode_string

__all__ = [
    "MAX_RANK_IN_COLUMNS",
    "SliceColumns",
    "are_disjoint",
    "decode_slice_columns",
    "encode_slice_keys",
    "slice_key_prefix",
    "slice_starts",
]

MAX_RANK_IN_COLUMNS = 8
"""Few tensors have more dimensions, and each takes two bytes in the file but sixteen in memory."""

_SLICES_TAG = 0x3A
_EXTENT_TAG, _START_TAG, _LENGTH_TAG = 0x0A, 0x08, 0x10


class SliceColumns(NamedTuple):
    """Slices of tensors of one rank, one row each; those of one tensor follow each other.

    Attributes
    ----------
    tensors : ndarray of int64
        For each row the number of its tensor, ascending.
    starts, lengths : ndarray of int64, shape (rows, rank)
        Length -1 = the full extent.
    is_sound : ndarray of bool
        Whether the row was decoded and lies inside its tensor; the numbers of others mean nothing.
    """

    tensors: Integers
    starts: Integers
    lengths: Integers
    is_sound: npt.NDArray[np.bool_]

    def resolved_lengths(self, shapes: Integers) -> Integers:
        """Return the lengths with every -1 replaced; `shapes` has one row per tensor."""
        return np.where(self.lengths < 0, shapes[self.tensors], self.lengths)


def slice_starts(value: bytes, pos: int) -> list[int] | None:
    """Return where in the value of an entry each slice begins, from `pos` on; None if one is unusual."""
    starts = []
    end = len(value)
    while pos + 2 <= end:
        size = value[pos + 1]
        if value[pos] != _SLICES_TAG or size > 127:
            return None
        pos += 2
        starts.append(pos)
        pos += size
    return starts if pos == end else None


def decode_slice_columns(
    values: Sequence[bytes], starts_of: Sequence[Sequence[int]], shapes: Integers
) -> SliceColumns:
    """Decode the slices of many tensors of one rank.

    Parameters
    ----------
    values : sequence of bytes
        The entries of the tensors.
    starts_of : sequence of sequence of int
        For each what `slice_starts` returns.
    shapes : ndarray of int64, shape (tensors, rank)
        Rank from 1 to `MAX_RANK_IN_COLUMNS`.
    """
    counts = np.fromiter(map(len, starts_of), np.int64, len(values))
    sizes = np.fromiter(map(len, values), np.int64, len(values))
    tensors = np.repeat(np.arange(len(values)), counts)
    # Extents and numbers may be read behind the last slice, where it is cut off.
    data = np.frombuffer(b"".join(values) + bytes(300), np.uint8)
    origins = np.cumsum(sizes) - sizes
    at = np.fromiter((start for starts in starts_of for start in starts), np.int64, len(tensors))
    at += origins[tensors]
    stops = at + data[at - 1]
    rank = shapes.shape[1]
    all_starts = np.zeros((len(tensors), rank), np.int64)
    all_lengths = np.zeros((len(tensors), rank), np.int64)
    is_sound = np.ones(len(tensors), np.bool_)
    for dim in range(rank):
        ends = at + 2 + data[at + 1]
        is_sound &= (data[at] == _EXTENT_TAG) & (data[at + 1] < 128) & (ends <= stops)
        ends = np.where(is_sound, ends, at)
        starts, at = varint_field(_START_TAG, data, np.where(is_sound, at + 2, at), ends)
        has_length = (at < ends) & (data[np.minimum(at, ends)] == _LENGTH_TAG)
        lengths, at = varint_field(_LENGTH_TAG, data, at, ends)
        sizes = shapes[tensors, dim]
        is_inside = np.where(has_length, (lengths <= sizes) & (starts <= sizes - lengths), starts == 0)
        is_sound &= is_inside & (at == ends)
        all_starts[:, dim] = starts
        all_lengths[:, dim] = np.where(has_length, lengths, -1)
        at = ends
    is_sound &= at == stops
    return SliceColumns(tensors, all_starts, all_lengths, is_sound)


def slice_key_prefix(key: bytes, rank: int | None = None) -> bytes:
    """Return what the keys of a tensor's slices, and no others, begin with; `key` is that of the tensor."""
    return encode_num(0) + encode_string(key) + (b"" if rank is None else encode_num(rank))


def encode_slice_keys(prefixes: Sequence[bytes], slices: SliceColumns) -> list[bytes]:
    """Return what `ckptstore.format.slices.encode_slice_key` returns for each slice.

    Parameters
    ----------
    prefixes : sequence of bytes
        For each tensor what `slice_key_prefix` returns.
    slices : SliceColumns
    """
    count, rank = slices.starts.shape
    numbers = np.stack((slices.starts, slices.lengths), axis=2).reshape(count, 2 * rank)
    extents = encode_signed_columns(numbers)
    return [prefixes[tensor] + tail for tensor, tail in zip(slices.tensors.tolist(), extents, strict=True)]


def are_disjoint(groups: Integers, starts: Integers, stops: Integers) -> npt.NDArray[np.bool_]:
    """Return for each group of boxes whether it is easily proved that no two of them share an element.

    That is so for everything that was cut dimension by dimension: rows, columns, grids of any irregularity.

    Parameters
    ----------
    groups : ndarray of int64, shape (boxes,)
        Number of the group, from 0 on without gaps, ascending.
    starts, stops : ndarray of int64, shape (boxes, rank)

    Returns
    -------
    ndarray of bool
        False: only `ckptstore.format.slices.find_overlap` can tell.
    """
    result = np.ones(int(groups[-1]) + 1 if len(groups) else 0, np.bool_)
    kept = np.flatnonzero((stops > starts).all(axis=1))  # a box without elements overlaps nothing
    # Boxes are told apart by their extents in one dimension after the other. Where two extents differ, they
    # must not overlap; where they are the same, the dimensions that follow have to differ.
    classes = groups[kept]
    for dim in range(starts.shape[1]):
        begins, ends = starts[kept, dim], stops[kept, dim]
        order = np.lexsort((ends, begins, classes))
        kept, classes, begins, ends = kept[order], classes[order], begins[order], ends[order]
        follows = classes[1:] == classes[:-1]
        differs = (begins[1:] != begins[:-1]) | (ends[1:] != ends[:-1])
        overlaps = follows & differs & (begins[1:] < ends[:-1])
        result[groups[kept[1:][overlaps]]] = False
        classes = np.concatenate(([0], np.cumsum(~follows | differs))) if len(kept) else classes
    repeated = classes[1:] == classes[:-1]
    result[groups[kept[1:][repeated]]] = False
    return result
