"""Direct I/O: large files go from memory to the disk, past the page cache.

1 GiB with its checksum, durable (ext4 on a virtual disk, two cores, medians of alternating rounds):

=================================================  ==================  ===========
how it is written                                  seconds             CPU s/GiB
=================================================  ==================  ===========
direct, parts of 8 MiB, 1 / 2 / 4 threads          0.38 / 0.33 / 0.30  0.1
direct, memory that is not aligned, 3 threads      0.35                0.17
buffered, early write-back, fsync, 1 or 2 threads  0.25 to 2.6         0.24 to 2.6
buffered, fsync, 2 threads                         1.1 to 2.1          1.9
=================================================  ==================  ===========

The page cache is as fast only where the machine has free pages ready; otherwise they have to be allocated
first. More than 4 threads, and larger parts, change nothing.

The table is older than the huge pages of the copies. With them a durable save of 1 GiB through a `Saver`
takes 0.31 s (median of five rounds; written through the page cache by hand 0.50 s, see
docs/performance.md). In twelve alternating rounds it was 0.32 s with them and 0.57 s with small pages.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import struct
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ckptstore.checksums import crc32c
from ckptstore.storage.huge_pages import allocate_pages
from ckptstore.storage.local.directory import NO_ROOM
from ckptstore.storage.local.mounts import file_system_type

if TYPE_CHECKING:
    import mmap

__all__ = [
    "BUFFER_BYTES",
    "PARALLEL_WRITES",
    "DirectRules",
    "DirectWriter",
    "copy_through",
    "direct_rules",
    "release_buffers",
    "write_all",
]

_LOG = logging.getLogger("ckptstore")

# Not btrfs: it keeps checksums of its own, and memory that changes while it is written leaves a file that
# cannot be read any more. Not network file systems: not measured. Not tmpfs: it is the page cache.
_TAKES_DIRECT = frozenset({"ext2", "ext3", "ext4", "f2fs", "overlay", "xfs"})

_PAGE_BYTES = 4096

# The limit of Linux for one call, IOV_MAX.
_MAX_PIECES = 1024

PARALLEL_WRITES = 4
"""How many parts of a file are written at the same time; more are not faster."""

BUFFER_BYTES = 4 * 1024 * 1024
"""Size of the buffers for memory that is not aligned; 1 and 2 MiB are slower, 8 MiB is not faster."""

# Where there is no memory for one of those.
_SMALL_BUFFER_BYTES = 64 * 1024

# New memory is expensive, so buffers are kept from file to file: one for each part in flight. A full deque
# drops its oldest. `pop` and `append` are atomic, so there is no lock that a fork could leave locked; a
# child has copies.
_BUFFERS: deque[mmap.mmap | bytearray] = deque(maxlen=PARALLEL_WRITES)


class DirectRules(NamedTuple):
    """What direct I/O requires.

    Attributes
    ----------
    memory_bytes : int
        Addresses are multiples of this.
    block_bytes : int
        Offsets and sizes are multiples of this.
    """

    memory_bytes: int
    block_bytes: int


def direct_rules(fd: int) -> DirectRules | str:
    """Return what direct I/O to a file requires, or why it is not used there."""
    if not hasattr(os, "O_DIRECT"):
        return "unknown to this system"
    kind = file_system_type(fd)
    if kind not in _TAKES_DIRECT:
        return f"not used on {kind or 'a file system of unknown type'}"
    rules = _kernel_rules(fd)
    if rules is None:
        return f"refused by {kind}"
    if _PAGE_BYTES % rules.memory_bytes or BUFFER_BYTES % rules.block_bytes:
        return f"not used with the unusual alignment of {kind}"
    # Whole pages, so that no page is written both directly and through the cache.
    return DirectRules(rules.memory_bytes, max(rules.block_bytes, _PAGE_BYTES))


def _kernel_rules(fd: int) -> DirectRules | None:
    """Return the kernel's rules (statx(2), STATX_DIOALIGN; Linux 6.1), or whole pages if it has none."""
    try:
        import ctypes

        statx = ctypes.CDLL(None, use_errno=True).statx
    except (ImportError, OSError, AttributeError):
        return DirectRules(_PAGE_BYTES, _PAGE_BYTES)
    answer = ctypes.create_string_buffer(256)
    at_empty_path, dioalign = 0x1000, 0x2000
    if statx(fd, b"", at_empty_path, dioalign, answer) or not (
        struct.unpack_from("=I", answer, 0)[0] & dioalign
    ):
        return DirectRules(_PAGE_BYTES, _PAGE_BYTES)
    memory_bytes, block_bytes = struct.unpack_from("=II", answer, 0x98)
    return DirectRules(memory_bytes, block_bytes) if memory_bytes and block_bytes else None


def write_all(fd: int, offset: int, pieces: Sequence[memoryview]) -> None:
    """Write `pieces`, flat views of bytes, one after another from byte `offset` on, through the cache.

    Threads
    -------
    Several at the same time, at different offsets.
    """
    left = deque(pieces)
    while left:
        # One call for all: the cache is faster with few large writes than with many small ones.
        written = os.pwritev(fd, list(islice(left, _MAX_PIECES)), offset)
        offset += written
        while left and written >= len(left[0]):
            written -= len(left.popleft())
        if written:
            left[0] = left[0][written:]


