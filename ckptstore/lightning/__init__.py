"""ckptstore for Lightning: checkpoints of a Trainer on any storage, and "last" and "best" found there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckptstore.errors import UnsupportedError
from ckptstore.lightning.plugin import CheckpointIO

if TYPE_CHECKING:
    from ckptstore.lightning.callback import ModelCheckpoint

__all__ = ["CheckpointIO", "ModelCheckpoint"]


def __getattr__(name: str) -> Any:
    # It derives from a class of Lightning, which takes seconds to import.
    if name != "ModelCheckpoint":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from ckptstore.lightning.callback import ModelCheckpoint
    except ImportError as error:
        raise UnsupportedError(
            "this needs the package lightning", hint="Install it: pip install lightning."
        ) from error
    return ModelCheckpoint
