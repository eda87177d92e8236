"""Warnings that point at the line of the caller's own program, however deep they come from."""

from __future__ import annotations

import sys
import warnings

from ckptstore.errors import CkptStoreWarning

__all__ = ["warn"]

_PACKAGE = f"{__name__.partition('.')[0]}."


def warn(message: str) -> None:
    """Issue a `CkptStoreWarning` at the line that called into this package."""
    level, frame = 2, sys._getframe(1)  # noqa: SLF001 (the way that `warnings` counts)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, CkptStoreWarning, stacklevel=level)
