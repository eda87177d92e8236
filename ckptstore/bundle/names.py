"""Names that are not there, and what the caller may have meant."""

from __future__ import annotations

import bisect
import difflib
from collections.abc import Sequence

from ckptstore.errors import TensorNotFoundError

__all__ = ["close_names", "tensor_not_found"]

# difflib compares the name with each candidate in turn; 100 000 of them would take seconds.
_MAX_CANDIDATES = 1000


def close_names(name: str, names: Sequence[str]) -> list[str]:
    """Return up to three of `names` that are most like `name`."""
    if name.endswith(":0") and name[:-2] in names:
        # The name of the graph's tensor; checkpoints hold the variable's.
        return [name[:-2]]
    candidates = list(names)
    if len(candidates) > _MAX_CANDIDATES:
        # A name with one mistake still sorts beside the right one, read either forwards or backwards.
        backwards = _neighbours(name[::-1], [other[::-1] for other in names])
        found = [*_neighbours(name, candidates), *(other[::-1] for other in backwards)]
        candidates = list(dict.fromkeys(found))
    return difflib.get_close_matches(name, candidates, n=3)


def _neighbours(name: str, names: list[str]) -> list[str]:
    """Return the names between which `name` would be sorted."""
    names = sorted(names)
    at = bisect.bisect_left(names, name)
    return names[max(0, at - _MAX_CANDIDATES // 4) : at + _MAX_CANDIDATES // 4]


def tensor_not_found(name: object, names: Sequence[str], url: str) -> TensorNotFoundError:
    """Return the error for a name that the checkpoint at `url` does not have."""
    close = close_names(name, names) if isinstance(name, str) else []
    if close:
        hint = f"Did you mean {' or '.join(repr(other) for other in close)}?"
    elif len(names) <= 10:
        hint = f"It has {', '.join(repr(other) for other in names) or 'no tensors'}."
    else:
        hint = f"It has {len(names)} others; list them with list_variables()."
    return TensorNotFoundError(
        f"Key {name} not found in checkpoint",
        url=url,
        tensor=name if isinstance(name, str) else repr(name),
        hint=hint,
    )
