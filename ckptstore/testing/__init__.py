"""The test kit for storages, coordinators and programs on top; shipped for those outside of ckptstore.

The contracts need pytest, the rest nothing. Each is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ckptstore.testing.clock import ManualClock
    from ckptstore.testing.contract import StorageContract
    from ckptstore.testing.coordinator_contract import CoordinatorContract, RankProcesses, serve_rank
    from ckptstore.testing.counting import Call, CountingStorage
    from ckptstore.testing.faulty import FaultyStorage, SimulatedCrash
    from ckptstore.testing.local_coordinators import LocalCoordinator, make_local_coordinators

__all__ = [
    "Call",
    "CoordinatorContract",
    "CountingStorage",
    "FaultyStorage",
    "LocalCoordinator",
    "ManualClock",
    "RankProcesses",
    "SimulatedCrash",
    "StorageContract",
    "make_local_coordinators",
    "serve_rank",
]

_HOMES = {
    "Call": "counting",
    "CoordinatorContract": "coordinator_contract",
    "CountingStorage": "counting",
    "FaultyStorage": "faulty",
    "LocalCoordinator": "local_coordinators",
    "ManualClock": "clock",
    "RankProcesses": "coordinator_contract",
    "SimulatedCrash": "faulty",
    "StorageContract": "contract",
    "make_local_coordinators": "local_coordinators",
    "serve_rank": "coordinator_contract",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
