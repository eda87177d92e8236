"""What of a directory is held open by this process; sockets of other tests do not count."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["open_files"]


def open_files(directory: str | os.PathLike[str]) -> list[str]:
    """Return the path of each open descriptor of `directory` itself, or of what is in it."""
    found: list[str] = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return sorted(path for path in found if Path(path).is_relative_to(directory))
