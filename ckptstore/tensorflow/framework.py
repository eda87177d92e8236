"""The framework itself, imported on first use."""

from __future__ import annotations

from typing import Any

from ckptstore.errors import UnsupportedError

__all__ = ["import_tensorflow"]


def import_tensorflow() -> Any:
    """Return the module.

    Raises
    ------
    UnsupportedError
        If it is not installed.
    """
    try:
        import tensorflow
    except ImportError as error:
        raise UnsupportedError(
            "this needs the package tensorflow", hint="Install it: pip install tensorflow."
        ) from error
    return tensorflow
