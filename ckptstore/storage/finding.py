"""What a look at a place in a storage found, for ``ckptstore doctor``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from ckptstore.errors import CkptStoreError

__all__ = ["Finding", "State", "failed"]

State: TypeAlias = Literal["ok", "degraded", "failed"]
"""``degraded``: works, and something that is promised elsewhere is not. ``failed``: does not work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check.

    Attributes
    ----------
    check : str
        What was looked at, in a word or two.
    state : State
    detail : str
        What was found. Never a secret.
    hint : str or None
        What to do about it.
    error : CkptStoreError or None
        Of a failed check: its class says what the caller does next.
    """

    check: str
    state: State
    detail: str
    hint: str | None = None
    error: CkptStoreError | None = None


def failed(check: str, error: CkptStoreError) -> Finding:
    """Return the finding that `check` came out as `error`."""
    return Finding(check, "failed", str(error), error=error)
