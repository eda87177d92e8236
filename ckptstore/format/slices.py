"""Slices of partitioned tensors: TensorFlow's texts, the keys of their entries, and the geometry of boxes.

The slices that an entry lists are decoded in `slice_columns`, all at once, or in `shape_proto`, one by one.

Format
------
Mirrors TensorFlow `tensorflow/core/framework/tensor_slice.cc` (texts) and
`tensorflow/core/util/saved_tensor_slice_util.cc` (keys, shape_and_slice), as measured on TensorFlow 2.21.

    spec             start,length or -, one per dimension, joined by ":"     0,14:-
    shape_and_slice  dimensions and spec, separated by one space           40 3 0,14:0,3
    key              num(0) | string(name) | num(rank) | signed(start) signed(length) per dimension
                     with (0, -1) for the full extent

An explicit full range such as ``0,3`` stays explicit: it has another key than ``-``.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ckptstore.errors import FormatError, UnsupportedError, UsageError
from ckptstore.format.entry import key_to_name, name_to_key
from ckptstore.format.ordered_code import (
    decode_num,
    decode_signed,
    decode_string,
    encode_num,
    encode_signed,
    encode_string,
)
from ckptstore.format.shape_proto import MAX_RANK
from ckptstore.format.slice_columns import are_disjoint
from ckptstore.types import Slice

__all__ = [
    "decode_slice_key",
    "encode_extents",
    "encode_slice_key",
    "find_overlap",
    "format_slice",
    "full_slice",
    "make_slice",
    "parse_shape_and_slice",
    "parse_slice_spec",
    "shown_name",
]

# int() takes spaces, underscores and other alphabets' digits, and refuses more than 4300 digits.
_NUMBER = re.compile(r"-?[0-9]{1,19}")
_INT64_MAX = (1 << 63) - 1

# Of one number with another, so a pair of boxes takes one per dimension. About a second; a grid of 300 by 300
# slices takes 54 million.
_MAX_COMPARISONS = 200_000_000


def full_slice(rank: int) -> Slice:
    """Return the slice with the full extent of every dimension."""
    return Slice(((0, -1),) * rank)


def parse_slice_spec(text: str) -> Slice:
    """Return the slice that TensorFlow's text describes, e.g. ``"0,3:-"``.

    Raises
    ------
    UsageError
        In TensorFlow's words, if an item is neither "-" nor a pair of numbers with start >= 0 and length > 0.
    """
    extents = []
    for item in text.split(":"):
        if item == "-":
            extents.append((0, -1))
            continue
        numbers = [_to_int(number) for number in item.split(",")]
        if len(numbers) != 2 or numbers[0] is None or numbers[1] is None:
            raise UsageError(f"Expected a pair of numbers or '-' but got '{item}': string = {text}")
        start, length = numbers[0], numbers[1]
        if start < 0 or length <= 0:
            raise UsageError(
                "Expected non-negative start and positive length but got "
                f"start = {start}, length = {length}: string = {text}"
            )
        extents.append((start, length))
    return Slice(tuple(extents))


def _to_int(text: str) -> int | None:
    value = int(text) if _NUMBER.fullmatch(text) else None
    return value if value is not None and -_INT64_MAX - 1 <= value <= _INT64_MAX else None


def format_slice(box: Slice) -> str:
    """Return TensorFlow's text for a slice, e.g. ``"0,3:-"``."""
    return ":".join("-" if length == -1 else f"{start},{length}" for start, length in box.extents)


def parse_shape_and_slice(text: str) -> tuple[tuple[int, ...], Slice, tuple[int, ...]]:
    """Return full shape, slice and shape of the slice from SaveV2's text, e.g. ``"40 3 0,14:0,3"``.

    The empty text (the whole tensor) has no shape to return; callers test for it first.

    Raises
    ------
    UsageError
        In TensorFlow's words, if the text is malformed or the slice does not lie inside the shape.
    """
    items = text.split(" ")
    if len(items) < 2:
        raise UsageError(f"Need least two elements in shape_and_slice specification: {text}")
    box = parse_slice_spec(items[-1])
    shape = []
    for item in items[:-1]:
        size = _to_int(item)
        if size is None or size < 0:
            raise UsageError(f"Non numerical dimension in shape_and_slice: {text}")
        shape.append(size)
    _check_inside(box, shape)
    return tuple(shape), box, box.shape_within(shape)


def _check_inside(box: Slice, shape: Sequence[int], tensor: str | None = None) -> None:
    shown = f"shape = [{','.join(map(str, shape))}], slice = {format_slice(box)}"
    if len(box.extents) != len(shape):
        raise UsageError(f"Mismatching ranks: {shown}", tensor=tensor)
    for dimension, ((start, length), size) in enumerate(zip(box.extents, shape, strict=True)):
        if length != -1 and start + length > size:
            raise UsageError(f"Extent in dimension {dimension} out of bounds: {shown}", tensor=tensor)


def make_slice(
    spec: str | Slice | Sequence[tuple[int, int]], shape: Sequence[int], *, tensor: str | None = None
) -> Slice | None:
    """Return a caller's slice of a tensor of shape `shape`, checked, or None if it covers the whole tensor.

    Parameters
    ----------
    spec : str, Slice or sequence of (start, length)
        TensorFlow's text, or one pair per dimension; length -1 = the full extent.
    shape : sequence of int
        Of the whole tensor.
    tensor : str, optional
        Name for error messages.

    Raises
    ------
    UsageError
        If `spec` is malformed or does not lie inside `shape`.
    """
    if isinstance(spec, str):
        try:
            box = parse_slice_spec(spec) if spec else full_slice(len(shape))
        except UsageError as error:
            error.tensor = tensor
            raise
    else:
        box = spec if isinstance(spec, Slice) else _from_pairs(spec, tensor)
    _check_inside(box, shape, tensor)
    whole = all(
        length == -1 or (start == 0 and length == size)
        for (start, length), size in zip(box.extents, shape, strict=True)
    )
    return None if whole else box


