"""A second file with the bytes of a first one, on the same disk, without moving them.

Where the file system can share blocks between files (FICLONE: btrfs, XFS, bcachefs), the new file is like any
other. Elsewhere it is a hard link, another name of the same file:

* both names show one version, and have one time of change, which may be long ago. `age_stamp_s` takes the
  time at which a name came or went instead, or a new one would look old enough to be collected;
* deleting takes one name away, replacing puts another file under one name, and nothing of ours writes into
  a published file: the other name keeps its bytes. (Who changes one in place, by other means, changes both);
* the mark of the upload that made the file goes first. By it the new name would pass for that of a writer who
  died before publishing, and be removed before the index is there that names it.
"""

from __future__ import annotations

import errno
import fcntl
import os

from ckptstore.storage.local.directory import Directory, version_of
from ckptstore.storage.local.locks import has_one_kernel, is_held, is_shared, mark_shared, upload_mark
from ckptstore.storage.local.temp_file import TempFile
from ckptstore.storage.values import Ambiguous, Committed, Lost, PutOutcome

__all__ = ["age_stamp_s", "copied"]

_FICLONE = 0x40049409  # linux/fs.h

# No such thing on this file system, between these two places, for this user; or no /proc.
_CANNOT = frozenset(
    {
        errno.EPERM,
        errno.ENOTSUP,
        errno.EOPNOTSUPP,
        errno.ENOSYS,
        errno.ENOTTY,
        errno.EINVAL,
        errno.EXDEV,
        errno.EMLINK,
        errno.ENOENT,
        errno.EACCES,
        errno.ETXTBSY,
    }
)


def age_stamp_s(path: str, status: os.stat_result) -> float:
    """Return since when the file is there, as far as its age matters; seconds since 1970."""
    # Only those are asked that have several names: a listing may show ten thousand files.
    if status.st_nlink > 1 and is_shared(path):
        return max(status.st_mtime_ns, status.st_ctime_ns) / 1e9
    return status.st_mtime_ns / 1e9


def copied(fd: int, status: os.stat_result, directory: Directory, name: str) -> PutOutcome | None:
    """Do what `Storage.copy_from` says, from an open file to `name` in `directory`."""
    if is_held(fd) or upload_mark(fd) == "":
        # Still being written, or nobody can tell. And where files cannot be marked, one that nobody locks
        # passes for a dead writer's.
        return None
    if directory.is_synced:
        # Perhaps it came from somebody who did not wait for the disk.
        os.fsync(fd)
    outcome = _cloned(fd, status.st_size, directory, name)
    return _linked(fd, status, directory, name) if outcome is None else outcome


def _cloned(fd: int, size_bytes: int, directory: Directory, name: str) -> PutOutcome | None:
    with TempFile(directory, name) as temp:
        try:
            fcntl.ioctl(temp.fd, _FICLONE, fd)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            return None
        temp.seal(size_bytes)
        return temp.publish()


def _linked(fd: int, status: os.stat_result, directory: Directory, name: str) -> PutOutcome | None:
    try:
        mark_shared(fd)
        # By the descriptor: the file that was looked at, whatever its name means by now.
        os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=directory.fd, follow_symlinks=True)
    except FileExistsError:
        found = directory.status(name)
        is_same = found is not None and os.path.samestat(found, status)
        if is_same and not has_one_kernel(fd):
            return Ambiguous("a link to the file was there, perhaps our own whose answer was lost")
        return Lost(None if found is None else version_of(found))
    except OSError as error:
        if error.errno in _CANNOT:
            return None
        # The link may be there all the same, and a false error would make the caller clean up behind it.
        found = directory.status(name)
        if found is not None and os.path.samestat(found, status):
            return Ambiguous(f"a link to the file is there, in spite of an error: {error.strerror}")
        raise
    try:
        # Looked at again: an overlay that had to copy the file up may show another one from now on.
        found_version = version_of(os.lstat(name, dir_fd=directory.fd))
        directory.sync()
    except OSError as error:
        return Ambiguous(f"the file is in place, but perhaps not durable: {error.strerror}")
    return Committed(found_version)
