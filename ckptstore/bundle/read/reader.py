"""What every reader of a bundle offers, whichever version of the format the files have.

Calls
-----
`reader.open_bundle` gives a `BundleReader`; its methods may then be called in any order. Data files are
opened when something in them is read.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ckptstore.bundle.read.batch import BulkTensors, DeviceTensor, ReadBatch
from ckptstore.bundle.read.box_plan import PieceCounts, TensorPieces, WantedBox
from ckptstore.bundle.read.indexing import Axis, BasicIndex, Box, as_slices, parse_index
from ckptstore.errors import CkptStoreError, FormatError, TensorNotFoundError, UnsupportedError, UsageError
from ckptstore.format.dtypes import check_array_shape
from ckptstore.format.entry import BundleEntry, BundleHeader
from ckptstore.format.slices import find_overlap, format_slice
from ckptstore.storage.base import Location
from ckptstore.transfer.transfer import Transfer
from ckptstore.types import DType, Slice, TensorSpec

__all__ = [
    "BundleReader",
    "Overlap",
    "StoredTensor",
    "check_destination",
    "check_partition",
    "insufficient_slices",
    "pieces_of",
]


class StoredTensor(NamedTuple):
    """A tensor of the bundle whose entries were checked; nothing was read of its bytes.

    Attributes
    ----------
    slices : tuple of Slice
        In save order; empty for a tensor stored in one piece.
    entries : tuple of BundleEntry
        One for each slice, or the one of the whole tensor.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    slices: tuple[Slice, ...]
    entries: tuple[BundleEntry, ...]


class Overlap(NamedTuple):
    """The part of a box that a stored piece holds.

    Attributes
    ----------
    where : tuple of slice
        In the box.
    axes : tuple of Axis
        In the piece.
    """

    piece: int
    where: tuple[slice, ...]
    axes: tuple[Axis, ...]


