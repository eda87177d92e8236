"""Which boxes of a tensor a rank holds: those of a DTensor by its mesh and placements.

A strided shard (FSDP above tensor parallelism) may be several runs of rows that do not lie side by side.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ckptstore.errors import UsageError
from ckptstore.torch.tensors import import_torch, is_plain_subclass

__all__ = ["LocalBox", "boxes_of", "is_dtensor", "layout_of", "local_of"]


class LocalBox(NamedTuple):
    """A box of a tensor.

    Attributes
    ----------
    start : tuple of int
        Where it begins in the whole tensor.
    inside : index
        Where it stands in the local tensor. It ends with an Ellipsis, so that numpy gives a view of a tensor
        without dimensions too, and not a scalar.
    """

    start: tuple[int, ...]
    inside: tuple[Any, ...]


def is_dtensor(value: Any) -> bool:
    """Return whether a tensor is distributed over a mesh of devices; loads nothing for the question."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def layout_of(value: Any) -> Hashable:
    """Return what two DTensors on the same local memory must have in common to be the same."""
    return tuple(value.shape), str(value.placements), id(value.device_mesh)


def local_of(value: Any, *, tensor: str) -> Any:
    """Return the memory of this rank of a DTensor, a plain tensor.

    Raises
    ------
    UsageError
        If its elements are sums that were not taken yet, or its local tensor is of a class of its own.
    """
    torch = import_torch()
    if any(placement.is_partial() for placement in value.placements):
        raise UsageError(
            "the values of a tensor are not known while a sum over the ranks is to come",
            tensor=tensor,
            actual=str(value.placements),
            hint="Pass x.redistribute(placements=[Replicate()]), or what it is sharded to.",
        )
    with torch.no_grad():
        local = value.to_local()
        if hasattr(local, "wait") and not is_plain_subclass(local):
            local = local.wait()
    return local


def boxes_of(value: Any, local: Any, *, tensor: str) -> list[LocalBox]:
    """Return the boxes of a DTensor that its local tensor holds; none if it has no elements here.

    Raises
    ------
    UsageError
        If its placements and its local shape do not agree.
    """
    coordinate = value.device_mesh.get_coordinate()
    if coordinate is None or not local.numel():
        return []
    held = [np.arange(size) for size in value.shape]
    for placement, size, position in zip(value.placements, value.device_mesh.shape, coordinate, strict=True):
        if placement.is_replicate():
            continue
        dim = getattr(placement, "dim", None)
        if dim is None:
            raise _unknown(value, local, tensor)
        pieces = _chunks(held[dim], getattr(placement, "split_factor", 1))
        held[dim] = np.concatenate([_chunks(piece, size)[position] for piece in pieces])
    if tuple(map(len, held)) != tuple(local.shape):
        raise _unknown(value, local, tensor)
    runs = [_runs(indices) for indices in held]
    return [
        LocalBox(tuple(start for start, _ in box), (*(where for _, where in box), ...))
        for box in itertools.product(*runs)
    ]


def _chunks(indices: npt.NDArray[np.int64], count: int) -> list[npt.NDArray[np.int64]]:
    """Return what torch.chunk makes of them, with empty ones at the end so that there are `count`."""
    length = max(-(-len(indices) // count), 1)
    return [indices[number * length : (number + 1) * length] for number in range(count)]


def _runs(indices: npt.NDArray[np.int64]) -> Sequence[tuple[int, slice]]:
    """Return start and place of each run of numbers that follow each other."""
    if not len(indices):
        return []
    breaks = [0, *(np.flatnonzero(np.diff(indices) != 1) + 1).tolist(), len(indices)]
    return [(int(indices[begin]), slice(begin, end)) for begin, end in itertools.pairwise(breaks)]


def _unknown(value: Any, local: Any, tensor: str) -> UsageError:
    return UsageError(
        "the placements of a tensor do not say what this rank holds of it",
        tensor=tensor,
        expected=f"a part of {list(value.shape)} as {value.placements} on {value.device_mesh}",
        actual=f"a local tensor of {list(local.shape)}",
        hint="Pass x.redistribute(...) with Shard and Replicate only, or a ckptstore.Piece.",
    )
