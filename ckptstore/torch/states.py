"""State dicts with models and optimizers in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckptstore.errors import UsageError

__all__ = ["is_stateful", "states_of"]


def is_stateful(value: Any) -> bool:
    """Return whether an object hands out its state, and takes one back."""
    return callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None))


def states_of(state_dict: Any) -> dict[str, Any]:
    """Return a new dictionary with the states of the objects in it.

    Raises
    ------
    UsageError
        If it is not a mapping with text as keys.
    """
    if not isinstance(state_dict, Mapping):
        hint = (
            "Pass {'model': it}." if is_stateful(state_dict) else "Pass model.state_dict(), or a dictionary."
        )
        raise UsageError(
            "a state dict is a mapping from names to tensors and other values",
            actual=type(state_dict).__qualname__,
            hint=hint,
        )
    return {key: value.state_dict() if is_stateful(value) else value for key, value in state_dict.items()}
