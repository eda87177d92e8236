"""The elements of constants."""

from __future__ import annotations

from typing import Any

from ckptstore.graph import Tensor

__all__ = ["value_of"]


def value_of(tensor: Tensor) -> list[Any]:
    """Return the elements of a constant."""
    assert tensor.value is not None
    elements: list[Any] = tensor.value.tolist()
    return elements
