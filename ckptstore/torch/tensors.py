"""Tensors of torch as arrays of numpy and back, on the same memory wherever both can see it.

What can be saved: strided tensors of any device whose type torch computes with, Parameters and buffers, and
subclasses that are plain memory. A subclass with a dispatch of its own (``__torch_dispatch__``: FakeTensor,
the quantized tensors of torchao, nested tensors) may be made of several tensors, or of none, and is refused;
DTensor alone is known, see `ckptstore.torch.boxes`.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ckptstore.errors import UnsupportedError, UsageError

__all__ = [
    "STORED_DTYPES",
    "as_tensor",
    "fill",
    "identity_of",
    "import_torch",
    "is_memory",
    "is_plain_subclass",
    "logical_type",
    "memory_of",
    "name_of_dtype",
    "stored_dtype",
    "to_numpy",
]

_SAME: Final = (
    *("float16", "float32", "float64", "bool", "complex64", "complex128"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
)
# Seen through an integer of the same width, because numpy knows them by ml_dtypes only.
_THROUGH: Final = {
    "bfloat16": "int16",
    "float8_e5m2": "uint8",
    "float8_e4m3fn": "uint8",
    "float8_e4m3fnuz": "uint8",
    "float8_e5m2fnuz": "uint8",
}
# TensorFlow has no such type: stored as these, and the tree says which type it was.
_STORED_AS: Final = {"float8_e8m0fnu": "uint8", "float4_e2m1fn_x2": "uint8", "complex32": "int32"}

STORED_DTYPES: Final[dict[str, np.dtype[Any]]] = (
    {name: np.dtype(name) for name in _SAME}
    | {name: np.dtype(getattr(ml_dtypes, name)) for name in _THROUGH}
    | {name: np.dtype(stored) for name, stored in _STORED_AS.items()}
)
"""Name of torch's type → type in the checkpoint."""


def import_torch() -> Any:
    """Return the module torch.

    Raises
    ------
    UnsupportedError
        If it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise UnsupportedError(
            "this needs the package torch", hint="Install it: pip install torch."
        ) from error
    return torch


def name_of_dtype(dtype: Any) -> str:
    """Return the name of a type of torch without the name of the module."""
    return str(dtype).removeprefix("torch.")


def logical_type(dtype: Any) -> str:
    """Return the name of a type that TensorFlow does not have; empty if it has."""
    name = name_of_dtype(dtype)
    return name if name in _STORED_AS else ""


def stored_dtype(dtype: Any, *, tensor: str) -> np.dtype[Any]:
    """Return the type of numpy in which a type of torch is stored.

    Raises
    ------
    UsageError
        If there is none, as for quantized types and integers of less than eight bits.
    """
    found = STORED_DTYPES.get(name_of_dtype(dtype))
    if found is None:
        raise UsageError(
            "a tensor of this type cannot be stored",
            tensor=tensor,
            actual=str(dtype),
            hint="Convert it to a type that torch computes with, or save what it is made of.",
        )
    return found


def is_plain_subclass(value: Any) -> bool:
    """Return whether a tensor is memory as torch.Tensor is, whatever its class."""
    torch = import_torch()
    is_lazy = torch.nn.parameter.is_lazy(value)
    return type(value).__torch_dispatch__ is torch.Tensor.__torch_dispatch__ and not is_lazy


def check(value: Any, *, tensor: str) -> None:
    """Raise `UsageError` with the name unless the values of a tensor can be stored."""
    if import_torch().nn.parameter.is_lazy(value):
        hint = "Call the model once with an example before."
        raise UsageError("a lazy parameter has no values yet", tensor=tensor, hint=hint)
    if not is_plain_subclass(value):
        raise _refused(
            f"a {type(value).__qualname__} is more than its memory",
            value,
            tensor,
            "Pass the tensors that it is made of, under names of their own.",
        )
    if str(value.layout) != "torch.strided":
        raise _refused(
            "a sparse tensor cannot be stored",
            value,
            tensor,
            "Pass its indices and values under names of their own, or x.to_dense().",
        )
    if value.is_quantized:
        raise _refused(
            "a quantized tensor cannot be stored",
            value,
            tensor,
            "Pass x.int_repr() with its scales and zero points, or x.dequantize().",
        )
    if value.is_meta:
        raise _refused("a tensor on the device meta has no values", value, tensor, "Pass one that has.")
    stored_dtype(value.dtype, tensor=tensor)


def _refused(what: str, value: Any, tensor: str, hint: str) -> UsageError:
    actual = f"{type(value).__module__}.{type(value).__qualname__}, {value.dtype}, {value.layout}"
    return UsageError(what, tensor=tensor, actual=actual, hint=hint)


def is_memory(value: Any) -> bool:
    """Return whether numpy can see the elements where they are: on the CPU, not to be negated when read."""
    return value.device.type == "cpu" and not value.is_conj() and not value.is_neg()


def memory_of(value: Any, *, tensor: str) -> npt.NDArray[Any]:
    """Return the memory of a tensor as a writable array of any strides; `is_memory` must be true."""
    torch = import_torch()
    found = value.detach()
    through = _THROUGH.get(name_of_dtype(value.dtype)) or _STORED_AS.get(name_of_dtype(value.dtype))
    dtype = stored_dtype(value.dtype, tensor=tensor)
    with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001 - no public name
        if through is not None:
            found = found.view(getattr(torch, through))
        array: npt.NDArray[Any] = found.numpy()
    return array.view(dtype)


def to_numpy(value: Any, *, tensor: str) -> npt.NDArray[Any]:
    """Return the elements of a tensor: its memory if numpy can see it, else a copy, which is read-only.

    Raises
    ------
    UsageError
        If it cannot be stored.
    """
    check(value, tensor=tensor)
    if is_memory(value):
        return memory_of(value, tensor=tensor)
    copy = value.detach().resolve_conj().resolve_neg().cpu()
    array = memory_of(copy, tensor=tensor)
    array.flags.writeable = False
    return array


def as_tensor(array: npt.NDArray[Any], dtype: Any = None) -> Any:
    """Return a tensor on the memory of a writable array.

    Parameters
    ----------
    dtype : torch.dtype, optional
        What the bytes are, if numpy's type does not say it.
    """
    torch = import_torch()
    name = array.dtype.name
    if name in _THROUGH:
        dtype = dtype or getattr(torch, name)
        array = array.view(_THROUGH[name])
    # An empty array may have any strides.
    found = torch.from_numpy(array) if array.size else torch.from_numpy(np.empty_like(array))
    return found if dtype is None else found.view(dtype)


def fill(value: Any, array: npt.NDArray[Any]) -> None:
    """Copy an array of the stored type into a tensor of any device, conjugated views included."""
    torch = import_torch()
    with torch.no_grad():
        value.copy_(as_tensor(np.ascontiguousarray(array).reshape(array.shape), value.dtype))


def identity_of(value: Any) -> Hashable:
    """Return what two tensors have in common that are the same elements of the same memory."""
    storage = value.untyped_storage()
    return (
        str(value.device),
        # An empty storage has no address, but an object of its own.
        storage.data_ptr() or f"storage {storage._cdata}",  # noqa: SLF001 - no public name
        value.storage_offset(),
        tuple(value.shape),
        tuple(value.stride()),
        value.dtype,
        value.is_conj(),
        value.is_neg(),
    )
