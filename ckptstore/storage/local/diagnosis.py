"""What a local directory can do, for ``ckptstore doctor``: the kind of file system, and what it lacks."""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ckptstore.errors import (
    CkptStoreError,
    NotFoundError,
    StorageFullError,
    UnsupportedError,
    UsageError,
    from_os_error,
)
from ckptstore.storage.finding import Finding, failed
from ckptstore.storage.local.direct_io import DirectWriter, direct_rules
from ckptstore.storage.local.directory import Directory, translate_errors
from ckptstore.storage.local.locks import hold, is_held, mark_upload, release, upload_mark
from ckptstore.storage.local.mounts import Mount, mount_of

__all__ = ["diagnose_directory", "scratch_directory"]

# Buckets mounted as directories: no locks between hosts, no create-only rename, and fsync returns while the
# data are still on this machine only. File system type → the scheme that reaches the same bucket directly.
_MOUNTED_BUCKETS = {
    "fuse.gcsfuse": "gs",
    "fuse.s3fs": "s3",
    "fuse.mountpoint-s3": "s3",
    "fuse.goofys": "s3",
    "fuse.geesefs": "s3",
    "fuse.rclone": "s3",
    "fuse.blobfuse": "",
    "fuse.blobfuse2": "",
    "fuse.ossfs": "",
    "fuse.cosfs": "",
}
# Named by the source only: the type is plain "fuse".
_MOUNTED_SOURCES = {"mountpoint-s3": "s3", "gcsfuse": "gs", "s3fs": "s3", "goofys": "s3"}

_IN_MEMORY = frozenset({"tmpfs", "ramfs"})
_SHARED = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "ceph", "9p", "beegfs", "gpfs", "glusterfs", "afs"}
)

_LOW_BYTES = 1 << 30
_FEW_INODES = 1000

_SCRATCH = re.compile(r"\.ckptstore-doctor-[0-9a-f]{12}")
_STALE_S = 3600.0


@contextmanager
def scratch_directory(path: str) -> Iterator[str]:
    """Make a directory in `path`, or in its nearest parent that exists; remove it afterwards with its files.

    Raises
    ------
    CkptStoreError
        If it cannot be made.
    """
    parent = _nearest_existing(path)
    with translate_errors("cannot write", parent):
        _sweep(parent)
        scratch = os.path.join(parent, f".ckptstore-doctor-{os.urandom(6).hex()}")
        os.mkdir(scratch)
    try:
        yield scratch
    finally:
        with suppress(OSError):
            _remove(scratch)


def _sweep(parent: str) -> None:
    """Remove what a killed doctor left behind."""
    for name in os.listdir(parent):
        path = os.path.join(parent, name)
        if _SCRATCH.fullmatch(name):
            with suppress(OSError):
                if time.time() - os.lstat(path).st_mtime > _STALE_S:
                    _remove(path)


def _remove(scratch: str) -> None:
    for name in os.listdir(scratch):
        os.unlink(os.path.join(scratch, name))
    os.rmdir(scratch)


def _nearest_existing(path: str) -> str:
    """Return `path`, or the nearest parent that exists."""
    current = path or "/"
    while not os.path.lexists(current):
        current = os.path.dirname(current)
    return current


def diagnose_directory(path: str, *, read_only: bool = False) -> Iterator[Finding]:
    """Yield what `Diagnosable.diagnose` asks for.

    Parameters
    ----------
    path : str
        Absolute; need not exist, unless it is only read.
    """
    path = path or "/"
    existing = _nearest_existing(path)
    if not os.path.isdir(existing):
        error = UsageError(
            "a file stands where a directory should be",
            url=existing,
            hint="Name the directory of the checkpoints.",
        )
        yield failed("directory", error)
        return
    if existing == path:
        yield Finding("directory", "ok", "exists")
    elif read_only:
        missing = NotFoundError("there is no such directory", url=path, hint="Check the path.")
        yield failed("directory", missing)
        return
    else:
        yield Finding("directory", "ok", f"does not exist yet; the first save makes it in {existing}")
    mount = _mount_at(existing)
    yield _file_system(mount)
    if read_only:
        return
    yield from _space(existing)
    try:
        with scratch_directory(path) as scratch, Directory(scratch) as directory:
            yield from _probe_abilities(directory)
        yield _durable(mount)
    except CkptStoreError as error:
        yield failed("write", error)
    except OSError as error:
        yield failed("write", from_os_error(error, "cannot write", existing))


def _mount_at(path: str) -> Mount | None:
    try:
        with Directory(path) as directory:
            return mount_of(directory.fd)
    except OSError:
        return None


def _durable(mount: Mount | None) -> Finding:
    """Return what is known of the bytes after fsync, which was called and succeeded."""
    kind = "" if mount is None else mount.type
    if kind in _IN_MEMORY:
        return Finding("durable", "degraded", "nothing here survives a power cut: it is in memory")
    if not kind or kind.startswith("fuse"):
        detail = "not known: fsync succeeds, and what is behind the mount may keep the bytes in a cache"
        return Finding("durable", "degraded", detail)
    behind = "the server" if kind in _SHARED else "the disk"
    return Finding("durable", "ok", f"fsync succeeds; {behind} has the bytes then. A power cut was not tried")


