"""From arrays of any sharding to boxes on the host, and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ckptstore.errors import UnsupportedError, UsageError
from ckptstore.types import Piece

__all__ = ["Box", "as_keys", "assembled", "boxes_of", "check_type", "pieces_of", "to_host", "whole_box"]

# Per dimension the first index and the length.
Box: TypeAlias = tuple[tuple[int, int], ...]


def whole_box(shape: Sequence[int]) -> Box:
    """Return the box that is all of an array."""
    return tuple((0, length) for length in shape)


def _box(index: Sequence[slice], shape: Sequence[int]) -> Box:
    extents = [one.indices(length) for one, length in zip(index, shape, strict=True)]
    return tuple((start, stop - start) for start, stop, _ in extents)


def to_host(arrays: Sequence[Any], jax: Any) -> list[npt.NDArray[Any]]:
    """Return the bytes of arrays of one device each, all of them under way at the same time.

    Of a CPU they are views: JAX does not give the memory of an array away as long as one exists, and copies
    where it would reuse that of a donated one. Of other devices they are copies, which the arrays do not keep
    as ``np.asarray`` would make them do.
    """
    try:
        host = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        # JAX was told to use no CPU.
        for array in arrays:
            array.copy_to_host_async()
        return [np.asarray(array) for array in arrays]
    there = [one if _is_on_cpu(one) else jax.device_put(one, host) for one in arrays]
    return [np.asarray(one) for one in there]


def _is_on_cpu(array: Any) -> bool:
    return all(device.platform == "cpu" for device in array.devices())


def pieces_of(shape: Sequence[int], shards: Iterable[tuple[Sequence[slice], npt.NDArray[Any]]]) -> Any:
    """Return boxes as what a Saver takes: an array if one is all there is to it, else pieces; None without.

    Parameters
    ----------
    shape : sequence of int
        Of the whole.
    shards : iterable of (index, ndarray)
    """
    whole = whole_box(shape)
    found = []
    for index, array in shards:
        box = _box(index, shape)
        if box == whole:
            return array
        found.append(Piece(array, shape, [start for start, _ in box]))
    return found or None


def boxes_of(shape: Sequence[int], sharding: Any) -> dict[Any, Box]:
    """Return device → its box of an array, for the devices of this process."""
    places = sharding.addressable_devices_indices_map(tuple(shape))
    return {device: _box(index, shape) for device, index in places.items()}


def assembled(
    jax: Any, shape: Sequence[int], sharding: Any, arrays: Sequence[tuple[Any, npt.NDArray[Any]]], impl: Any
) -> Any:
    """Return the array that has `arrays` on their devices.

    Parameters
    ----------
    shape : sequence of int
    sharding : Sharding
    arrays : sequence of (Device, ndarray)
    impl : str or None
        Of the keys whose data they are.

    Raises
    ------
    UnsupportedError
        If JAX knows no such implementation.
    UsageError
        As `check_type`.
    """
    memory = sharding.memory_kind
    targets = [
        device if memory is None else jax.sharding.SingleDeviceSharding(device, memory_kind=memory)
        for device, _ in arrays
    ]
    parts = jax.device_put([array for _, array in arrays], targets)
    for part, (_, array) in zip(parts, arrays, strict=True):
        check_type(part, array)
    if impl is not None:
        parts = [as_keys(jax, part, impl) for part in parts]
    if not parts:
        raise UnsupportedError(
            "this process has no device of the array's sharding",
            actual=str(sharding)[:200],
            hint="Pass trees whose arrays have a part in every process.",
        )
    return jax.make_array_from_single_device_arrays(tuple(shape), sharding, parts)


def as_keys(jax: Any, data: Any, impl: str) -> Any:
    """Return typed keys of their data; errors as `assembled`."""
    try:
        return jax.random.wrap_key_data(data, impl=impl)
    except (ValueError, TypeError, KeyError) as error:
        raise UnsupportedError(
            "JAX knows no such implementation of random keys, or it has other data",
            actual=impl[:100],
            hint="Define it before, as when the checkpoint was saved.",
        ) from error


def check_type(made: Any, array: npt.NDArray[Any]) -> None:
    """Raise `UsageError` if JAX has made another type of an array, as it does without a word."""
    if made.dtype != array.dtype:
        raise UsageError(
            "JAX makes another type of the values in the checkpoint",
            expected=str(array.dtype),
            actual=str(made.dtype),
            hint="Set jax_enable_x64, or pass a tree with arrays of numpy.",
        )
