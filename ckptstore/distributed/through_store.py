"""A coordinator over objects in a storage, where no engine has a mailbox: slower, and it works everywhere.

Each value is an object of its own beside the checkpoints, created once. Who waits for few asks for each of
them, which costs less than a list and is faster; rank 0 of many lists them. Rank 0 deletes all of them when
it closes; what a job that died has left, `gc` removes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

from ckptstore.config import launcher_environment
from ckptstore.distributed.mailbox import Announcement
from ckptstore.distributed.mailbox_coordinator import MailboxCoordinator
from ckptstore.distributed.opening import OPEN_TIMEOUT_S, open_mailbox
from ckptstore.errors import CkptStoreError, ConflictError, NotFoundError, TransientError, UsageError
from ckptstore.format.naming import MESSAGE_PREFIX
from ckptstore.storage.abilities import SupportsRelaxedDurability
from ckptstore.storage.base import Location
from ckptstore.storage.registry import locate
from ckptstore.storage.scope import Scope
from ckptstore.storage.url import UrlLike
from ckptstore.storage.values import Ambiguous, Committed
from ckptstore.transfer.pool import run_tasks

__all__ = ["open_coordinator"]

_ATTEMPT: Final = re.compile(r"[A-Za-z0-9._-]{1,40}")
# A write whose outcome is not known is repeated: it creates, so the second one finds the first.
_MOST_TRIES: Final = 3
# At the same time, of one rank.
_MOST_GETS: Final = 16
# More than so many are listed: S3 asks twelve times as much for a list as for an answer.
_FEW: Final = 12


def open_coordinator(
    *,
    url: UrlLike | None = None,
    rank: int | None = None,
    size: int | None = None,
    attempt: str | int | None = None,
    storage_options: Mapping[str, Any] | None = None,
    timeout_s: float = OPEN_TIMEOUT_S,
) -> MailboxCoordinator:
    """Return the coordinator of this rank, when all ranks have called this.

    Parameters
    ----------
    url : str, bytes or os.PathLike
        A directory that all ranks can list and write.
    rank, size : int, optional
        By default what the launcher has set in the environment.
    attempt : str or int, optional
        Names this start of the job, the same on all ranks; by default what the launcher has set.
    storage_options : mapping, optional
        Options of the storage of `url`.
    timeout_s : float
        How long the ranks wait for each other, in seconds.

    Raises
    ------
    UsageError
        If something is missing that no launcher has set.
    RanksMissingError
        See `ckptstore.distributed.opening.open_mailbox`.
    CkptStoreError
        If the storage cannot be used.
    """
    if url is None:
        raise UsageError(
            "engine 'store' needs a directory for its messages",
            hint="Pass url=, for example the directory of the checkpoints.",
        )
    launcher = launcher_environment()
    rank = launcher.rank if rank is None else rank
    size = launcher.size if size is None else size
    attempt = launcher.attempt if attempt is None else str(attempt)
    for name, value in (("rank", rank), ("size", size), ("attempt", attempt)):
        if value is None:
            raise UsageError(
                f"no launcher has set the {name} of this process",
                hint=f"Pass {name}=; torchrun, srun, Open MPI and PMI set all three.",
            )
    assert rank is not None
    assert size is not None
    assert attempt is not None
    if not 0 <= rank < size:
        raise UsageError("rank must be from 0 to size - 1", actual=f"rank {rank} of {size}")
    mailbox = _ObjectMailbox(locate(url, storage_options), attempt, is_chief=rank == 0)
    return open_mailbox(mailbox, rank, size, timeout_s=timeout_s)


class _ObjectMailbox:
    """See `ckptstore.distributed.mailbox.Mailbox`."""

    max_value_bytes = 64 << 20
    shortest_wait_s = 0.005
    longest_wait_s = 2.0
    asks_each = True
    may_block = True

    def __init__(self, directory: Location, attempt: str, *, is_chief: bool) -> None:
        storage = directory.storage
        if isinstance(storage, SupportsRelaxedDurability):
            # Messages need not survive a power cut.
            storage = storage.without_sync()
        self._storage = storage
        word = attempt if _ATTEMPT.fullmatch(attempt) else hashlib.sha256(attempt.encode()).hexdigest()[:16]
        self._prefix = directory.child(f"{MESSAGE_PREFIX}{word}~").key
        self._is_chief = is_chief

    def put(self, directory: str, name: str, value: bytes) -> None:
        key = self._key(directory, name)
        for _ in range(_MOST_TRIES):
            outcome = self._storage.put_new(key, value)
            if isinstance(outcome, Committed):
                return
            if not isinstance(outcome, Ambiguous):
                if self._get(key) == value:
                    return
                raise ConflictError(
                    "a message is there already under this name", url=self._storage.url_of(key)
                )
        raise TransientError("it is not known whether a message was written", url=self._storage.url_of(key))

    def look(self, directory: str, names: Sequence[str]) -> Mapping[str, bytes]:
        if len(names) > _FEW:
            there = set(self._names(directory))
            names = [name for name in names if name in there]
        keys = [self._key(directory, name) for name in names]
        parallel = max(1, min(_MOST_GETS, len(keys), self._storage.parallel_reads))
        values = run_tasks(Scope(), [partial(self._get, key) for key in keys], parallel)
        return {name: value for name, value in zip(names, values, strict=True) if value is not None}

    def _get(self, key: str) -> bytes | None:
        try:
            return self._storage.get(key).data
        except NotFoundError:
            return None

    def delete(self, directory: str, names: Sequence[str]) -> None:
        self._storage.delete_many([self._key(directory, name) for name in names])

    def announce(self, announcement: Announcement) -> None:
        self.put("hello", f"{announcement.rank}.{announcement.nonce}", b"hello")

    def announcements(self) -> Iterable[Announcement]:
        for name in self._names("hello"):
            rank, _, nonce = name.partition(".")
            if rank.isdigit():
                yield Announcement(int(rank), nonce)

    def close(self) -> None:
        if not self._is_chief:
            return
        # Of the earlier starts of this attempt too. What remains, `gc` removes.
        with suppress(CkptStoreError):
            keys = [info.key for info in self._storage.list(self._prefix)]
            if keys:
                self._storage.delete_many(keys)

    def _names(self, directory: str) -> list[str]:
        prefix = self._key(directory, "")
        return [info.key[len(prefix) :] for info in self._storage.list(prefix)]

    def _key(self, directory: str, name: str) -> str:
        # "~" is legal everywhere, and in no word of a directory.
        return f"{self._prefix}{directory.replace('/', '~')}~{name}"
