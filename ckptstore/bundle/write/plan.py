"""What to write, as frozen and printable data; `shard_writer` writes it.

A `SavePlan` is complete before the first byte is written: every tensor was checked, every size is known.
Arrays in another layout than the file's are converted when their turn comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ckptstore.errors import UsageError
from ckptstore.format import dtypes, slices
from ckptstore.format.entry import BundleEntry, name_to_key
from ckptstore.types import DType, Piece, Slice, as_pieces

__all__ = [
    "ClaimedNames",
    "SavePlan",
    "ShardPlan",
    "StoredShard",
    "WriteItem",
    "plan_save",
    "stored_size_bytes",
    "write_item",
    "write_items",
]

# A larger array that is not in memory as in the file is converted as it is written, piece by piece.
_CONVERTED_AT_ONCE_SIZE_BYTES = 256 * 1024


class WriteItem(NamedTuple):
    """One tensor, or one box of a partitioned tensor, ready to be written.

    Attributes
    ----------
    name : str
        The tensor's name.
    shape : tuple of int
        Shape of `array`.
    slice : Slice or None
        The box that `array` is; None for a whole tensor.
    full_shape : tuple of int
        Shape of the whole tensor.
    size_bytes : int
        Bytes in the data file.
    array : ndarray
        C order, little-endian; object array of bytes for strings and variants. One of more than 256 KiB may
        have any strides and byte order.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    slice: Slice | None
    full_shape: tuple[int, ...]
    size_bytes: int
    array: npt.NDArray[Any]

    def __repr__(self) -> str:
        fields = zip(self._fields[:-1], self[:-1], strict=True)
        return f"WriteItem({', '.join(f'{name}={value!r}' for name, value in fields)})"

    def __eq__(self, other: object) -> bool:
        # Arrays have no truth value: plans are compared by everything else.
        return isinstance(other, WriteItem) and self[:-1] == other[:-1]

    def __hash__(self) -> int:
        return hash(self[:-1])


@dataclass(frozen=True, slots=True)
class StoredShard:
    """A data file that a checkpoint has, with nothing in it but whole tensors.

    Attributes
    ----------
    name : str
        Of the file, in the directory of the checkpoint.
    entries : tuple of (bytes, BundleEntry)
        Keys and entries of the index, ascending by offset.
    version : str or None
        None if it is not known.
    """

    name: str
    entries: tuple[tuple[bytes, BundleEntry], ...] = field(repr=False)
    size_bytes: int
    version: str | None = None


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """The tensors of one data file, in the order in which they are written.

    Attributes
    ----------
    source : StoredShard or None
        A file of the same directory that has these very bytes.
    """

    label: str
    items: tuple[WriteItem, ...]
    size_bytes: int
    source: StoredShard | None = None


