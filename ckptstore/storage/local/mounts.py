"""The mount that a file lies on: its type, and whether other machines can have it mounted too."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

__all__ = ["Mount", "file_system_type", "has_one_kernel", "mount_of"]

# Only one kernel at a time can have these mounted, so a lock that is free here is free everywhere.
_ONE_KERNEL = frozenset(
    {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay", "ramfs", "tmpfs", "xfs", "zfs"}
)

# Octal in /proc/self/mountinfo: space, tab, newline, backslash (proc(5)).
_ESCAPE = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """A row of the mount table; `type` is the kernel's name of the file system, such as ``"ext4"``."""

    point: str
    type: str
    source: str


def mount_of(fd: int) -> Mount | None:
    """Return the mount of an open file or directory; None if the system does not say."""
    try:
        facts = Path(f"/proc/self/fdinfo/{fd}").read_text("utf-8")
        mounts = Path("/proc/self/mountinfo").read_text("utf-8", "replace")
    except OSError:
        return None
    # By mount id, not by device: btrfs gives files another device number than the mount table shows.
    mount_id = next((line.split()[1] for line in facts.splitlines() if line.startswith("mnt_id:")), None)
    for line in mounts.splitlines():
        # id parent major:minor root mount-point options [optional…] - type source options (proc(5))
        fields = line.split(" ")
        if fields[0] == mount_id:
            rest = fields.index("-")
            texts = (fields[4], fields[rest + 1], fields[rest + 2])
            return Mount(*(_ESCAPE.sub(lambda found: chr(int(found[1], 8)), text) for text in texts))
    return None


def file_system_type(fd: int) -> str:
    """Return the type of the file system of `fd`; "" if the system does not say."""
    mount = mount_of(fd)
    return "" if mount is None else mount.type


def has_one_kernel(fd: int) -> bool:
    """Return whether only this machine can change the file system of `fd`."""
    return file_system_type(fd) in _ONE_KERNEL