class BundleReader(abc.ABC):
    """One checkpoint, being read. It stays with the save that it was opened on and never mixes two.

    Attributes
    ----------
    location : Location
        The prefix.
    url : str
        The file that lists the tensors, for messages.
    index_version : str
        Version of that file, as the storage gives it.
    memory_budget : int or None
        Bytes that a read without a transfer of its own may hold beyond its result.

    Threads
    -------
    Safe for concurrent use.
    """

    location: Location
    url: str
    header: BundleHeader
    index_version: str
    memory_budget: int | None = None

    @abc.abstractmethod
    def names(self) -> list[str]:
        """Return the names of all tensors, ascending; slices are not names."""

    @abc.abstractmethod
    def raw_keys(self) -> list[bytes]:
        """Return the keys of all entries that have bytes, ascending: tensors in one piece, and slices."""

    @abc.abstractmethod
    def entry(self, name: str) -> BundleEntry:
        """Return the entry of `name`, a tensor's name or (as text) the key of a slice.

        Raises
        ------
        TensorNotFoundError
            If there is no such entry.
        FormatError
            If it is malformed.
        """

    @abc.abstractmethod
    def has(self, name: str) -> bool:
        """Return whether the index has an entry `name`: a tensor, or (as text) the key of a slice."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of what keeps the data files on this machine; what is read or mapped stays valid."""

    @abc.abstractmethod
    def is_current(self) -> bool:
        """Return whether the checkpoint in the storage is still the one that is being read; one request."""

    @abc.abstractmethod
    def stored(self, name: str) -> StoredTensor:
        """Return the tensor with its entries checked: type, size, slices.

        Raises
        ------
        TensorNotFoundError
            If there is no such tensor.
        FormatError, UnsupportedError
            If the index contradicts itself, or numpy has no array for it.
        """

    def stored_many(self, names: Iterable[str]) -> list[StoredTensor | None]:
        """Return for each name its tensor, checked, or None for a name that is not there.

        Raises
        ------
        FormatError, UnsupportedError
            As `stored`, for the first name that has an entry with an error.
        """
        return [self.stored(name) if self.has(name) else None for name in names]

    def find_bulk(self, names: Sequence[str]) -> BulkTensors | None:
        """Look up many tensors at a time, without an object for each.

        Returns
        -------
        BulkTensors or None
            Those that are numbers of less than `plan.DIRECT_SIZE_BYTES`, in one piece and in this machine's
            byte order, with an entry that `stored` would accept. None: this reader, or so few names, have to
            be looked up one by one. Whether the files have their bytes is not known yet, see `bulk_is_there`.
        """
        return None

    def bulk_is_there(self, batch: ReadBatch, others: Iterable[StoredTensor]) -> bool:
        """Return whether the files have the bytes of what `find_bulk` found, and each byte is claimed once.

        If not, `read_stored` without `batch` raises the error. `others` are read along with it.
        """
        return False

    @abc.abstractmethod
    def spec(self, name: str) -> TensorSpec:
        """Return the description of a tensor; errors as for `entry`."""

    @abc.abstractmethod
    def _check_present(self, tensor: StoredTensor, pieces: Sequence[int], box: Box | None = None) -> None:
        """Raise unless the files have the bytes of these pieces: before memory is taken for them.

        With `box`, memory is only taken for that part of the tensor.
        """

    @abc.abstractmethod
    def _read_box(
        self, tensor: StoredTensor, box: Box, overlaps: Sequence[Overlap], target: npt.NDArray[Any]
    ) -> None:
        """Read a box, of which `overlaps` say what the pieces hold, into `target`.

        `target` has one dimension for each axis of the box.
        """

    def check(self, name: str) -> None:
        """Check the entries of a tensor, without its data files; errors as for `stored`.

        Raises
        ------
        FormatError
            Also if its slices do not hold all of it.
        """
        self._check_covered(self.stored(name))

    def specs(self) -> dict[str, TensorSpec]:
        """Return name → spec of all tensors, ascending by name."""
        return {name: self.spec(name) for name in self.names()}

    def read(
        self, name: str, index: BasicIndex = ..., *, out: npt.NDArray[Any] | None = None
    ) -> npt.NDArray[Any]:
        """Return a tensor, or a part of it.

        Parameters
        ----------
        name : str
        index : basic index
            As numpy's: integers, slices with any step, Ellipsis, newaxis (None). Only the bytes of that
            part travel, and only from shards that hold some of it.
        out : ndarray, optional
            Is filled and returned; must have the shape and type of the result.

        Returns
        -------
        ndarray
            Native byte order and writable; object array of bytes for strings and variants. Without
            dimensions where numpy would give a scalar.

        Raises
        ------
        TensorNotFoundError
            If there is no such tensor.
        IndexError
            If `index` is out of range, where numpy raises it.
        UsageError
            If `index` is not a basic index, or `out` does not fit.
        ChecksumError
            If the bytes are not those that were saved. What is read as a whole, a tensor or each slice of a
            partitioned one, is verified; there is no checksum for less than that.
        TruncatedFileError, IncompleteBundleError, FormatError
            If a file is too short, missing, or malformed.
        NotFoundError
            If the checkpoint was removed or overwritten since it was opened.
        """
        tensor = self.stored(name)
        box = parse_index(index, tensor.shape, tensor=name)
        overlaps = list(self._overlaps(tensor, box))
        self._check_present(tensor, [overlap.piece for overlap in overlaps], box)
        check_array_shape(box.shape, tensor.dtype, source=self.url, tensor=name)
        result = np.empty(box.shape, tensor.dtype.dtype) if out is None else out
        check_destination(result, box.shape, tensor.dtype, tensor=name)
        target = result.reshape(box.counts) if result.flags.c_contiguous else None
        filled = np.empty(box.counts, tensor.dtype.dtype) if target is None else target
        self._read_box(tensor, box, overlaps, filled)
        if target is None:
            result[...] = filled.reshape(box.shape)
        return result

    def pieces_many(self, names: Sequence[str]) -> list[TensorPieces | None]:
        """Return for each name its tensor as columns, checked, or None for a name that is not there.

        Raises
        ------
        FormatError, UnsupportedError
            As `stored`, for the first name that has an entry with an error.
        """
        return [None if tensor is None else pieces_of(tensor) for tensor in self.stored_many(names)]

    def partitioned_among(self, names: Sequence[str]) -> set[str]:
        """Return those of many names that are partitioned tensors, as far as that is cheap to tell."""
        return set()

    def read_stored(
        self,
        requests: Sequence[tuple[StoredTensor, npt.NDArray[Any] | None]],
        *,
        bulk: ReadBatch | None = None,
        boxes: Sequence[WantedBox] = (),
        on_devices: Sequence[tuple[StoredTensor, DeviceTensor]] = (),
        transfer: Transfer | None = None,
        counts: PieceCounts | None = None,
    ) -> list[npt.NDArray[Any]]:
        """Return many tensors that were looked up already.

        All are checked, as far as that is possible without their bytes, before any is read.

        Parameters
        ----------
        requests : sequence of (StoredTensor, ndarray or None)
            An array is filled and returned; it must have the tensor's shape and type. A tensor in one piece
            may have been given another `shape` with as many elements, that of its array: it is filled in C
            order.
        bulk : ReadBatch, optional
            Read along with the requests, into its own arrays: something for which `bulk_is_there` returned
            True, and arrays that fit.
        boxes : sequence of WantedBox
            Parts of tensors of `pieces_many`, read along with the requests; their targets fit.
        on_devices : sequence of (StoredTensor, DeviceTensor)
            Tensors of numbers, read along with the requests, each into something of its shape. One of V1 is
            in memory as a whole for a moment.
        transfer : Transfer, optional
            What the reads belong to.
        counts : PieceCounts, optional
            Counts the pieces that are read.

        Raises
        ------
        UsageError, FormatError, UnsupportedError, TruncatedFileError, IncompleteBundleError
            Before any array is changed.
        ChecksumError
            At the first damaged tensor; arrays that were read before it are filled.
        """
        assert bulk is None
        for box in boxes:
            stored, part = self.stored(box.tensor.name), Box(box.axes, box.target.shape)
            self._check_present(stored, [overlap.piece for overlap in self._overlaps(stored, part)])
        for tensor, out in [*requests, *((tensor, None) for tensor, _ in on_devices)]:
            self._check_covered(tensor)
            self._check_present(tensor, range(len(tensor.entries)))
            if out is not None:
                check_destination(out, tensor.shape, tensor.dtype, tensor=tensor.name)
        results: list[npt.NDArray[Any]] = []
        sizes_bytes = [self.spec(tensor.name).nbytes for tensor, _ in requests]
        if transfer is not None:
            on_devices_bytes = sum([self.spec(tensor.name).nbytes for tensor, _ in on_devices])
            transfer.expect(transfer.done_bytes + sum(sizes_bytes) + on_devices_bytes)
        for (tensor, out), size_bytes in zip(requests, sizes_bytes, strict=True):
            if out is None or out.shape == self.stored(tensor.name).shape:
                results.append(self.read(tensor.name, out=out))
            else:
                out[...] = self.read(tensor.name).reshape(out.shape)
                results.append(out)
            if transfer is not None:
                transfer.advance(size_bytes)
            if counts is not None:
                counts.verified += len(tensor.entries)
        for tensor, receiver in on_devices:
            values = self.read(tensor.name)
            if values.size:
                receiver.put(tuple([slice(0, size) for size in values.shape]), values)
            if transfer is not None:
                transfer.advance(self.spec(tensor.name).nbytes)
            if counts is not None:
                counts.verified += len(tensor.entries)
        for box in boxes:
            box.target[...] = self.read(box.tensor.name, as_slices(box.axes))
            if counts is not None:
                counts.verified += 1
        return results

    def _overlaps(self, tensor: StoredTensor, box: Box) -> Iterator[Overlap]:
        """Yield which pieces hold what of `box`; `FormatError` if together they do not hold all of it."""
        if not tensor.slices:
            yield Overlap(0, tuple(slice(0, axis.size) for axis in box.axes), box.axes)
            return
        found = 0
        for piece, stored in enumerate(tensor.slices):
            extents = stored.resolve(tensor.shape)
            clipped = [
                axis.clipped(start, start + length)
                for axis, (start, length) in zip(box.axes, extents, strict=True)
            ]
            count = math.prod(axis.size for _, axis in clipped)
            if count:
                found += count
                yield Overlap(piece, tuple(where for where, _ in clipped), tuple(axis for _, axis in clipped))
        if found != math.prod(box.counts):
            raise insufficient_slices(tensor.name, tensor.shape, box.axes, found, self.url)

    def _check_covered(self, tensor: StoredTensor) -> None:
        """Raise `FormatError` unless the slices of a partitioned tensor hold all of it."""
        if tensor.slices:
            for _ in self._overlaps(tensor, parse_index(..., tensor.shape, tensor=tensor.name)):
                pass

    def tensor_not_found(self, name: object) -> TensorNotFoundError:
        """Return the error for a name that this checkpoint does not have."""
        try:
            names = self.names()
        except CkptStoreError:
            names = []  # the hint is not worth a second failure
        what = f"Key {name} not found in checkpoint"
        return TensorNotFoundError.among(
            what, name, names, "tensors", url=self.url, listed_by="list_variables()"
        )


