"""The arguments of a Saver, checked: what is wrong is told before anything is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from ckptstore.errors import UsageError

__all__ = ["check_list", "check_var_list", "step_number"]


def check_var_list(var_list: object) -> dict[str, str] | None:
    """Return checkpoint name → name in the values, in the order in which TensorFlow writes them: sorted."""
    if var_list is None:
        return None
    if isinstance(var_list, Mapping):
        pairs = list(var_list.items())
    elif isinstance(var_list, list | tuple | set | frozenset):
        pairs = [(name, name) for name in var_list]
    else:
        raise UsageError(f"Variables to save should be passed in a dict or a list. Got {var_list!r}")
    for stored_name, name in pairs:
        if not isinstance(stored_name, str) or not isinstance(name, str):
            raise UsageError(
                "Name is not a string", actual=repr(name if isinstance(stored_name, str) else stored_name)
            )
    twice = sorted(name for name, count in Counter(name for _, name in pairs).items() if count > 1)
    if twice and isinstance(var_list, Mapping):
        raise UsageError(f"The same saveable will be restored with two names: {twice[0]}")
    if twice:
        raise UsageError(f"At least two variables have the same name: {twice[0]}")
    return dict(sorted(pairs))


def step_number(global_step: Any) -> int:
    """Return the step as an integer."""
    # A number too large for 64 bits becomes an object array, or is refused by numpy.
    array = np.asarray(int(global_step) if isinstance(global_step, bool) else global_step)
    if array.ndim == 0 and array.dtype.kind in "iu":
        return int(array)
    raise UsageError(
        "global_step must be an integer of 64 bits or a 0-d integer array",
        actual=f"{type(global_step).__name__} {global_step!r}",
    )


def check_list(value: object) -> None:
    """Raise `UsageError` if this is no list, as TensorFlow does."""
    if not isinstance(value, list):
        raise UsageError("a list of checkpoints is needed", expected="list", actual=type(value).__name__)
