"""What one rank of a job holds of a checkpoint, as columns: a chief may have a million boxes."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload

import numpy as np

from ckptstore.bundle.write.plan import WriteItem
from ckptstore.format.entry_columns import Integers

__all__ = ["Holding", "Manifest", "Tensors", "manifest_of"]


class Holding(NamedTuple):
    """A box of a tensor that a rank holds.

    Attributes
    ----------
    name : str
    dtype : str
        TensorFlow's name of the type.
    full_shape : tuple of int
        Of the tensor.
    start, shape : tuple of int
        Of the box; the whole tensor is a box too.
    size_bytes : int
        In a data file.
    """

    name: str
    dtype: str
    full_shape: tuple[int, ...]
    start: tuple[int, ...]
    shape: tuple[int, ...]
    size_bytes: int


@dataclass(frozen=True)
class Tensors:
    """The tensors of a manifest, one row for each of its boxes: most ranks of a job have the same ones.

    Attributes
    ----------
    names, dtypes : tuple of str
    shapes : tuple of tuple of int
        Of the whole tensors.
    """

    names: tuple[str, ...]
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @functools.cached_property
    def rows_by_ndim(self) -> Mapping[int, Integers]:
        """Number of dimensions → the rows of that many, both ascending."""
        ndims = np.fromiter(map(len, self.shapes), np.int64, len(self.shapes))
        return {ndim: np.flatnonzero(ndims == ndim) for ndim in np.unique(ndims).tolist()}

    @functools.cached_property
    def shapes_by_ndim(self) -> Mapping[int, Integers]:
        """Number of dimensions → the shapes of the rows of that many."""
        return {
            ndim: np.array([self.shapes[row] for row in rows.tolist()], np.int64).reshape(len(rows), ndim)
            for ndim, rows in self.rows_by_ndim.items()
        }

    @functools.cached_property
    def places(self) -> Integers:
        """For each row its place among those of as many dimensions."""
        places = np.zeros(len(self.shapes), np.int64)
        for rows in self.rows_by_ndim.values():
            places[rows] = np.arange(len(rows))
        return places


class Manifest(Sequence[Holding]):
    """What one rank holds, in the order of its items.

    Parameters
    ----------
    tensors : Tensors
    boxes : mapping of int to ndarray of int64, shape (rows, 2 * dimensions)
        Number of dimensions → starts and lengths of the boxes of as many, in the order of
        `Tensors.rows_by_ndim`.
    sizes_bytes : ndarray of int64
    """

    __slots__ = ("boxes", "sizes_bytes", "tensors")

    def __init__(self, tensors: Tensors, boxes: Mapping[int, Integers], sizes_bytes: Integers) -> None:
        self.tensors = tensors
        self.boxes = boxes
        self.sizes_bytes = sizes_bytes

    @classmethod
    def of(cls, holdings: Iterable[Holding]) -> Manifest:
        """Return the manifest of these boxes."""
        rows = list(holdings)
        tensors = Tensors(
            tuple([one.name for one in rows]),
            tuple([one.dtype for one in rows]),
            tuple([one.full_shape for one in rows]),
        )
        return cls.of_columns(
            tensors, [(*one.start, *one.shape) for one in rows], [one.size_bytes for one in rows]
        )

    @classmethod
    def of_columns(
        cls, tensors: Tensors, boxes: Sequence[tuple[int, ...]], sizes_bytes: Sequence[int]
    ) -> Manifest:
        """Return the manifest of boxes that are given as start and shape, one behind the other."""
        by_ndim = {
            ndim: np.array([boxes[row] for row in rows.tolist()], np.int64).reshape(len(rows), 2 * ndim)
            for ndim, rows in tensors.rows_by_ndim.items()
        }
        return cls(tensors, by_ndim, np.array(sizes_bytes, np.int64))

    def __len__(self) -> int:
        return len(self.tensors.names)

    @overload
    def __getitem__(self, at: int) -> Holding: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Holding]: ...
    def __getitem__(self, at: int | slice) -> Holding | Sequence[Holding]:
        if isinstance(at, slice):
            return [self[row] for row in range(*at.indices(len(self)))]
        tensors = self.tensors
        full = tensors.shapes[at]
        box = tuple(self.boxes[len(full)][tensors.places[at]].tolist())
        return Holding(
            tensors.names[at],
            tensors.dtypes[at],
            full,
            box[: len(full)],
            box[len(full) :],
            int(self.sizes_bytes[at]),
        )

    def __iter__(self) -> Iterator[Holding]:
        return map(self.__getitem__, range(len(self)))


def manifest_of(items: Sequence[WriteItem]) -> Manifest:
    """Return what a rank holds."""
    tensors = Tensors(
        tuple([item.name for item in items]),
        tuple([item.dtype.name for item in items]),
        tuple([item.full_shape for item in items]),
    )
    boxes = []
    for item in items:
        start = (
            (0,) * len(item.full_shape)
            if item.slice is None
            else tuple([first for first, _ in item.slice.resolve(item.full_shape)])
        )
        boxes.append((*start, *item.shape))
    return Manifest.of_columns(tensors, boxes, [item.size_bytes for item in items])
