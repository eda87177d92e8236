"""What ckptstore warns of, and nothing else: another test's socket may be collected at any moment."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from ckptstore import CkptStoreWarning

__all__ = ["own_warnings"]


@contextmanager
def own_warnings(
    action: Literal["always", "default", "error"] = "always",
) -> Iterator[list[warnings.WarningMessage]]:
    """Record what ckptstore warns of in the block, or raise it with ``"error"``; ignore other warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter(action, CkptStoreWarning)
        yield caught
