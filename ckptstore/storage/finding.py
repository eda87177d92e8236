"""What the checks of a storage found, for ``ckptstore doctor``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from ckptstore.errors import CkptStoreError

__all__ = ["Finding", "State", "failed"]

State: TypeAlias = Literal["ok", "degraded", "failed"]
"""``degraded``: it works, without a promise that other storages keep. ``failed``: it does not work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check.

    Attributes
    ----------
    check : str
        What was checked, in a word or two.
    state : State
    detail : str
        What was found. Never a secret.
    hint : str or None
        What to do about it.
    error : CkptStoreError or None
        Of a failed check; its class tells a program what to do next.
    """

    check: str
    state: State
    detail: str
    hint: str | None = None
    error: CkptStoreError | None = None


def failed(check: str, error: CkptStoreError) -> Finding:
    """Return the finding for a `check` that failed with `error`."""
    return Finding(check, "failed", str(error), error=error)
