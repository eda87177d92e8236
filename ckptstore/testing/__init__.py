"""The test kit for storages, coordinators and programs on top; shipped for those outside of ckptstore.

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
    from ckptstore.testing.local_coordinators import LocalCoordinator, make_local_coordinators

__all__ = [
    "Call",
    "CountingStorage",
    "FaultyStorage",
    "LocalCoordinator",
    "ManualClock",
    "SimulatedCrash",
    "StorageContract",
    "make_local_coordinators",
]

_HOMES = {
    "Call": "counting",
    "CountingStorage": "counting",
    "FaultyStorage": "faulty",
    "LocalCoordinator": "local_coordinators",
    "ManualClock": "clock",
    "SimulatedCrash": "faulty",
    "StorageContract": "contract",
    "make_local_coordinators": "local_coordinators",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
