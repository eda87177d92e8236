"""A device that copies as late as it may: what is still needed then must not have been used again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptstore.bundle.read.indexing import view_of
from ckptstore.bundle.read.reader import StoredTensor
from ckptstore.transfer.ring import Ring

__all__ = ["LateDevice"]


class LateDevice:
    """Copies only when somebody waits for it.

    Attributes
    ----------
    tensors : dict of str to ndarray
    allocated_bytes : int
        Of the buffers, all together.
    on_wait : callable
        Called before the first copy is waited for.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, npt.NDArray[Any]] = {}
        self.allocated_bytes = 0
        self.on_wait: Callable[[], object] = lambda: None
        self.begun = 0
        self.done = 0
        self._queue: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = []
        self._lock = threading.Lock()

    def ring(self, limit_bytes: int) -> Ring:
        return Ring(limit_bytes, self._allocate, self._mark)

    def place(self, tensors: Sequence[StoredTensor]) -> list[_Box]:
        self.tensors = {one.name: np.zeros(one.shape, one.dtype.dtype) for one in tensors}
        return [_Box(self, array) for array in self.tensors.values()]

    def begin(self, target: npt.NDArray[Any], values: npt.NDArray[Any]) -> None:
        assert target.shape == values.shape
        with self._lock:
            self._queue.append((target, values))
            self.begun += 1

    def reach(self, number: int) -> None:
        """Carry out the copies before `number`."""
        with self._lock:
            if not self.done:
                self.on_wait()
            while self.done < number:
                target, values = self._queue[self.done]
                target[...] = values
                self.done += 1

    def _allocate(self, size_bytes: int) -> memoryview:
        with self._lock:
            self.allocated_bytes += size_bytes
        return memoryview(bytearray(size_bytes))

    def _mark(self) -> _Place:
        return _Place(self, self.begun)


class _Place:
    def __init__(self, device: LateDevice, number: int) -> None:
        self._device, self._number = device, number

    def query(self) -> bool:
        return self._device.done >= self._number

    def synchronize(self) -> None:
        self._device.reach(self._number)


class _Box:
    def __init__(self, device: LateDevice, array: npt.NDArray[Any]) -> None:
        self._device, self._array = device, array

    def put(self, where: tuple[slice, ...], values: npt.NDArray[Any]) -> None:
        self._device.begin(view_of(self._array, where), values)

    def part(self, where: tuple[slice, ...]) -> _Box:
        return _Box(self._device, self._array[where])

    def flat(self) -> _Box:
        flat = self._array.reshape(-1)
        assert np.shares_memory(flat, self._array) or not flat.size
        return _Box(self._device, flat)
