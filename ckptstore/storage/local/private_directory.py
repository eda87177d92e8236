"""A directory of one user on a local disk, its small files and what it takes of the disk."""

from __future__ import annotations

import json
import os
import secrets
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ckptstore.checksums import crc32c
from ckptstore.errors import AccessError, UsageError
from ckptstore.storage.local.directory import translate_errors
from ckptstore.storage.local.mounts import file_system_type, has_one_kernel
from ckptstore.warn import warn

__all__ = ["PrivateDirectory"]

_BLOCK_BYTES = 512  # of st_blocks, whatever the file system's own are
_MOST_BYTES = 1 << 20


class PrivateDirectory:
    """A directory that belongs to the user of this process.

    Parameters
    ----------
    path : str
        Absolute.

    Raises
    ------
    OSError
        Every method, but `make`.

    Threads
    -------
    Safe for concurrent use, by several processes.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def __truediv__(self, name: str) -> PrivateDirectory:
        return PrivateDirectory(self.at(name))

    def at(self, name: str) -> str:
        """Return the path of the file `name`."""
        return f"{self.path}/{name}"

    def make(self) -> None:
        """Make it, and the directories above it, unless it is there.

        Warns if every user may put another directory in its place.

        Raises
        ------
        UsageError
            If it lies on a file system that other machines can change.
        AccessError
            If it belongs to another user, or others may write to it.
        CkptStoreError
            If it cannot be made.
        """
        with translate_errors("cannot make this directory", self.path):
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            exposed = _exposed_above(self.path)
            self.make_below()
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                status = os.fstat(fd)
                is_local, kind = has_one_kernel(fd), file_system_type(fd)
            finally:
                os.close(fd)
        if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise AccessError(
                "this directory is not private: what another user writes there would be served",
                url=self.path,
                expected=f"owner {os.geteuid()}, and no right to write for others",
                actual=f"owner {status.st_uid}, mode {stat.S_IMODE(status.st_mode):o}",
                hint="Choose a directory of your own; it is made, for you alone, if it is missing.",
            )
        if not is_local:
            raise UsageError(
                "this directory is not on a disk of this machine",
                url=self.path,
                expected="a local file system, such as ext4, xfs or tmpfs",
                actual=kind or "unknown",
                hint="Choose a directory on a local disk.",
            )
        if exposed is not None:
            # Not refused: an emptyDir of Kubernetes is such a directory, and only the pod's users see it.
            warn(
                f"{self.path} can be replaced by every user, because all may write to {exposed}: call "
                f"`chmod +t {exposed}` unless you trust everybody who sees it"
            )

    def make_below(self) -> None:
        """Make it in a directory that is there, for its owner alone."""
        with suppress(FileExistsError):
            os.mkdir(self.path, 0o700)

    def names(self) -> list[str]:
        """Return what it contains; nothing if it is missing."""
        try:
            return sorted(os.listdir(self.path))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def used_bytes(self) -> int:
        """Return what the files here and below take of the disk."""
        total = 0
        pending = [self.path]
        while pending:
            try:
                with os.scandir(pending.pop()) as entries:
                    for entry in entries:
                        with suppress(FileNotFoundError):
                            if entry.is_dir(follow_symlinks=False):
                                pending.append(entry.path)
                            else:
                                total += entry.stat(follow_symlinks=False).st_blocks * _BLOCK_BYTES
            except FileNotFoundError:
                pass  # removed by another process meanwhile
        return total

    def read(self, name: str, most_bytes: int | None = None) -> bytes | None:
        """Return the bytes of a file; None if it is missing."""
        try:
            with open(self.at(name), "rb") as file:
                return file.read(-1 if most_bytes is None else most_bytes)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def replace(self, name: str, data: bytes) -> None:
        """Write a small file: readers see all of it, or what was there before."""
        path = self.at(f".{name}.{os.getpid()}-{secrets.token_hex(4)}")
        try:
            with open(path, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
                file.write(data)
            os.replace(path, self.at(name))
        except BaseException:
            with suppress(OSError):
                os.unlink(path)
            raise

    def facts(self, name: str) -> dict[str, Any] | None:
        """Return what `keep_facts` has written; None if it is missing or damaged."""
        data = self.read(name, _MOST_BYTES)
        head, newline, text = (data or b"").partition(b"\n")
        if not newline or head != _head(text):
            return None
        found = json.loads(text)
        return found if isinstance(found, dict) else None

    def keep_facts(self, name: str, facts: Mapping[str, Any]) -> None:
        """Write a few facts, with their checksum."""
        text = json.dumps(facts, indent=1, sort_keys=True).encode() + b"\n"
        self.replace(name, _head(text) + b"\n" + text)

    def touch(self, name: str) -> None:
        """Set the time of a file, which is made if it is missing, to now."""
        fd = os.open(self.at(name), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # Not the kernel's own idea of now, which stands still for some milliseconds.
            os.utime(fd, ns=(time.time_ns(), time.time_ns()))
        finally:
            os.close(fd)

    def touched_s(self, name: str) -> float:
        """Return the time of a file in seconds since 1970; 0 if it is missing."""
        try:
            return os.stat(self.at(name)).st_mtime
        except FileNotFoundError:
            return 0.0

    def unlink(self, name: str) -> None:
        """Remove a file, unless it is missing."""
        with suppress(FileNotFoundError):
            os.unlink(self.at(name))

    def remove(self, *, last: str) -> None:
        """Remove its files, `last` after the others; then it, and the one above, if they are empty."""
        for name in sorted(self.names(), key=lambda name: name == last):
            self.unlink(name)
        # Somebody may have begun to use it again, and the one above it holds others.
        with suppress(OSError):
            os.rmdir(self.path)
            os.rmdir(os.path.dirname(self.path))


def _exposed_above(path: str) -> str | None:
    """Return a directory above `path` in which every user may rename what belongs to others."""
    above = os.path.realpath(path)
    while above != os.path.dirname(above):
        above = os.path.dirname(above)
        mode = os.stat(above).st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            return above
    return None


def _head(text: bytes) -> bytes:
    return f"crc32c {crc32c(text):08x}".encode()