def pieces_of(tensor: StoredTensor) -> TensorPieces:
    """Return a tensor as columns."""
    rank, entries = len(tensor.shape), tensor.entries
    starts = np.zeros((len(entries), rank), np.int64)
    for row, box in enumerate(tensor.slices):
        starts[row] = [start for start, _ in box.resolve(tensor.shape)]
    columns = np.array([entry[2:6] for entry in entries], np.int64)
    lengths = np.array([entry.shape for entry in entries], np.int64).reshape(len(entries), rank)
    return TensorPieces(tensor.name, tensor.dtype, tensor.shape, starts, lengths, *columns.T)


def insufficient_slices(
    name: str, shape: Sequence[int], axes: Sequence[Axis], found: int, url: str
) -> FormatError:
    """Return the error for a box of which the slices of a tensor hold only `found` elements."""
    wanted = math.prod([axis.size for axis in axes])
    parts = []
    for axis, size in zip(axes, shape, strict=True):
        last = axis.start + (axis.size - 1) * axis.step
        low, high = min(axis.start, last), max(axis.start, last)
        parts.append("-" if axis.size == size else f"{low},{high + 1 - low}")
    return FormatError(
        f"Does not have sufficient slices for partitioned tensor {name} "
        f"to restore in slice_spec: {':'.join(parts)}",
        url=url,
        tensor=name,
        expected=f"{wanted} elements",
        actual=found,
        hint="Not all of its slices were saved, or not all shards were merged.",
    )


