"""ckptstore for torch: state dicts of one process or of many ranks, saved, loaded and served."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckptstore.errors import UnsupportedError
from ckptstore.torch.loads import load
from ckptstore.torch.saves import pieces, save, save_async
from ckptstore.torch.state_dict import read_state_dict

if TYPE_CHECKING:
    from ckptstore.torch.dcp import LoadPlanner, SavePlanner, StorageReader, StorageWriter

__all__ = [
    "LoadPlanner",
    "SavePlanner",
    "StorageReader",
    "StorageWriter",
    "load",
    "pieces",
    "read_state_dict",
    "save",
    "save_async",
]

_OF_DCP = ("LoadPlanner", "SavePlanner", "StorageReader", "StorageWriter")


def __getattr__(name: str) -> Any:
    # They derive from classes of torch, which takes seconds to import.
    if name not in _OF_DCP:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from ckptstore.torch import dcp
    except ImportError as error:
        raise UnsupportedError(
            "this needs the package torch", hint="Install it: pip install torch."
        ) from error
    return getattr(dcp, name)
