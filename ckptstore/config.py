"""Where this process runs, and the only place that reads the environment.

No environment variable means anything to ckptstore so far; the day one does, it is read here.
"""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path

__all__ = ["host_id"]


@functools.cache
def host_id() -> str:
    """Return 8 hex digits that name this machine until its next boot.

    Two processes with the same id run under one kernel, so a `flock` of the one is visible to the other.
    """
    try:
        # Not the machine id: clones of one disk image share it, and containers under one kernel need not.
        name = Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    except OSError:
        name = os.uname().nodename.encode()
    return hashlib.sha256(name).hexdigest()[:8]
