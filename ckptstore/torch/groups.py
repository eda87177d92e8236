"""The coordinator of the default process group: opened once, when a call first needs it."""

from __future__ import annotations

import sys
import threading
from typing import Any

from ckptstore.distributed.coordinator import Coordinator
from ckptstore.torch.coordinator import is_running, open_coordinator

__all__ = ["coordinator_of_group"]

_LOCK = threading.Lock()
_opened: list[tuple[Any, Coordinator]] = []


def coordinator_of_group() -> Coordinator | None:
    """Return the coordinator of torch.distributed; None if it does not run, or in one process.

    All ranks must call this alike. Another process group, after the first was destroyed, gets another one.
    """
    if "torch.distributed" not in sys.modules or not is_running():
        return None
    import torch.distributed as dist

    if dist.get_world_size() == 1:
        return None
    group = dist.group.WORLD
    with _LOCK:
        if _opened and _opened[0][0] is group:
            return _opened[0][1]
        # That of an earlier group is not closed: nobody may answer there.
        _opened[:] = [(group, open_coordinator())]
        return _opened[0][1]
