"""Locks between processes on a local disk: of a directory, and of a file whose writer lives.

Both are `flock`: it belongs to the open file, so it ends with the process, whatever ended that. POSIX locks
(`lockf`) will not do: the same process is granted one twice, and loses it by closing any other descriptor.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from ckptstore.config import host_id
from ckptstore.errors import DeadlineError, UnsupportedError
from ckptstore.storage.fork_safe_locks import ForkSafeLocks
from ckptstore.storage.retry import Backoff

__all__ = [
    "LOCK_NAME",
    "file_system_type",
    "has_one_kernel",
    "hold",
    "is_held",
    "is_shared",
    "locked_directory",
    "mark_shared",
    "mark_upload",
    "release",
    "upload_mark",
    "writer_is_dead",
]

LOCK_NAME = ".ckptstore.lock"

# Extended attribute of a file made by `upload`: "<host id>:<inode>". Without it a file that nobody locks may
# be one that TensorFlow writes, or a checkpoint that somebody copies at this moment, data first: no writer of
# ours, so none that we could call dead. The inode is in it because some copies keep the attributes.
_MARK = "user.ckptstore.upload"
_SHARED = b"shared"  # its other value: the names of the file belong to several checkpoints

# Only one kernel at a time can have these mounted, so a lock that is free here is free everywhere.
_ONE_KERNEL = frozenset(
    {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay", "ramfs", "tmpfs", "xfs", "zfs"}
)

_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})

# No progress for so long means that the holder is frozen.
_GIVE_UP_S = 60.0

# Threads of one process wait for each other here, where they are woken at once. A fixed number of locks,
# shared by all directories: a process may see thousands.
_STRIPES = ForkSafeLocks(64)


@contextmanager
def locked_directory(directory_fd: int, path: str) -> Iterator[None]:
    """Keep every other `locked_directory` of this directory out, in this and all other processes.

    Raises
    ------
    OSError
        If the lock file cannot be made or opened.
    UnsupportedError
        If the file system has no locks.
    DeadlineError
        If another process does not let go of it.
    """
    # A file object and no bare descriptor: should an interrupt come before the next line, it is closed and so
    # unlocked all the same.
    with _STRIPES[hash(path) % len(_STRIPES)], _acquired(directory_fd, path) as lock:
        try:
            yield
        finally:
            release(lock.fileno())


def _acquired(directory_fd: int, path: str) -> FileIO:
    # Asking again and again, because a wait inside flock cannot be given a deadline, and the holder may be
    # frozen. The pauses are short: the lock is held for a rename.
    backoff = Backoff(_GIVE_UP_S, shortest_s=0.001, longest_s=0.05)
    while True:
        lock = _open_lock_file(directory_fd)
        try:
            if _has_locked(lock.fileno(), directory_fd):
                return lock
        except BaseException as error:
            lock.close()
            if isinstance(error, OSError) and error.errno in _NO_LOCKS:
                raise UnsupportedError(
                    "the file system cannot lock files, so concurrent writers cannot be kept apart",
                    url=path,
                    hint="Mount it with locking (Lustre: -o flock), or choose another directory.",
                ) from error
            raise
        lock.close()
        if not backoff.wait():
            raise DeadlineError(
                f"another process kept the lock of this directory for {_GIVE_UP_S:.0f} s",
                url=f"{path}/{LOCK_NAME}",
                hint="The command lslocks shows which one; wake it or end it, then the lock is free.",
            )


def _has_locked(fd: int, directory_fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever deleted the file meanwhile made room for a second one: ours would lock nobody out.
        return os.path.samestat(os.fstat(fd), os.lstat(LOCK_NAME, dir_fd=directory_fd))
    except (BlockingIOError, FileNotFoundError):
        return False


def _open_lock_file(directory_fd: int) -> FileIO:
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return FileIO(os.open(LOCK_NAME, flags | os.O_RDWR | os.O_CREAT, 0o666, dir_fd=directory_fd))
    except PermissionError:
        # Made by another user, or in a sticky directory, where Linux refuses O_CREAT on a stranger's file
        # (fs.protected_regular). To lock it, reading is enough.
        try:
            return FileIO(os.open(LOCK_NAME, flags | os.O_RDONLY, dir_fd=directory_fd))
        except FileNotFoundError:
            pass
        raise


def hold(fd: int) -> bool:
    """Lock a file just made until `release`, the end of the process, or the last copy of `fd` is closed.

    Returns
    -------
    bool
        False if somebody who looks for leftovers was faster.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        # Writing works without it; only nobody can prove that the writer is dead.
        if error.errno not in _NO_LOCKS:
            raise
    return True


