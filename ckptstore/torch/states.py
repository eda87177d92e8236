"""State dicts with models and optimizers in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckptstore.errors import UsageError
from ckptstore.torch.tensors import import_torch

__all__ = ["check_groups", "is_stateful", "states_of", "targets_of"]


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


def targets_of(state_dict: Any) -> dict[str, Any]:
    """Return what a checkpoint is loaded into: the states, with a place for all that an optimizer may lack.

    Parameters that had no gradient yet have no state: what the checkpoint has of them would be left out.
    """
    found = states_of(state_dict)
    for key in _optimizers(state_dict, found):
        state = found[key]["state"]
        if state:
            lacking = [index for index in _parameters(found[key]) if index not in state]
            found[key] = found[key] | {"state": state | {index: {} for index in lacking}}
    return found


def check_groups(state_dict: Any, states: Mapping[str, Any], skeleton: Any) -> None:
    """Check that optimizers have the groups of the checkpoint: load_state_dict would say so too late.

    Raises
    ------
    UsageError
        If they have not. Nothing was changed.
    """
    for key in _optimizers(state_dict, states):
        stored = skeleton.get(key) if isinstance(skeleton, dict) else None
        if stored is None or not _is_state(stored):
            continue
        own, theirs = (
            [len(group["params"]) for group in one["param_groups"]] for one in (states[key], stored)
        )
        if own != theirs:
            raise UsageError(
                f"the optimizer {key!r} has other groups of parameters than the checkpoint's",
                expected=f"groups of {theirs} parameters",
                actual=f"groups of {own}",
                hint="Make its groups as they were saved, or leave the optimizer out of the state.",
            )


def _optimizers(state_dict: Mapping[str, Any], states: Mapping[str, Any]) -> list[str]:
    optimizer = import_torch().optim.Optimizer
    return [
        key for key, value in state_dict.items() if isinstance(value, optimizer) and _is_state(states[key])
    ]


def _is_state(state: Any) -> bool:
    """Return whether a state looks as torch makes it; a class may override that."""
    return (
        isinstance(state, dict)
        and isinstance(state.get("state"), dict)
        and isinstance(state.get("param_groups"), list)
        and all(
            isinstance(one, dict) and isinstance(one.get("params"), list) for one in state["param_groups"]
        )
    )


def _parameters(state: Mapping[str, Any]) -> list[Any]:
    return [index for group in state["param_groups"] for index in group["params"]]
