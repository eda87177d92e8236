"""What lies in a directory, to be compared before and after."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

__all__ = ["tree_of"]


def tree_of(root: Path) -> dict[str, str]:
    """Return every path below `root` with what is there; pipes and devices are not opened."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            found[name] = f"link to {os.readlink(path)}"
        elif stat.S_ISREG(mode):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = f"mode {mode:o}"
    return found
