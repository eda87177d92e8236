"""A file system of a given size, where the tests may mount one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["fill", "small_disk"]

PAGE_BYTES = 4096


@contextmanager
def small_disk(directory: Path, size_kib: int) -> Iterator[Path]:
    """Mount one at `directory` while the block runs; skip the test where that is not possible."""
    mount = shutil.which("mount")
    if os.getuid() != 0 or mount is None:
        pytest.skip("mounting a small file system needs root")
    directory.mkdir(parents=True)
    done = subprocess.run(
        [mount, "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", directory],
        check=False,
        capture_output=True,
    )
    if done.returncode:
        pytest.skip("mounting is not permitted here")
    try:
        yield directory
    finally:
        # Lazily: a server that was killed may still be going.
        subprocess.run(["umount", "--lazy", directory], check=True)


def fill(disk: Path, *, but_pages: int = 0) -> Path:
    """Fill a small disk but for so many pages; return the file that does."""
    ballast = disk / "ballast"
    free = os.statvfs(disk)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, (free.f_bfree - but_pages) * free.f_frsize))
    return ballast