def check_partition(tensor: StoredTensor, url: str) -> None:
    """Raise `FormatError` if two slices of a tensor share an element."""
    try:
        overlap = find_overlap(tensor.slices, tensor.shape)
    except UnsupportedError as error:
        error.url, error.tensor = url, tensor.name
        raise
    if overlap is not None:
        first, second = (format_slice(tensor.slices[number]) for number in overlap)
        raise FormatError(
            f"Overlapping slices: existing slice = {first}, new slice = {second}", url=url, tensor=tensor.name
        )


def check_destination(array: npt.NDArray[Any], shape: tuple[int, ...], dtype: DType, *, tensor: str) -> None:
    """Raise `UsageError` unless `array` can receive values of this shape and type (in either byte order)."""
    if not isinstance(array, np.ndarray):
        raise UsageError(
            "only a numpy array can be filled in place", tensor=tensor, actual=type(array).__name__
        )
    native = array.dtype if array.dtype.isnative else array.dtype.newbyteorder("=")
    if array.shape != shape or native != dtype.dtype:
        raise UsageError(
            "the array does not have the shape and type of the tensor",
            tensor=tensor,
            expected=f"{dtype.name} {list(shape)}",
            actual=f"{array.dtype} {list(array.shape)}",
        )
    if not array.flags.writeable:
        raise UsageError(
            "the array is read-only", tensor=tensor, expected="a writable array", actual="a read-only one"
        )
