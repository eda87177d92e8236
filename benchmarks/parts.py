"""What one rank holds of a set that many ranks save together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from benchmarks.sets import Data, SetSpec, is_replicated, shapes_of


@dataclass(frozen=True)
class Part(Data):
    """The boxes of one rank: an equal share of each sharded tensor, along one axis, and all replicated ones.

    The values depend on where in the whole tensor they stand, so that a restore into another cut can be
    checked; every value has the stamp added.

    Attributes
    ----------
    axis : int
        Along which the sharded tensors are cut: 0, rows; 1, columns.
    """

    rank: int = 0
    ranks: int = 1
    axis: int = 0

    @cached_property
    def full_shapes(self) -> dict[str, tuple[int, ...]]:
        return shapes_of(self.spec)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            name: shape
            if is_replicated(name)
            else tuple(n // self.ranks if axis == self.axis else n for axis, n in enumerate(shape))
            for name, shape in self.full_shapes.items()
        }

    def start(self, name: str) -> tuple[int, ...]:
        """Return where its box begins in the whole tensor."""
        shape = self.shapes[name]
        if is_replicated(name):
            return (0,) * len(shape)
        return tuple(self.rank * n if axis == self.axis else 0 for axis, n in enumerate(shape))

    @property
    def is_cut_as_saved(self) -> bool:
        return self.axis == 0

    @cached_property
    def columns(self) -> Part:
        """The same set, cut along the other axis."""
        return replace(self, axis=1)

    def tiny(self) -> Part:
        """Return a part of eight tiny tensors."""
        return replace(self, spec=SetSpec("slices", 8))

    def source(self, stamp: int) -> np.ndarray:
        flat = np.empty(self.elements, np.float32)
        self.stamp(flat, stamp)
        return flat

    def stamp(self, flat: np.ndarray, stamp: int) -> None:
        for name, view in self.views(flat).items():
            self._fill(name, stamp, view)

    def expected(self, name: str, stamp: int) -> np.ndarray:
        values = np.empty(self.shapes[name], np.float32)
        self._fill(name, stamp, values)
        return values

    def _fill(self, name: str, stamp: int, out: np.ndarray) -> None:
        rows, columns = self.full_shapes[name]
        (row, column), (height, width) = self.start(name), out.shape
        # Tensors of the same shape differ.
        first = self._places[name] * 1009 % (self._noise.size - rows - columns)
        along_rows = self._noise[first + row : first + row + height] + np.float32(stamp)
        first += rows + column
        np.add(along_rows[:, None], self._noise[first : first + width], out=out)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.full_shapes)}
