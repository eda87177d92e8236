"""A coordinator over JAX's coordination service: keys and values, no collective.

The service has no public name in Python; other libraries use the same private one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from ckptstore.distributed.mailbox import Announcement
from ckptstore.distributed.mailbox_coordinator import MailboxCoordinator
from ckptstore.distributed.opening import OPEN_TIMEOUT_S, open_mailbox
from ckptstore.errors import ConflictError, CoordinatorLostError, UnsupportedError, UsageError

__all__ = ["is_running", "open_coordinator", "shared_coordinator"]

_T = TypeVar("_T")

# gRPC's messages have 4 MiB unless somebody allows more.
_MOST_VALUE_BYTES: Final = 2 << 20
# For more names than that, a listing with the values is cheaper.
_MOST_SINGLE_LOOKS: Final = 8
# The runtime ends every process so long after one was heard of for the last time; a save is to fail before.
_MARGIN_S: Final = 15.0


def is_running() -> bool:
    """Return whether this process is one of several of a JAX program."""
    from jax._src import distributed

    state = distributed.global_state
    return state.client is not None and (state.num_processes or 1) > 1


def open_coordinator(
    *,
    rank: int | None = None,
    size: int | None = None,
    heartbeat_timeout_s: float = 100.0,
    timeout_s: float = OPEN_TIMEOUT_S,
) -> MailboxCoordinator:
    """Return the coordinator of this process, when all processes have called this.

    Parameters
    ----------
    rank, size : int, optional
        By default the process id and the number of processes of ``jax.distributed.initialize``.
    heartbeat_timeout_s : float
        As passed to ``jax.distributed.initialize``. So long after one process was heard of for the last time
        the runtime ends all of them, so no save waits longer than that, less 15 s.
    timeout_s : float
        How long the ranks wait for each other, in seconds.

    Raises
    ------
    UnsupportedError
        If JAX is not installed.
    UsageError
        If ``jax.distributed.initialize`` was not called.
    RanksMissingError, CoordinatorLostError
        See `ckptstore.distributed.opening.open_mailbox`.
    """
    try:
        from jax._src import distributed
    except ImportError as error:
        raise UnsupportedError("this needs the package jax", hint="Install it: pip install jax.") from error
    state = distributed.global_state
    if state.client is None:
        raise UsageError(
            "JAX runs a single process here", hint="Call jax.distributed.initialize before, on every process."
        )
    rank = state.process_id if rank is None else rank
    size = state.num_processes if size is None else size
    opened = open_mailbox(_ServiceMailbox(state.client), rank, size, timeout_s=timeout_s)
    opened.longest_deadline_s = max(heartbeat_timeout_s - _MARGIN_S, 1.0)
    return opened


class _ServiceMailbox:
    """See `ckptstore.distributed.mailbox.Mailbox`."""

    max_value_bytes = _MOST_VALUE_BYTES
    shortest_wait_s = 0.002
    longest_wait_s = 0.5
    asks_each = False
    # While the process that serves it is frozen.
    may_block = True

    def __init__(self, client: Any) -> None:
        self._client: Any = client

    def put(self, directory: str, name: str, value: bytes) -> None:
        self._call(lambda: self._client.key_value_set_bytes(_key(directory, name), value))

    def look(self, directory: str, names: Sequence[str]) -> Mapping[str, bytes]:
        if len(names) <= _MOST_SINGLE_LOOKS:
            found = {name: self._get(_key(directory, name)) for name in names}
            return {name: value for name, value in found.items() if value is not None}
        listed = self._call(lambda: self._client.key_value_dir_get_bytes(_key(directory, "")))
        wanted = set(names)
        values = {key.rpartition("/")[2]: value for key, value in listed}
        return {name: value for name, value in values.items() if name in wanted}

    def _get(self, key: str) -> bytes | None:
        try:
            return bytes(self._call(lambda: self._client.key_value_try_get_bytes(key)))
        except _AbsentError:
            return None

    def delete(self, directory: str, names: Sequence[str]) -> None:
        if len(names) > _MOST_SINGLE_LOOKS:
            self._call(lambda: self._client.key_value_delete(_key(directory, "")))
        for name in names if len(names) <= _MOST_SINGLE_LOOKS else ():
            self._call(partial(self._client.key_value_delete, _key(directory, name)))

    def announce(self, announcement: Announcement) -> None:
        self.put("hello", f"{announcement.rank}.{announcement.nonce}", b"")

    def announcements(self) -> Iterable[Announcement]:
        for key, _ in self._call(lambda: self._client.key_value_dir_get_bytes(_key("hello", ""))):
            rank, _, nonce = key.rpartition("/")[2].partition(".")
            yield Announcement(int(rank), nonce)

    def close(self) -> None:
        self._client = None

    def _call(self, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except (RuntimeError, AttributeError) as error:
            # The class of all its errors; the code begins the text.
            code = str(error).partition(":")[0]
            if code == "NOT_FOUND":
                raise _AbsentError from None
            if code == "ALREADY_EXISTS":
                raise ConflictError("a message is there already under this name") from error
            reason = str(error).partition("\n")[0][:200]
            raise CoordinatorLostError(
                f"JAX's coordination service cannot be reached any more: {reason}"
            ) from error


class _AbsentError(Exception):
    """Nothing is under that key."""


def _key(directory: str, name: str) -> str:
    return f"ckptstore/{directory}/{name}"


_SHARED: list[tuple[Any, MailboxCoordinator]] = []
_LOCK = threading.Lock()


def shared_coordinator() -> MailboxCoordinator | None:
    """Return the one coordinator of this process for all calls that are given none; None if it is alone.

    The first call returns when all processes have made it. Errors as `open_coordinator`.
    """
    if not is_running():
        return None
    from jax._src import distributed

    client = distributed.global_state.client
    with _LOCK:
        if not _SHARED or _SHARED[0][0] is not client:
            _SHARED[:] = [(client, open_coordinator())]
        return _SHARED[0][1]
