"""The test kit for storages and for programs on top of them; shipped for backends outside of ckptstore.

`StorageContract` needs pytest, the rest nothing. Each is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ckptstore.testing.clock import ManualClock
    from ckptstore.testing.contract import StorageContract
    from ckptstore.testing.counting import Call, CountingStorage
    from ckptstore.testing.faulty import FaultyStorage, SimulatedCrash

__all__ = ["Call", "CountingStorage", "FaultyStorage", "ManualClock", "SimulatedCrash", "StorageContract"]

_HOMES = {
    "Call": "counting",
    "CountingStorage": "counting",
    "FaultyStorage": "faulty",
    "ManualClock": "clock",
    "SimulatedCrash": "faulty",
    "StorageContract": "contract",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
