"""A coordinator over the store of torch.distributed: keys and values, no process group.

Of the job's own store a clone is used, with a connection of its own: a thread that waits on a connection
holds up every other user of it, and a value that is too large closes it. No call waits for a key: one that
ends before the key is there prints warnings.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from ckptstore.distributed.mailbox import Announcement
from ckptstore.distributed.mailbox_coordinator import MailboxCoordinator
from ckptstore.distributed.opening import OPEN_TIMEOUT_S, open_mailbox
from ckptstore.errors import CoordinatorLostError, UnsupportedError, UsageError

__all__ = ["is_running", "open_coordinator"]

_T = TypeVar("_T")

# The server takes 8 MiB, and closes the connection of whoever sends more.
_MOST_VALUE_BYTES: Final = 1 << 20


def is_running() -> bool:
    """Return whether this process is one of a job of torch.distributed."""
    import torch.distributed as dist

    return bool(dist.is_available() and dist.is_initialized())


def open_coordinator(
    *,
    rank: int | None = None,
    size: int | None = None,
    store: Any = None,
    timeout_s: float = OPEN_TIMEOUT_S,
) -> MailboxCoordinator:
    """Return the coordinator of this rank, when all ranks have called this.

    Parameters
    ----------
    rank, size : int, optional
        By default those of the default process group.
    store : torch.distributed.Store, optional
        By default the one of the default process group. It is cloned.
    timeout_s : float
        How long the ranks wait for each other, in seconds.

    Raises
    ------
    UnsupportedError
        If torch is not installed.
    UsageError
        If torch.distributed is not initialised, or its store has no clone.
    RanksMissingError, CoordinatorLostError
        See `ckptstore.distributed.opening.open_mailbox`.
    """
    try:
        import torch.distributed as dist
    except ImportError as error:
        raise UnsupportedError(
            "this needs the package torch", hint="Install it: pip install torch."
        ) from error
    if store is None or rank is None or size is None:
        if not is_running():
            raise UsageError(
                "torch.distributed is not initialised",
                hint="Call torch.distributed.init_process_group before, or pass store=, rank= and size=.",
            )
        rank = dist.get_rank() if rank is None else rank
        size = dist.get_world_size() if size is None else size
        store = _default_store() if store is None else store
    return open_mailbox(_StoreMailbox(_clone(store), size), rank, size, timeout_s=timeout_s)


def _default_store() -> Any:
    from torch.distributed import distributed_c10d

    # There is no public name for it.
    getter = getattr(distributed_c10d, "_get_default_store", None)
    if getter is None:
        raise UsageError(
            "this release of torch does not hand out the store of its process group",
            hint="Pass store=, for example a torch.distributed.TCPStore that all ranks connect to.",
        )
    return getter()


def _clone(store: Any) -> Any:
    import torch.distributed as dist

    try:
        return dist.PrefixStore("ckptstore", store.clone())
    except (AttributeError, RuntimeError) as error:
        raise UsageError(
            f"the store of this job, a {type(store).__name__}, cannot be cloned: {_first_line(error)}",
            hint="Pass store=, for example a torch.distributed.TCPStore that all ranks connect to.",
        ) from error


class _StoreMailbox:
    """See `ckptstore.distributed.mailbox.Mailbox`."""

    max_value_bytes = _MOST_VALUE_BYTES
    shortest_wait_s = 0.001
    longest_wait_s = 0.25
    asks_each = False
    # While the process of rank 0, which serves the store, is frozen.
    may_block = True

    def __init__(self, store: Any, size: int) -> None:
        self._store = store
        self._size = size
        self._lock = threading.Lock()

    def put(self, directory: str, name: str, value: bytes) -> None:
        self._call(lambda: self._store.set(f"{directory}/{name}", value))

    def look(self, directory: str, names: Sequence[str]) -> Mapping[str, bytes]:
        return self._call(lambda: self._present([f"{directory}/{name}" for name in names], names))

    def _present(self, keys: list[str], names: Sequence[str]) -> dict[str, bytes]:
        if not keys:
            return {}
        # One answer for all keys: the usual case when all ranks are there.
        if not self._store.check(keys):
            there = [len(keys) > 1 and self._store.check([key]) for key in keys]
            keys = [key for key, is_there in zip(keys, there, strict=True) if is_there]
            names = [name for name, is_there in zip(names, there, strict=True) if is_there]
        values = self._store.multi_get(keys) if keys else []
        return {name: bytes(value) for name, value in zip(names, values, strict=True)}

    def delete(self, directory: str, names: Sequence[str]) -> None:
        for name in names:
            self._call(partial(self._store.delete_key, f"{directory}/{name}"))

    def announce(self, announcement: Announcement) -> None:
        self._call(lambda: self._store.set(f"hello/{announcement.rank}", announcement.nonce))

    def announcements(self) -> Iterable[Announcement]:
        found = self.look("hello", [str(rank) for rank in range(1, self._size)])
        return [Announcement(int(rank), nonce.decode("ascii", "replace")) for rank, nonce in found.items()]

    def close(self) -> None:
        # The connection is closed with the last reference to the clone.
        self._store = _Closed()

    def _call(self, call: Callable[[], _T]) -> _T:
        with self._lock:
            try:
                return call()
            except RuntimeError as error:
                raise CoordinatorLostError(
                    f"the store of torch.distributed cannot be reached any more: {_first_line(error)}"
                ) from error


class _Closed:
    """Takes the place of the store: a thread that still looks ends."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("the coordinator is closed")


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200]