@dataclass(frozen=True, slots=True)
class SavePlan:
    """One checkpoint: its shards, ascending by label."""

    shards: tuple[ShardPlan, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes in all data files together."""
        return sum(shard.size_bytes for shard in self.shards)


def stored_size_bytes(array: npt.NDArray[Any], dtype: DType) -> int:
    """Return how many bytes `array` takes in a data file.

    Format
    ------
    Strings: varint lengths, 4 bytes of checksum, the bytes. Variants: for each varint length, bytes, 4
    bytes of checksum. Everything else: the elements
    (``tensorflow/core/util/tensor_bundle/tensor_bundle.cc``).
    """
    if array.dtype != object:
        return int(array.nbytes)
    lengths = [len(value) for value in array.ravel()]
    varints = sum((max(length.bit_length(), 1) + 6) // 7 for length in lengths)
    checksums = 4 if dtype.name == "string" else 4 * len(lengths)
    return sum(lengths) + varints + checksums


def write_item(
    name: str,
    array: npt.ArrayLike,
    *,
    dtype: DType | str | None = None,
    shape: Sequence[int] | None = None,
    spec: str | Sequence[tuple[int, int]] | None = None,
) -> WriteItem:
    """Convert and check one tensor.

    Parameters
    ----------
    name : str
        Not empty; anything that UTF-8 can express.
    array : array-like
        The values of the tensor, or of one box of it.
    dtype : DType or str, optional
        TensorFlow's type, where numpy's is not enough (``"qint8"``).
    shape : sequence of int, optional
        With `spec`: the shape of the whole tensor.
    spec : sequence of (start, length) or str, optional
        Which box of a tensor of shape `shape` this is; length -1 = the full extent; or TensorFlow's text
        ``"0,3:-"``. A box that covers the tensor is stored like a whole tensor.

    Raises
    ------
    UsageError
        If the name is empty or not text, if the values cannot be stored, or if the box does not fit the
        shape or the array.
    """
    if dtype is None and shape is None and spec is None and isinstance(name, str):
        plain = _plain_item(name, array)
        if plain is not None:
            if not name or not name.isascii():
                name_to_key(name)
            return plain
    if not isinstance(name, str):
        raise UsageError("a tensor's name must be text", expected="str", actual=type(name).__name__)
    name_to_key(name)
    stored, dtype = dtypes.to_storage_array(
        array, dtype, tensor=name, most_bytes=_CONVERTED_AT_ONCE_SIZE_BYTES
    )
    if (shape is None) != (spec is None):
        raise UsageError(
            "shape and spec belong together", tensor=name, hint="Give both for a slice, none for a tensor."
        )
    if shape is None or spec is None:
        return WriteItem(
            name, dtype, stored.shape, None, stored.shape, stored_size_bytes(stored, dtype), stored
        )
    full_shape = tuple(int(size) for size in shape)
    try:
        box = slices.make_slice(spec, full_shape)
    except UsageError as error:
        error.tensor = error.tensor or name
        raise
    expected = full_shape if box is None else box.shape_within(full_shape)
    if stored.shape != expected:
        text = "-" if box is None else slices.format_slice(box)
        raise UsageError(
            f"Slice in shape_and_slice specification does not match the shape of the tensor to save: {text}",
            tensor=name,
            expected=list(expected),
            actual=list(stored.shape),
        )
    return WriteItem(name, dtype, stored.shape, box, full_shape, stored_size_bytes(stored, dtype), stored)


def write_items(tensors: Iterable[tuple[str, Any]]) -> list[WriteItem]:
    """Convert and check many tensors; errors as for `write_item`, at the first that has one.

    Parameters
    ----------
    tensors : iterable of (str, array-like, Piece or sequence of Piece)
        A piece without elements is left out: the file has no empty boxes.

    Raises
    ------
    UsageError
        Also if pieces and other things are mixed. Whether pieces cover their tensor is for `coverage` to say.
    """
    items: list[WriteItem] = []
    boxes: dict[object, Slice] = {}
    for name, value in tensors:
        # Among ASCII texts only the empty one is not a name.
        is_name = isinstance(name, str) and bool(name) and name.isascii()
        plain = _plain_item(name, value) if is_name else None
        if plain is not None:
            items.append(plain)
        elif (pieces := as_pieces(value, tensor=name)) is not None:
            items += _piece_items(name, pieces, boxes)
        else:
            items.append(write_item(name, value))
    return items


def _piece_items(name: str, pieces: Sequence[Piece], boxes: dict[object, Slice]) -> list[WriteItem]:
    """Return the items of the pieces of a tensor; `boxes` remembers those of other tensors."""
    name_to_key(name)
    first = pieces[0]
    if 0 in first.shape:
        # Nothing to cut, and a file cannot say where an empty box lies.
        return [write_item(name, np.empty(first.shape, first.array.dtype))]
    items = []
    for piece in pieces:
        array = piece.array
        if not array.size:
            continue
        dtype, shape, whole = dtypes.STORED_AS_IS.get(array.dtype), array.shape, piece.shape
        # Many tensors of a model are cut alike.
        place = (piece.start, shape)
        box = None if shape == whole else boxes.get(place) or boxes.setdefault(place, piece.box)
        if dtype is not None and type(array) is np.ndarray and array.flags.c_contiguous:
            fields = (name, dtype, shape, box, whole, array.nbytes, array)
            items.append(tuple.__new__(WriteItem, fields))
        else:
            items.append(write_item(name, array)._replace(slice=box, full_shape=whole))
    return items


def _plain_item(name: str, array: npt.ArrayLike) -> WriteItem | None:
    """Return the item of an array that is written as it lies in memory, else None; `name` is not checked."""
    # Subclasses may have a memory of their own kind.
    if type(array) is not np.ndarray:
        return None
    dtype = dtypes.STORED_AS_IS.get(array.dtype)
    if dtype is None or not array.flags.c_contiguous:
        return None
    shape = array.shape
    return tuple.__new__(WriteItem, (name, dtype, shape, None, shape, array.nbytes, array))


class ClaimedNames:
    """The keys of the tensors and slices planned or written so far.

    Threads
    -------
    One thread at a time.
    """

    def __init__(self) -> None:
        self._whole: set[str] = set()
        self._boxes: dict[str, tuple[DType, tuple[int, ...], set[Slice]]] = {}

    def claim_all(self, items: Sequence[WriteItem]) -> None:
        """Take the keys of many items; errors as for `claim`, at the first item that has one."""
        names = {item.name for item in items if item.slice is None}
        if len(names) == len(items) and self._whole.isdisjoint(names) and not self._boxes:
            self._whole |= names
            return
        boxes = self._boxes
        for item in items:
            name, dtype, _, box, full_shape, _, _ = item
            known = boxes.get(name)
            # Most slices follow another one of their tensor.
            if box is None or known is None or known[:2] != (dtype, full_shape) or box in known[2]:
                self.claim(item)
            else:
                known[2].add(box)

    def claim(self, item: WriteItem) -> None:
        """Take the key of `item`.

        Raises
        ------
        UsageError
            If the tensor or this very slice was there before, or if the slices of one tensor do not agree
            on its type and full shape. Slices that overlap are accepted, as TensorFlow does; reading them
            fails.
        """
        name, dtype, _, box, full_shape, _, _ = item
        if name in self._whole or (box is None and name in self._boxes):
            raise UsageError(
                f"Adding duplicate key: {name}", tensor=name, hint="Every tensor needs its own name."
            )
        if box is None:
            self._whole.add(name)
            return
        known = self._boxes.get(name)
        if known is None:
            self._boxes[name] = dtype, full_shape, {box}
            return
        if known[:2] != (dtype, full_shape):
            raise UsageError(
                "the slices of one tensor do not agree on its type and full shape",
                tensor=name,
                expected=f"{known[0]} {list(known[1])}",
                actual=f"{dtype} {list(full_shape)}",
            )
        if box in known[2]:
            text = slices.format_slice(box)
            raise UsageError(f"Adding duplicate key: {name}, slice {text}", tensor=name)
        known[2].add(box)


def plan_save(
    tensors: Mapping[str, npt.ArrayLike] | Iterable[WriteItem],
    shard_of: Callable[[str], str] | None = None,
) -> SavePlan:
    """Convert and check every tensor, and decide in which data file it goes.

    Parameters
    ----------
    tensors : mapping of name to array-like, or iterable of WriteItem
        In the order in which the bytes are to be written; nothing is sorted.
    shard_of : callable, optional
        Tensor name → label of its shard. Shards ascend by label compared as text, as TensorFlow's do by
        device. Without it there is one shard.

    Raises
    ------
    UsageError
        If any tensor cannot be stored, or one name comes twice. Nothing was written then.
    """
    if isinstance(tensors, Mapping):
        items = write_items(tensors.items())
    else:
        items = list(tensors)
    ClaimedNames().claim_all(items)
    by_label: dict[str, list[WriteItem]] = {}
    if shard_of is None:
        by_label[""] = items
    else:
        for item in items:
            by_label.setdefault(shard_of(item.name), []).append(item)
    return SavePlan(
        tuple(
            ShardPlan(label, tuple(by_label[label]), sum([item.size_bytes for item in by_label[label]]))
            for label in sorted(by_label)
        )
    )
