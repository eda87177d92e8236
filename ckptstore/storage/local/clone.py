"""A second file with the bytes of a first one, on the same disk, without moving them.

Where the file system can share blocks between files (FICLONE: btrfs, XFS, bcachefs), the new file is like any
other. Elsewhere it is a hard link, another name of the same file:

* both names have one version and one time of change, which may be long ago. `age_stamp_s` uses the time at
which
  a name was added or removed instead; otherwise a new name would look old enough to be collected;
* a delete removes one name, a replacement gives one name to another file, and a published file is never
changed in
  place: the other name keeps its bytes. (Another program that changes one in place changes both);
* the mark of the upload is replaced first. With it the new name could look like that of a writer that died
  before publishing, and be removed before the index that names it exists.
"""

from __future__ import annotations

import fcntl
import os

from ckptstore.storage.local.directory import NO_ROOM, Directory, version_of
from ckptstore.storage.local.locks import is_held, is_shared, mark_shared
from ckptstore.storage.local.mounts import has_one_kernel
from ckptstore.storage.local.temp_file import TempFile
from ckptstore.storage.values import Ambiguous, Committed, Lost, PutOutcome

__all__ = ["age_stamp_s", "copy_file"]

_FICLONE = 0x40049409  # linux/fs.h


def age_stamp_s(path: str, status: os.stat_result) -> float:
    """Return the time from which the age of the file counts, in seconds since 1970."""
    # Attributes are read only of files with several names: a listing may have ten thousand files.
    if status.st_nlink > 1 and is_shared(path):
        return max(status.st_mtime_ns, status.st_ctime_ns) / 1e9
    return status.st_mtime_ns / 1e9


def copy_file(fd: int, status: os.stat_result, directory: Directory, name: str) -> PutOutcome | None:
    """Do what `SupportsCopies.copy_from` says, from an open file to `name` in `directory`."""
    try:
        if is_held(fd):
            # Still being written.
            return None
        if directory.is_synced:
            # It may have been written without waiting for the disk.
            os.fsync(fd)
    except OSError as error:
        _raise_if_full(error)
        return None
    outcome = _clone(fd, status.st_size, directory, name)
    return _link(fd, status, directory, name) if outcome is None else outcome


def _clone(fd: int, size_bytes: int, directory: Directory, name: str) -> PutOutcome | None:
    with TempFile(directory, name) as temp:
        try:
            fcntl.ioctl(temp.fd, _FICLONE, fd)
        except OSError as error:
            _raise_if_full(error)
            return None
        temp.seal(size_bytes)
        return temp.publish()


def _raise_if_full(error: OSError) -> None:
    """Raise an error that says more than that a file cannot be copied here."""
    if error.errno in NO_ROOM:
        raise error


def _link(fd: int, status: os.stat_result, directory: Directory, name: str) -> PutOutcome | None:
    try:
        mark_shared(fd)
        # By the descriptor: the file that was checked, whatever its name refers to by now.
        os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=directory.fd, follow_symlinks=True)
    except FileExistsError:
        found = directory.status(name)
        if found is None:
            return None
        if os.path.samestat(found, status) and not has_one_kernel(fd):
            return Ambiguous("a link to the file exists, perhaps our own whose answer was lost")
        return Lost(version_of(found))
    except OSError as error:
        # The link may exist all the same, and a false error would make the caller delete what needs it.
        try:
            found = directory.status(name)
        except OSError as second:
            return Ambiguous(f"{error.strerror}; whether the link is in place: {second.strerror}")
        if found is not None and os.path.samestat(found, status):
            return Ambiguous(f"a link to the file exists, in spite of an error: {error.strerror}")
        _raise_if_full(error)
        return None
    try:
        # Read again: an overlay that had to copy the file up may show another one from now on.
        found_version = version_of(os.lstat(name, dir_fd=directory.fd))
        directory.sync()
    except OSError as error:
        return Ambiguous(f"the file is in place, but perhaps not durable: {error.strerror}")
    return Committed(found_version)