def _from_pairs(pairs: Sequence[tuple[int, int]], tensor: str | None) -> Slice:
    extents = []
    try:
        for first, second in pairs:
            start, length = int(first), int(second)
            if (start, length) != (first, second):
                raise ValueError("a fraction")
            extents.append((start, length))
    except (TypeError, ValueError) as error:
        raise UsageError(
            "a slice is a sequence of (start, length) pairs of whole numbers, or TensorFlow's text",
            tensor=tensor,
            actual=repr(pairs)[:200],
        ) from error
    box = Slice(tuple(extents))
    for start, length in extents:
        if length == -1 and start == 0:
            continue
        if not 0 <= start <= _INT64_MAX or not 0 < length <= _INT64_MAX:
            raise UsageError(
                "Expected non-negative start and positive length but got "
                f"start = {start}, length = {length}: string = {format_slice(box)}",
                tensor=tensor,
                hint="Length -1 means the full extent and goes with start 0.",
            )
    return box


def encode_slice_key(name: str, box: Slice) -> bytes:
    """Return the key of the entry that holds the bytes of one slice."""
    return _key_prefix(name, len(box.extents)) + encode_extents(box)


# The slices of a tensor come one after the other.
@functools.lru_cache(maxsize=64)
def _key_prefix(name: str, rank: int) -> bytes:
    return encode_num(0) + encode_string(name_to_key(name)) + encode_num(rank)


# Many tensors of a model are cut alike.
@functools.lru_cache(maxsize=16_384)
def encode_extents(box: Slice) -> bytes:
    """Return the end of the key of a slice."""
    return b"".join([encode_signed(number) for extent in box.extents for number in extent])


def decode_slice_key(key: bytes, *, source: str = "") -> tuple[str, Slice]:
    """Return name and slice from the key of a slice entry.

    Raises
    ------
    FormatError
        If `key` is not such a key; a tensor's own name may begin with the same byte.
    """
    first, pos = decode_num(key, 0, source=source)
    if first != 0:
        raise FormatError("this is not the key of a slice", url=source, actual=key[:64].hex())
    raw_name, pos = decode_string(key, pos, source=source)
    rank, pos = decode_num(key, pos, source=source)
    if rank > MAX_RANK:
        raise FormatError(
            "a slice has too many dimensions", url=source, expected=f"at most {MAX_RANK}", actual=rank
        )
    extents = []
    for _ in range(rank):
        start, pos = decode_signed(key, pos, source=source)
        length, pos = decode_signed(key, pos, source=source)
        if start < 0 or length < -1 or (length == -1 and start):
            raise FormatError("a slice key has an impossible extent", url=source, actual=f"{start},{length}")
        extents.append((start, length))
    if pos != len(key):
        raise FormatError("a slice key has bytes after its last extent", url=source, actual=key[:64].hex())
    return key_to_name(raw_name), Slice(tuple(extents))


def shown_name(key: bytes) -> str:
    """Return how messages call the entry of `key`: a tensor's name, or name and slice."""
    if key[:1] == b"\x00":
        try:
            name, box = decode_slice_key(key)
        except FormatError:
            return key_to_name(key)
        return f"{name} (slice {format_slice(box)})"
    return key_to_name(key)


def find_overlap(slices: Sequence[Slice], shape: Sequence[int]) -> tuple[int, int] | None:
    """Return the positions of two slices that share an element, the earlier first, or None.

    Raises
    ------
    UnsupportedError
        If tens of thousands of slices lie so that nearly all have to be compared with each other.

    Notes
    -----
    A sweep along one dimension compares each box only with those that have not ended yet. A row of n parts
    takes n log n steps, a grid of k by k takes k per box.
    """
    if len(slices) < 2:
        return None
    if not shape:
        return 0, 1
    extents = np.empty((len(slices), len(shape), 2), np.int64)
    for number, box in enumerate(slices):
        extents[number] = box.resolve(shape)
    starts, stops = extents[:, :, 0], extents[:, :, 0] + extents[:, :, 1]
    if are_disjoint(np.zeros(len(slices), np.int64), starts, stops)[0]:
        return None
    # A box without elements meets nothing.
    kept = np.flatnonzero((stops > starts).all(axis=1))
    costs = [_sweep_cost(starts[kept, d], stops[kept, d]) for d in range(len(shape))]
    if min(costs) * len(shape) > _MAX_COMPARISONS:
        raise UnsupportedError(
            "too many slices side by side to look for overlaps", actual=f"{len(slices)} slices"
        )
    along = costs.index(min(costs))
    active = np.empty(0, np.intp)
    for at in kept[np.argsort(starts[kept, along], kind="stable")]:
        active = active[stops[active, along] > starts[at, along]]
        meets = ((starts[active] < stops[at]) & (starts[at] < stops[active])).all(axis=1)
        if meets.any():
            other = int(active[np.flatnonzero(meets)[0]])
            return min(other, int(at)), max(other, int(at))
        active = np.append(active, at)
    return None


def _sweep_cost(starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64]) -> int:
    """Return how many pairs a sweep along this dimension compares."""
    ended_before = np.searchsorted(np.sort(stops), np.sort(starts), side="right")
    return int((np.arange(len(starts)) - ended_before).sum())