def _file_system(mount: Mount | None) -> Finding:
    if mount is None:
        return Finding("file system", "ok", "of unknown type")
    scheme = _MOUNTED_BUCKETS.get(mount.type)
    if scheme is None and mount.type.startswith("fuse"):
        scheme = _MOUNTED_SOURCES.get(mount.source)
    detail = f"{mount.type}, mounted at {mount.point}"
    if scheme is not None:
        url = f"{scheme}://BUCKET/…" if scheme else "the bucket's own URL"
        return Finding(
            "file system",
            "degraded",
            f"{detail}: a bucket that looks like a directory",
            hint=f"Writers are not kept apart here, and a save that returned may be lost: pass {url}",
        )
    if mount.type in _IN_MEMORY:
        return Finding(
            "file system", "degraded", f"{detail}: in memory", hint="Nothing here survives a reboot."
        )
    if mount.type in _SHARED:
        detail += ": over the network; leftovers of killed saves of other machines wait for gc"
    return Finding("file system", "ok", detail)


def _space(path: str) -> Iterator[Finding]:
    try:
        status = os.statvfs(path)
    except OSError:
        return
    free = status.f_bavail * status.f_frsize
    total = status.f_blocks * status.f_frsize
    if not total:
        return
    detail = f"{free / (1 << 30):.1f} GiB of {total / (1 << 30):.1f} GiB"
    if not free:
        full = StorageFullError("no room is left", url=path, hint="Make room, then save again.")
        yield failed("free space", full)
    elif free < _LOW_BYTES:
        hint = "A save needs the size of a whole checkpoint on top of those that it keeps."
        yield Finding("free space", "degraded", detail, hint=hint)
    else:
        yield Finding("free space", "ok", detail)
    if not status.f_files:
        return  # made as they are needed, or not counted
    detail = f"{status.f_favail:,} of {status.f_files:,} are free"
    if status.f_favail < _FEW_INODES:
        # Not a failure yet: some mounts report none, and the trial makes files.
        hint = "Each file of a checkpoint takes one: remove files, or choose another file system."
        yield Finding("inodes", "degraded", detail, hint=hint)
    else:
        yield Finding("inodes", "ok", detail)


def _probe_abilities(directory: Directory) -> Iterator[Finding]:
    """Yield which of the system calls that `LocalStorage` relies on work here."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    fd = os.open("trial", flags, 0o666, dir_fd=directory.fd)
    try:
        os.write(fd, b"ckptstore doctor\n")
        yield _sync(fd, directory)
        yield _locks(fd, directory)
        yield _links(directory)
        yield _large_files(fd)
        mark_upload(fd)
        if upload_mark(fd):
            yield Finding("extended attributes", "ok", "files can be marked as ours")
        else:
            hint = (
                "What a killed save leaves behind is not cleared away by the next run, but by ckptstore gc."
            )
            yield Finding("extended attributes", "degraded", "files cannot be marked as ours", hint=hint)
    finally:
        os.close(fd)


def _sync(fd: int, directory: Directory) -> Finding:
    start_s = time.monotonic()
    try:
        os.fsync(fd)
    except OSError as error:
        return failed("fsync", from_os_error(error, "cannot make files durable", directory.path))
    took = f"{(time.monotonic() - start_s) * 1000:.0f} ms"
    try:
        os.fsync(directory.fd)
    except OSError:
        hint = "After a power cut a checkpoint that was saved shortly before may be missing."
        return Finding("fsync", "degraded", f"files in {took}; directories cannot be synced", hint=hint)
    return Finding("fsync", "ok", took)


def _large_files(fd: int) -> Finding:
    rules = direct_rules(fd)
    if isinstance(rules, str):
        return Finding("large files", "ok", f"written through the page cache: direct I/O is {rules}")
    writer = DirectWriter(fd, rules, "trial")
    writer.write_at(0, (memoryview(bytes(rules.block_bytes)),))
    is_direct = writer.is_direct
    writer.finish()
    if not is_direct:
        return Finding("large files", "ok", "written through the page cache: direct I/O is refused")
    detail = f"written past the page cache; memory aligned to {rules.memory_bytes} bytes is not copied"
    return Finding("large files", "ok", detail)


def _locks(fd: int, directory: Directory) -> Finding:
    try:
        is_locked = hold(fd)
        other = os.open("trial", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory.fd)
        try:
            is_seen = is_held(other)
        finally:
            os.close(other)
    finally:
        release(fd)
    if is_locked and is_seen:
        return Finding("locks", "ok", "flock")
    error = UnsupportedError(
        "the file system cannot lock files, so concurrent writers cannot be kept apart",
        url=directory.path,
        hint="Mount it with locking (Lustre: -o flock), or choose another directory.",
    )
    return failed("locks", error)


def _links(directory: Directory) -> Finding:
    try:
        os.link("trial", "linked", src_dir_fd=directory.fd, dst_dir_fd=directory.fd)
    except OSError as error:
        reason = errno.errorcode.get(error.errno or 0, "refused")
        return Finding("hard links", "ok", f"none ({reason}): a rename under the lock takes their place")
    if not stat.S_ISREG(os.stat("linked", dir_fd=directory.fd).st_mode):
        return Finding("hard links", "degraded", "a link does not lead to the file")
    return Finding("hard links", "ok", "create a name only if it is free")
