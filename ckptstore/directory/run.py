"""The identity of this process as a run."""

from __future__ import annotations

import os
import uuid

__all__ = ["process_run"]

_RUNS: dict[int, str] = {}


def process_run() -> str:
    """Return the run of this process: one for all its Savers, another one after a fork."""
    return _RUNS.setdefault(os.getpid(), uuid.uuid4().hex)
