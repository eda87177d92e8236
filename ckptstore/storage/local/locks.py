"""Locks between processes on a local disk: of a directory, and of a file whose writer is alive.

Both are `flock`: it belongs to the open file, so it ends with the process, whatever ended that. POSIX locks
(`lockf`) are no alternative: a process is granted the same one twice, and loses it when it closes any other
descriptor of the file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO

from ckptstore.config import host_id
from ckptstore.errors import DeadlineError, UnsupportedError
from ckptstore.storage.fork_safe_locks import ForkSafeLocks
from ckptstore.storage.local.mounts import has_one_kernel
from ckptstore.storage.reentry import refuse_reentry
from ckptstore.storage.retry import Backoff

__all__ = [
    "LOCK_NAME",
    "hold",
    "is_held",
    "is_shared",
    "lock_directory",
    "mark_needed",
    "mark_shared",
    "mark_upload",
    "release",
    "upload_mark",
    "writer_is_dead",
]

LOCK_NAME = ".ckptstore.lock"

# Extended attribute of a file made by `upload`: "<host id>:<inode>". An unlocked file without it may be one
# that TensorFlow is writing, or part of a checkpoint that is being copied, data first: its writer takes no
# locks, so a free lock does not prove that it is dead. The inode is included because some copies keep the
# attributes.
_MARK = "user.ckptstore.upload"
_SHARED = b"shared"  # another value: several checkpoints have a name of this file
_NEEDED = b"needed:"  # before the first value: a published index names the file

_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})

_OPEN_S = 0.2

# No progress for so long means that the holder is frozen.
_GIVE_UP_S = 60.0

# Threads of one process wait for each other here, where they are woken at once. All directories share a fixed
# number of locks, because a process may see thousands of directories.
_STRIPES = ForkSafeLocks(64)


@contextmanager
def lock_directory(directory_fd: int, path: str) -> Iterator[None]:
    """Exclude every other `lock_directory` of this directory, in this and all other processes.

    Raises
    ------
    OSError
        If the lock file cannot be made or opened.
    UnsupportedError
        If the file system has no locks.
    DeadlineError
        If another process holds it for too long.
    """
    refuse_reentry(path)
    # A file object, not a bare descriptor: if an interrupt comes before the next line, it is still closed and
    # thereby unlocked.
    with _STRIPES[hash(path) % len(_STRIPES)], _acquire(directory_fd, path) as lock:
        try:
            yield
        finally:
            release(lock.fileno())


def _acquire(directory_fd: int, path: str) -> FileIO:
    # By polling, because flock takes no deadline and the holder may be frozen. The pauses are short: the
    # lock is held for a rename.
    backoff = Backoff(_GIVE_UP_S, shortest_s=0.001, longest_s=0.05)
    opening = Backoff(_OPEN_S, shortest_s=0.001, longest_s=0.05)
    while True:
        try:
            lock = _open_lock_file(directory_fd)
        except PermissionError:
            # Another user may have made it a moment ago, and open it to the other writers in the next one.
            if opening.wait():
                continue
            raise
        try:
            if _try_lock(lock.fileno(), directory_fd):
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


def _try_lock(fd: int, directory_fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # If the file was deleted meanwhile, others lock a new one and ours excludes nobody.
        return os.path.samestat(os.fstat(fd), os.lstat(LOCK_NAME, dir_fd=directory_fd))
    except (BlockingIOError, FileNotFoundError):
        return False


def _open_lock_file(directory_fd: int) -> FileIO:
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        lock = FileIO(os.open(LOCK_NAME, flags | os.O_RDWR | os.O_CREAT, 0o600, dir_fd=directory_fd))
    except PermissionError:
        # Made by another user, or in a sticky directory, where Linux refuses O_CREAT on another user's file
        # (fs.protected_regular). Locking needs only read access.
        try:
            return FileIO(os.open(LOCK_NAME, flags | os.O_RDONLY, dir_fd=directory_fd))
        except FileNotFoundError:
            pass
        raise
    try:
        _open_to_writers(lock.fileno(), directory_fd)
    except BaseException:
        lock.close()
        raise
    return lock


def _open_to_writers(fd: int, directory_fd: int) -> None:
    """Let those lock the file who may write to the directory, and nobody else.

    Who may open a file may lock it, and keep it locked: with the usual mode any reader could stop all saves.
    """
    status, directory = os.fstat(fd), os.fstat(directory_fd)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        return
    mode = 0o600 | (0o060 if directory.st_mode & stat.S_IWGRP else 0)
    mode |= 0o006 if directory.st_mode & stat.S_IWOTH else 0
    # Best effort: some file systems have no modes.
    with suppress(OSError):
        if mode & 0o060 and status.st_gid != directory.st_gid:
            os.fchown(fd, -1, directory.st_gid)
    with suppress(OSError):
        if stat.S_IMODE(status.st_mode) != mode:
            os.fchmod(fd, mode)


def hold(fd: int) -> bool:
    """Lock a new file until `release`, the end of the process, or the close of the last copy of `fd`.

    Returns
    -------
    bool
        False if a search for leftovers locked it first.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # Writing works without it, but the death of the writer cannot be proved.
        pass
    return True


def is_held(fd: int) -> bool:
    """Return whether somebody else holds this file, as far as its file system can say."""
    try:
        # Shared, so that two who look at the same time do not take each other for the writer.
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
    """Unlock. Closing alone does not while a forked child holds a copy of the descriptor."""
    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)


def mark_upload(fd: int) -> None:
    """Mark the file as an upload of this machine."""
    if hasattr(os, "setxattr"):
        # Best effort: without the mark a leftover waits for gc.
        with suppress(OSError):
            os.setxattr(fd, _MARK, f"{host_id()}:{os.fstat(fd).st_ino}".encode())


def upload_mark(fd: int) -> str | None:
    """Return the id of the host that made this file by an upload; None if none did, or an index names it.

    Also None where files cannot be marked at all.
    """
    host, _, inode = _mark_of(fd).decode("ascii", "replace").partition(":")
    return host if inode == str(os.fstat(fd).st_ino) else None


def _mark_of(file: int | str) -> bytes:
    try:
        return os.getxattr(file, _MARK)
    except (OSError, AttributeError):
        return b""


def mark_needed(path: str, *, is_needed: bool) -> None:
    """Mark the file of an upload as one that a published index names, or undo that; best effort."""
    mark = _mark_of(path)
    if not mark or mark == _SHARED or mark.startswith(_NEEDED) == is_needed:
        return
    with suppress(OSError):
        os.setxattr(path, _MARK, _NEEDED + mark if is_needed else mark.removeprefix(_NEEDED))


def mark_shared(fd: int) -> None:
    """Mark the file as one that gets a second name; this replaces the mark of the upload.

    Raises
    ------
    OSError
        If it cannot be marked.
    """
    if not hasattr(os, "setxattr"):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    os.setxattr(fd, _MARK, _SHARED)


def is_shared(path: str) -> bool:
    """Return whether `mark_shared` was called for the file."""
    return _mark_of(path) == _SHARED


@contextmanager
def writer_is_dead(fd: int, host: str) -> Iterator[bool]:
    """Yield whether the writer of this file is provably dead; nobody can lock the file while the block runs.

    Parameters
    ----------
    fd : int
    host : str
        The id of the machine that wrote it, "" if unknown.
    """
    try:
        # Shared, so that two who look at the same time do not take each other for the writer.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        yield False
        return
    try:
        yield host == host_id() or has_one_kernel(fd)
    finally:
        release(fd)
