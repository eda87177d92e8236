"""The blocks of large files that were deleted, given back by a thread of its own.

On a disk that is told of each block which is free (ext4, mounted with ``discard``), to give back 64 MiB takes
20 ms of waiting, as long as to write them. A file that is open keeps its blocks: its name is gone, durably,
before they are given back, and nobody waits for that but a file that needs the room.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Collection
from contextlib import suppress

from ckptstore.storage.local.mounts import file_system_type
from ckptstore.storage.retry import pause

__all__ = ["free_later", "give_back", "held", "hold_blocks", "room_is_coming", "threads"]

# Where blocks are given back with the last reference to a file. Not network file systems: they rename a file
# that is open instead of deleting it.
_FREES_ON_CLOSE = frozenset({"ext4", "f2fs", "xfs"})

# Blocks of smaller files are given back in less time than it takes to start a thread.
_WORTH_HOLDING_BYTES = 4 * 1024 * 1024

# Free space that grows shows that somebody, in whichever process, gives blocks back.
_LOOK_S = 0.1

held: set[int] = set()
"""Descriptors that a thread is about to close."""

threads: set[threading.Thread] = set()
"""Those that close them."""


def hold_blocks(key: str) -> int | None:
    """Return a descriptor that keeps the blocks of a file which is about to be deleted.

    None for a small file, or where nothing is gained: then the delete itself gives them back.
    """
    try:
        fd = os.open(key, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (AttributeError, OSError):
        return None
    with suppress(OSError):
        status = os.fstat(fd)
        is_large = stat.S_ISREG(status.st_mode) and status.st_size >= _WORTH_HOLDING_BYTES
        if is_large and file_system_type(fd) in _FREES_ON_CLOSE:
            held.add(fd)
            return fd
    os.close(fd)
    return None


def free_later(fds: Collection[int]) -> None:
    """Close descriptors of `hold_blocks`, in a thread that nobody waits for."""
    if not fds:
        return
    thread = threading.Thread(target=give_back, args=(tuple(fds),), name="ckptstore-freeing", daemon=True)
    threads.add(thread)
    try:
        thread.start()
    except RuntimeError:
        # The interpreter starts no new thread while it ends.
        threads.discard(thread)
        give_back(tuple(fds))


def give_back(fds: Collection[int]) -> None:
    """Close descriptors of `hold_blocks` now."""
    for fd in fds:
        held.discard(fd)
        os.close(fd)
    threads.discard(threading.current_thread())


def room_is_coming(fd: int) -> bool:
    """Wait a moment for blocks that are being given back on the disk of `fd`; return whether any were.

    After all that this process gives back, or a tenth of a second.
    """
    if running := list(threads):
        for thread in running:
            thread.join()
        return True
    before = os.fstatvfs(fd).f_bavail
    pause(_LOOK_S)
    return os.fstatvfs(fd).f_bavail > before


def _drop_inherited() -> None:
    # A forked child has copies: as long as it lives, these would keep the blocks.
    inherited = list(held)
    held.clear()
    threads.clear()
    for fd in inherited:
        with suppress(OSError):
            os.close(fd)


os.register_at_fork(after_in_child=_drop_inherited)
