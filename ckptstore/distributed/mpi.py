"""A coordinator over MPI: messages that are looked for, and never a collective after the opening.

Rank 0 keeps what the others send; the others keep what rank 0 sends. A call never waits for another process.
"""

from __future__ import annotations

import struct
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from ckptstore.distributed.mailbox import Announcement
from ckptstore.distributed.mailbox_coordinator import MailboxCoordinator
from ckptstore.distributed.opening import OPEN_TIMEOUT_S, open_mailbox
from ckptstore.errors import CorruptError, UnsupportedError, UsageError
from ckptstore.storage.retry import pause

__all__ = ["is_running", "open_coordinator"]

_TAG: Final = 1
_HEAD: Final = struct.Struct("<4sBHH")  # magic, what to do, length of directory and of name
_MAGIC: Final = b"ckP1"
_PUT: Final = 0
_DELETE: Final = 1
# A message that a frozen process does not take holds up the end of this one so long.
_LINGER_S: Final = 5.0


def is_running() -> bool:
    """Return whether the program has loaded mpi4py and is one of several processes."""
    mpi = sys.modules.get("mpi4py.MPI")
    return mpi is not None and mpi.Is_initialized() and mpi.COMM_WORLD.Get_size() > 1


def open_coordinator(*, comm: Any = None, timeout_s: float = OPEN_TIMEOUT_S) -> MailboxCoordinator:
    """Return the coordinator of this rank, when all ranks have called this.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm, optional
        The processes of the job, by default all. It is duplicated, so that no message is taken for one of the
        program.
    timeout_s : float
        How long the ranks wait for each other, in seconds, once the communicator is duplicated.

    Raises
    ------
    UnsupportedError
        If mpi4py is not installed.
    RanksMissingError
        See `ckptstore.distributed.opening.open_mailbox`.
    """
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise UnsupportedError(
            "MPI needs the package mpi4py, and an MPI library",
            hint="Install both: pip install mpi4py mpich, or the mpi4py of your cluster.",
        ) from error
    comm = (MPI.COMM_WORLD if comm is None else comm).Dup()
    return open_mailbox(_MessageMailbox(MPI, comm), comm.Get_rank(), comm.Get_size(), timeout_s=timeout_s)


class _MessageMailbox:
    """See `ckptstore.distributed.mailbox.Mailbox`."""

    max_value_bytes = 64 << 20
    shortest_wait_s = 0.0005
    longest_wait_s = 0.02
    asks_each = False
    may_block = False

    def __init__(self, mpi: Any, comm: Any) -> None:
        self._mpi = mpi
        self._comm = comm
        self._rank = comm.Get_rank()
        # Those to whom this rank speaks.
        self._peers = range(1, comm.Get_size()) if self._rank == 0 else (0,)
        self._any_thread = mpi.Query_thread() == mpi.THREAD_MULTIPLE
        self._lock = threading.RLock()
        self._kept: dict[tuple[str, str], bytes] = {}
        self._sending: list[tuple[Any, bytes]] = []

    def put(self, directory: str, name: str, value: bytes) -> None:
        self._send(_PUT, directory, name, value)

    def look(self, directory: str, names: Sequence[str]) -> Mapping[str, bytes]:
        with self._lock:
            self._progress()
            return {name: self._kept[directory, name] for name in names if (directory, name) in self._kept}

    def delete(self, directory: str, names: Sequence[str]) -> None:
        for name in names:
            # What was received lies here; what was sent, at the other end.
            with self._lock:
                mine = self._kept.pop((directory, name), None)
            if mine is None:
                self._send(_DELETE, directory, name, b"")

    def announce(self, announcement: Announcement) -> None:
        self.put("hello", f"{announcement.rank}.{announcement.nonce}", b"")

    def announcements(self) -> Iterable[Announcement]:
        with self._lock:
            self._progress()
            names = [name for directory, name in self._kept if directory == "hello"]
        for name in names:
            rank, _, nonce = name.partition(".")
            yield Announcement(int(rank), nonce)

    def close(self) -> None:
        ends_s = time.monotonic() + _LINGER_S
        while self._sending and time.monotonic() < ends_s:
            with self._lock:
                self._progress()
            pause(0.001)

    def _send(self, action: int, directory: str, name: str, value: bytes) -> None:
        words = directory.encode(), name.encode()
        data = b"".join([_HEAD.pack(_MAGIC, action, *map(len, words)), *words, value])
        with self._lock:
            self._progress()
            for peer in self._peers:
                request = self._comm.Isend([data, self._mpi.BYTE], peer, _TAG)
                self._sending.append((request, data))
            self._progress()

    def _progress(self) -> None:
        """Take in what has come, and let go what has been taken. Needs the lock."""
        if not self._any_thread and threading.current_thread() is not threading.main_thread():
            raise UsageError(
                "this MPI serves the main thread alone",
                hint="Save without save_async, or initialise MPI with THREAD_MULTIPLE, as mpi4py does.",
            )
        status = self._mpi.Status()
        while self._comm.Iprobe(self._mpi.ANY_SOURCE, _TAG, status):
            data = bytearray(status.Get_count(self._mpi.BYTE))
            self._comm.Recv([data, self._mpi.BYTE], status.Get_source(), _TAG)
            self._keep(bytes(data), status.Get_source())
        self._sending = [(request, data) for request, data in self._sending if not request.Test()]

    def _keep(self, data: bytes, source: int) -> None:
        if len(data) < _HEAD.size or data[:4] != _MAGIC:
            raise CorruptError(
                f"rank {source} sent what is no message of this package",
                hint="Send no messages through the communicator that was duplicated for ckptstore.",
            )
        _, action, directory_bytes, name_bytes = _HEAD.unpack_from(data)
        at = _HEAD.size + directory_bytes
        key = data[_HEAD.size : at].decode(), data[at : at + name_bytes].decode()
        if action == _DELETE:
            self._kept.pop(key, None)
        else:
            self._kept[key] = data[at + name_bytes :]
