"""A checkpoint as torch tensors on a device, through a ring of pinned memory.

Never from a memory-mapped file: a device copies page by page out of one, several times slower.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptstore.bundle.read.batch import DeviceTensor
from ckptstore.bundle.read.reader import StoredTensor
from ckptstore.errors import UnsupportedError, UsageError
from ckptstore.reading.open_checkpoint import OpenCheckpoint, open_checkpoint, read_to_device
from ckptstore.reading.report import checked_names
from ckptstore.torch.habit import TorchHabit, logical_of_kind
from ckptstore.torch.loads import skeleton_of
from ckptstore.torch.tensors import import_torch
from ckptstore.transfer.ring import Mark, Ring
from ckptstore.tree.match import ABSENT
from ckptstore.tree.skeleton import ArrayNode, array_nodes
from ckptstore.types import DType, Options, PathText

__all__ = ["read_state_dict"]

_LOG = logging.getLogger("ckptstore")

_STAGING_BYTES = 256 << 20

# Those that torch calls as TensorFlow does, and computes with; quantized ones become plain integers.
_SAME_NAME = (
    *("float16", "float32", "float64", "bfloat16", "bool", "complex64", "complex128"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float8_e5m2", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2fnuz"),
)
_QUANTIZED = {
    "qint8": "int8",
    "quint8": "uint8",
    "qint16": "int16",
    "quint16": "uint16",
    "qint32": "int32",
}
_NAME_IN_TORCH = {name: name for name in _SAME_NAME} | _QUANTIZED


def read_state_dict(
    checkpoint: PathText | OpenCheckpoint,
    names: Iterable[str] | None = None,
    *,
    device: Any = None,
    staging_bytes: int = _STAGING_BYTES,
    storage_options: Options = None,
) -> dict[str, Any]:
    """Read a checkpoint into new torch tensors on a device, every byte verified.

    For another device than the CPU the bytes go through a ring of pinned buffers: the next ones are fetched
    and verified while the last ones are copied. Tensors of the CPU receive them directly. No process group is
    needed.

    Parameters
    ----------
    checkpoint : str, PathLike or OpenCheckpoint
        Prefix or URL, or what `Step.open` and `open_checkpoint` return.
    names : iterable of str, optional
        Read only these tensors. None: all but what ckptstore and TensorFlow write for themselves.
    device : torch.device, str or int, optional
        Where the tensors are to be. None: torch's default device.
    staging_bytes : int
        Host memory of all buffers together; half a MiB at least. Of a checkpoint of V1 a whole tensor is held
        besides.
    storage_options : mapping, optional
        Goes to the backend as it is; for a prefix.

    Returns
    -------
    dict of str to torch.Tensor
        In the order of `names`, or ascending. bfloat16 and the float8 types that torch has are its own
        types. Of what `ckptstore.torch.save` has saved, tied tensors have all of their names, and are one
        tensor. The copies are over.

    Raises
    ------
    UnsupportedError
        If torch is not installed, or has no type for a tensor, as for strings and four-bit types.
    UsageError
        If the device cannot be used, or an option is wrong.
    TensorNotFoundError
        If there is no tensor of a name.
    CorruptError, NotFoundError, AccessError, TransientError
        As for `OpenCheckpoint.restore`.
    torch.OutOfMemoryError
        Torch's own: if the device has no room.

    Threads
    -------
    Safe for concurrent use. The copies run on a stream of their own.
    """
    torch = import_torch()
    if isinstance(staging_bytes, bool) or not isinstance(staging_bytes, int) or staging_bytes <= 0:
        raise UsageError("staging_bytes must be a number of bytes above 0", actual=repr(staging_bytes))
    if isinstance(checkpoint, OpenCheckpoint):
        if storage_options is not None:
            raise UsageError("storage_options go with a prefix; an open checkpoint has its own")
        return _read(torch, checkpoint, names, _usable(torch, device), staging_bytes)
    target = _usable(torch, device)
    with open_checkpoint(checkpoint, storage_options=storage_options) as opened:
        return _read(torch, opened, names, target, staging_bytes)


def _usable(torch: Any, device: Any) -> Any:
    """Return the device; raise if tensors with values cannot be made there."""
    try:
        found = torch.get_default_device() if device is None else torch.device(device)
        # With its number, if it has one.
        found = torch.empty(0, device=found).device
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        raise UsageError(
            "torch cannot use this device", actual=repr(device), hint=str(error).partition("\n")[0][:200]
        ) from error
    if found.type == "meta":
        raise UsageError("tensors on the device meta have no values", hint="Pass another device.")
    return found


def _read(
    torch: Any, checkpoint: OpenCheckpoint, names: Iterable[str] | None, device: Any, staging_bytes: int
) -> dict[str, Any]:
    copies = _Copies(torch, device, direct=device.type == "cpu")
    ring = Ring(staging_bytes, copies.allocate, copies.mark)
    if names is None:
        # The tensors come first: a checkpoint of which nothing was read may be opened again.
        read_to_device(checkpoint, None, copies.place, ring)
        nodes = _nodes(checkpoint)
        tied = [name for name, node in nodes.items() if node.name in copies.tensors]
        wanted = sorted({*copies.tensors, *tied})
    else:
        wanted, nodes = checked_names(names), _nodes(checkpoint)
        stored = dict.fromkeys(nodes[name].name if name in nodes else name for name in wanted)
        read_to_device(checkpoint, stored, copies.place, ring)
    found: dict[str, Any] = {}
    for name in wanted:
        node = nodes.get(name)
        tensor = copies.tensors[name if node is None else node.name]
        logical = "" if node is None else logical_of_kind(node.kind)
        found[name] = TorchHabit().made(tensor, logical) if logical else tensor
    return found


def _nodes(checkpoint: OpenCheckpoint) -> dict[str, ArrayNode]:
    """Return the tensors of the tree by all of their names; none if torch has not saved it."""
    habit = TorchHabit()
    try:
        skeleton = skeleton_of(checkpoint, habit)
    except UnsupportedError:
        return {}
    if skeleton is ABSENT:
        return {}
    return {habit.name_of(path): node for path, node in array_nodes(skeleton)}


class _Copies:
    """The tensors of one read, and the copies to them.

    Parameters
    ----------
    direct : bool
        Fill the tensors themselves and not through buffers.

    Attributes
    ----------
    tensors : dict of str to torch.Tensor
    """

    def __init__(self, torch: Any, device: Any, *, direct: bool) -> None:
        self.torch = torch
        self.tensors: dict[str, Any] = {}
        self._device = device
        self._is_direct = direct
        self._stream: Any = None
        if torch.accelerator.is_available() and device.type == torch.accelerator.current_accelerator().type:
            self._stream = torch.Stream(device=device)

    def place(self, tensors: Sequence[StoredTensor]) -> Sequence[npt.NDArray[Any] | DeviceTensor]:
        """Make the tensors; return their memory, or what copies to it."""
        types = [_type_of(self.torch, tensor) for tensor in tensors]
        # Outside of it: the threads that copy are not in the inference mode of their caller.
        with self.torch.inference_mode(False):
            self.tensors = {
                tensor.name: self.torch.empty(tensor.shape, dtype=dtype, device=self._device)
                for tensor, dtype in zip(tensors, types, strict=True)
            }
        if self._is_direct:
            return [_as_array(self.torch, self.tensors[tensor.name], tensor.dtype) for tensor in tensors]
        if self._stream is not None:
            # The memory may have been another tensor's, which work that was queued before still uses.
            self._stream.wait_stream(self.torch.accelerator.current_stream(self._device))
        return [_DeviceTensor(self, self.tensors[tensor.name]) for tensor in tensors]

    def allocate(self, size_bytes: int) -> memoryview:
        """Return memory for a buffer: pinned, so that the device copies while the program goes on."""
        block = None
        if self._stream is not None:
            try:
                block = self.torch.empty(size_bytes, dtype=self.torch.uint8, device="cpu", pin_memory=True)
            except (RuntimeError, NotImplementedError) as error:
                _LOG.warning(
                    "no pinned memory for copies to %s, which take longer so: %s", self._device, error
                )
        if block is None:
            block = self.torch.empty(size_bytes, dtype=self.torch.uint8, device="cpu")
        found: memoryview = block.numpy().data
        return found

    def mark(self) -> Mark | None:
        """Return a mark behind the copies so far; None without an accelerator."""
        if self._stream is None:
            return None
        event: Mark = self._stream.record_event()
        return event

    def copy(self, target: Any, values: npt.NDArray[Any]) -> None:
        """Begin to copy `values`, in C order, to `target`, a tensor of that shape."""
        torch = self.torch
        # Any numpy type, at any address.
        memory = torch.from_numpy(values.reshape(-1).view(np.uint8))
        source = memory.view(target.dtype).view(target.shape)
        if self._stream is None:
            target.copy_(source)
            return
        with self._stream:
            # What is not in a buffer is gone when this returns.
            target.copy_(source, non_blocking=source.is_pinned())


class _DeviceTensor:
    """See `ckptstore.bundle.read.batch.DeviceTensor`."""

    def __init__(self, copies: _Copies, tensor: Any) -> None:
        self._copies = copies
        self._tensor = tensor

    def put(self, where: tuple[slice, ...], values: npt.NDArray[Any]) -> None:
        self._copies.copy(self._tensor[where], values)

    def part(self, where: tuple[slice, ...]) -> _DeviceTensor:
        return _DeviceTensor(self._copies, self._tensor[where])

    def flat(self) -> _DeviceTensor:
        return _DeviceTensor(self._copies, self._tensor.view(-1))


def _type_of(torch: Any, tensor: StoredTensor) -> Any:
    found = getattr(torch, _NAME_IN_TORCH.get(tensor.dtype.name, ""), None)
    if found is None:
        raise UnsupportedError(
            "torch has no type for this tensor",
            tensor=tensor.name,
            actual=tensor.dtype.name,
            hint="Leave it out: names= says what to read. OpenCheckpoint.read returns it as a numpy array.",
        )
    return found


def _as_array(torch: Any, tensor: Any, dtype: DType) -> npt.NDArray[Any]:
    """Return the memory of a tensor of the CPU as an array of the checkpoint's type."""
    if not tensor.numel():
        return np.empty(tuple(tensor.shape), dtype.dtype)
    return np.ndarray(tuple(tensor.shape), dtype.dtype, tensor.view(-1).view(torch.uint8).numpy().data)