def copy_through(
    offset: int,
    pieces: Sequence[memoryview],
    put: Callable[[int, memoryview], object],
    *,
    sums: bool = True,
) -> list[int]:
    """Write `pieces` through a buffer of aligned memory.

    What is copied and summed in the processor's cache costs little more than the sum alone.

    Parameters
    ----------
    put : callable
        ``put(offset, data)`` writes the buffer, or the part of it that is filled. The buffer is used again.
    sums : bool
        False: return nothing.

    Returns
    -------
    list of int
        The CRC32C of each piece, of the bytes that were written.

    Threads
    -------
    Safe for concurrent use.
    """
    buffer = _take_buffer()
    try:
        room = np.frombuffer(buffer, np.uint8)
        filled = 0
        crcs = []
        for piece in pieces:
            # numpy's copy, because it releases the interpreter lock.
            source = np.frombuffer(piece, np.uint8)
            crc = 0
            while len(source):
                count = min(len(source), len(room) - filled)
                copy = room[filled : filled + count]
                np.copyto(copy, source[:count])
                if sums:
                    crc = crc32c(copy, crc)
                source = source[count:]
                filled += count
                if filled == len(room):
                    put(offset, memoryview(buffer))
                    offset += filled
                    filled = 0
            crcs.append(crc)
        put(offset, memoryview(buffer)[:filled])
        return crcs if sums else []
    finally:
        if len(buffer) == BUFFER_BYTES:
            _BUFFERS.append(buffer)


def _take_buffer() -> mmap.mmap | bytearray:
    try:
        return _BUFFERS.pop()
    except IndexError:
        pass
    try:
        return allocate_pages(BUFFER_BYTES)
    except OSError:
        # Not aligned: direct I/O refuses it, and then the page cache is used.
        return bytearray(_SMALL_BUFFER_BYTES)


class DirectWriter:
    """Writes to one file directly, and through the page cache once that was refused.

    Parameters
    ----------
    fd : int
        For reading and writing; its status flags belong to the writer until `finish`.
    name : str
        For the log.

    Threads
    -------
    `write_at` from several at the same time, at different offsets; `finish` when no `write_at` runs.
    """

    def __init__(self, fd: int, rules: DirectRules, name: str) -> None:
        self._fd = fd
        self._rules = rules
        self._name = name
        # The incomplete block at the end of the file, set by the part that holds it: offset and bytes.
        self._end: tuple[int, bytes] | None = None
        # Cleared after O_DIRECT is off, never before: a thread that reads False writes any size.
        self.is_direct = False
        try:
            self._switch(on=True)
        except OSError as error:
            self._log(error)

    def write_at(self, offset: int, pieces: Sequence[memoryview]) -> None:
        """Write all of `pieces` from byte `offset` on, which is the beginning of a block.

        An incomplete block at the end of the file is written by `finish`.
        """
        pieces = [piece for piece in pieces if piece]
        if not self.is_direct:
            write_all(self._fd, offset, pieces)
        elif len(pieces) == 1 and not _address(pieces[0]) % self._rules.memory_bytes:
            self._put(offset, pieces[0])
        elif pieces:
            copy_through(offset, pieces, self._put, sums=False)

    def write_copies_at(self, offset: int, pieces: Sequence[memoryview]) -> list[int]:
        """Write as `write_at`, a copy; return the CRC32C of each piece as it was written."""
        return copy_through(offset, pieces, self._put)

    def finish(self) -> None:
        """Write the end of the file; from now on it is written through the page cache."""
        if self.is_direct:
            self._switch(on=False)
        if self._end is not None:
            offset, data = self._end
            write_all(self._fd, offset, (memoryview(data),))
            self._end = None

    def _put(self, offset: int, data: memoryview) -> None:
        """Write whole blocks from aligned memory, and keep the rest for `finish`."""
        block = self._rules.block_bytes
        stop = len(data) - len(data) % block
        done = 0
        while done < stop:
            is_direct = self.is_direct
            try:
                count = os.pwrite(self._fd, data[done:stop], offset + done)
            except OSError as error:
                # Also EFAULT: memory of a device, which has to be copied first; ENOMEM: no room to pin pages.
                if not is_direct or error.errno in NO_ROOM:
                    raise
                self._degrade(error)
                continue
            # After a short write the block in which it stopped is written again.
            if is_direct and count < block:
                self._degrade(OSError(errno.EINVAL, "a write stopped within a block"))
            done += count - count % block if is_direct and count >= block else count
        if stop < len(data):
            if self.is_direct:
                self._end = (offset + stop, bytes(data[stop:]))
            else:
                write_all(self._fd, offset + stop, (data[stop:],))

    def _degrade(self, error: OSError) -> None:
        self._log(error)
        self._switch(on=False)

    def _log(self, error: OSError) -> None:
        _LOG.debug(
            "%s: direct I/O was refused (%s): written through the page cache", self._name, error.strerror
        )

    def _switch(self, *, on: bool) -> None:
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        fcntl.fcntl(self._fd, fcntl.F_SETFL, flags | os.O_DIRECT if on else flags & ~os.O_DIRECT)
        self.is_direct = on


def release_buffers() -> int:
    """Free the kept buffers; return how many bytes they had."""
    count = len(_BUFFERS)
    _BUFFERS.clear()
    return count * BUFFER_BYTES


def _address(piece: memoryview) -> int:
    address: int = np.frombuffer(piece, np.uint8).__array_interface__["data"][0]
    return address