def is_held(fd: int) -> bool:
    """Tell whether somebody else holds this file, as far as its file system can say."""
    try:
        # Shared: two who look at the same time do not take each other for the writer.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    release(fd)
    return False


def release(fd: int) -> None:
    """Unlock explicitly: closing is not enough while a forked child holds a copy of the descriptor."""
    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)


def mark_upload(fd: int) -> None:
    """Note on the file that it is an upload of this machine."""
    if hasattr(os, "setxattr"):
        # Best effort: without the mark a leftover waits for gc.
        with suppress(OSError):
            os.setxattr(fd, _MARK, f"{host_id()}:{os.fstat(fd).st_ino}".encode())


def upload_mark(fd: int) -> str | None:
    """Return the id of the host that made this file by an upload, None if no upload made it.

    Where files cannot be marked at all, the answer is "": an upload, perhaps, of an unknown host.
    """
    if not hasattr(os, "getxattr"):
        return ""
    try:
        host, _, inode = os.getxattr(fd, _MARK).decode("ascii", "replace").partition(":")
    except OSError as error:
        return "" if error.errno in (errno.ENOTSUP, errno.EOPNOTSUPP) else None
    return host if inode == str(os.fstat(fd).st_ino) else None


def mark_shared(fd: int) -> None:
    """Note on the file that it gets a second name, and no more that an upload made it.

    Raises
    ------
    OSError
        If that cannot be noted.
    """
    if not hasattr(os, "setxattr"):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    os.setxattr(fd, _MARK, _SHARED)


def is_shared(path: str) -> bool:
    """Tell whether `mark_shared` was called for the file."""
    try:
        return os.getxattr(path, _MARK) == _SHARED
    except (OSError, AttributeError):
        return False


def has_one_kernel(fd: int) -> bool:
    """Tell whether the file system of `fd` is one that only this machine can change."""
    return file_system_type(fd) in _ONE_KERNEL


@contextmanager
def writer_is_dead(fd: int, host: str) -> Iterator[bool]:
    """Tell whether whoever held this file is provably gone; while the block runs, nobody can take it up.

    Parameters
    ----------
    fd : int
    host : str
        The id of the machine that wrote it, "" if unknown.
    """
    try:
        # Shared: two who look at the same time do not take each other for the writer.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        yield False
        return
    try:
        yield host == host_id() or has_one_kernel(fd)
    finally:
        release(fd)


def file_system_type(fd: int) -> str:
    """Return the kernel's name for the file system of `fd`, such as ``"ext4"``; "" if it does not say."""
    try:
        facts = Path(f"/proc/self/fdinfo/{fd}").read_text("utf-8")
        mounts = Path("/proc/self/mountinfo").read_text("utf-8", "replace")
    except OSError:
        return ""
    # By mount id, not by device: btrfs gives files another device number than the mount table shows.
    mount_id = next((line.split()[1] for line in facts.splitlines() if line.startswith("mnt_id:")), None)
    for line in mounts.splitlines():
        # id parent major:minor root mount-point options [optional…] - type source options (proc(5))
        fields = line.split(" ")
        if fields[0] == mount_id:
            return fields[fields.index("-") + 1]
    return ""
