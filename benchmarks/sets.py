"""The sets of arrays: W, of mixed size, K, many small ones, and those of many ranks; the same everywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray]

SMALL_ELEMENTS = 256  # float32: 1 KiB
_LAYERS = 12
_POISON = -1.0
_REPLICATED = "norm"
_FEWEST = 4  # every axis of what is sharded can be cut in four


@dataclass(frozen=True)
class SetSpec:
    """Which set, and how large.

    Attributes
    ----------
    kind : str
        ``large``: W; ``small``: K; for many ranks ``sharded``: 16 sharded and 8 replicated tensors, and
        ``slices``: sharded tensors of 4 KiB.
    size : int
        Bytes of a large or sharded one, tensors of the others.
    """

    kind: str
    size: int

    @property
    def title(self) -> str:
        if self.kind == "large":
            return f"W: {self.size / 2**20:,.0f} MiB of float32 in 121 tensors"
        if self.kind == "sharded":
            return f"{self.size / 2**20:,.0f} MiB of float32 in 16 sharded and 8 replicated tensors"
        if self.kind == "slices":
            return f"{self.size:,} sharded tensors of 4 KiB"
        return f"K: {self.size:,} tensors of 1 KiB"


def shapes_of(spec: SetSpec) -> dict[str, tuple[int, ...]]:
    """Return name → shape, in ascending order of names."""
    return dict(sorted(_SHAPES[spec.kind](spec.size).items()))


def is_replicated(name: str) -> bool:
    """Return whether every rank holds all of this tensor."""
    return name.startswith(_REPLICATED)


def _large(size_bytes: int) -> dict[str, tuple[int, ...]]:
    """121 tensors as a transformer has them: an embedding, and twelve layers of ten."""
    elements = size_bytes // 4
    # Twelve layers of 12 width² make about 60 % of it; the embedding is what remains.
    width = max(8, int(math.sqrt(elements * 0.6 / (12 * _LAYERS))) // 64 * 64)
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(_LAYERS):
        for part, rows in (("qkv", 3 * width), ("out", width), ("up", 4 * width), ("down", width)):
            shapes[f"layer{layer:02d}/{part}/w"] = (rows, 4 * width if part == "down" else width)
            shapes[f"layer{layer:02d}/{part}/b"] = (rows,)
        for part in ("norm1", "norm2"):
            shapes[f"layer{layer:02d}/{part}"] = (width,)
    rest = elements - sum(math.prod(shape) for shape in shapes.values())
    shapes["embedding"] = (max(1, rest // width), width)
    return shapes


def _small(count: int) -> dict[str, tuple[int, ...]]:
    return {f"block{i // 100:04d}/tensor{i % 100:02d}": (SMALL_ELEMENTS,) for i in range(count)}


def _sharded(size_bytes: int) -> dict[str, tuple[int, ...]]:
    """An eighth of it replicated, as norms and small layers are."""
    wide = max(_FEWEST, int(math.sqrt(size_bytes / 8 / 8 / 4)) // _FEWEST * _FEWEST)
    rows = max(_FEWEST, size_bytes * 7 // 8 // 16 // 4 // wide // _FEWEST * _FEWEST)
    shapes: dict[str, tuple[int, ...]] = {f"layer{number:02d}/w": (rows, wide) for number in range(16)}
    return shapes | {f"{_REPLICATED}{number}": (wide, wide) for number in range(8)}


def _slices(count: int) -> dict[str, tuple[int, ...]]:
    return {f"block{i // 100:04d}/tensor{i % 100:02d}": (_FEWEST, SMALL_ELEMENTS) for i in range(count)}


_SHAPES = {"large": _large, "small": _small, "sharded": _sharded, "slices": _slices}


@dataclass(frozen=True)
class Data:
    """The arrays of one set, made anew whenever they are asked for.

    Each tensor begins with a number, the *stamp*: the round that saved it. What an earlier round left behind
    does not pass for a result of this one.
    """

    spec: SetSpec

    def tiny(self) -> Data:
        """Return a set of eight tiny tensors."""
        return Data(SetSpec("small", 8))

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return shapes_of(self.spec)

    @cached_property
    def elements(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def nbytes(self) -> int:
        return 4 * self.elements

    @cached_property
    def _noise(self) -> np.ndarray:
        # A period that no shape divides: tensors of the same shape differ.
        return np.random.default_rng(0).standard_normal((1 << 20) + 7, dtype=np.float32)

    @cached_property
    def starts(self) -> dict[str, int]:
        """Where each tensor begins in the flat array, in elements."""
        starts, position = {}, 0
        for name, shape in self.shapes.items():
            starts[name] = position
            position += math.prod(shape)
        return starts

    def views(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """Return the tensors as views of `flat`, float32, shape (elements,)."""
        return {
            name: flat[start : start + math.prod(self.shapes[name])].reshape(self.shapes[name])
            for name, start in self.starts.items()
        }

    def source(self, stamp: int) -> np.ndarray:
        """Return all of it as one flat array, filled and stamped."""
        flat = np.empty(self.elements, np.float32)
        for start in range(0, flat.size, self._noise.size):
            flat[start : start + self._noise.size] = self._noise[: flat.size - start]
        flat[list(self.starts.values())] = stamp
        return flat

    def stamp(self, flat: np.ndarray, stamp: int) -> None:
        """Make an array of `source` that of another stamp."""
        flat[list(self.starts.values())] = stamp

    def destination(self) -> np.ndarray:
        """Return a flat array to restore into: every page touched, no value right."""
        return np.full(self.elements, _POISON, np.float32)

    @property
    def samples(self) -> list[str]:
        """The names that are compared after each restore: the largest, the smallest, and some between."""
        names = sorted(self.shapes, key=lambda name: (math.prod(self.shapes[name]), name))
        return [*names[:: max(1, len(names) // 10)], names[-1]]

    @property
    def single(self) -> str:
        """The tensor that is read alone: of those of about 4 MiB, one in the middle."""
        wanted = 4 * 2**20
        names = sorted(self.shapes, key=lambda name: abs(4 * math.prod(self.shapes[name]) - wanted))
        nearest = [name for name in names if self.shapes[name] == self.shapes[names[0]]]
        return sorted(nearest)[len(nearest) // 2]

    def expected(self, name: str, stamp: int) -> np.ndarray:
        """Return the right value of one tensor."""
        start, size = self.starts[name], math.prod(self.shapes[name])
        values = np.take(self._noise, np.arange(start, start + size), mode="wrap")
        values[0] = stamp
        return values.reshape(self.shapes[name])

    def check(self, result: Mapping[str, Any], stamp: int, names: list[str] | None = None) -> None:
        """Raise ValueError unless the samples in `result` are what was saved, and nothing is missing."""
        if names is None:
            if len(result) != len(self.shapes):
                raise ValueError(f"wrong result: {len(result)} tensors instead of {len(self.shapes)}")
            names = self.samples
        for name in names:
            if not np.array_equal(np.asarray(result[name]), self.expected(name, stamp)):
                raise ValueError(f"wrong result: {name} differs from what was saved in round {stamp}")
