"""What the rooms of trees need to know of torch."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from ckptstore.errors import UnsupportedError
from ckptstore.torch.boxes import is_dtensor, layout_of, local_of
from ckptstore.torch.tensors import identity_of, import_torch, is_plain_subclass, logical_type
from ckptstore.tree.habit import Habit, Json

__all__ = ["PARAMETER", "TorchHabit", "logical_of_kind"]

PARAMETER = "parameter"
_FROZEN = "frozen"
_TAGS = ("dtype", "device", "Size")


class TorchHabit(Habit):
    """State dicts: names are those of torch.distributed.checkpoint, keys joined with a dot.

    A kind is words: ``parameter``, ``frozen`` (one that asks for no gradient), and the name of a type that
    TensorFlow does not have.
    """

    def __init__(self) -> None:
        self._torch = import_torch()

    def array_kind(self, value: Any) -> str | None:
        """Return the words for a tensor; None if `value` is none."""
        if not isinstance(value, self._torch.Tensor):
            return None
        words = []
        if isinstance(value, self._torch.nn.Parameter):
            words += [PARAMETER] if value.requires_grad else [PARAMETER, _FROZEN]
        logical = logical_type(value.dtype)
        return " ".join([*words, logical] if logical else words)

    def identity(self, value: Any) -> Hashable | None:
        """Return memory, shape and strides."""
        if not isinstance(value, self._torch.Tensor):
            return None
        if is_dtensor(value):
            if any(placement.is_partial() for placement in value.placements):
                return None
            local = local_of(value, tensor="")
            return (layout_of(value), identity_of(local)) if is_plain_subclass(local) else None
        if not is_plain_subclass(value) or str(value.layout) != "torch.strided":
            return None
        return identity_of(value)

    def plain_of(self, value: Any) -> tuple[str, Json] | None:
        """Return types, devices and sizes as text."""
        torch = self._torch
        if isinstance(value, torch.dtype):
            return "torch.dtype", str(value).removeprefix("torch.")
        if isinstance(value, torch.device):
            return "torch.device", str(value)
        if type(value) is torch.Size:
            return "torch.Size", list(value)
        return None

    def plain_from(self, tag: str, content: Json) -> Any:
        """Return what `plain_of` has written."""
        torch = self._torch
        root, _, kind = tag.partition(".")
        if root != "torch" or kind not in _TAGS:
            raise KeyError(tag)
        if kind == "Size":
            if not isinstance(content, list) or not all(type(one) is int for one in content):
                raise ValueError(f"a size {content!r}")
            return torch.Size(content)
        if not isinstance(content, str):
            raise TypeError(f"{tag} {content!r}")
        if kind == "dtype":
            found = getattr(torch, content, None)
            if not isinstance(found, torch.dtype):
                raise ValueError(f"a type {content!r}")
            return found
        try:
            return torch.device(content)
        except RuntimeError as error:
            raise ValueError(f"a device {content!r}") from error

    def made(self, value: Any, kind: str) -> Any:
        """Return a tensor as the kind says that it was: of its type, as a Parameter."""
        logical = logical_of_kind(kind)
        dtype = getattr(self._torch, logical, None) if logical else value.dtype
        if not isinstance(dtype, self._torch.dtype) or dtype.itemsize != value.dtype.itemsize:
            raise UnsupportedError(
                "torch has no such type, or the tensor is none",
                expected=logical[:100],
                actual=str(value.dtype),
                hint="Another release of torch may have it. OpenCheckpoint.read returns the bytes.",
            )
        if logical:
            value = value.view(dtype)
        words = kind.split()
        if PARAMETER not in words:
            return value
        return self._torch.nn.Parameter(value, requires_grad=_FROZEN not in words)


def logical_of_kind(kind: str) -> str:
    """Return the name of the type that TensorFlow does not have; empty if it is stored as it was."""
    if kind.startswith("numpy"):
        return ""
    return next((word for word in kind.split() if word not in (PARAMETER, _FROZEN)), "")
