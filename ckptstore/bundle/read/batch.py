"""What is to be read and where it goes, as columns: no object for each of many tensors."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any, NamedTuple, Protocol, Self

import numpy.typing as npt

from ckptstore.bundle.read.indexing import Axis
from ckptstore.format import dtypes
from ckptstore.format.entry import BundleEntry
from ckptstore.types import DType

__all__ = ["NATIVE", "BulkTensors", "DeviceTensor", "ReadBatch", "Taker"]

NATIVE = {dtype.as_datatype_enum: dtype.dtype for dtype in dtypes.ALL}
"""TensorFlow's number of a type → the numpy dtype of its values."""


class Taker(NamedTuple):
    """Some elements of a stored piece, and where they go.

    Attributes
    ----------
    axes : tuple of Axis
        What of each dimension of the piece; at least one element.
    target : ndarray
        One dimension for each axis; of the type's numpy dtype in any byte order, of any strides.
    """

    axes: tuple[Axis, ...]
    target: npt.NDArray[Any]


class DeviceTensor(Protocol):
    """A tensor in the memory of a device, which gets its values box by box.

    Threads
    -------
    Several at a time, for different boxes.
    """

    def put(self, where: tuple[slice, ...], values: npt.NDArray[Any]) -> None:
        """Begin to copy `values`, C order, into a box.

        They lie in a block of the transfer's ring, or in memory that nobody else has.
        """

    def part(self, where: tuple[slice, ...]) -> Self:
        """Return a box of it; no values are copied."""

    def flat(self) -> Self:
        """Return it with one dimension, in C order; no values are copied."""


class ReadBatch:
    """Stored pieces (tensors, or slices of some) to be read whole and verified, one per row.

    Python's garbage collector visits every object that may refer to others, again and again while more are
    made; a few objects for each of many small tensors take longer than reading their bytes.

    Attributes
    ----------
    tensors : list of str
        Names for messages.
    dtypes : list of DType
    shapes : list of tuple of int
        Of the stored pieces.
    shard_ids, offsets, sizes_bytes, masked_crc32cs : list of int
        As in `BundleEntry`.
    targets : list of ndarray or None
        Each receives the values; of the type's numpy dtype in any byte order, of any strides, and of any
        shape with as many elements, which are filled in C order. None: a new array takes that place; only for
        numbers of less than `plan.DIRECT_SIZE_BYTES` in this machine's byte order, and at least one.
    takers : dict of int to list of Taker
        Row → who gets what of the piece, instead of a target that gets all of it.
    on_devices : dict of int to DeviceTensor
        Row → what gets all of the piece, instead of a target; of the shape of the piece, which is not empty.

    Threads
    -------
    One thread at a time while rows are added.
    """

    __slots__ = (
        "dtypes",
        "masked_crc32cs",
        "offsets",
        "on_devices",
        "shapes",
        "shard_ids",
        "sizes_bytes",
        "takers",
        "targets",
        "tensors",
    )

    def __init__(self) -> None:
        self.tensors: list[str] = []
        self.dtypes: list[DType] = []
        self.shapes: list[tuple[int, ...]] = []
        self.shard_ids: list[int] = []
        self.offsets: list[int] = []
        self.sizes_bytes: list[int] = []
        self.masked_crc32cs: list[int] = []
        self.targets: list[npt.NDArray[Any] | None] = []
        self.takers: dict[int, list[Taker]] = {}
        self.on_devices: dict[int, DeviceTensor] = {}

    def __len__(self) -> int:
        return len(self.tensors)

    def add(
        self,
        tensor: str,
        entry: BundleEntry,
        dtype: DType,
        target: npt.NDArray[Any] | None,
        takers: list[Taker] | None = None,
    ) -> None:
        """Append one piece, for a target or for takers; `entry` has no slices of its own."""
        if takers is not None:
            self.takers[len(self.tensors)] = takers
        _, shape, shard_id, offset, size_bytes, masked_crc32c, _ = entry
        self.tensors.append(tensor)
        self.dtypes.append(dtype)
        self.shapes.append(shape)
        self.shard_ids.append(shard_id)
        self.offsets.append(offset)
        self.sizes_bytes.append(size_bytes)
        self.masked_crc32cs.append(masked_crc32c)
        self.targets.append(target)

    def add_device_tensor(self, tensor: str, entry: BundleEntry, dtype: DType, out: DeviceTensor) -> None:
        """Append one piece for a tensor of its shape on a device."""
        if entry.size_bytes:
            self.on_devices[len(self.tensors)] = out
        self.add(tensor, entry, dtype, None)

    def without(self, rows: Set[int]) -> ReadBatch:
        """Return the other rows; none of them has takers."""
        kept = [row for row in range(len(self)) if row not in rows]
        others = ReadBatch()
        for name in ("tensors", "dtypes", "shapes", "shard_ids", "offsets", "sizes_bytes"):
            column = getattr(self, name)
            setattr(others, name, [column[row] for row in kept])
        others.masked_crc32cs = [self.masked_crc32cs[row] for row in kept]
        others.targets = [self.targets[row] for row in kept]
        return others

    def entry(self, row: int) -> BundleEntry:
        """Return the entry of a piece."""
        return BundleEntry(
            self.dtypes[row].as_datatype_enum,
            self.shapes[row],
            self.shard_ids[row],
            self.offsets[row],
            self.sizes_bytes[row],
            self.masked_crc32cs[row],
        )

    def receivers(self, row: int) -> list[npt.NDArray[Any]]:
        """Return every array that gets something of a row; none for a new array."""
        takers = self.takers.get(row)
        if takers is not None:
            return [taker.target for taker in takers]
        target = self.targets[row]
        return [] if target is None else [target]

    def target(self, row: int) -> npt.NDArray[Any]:
        """Return the target of a row, which must have one."""
        found = self.targets[row]
        assert found is not None
        return found


class BulkTensors(NamedTuple):
    """Of many tensors those that are read in bulk.

    Attributes
    ----------
    numbers : sequence of int
        Their positions among those that were asked for, ascending.
    batch : ReadBatch
        A row for each, without a target.
    """

    numbers: Sequence[int]
    batch: ReadBatch
