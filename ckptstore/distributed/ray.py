"""A coordinator over an actor of Ray that keeps messages; it needs no CPU.

Rank 0 makes the actor, so it lives as long as rank 0, as the mailboxes of torch and JAX do, and no actor is
left when a job dies.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from ckptstore.distributed.mailbox import Announcement
from ckptstore.distributed.mailbox_coordinator import MailboxCoordinator
from ckptstore.distributed.opening import OPEN_TIMEOUT_S, open_mailbox
from ckptstore.errors import CoordinatorLostError, RanksMissingError, UnsupportedError, UsageError
from ckptstore.storage.retry import pause

__all__ = ["is_running", "open_coordinator"]

_NAMESPACE: Final = "ckptstore"


def is_running() -> bool:
    """Return whether this process is a worker of Ray Train."""
    return "ray.train" in sys.modules and _train_context() is not None


def _train_context() -> Any:
    from ray import train

    try:
        context = train.get_context()
        return context if context.get_world_size() is not None else None
    except RuntimeError:
        return None


def open_coordinator(
    *,
    rank: int | None = None,
    size: int | None = None,
    name: str | None = None,
    timeout_s: float = OPEN_TIMEOUT_S,
) -> MailboxCoordinator:
    """Return the coordinator of this worker, when all workers have called this.

    Parameters
    ----------
    rank, size : int, optional
        By default those of Ray Train. Elsewhere give both.
    name : str, optional
        Of the job, for the actor: by default that of the Ray job and of the run of Ray Train. Two sets of
        workers that save at the same time need two names.
    timeout_s : float
        How long the ranks wait for each other, in seconds.

    Raises
    ------
    UnsupportedError
        If Ray is not installed.
    UsageError
        Outside of Ray Train without `rank` and `size`.
    RanksMissingError, CoordinatorLostError
        See `ckptstore.distributed.opening.open_mailbox`.
    """
    try:
        import ray
    except ImportError as error:
        raise UnsupportedError("this needs the package ray", hint="Install it: pip install ray.") from error
    if not ray.is_initialized():
        raise UsageError("Ray is not initialised in this process", hint="Call this in a worker of the job.")
    context = _train_context() if rank is None or size is None or name is None else None
    if rank is None or size is None:
        if context is None:
            raise UsageError("this process is no worker of Ray Train", hint="Pass rank= and size=.")
        rank = context.get_world_rank() if rank is None else rank
        size = context.get_world_size() if size is None else size
    if name is None:
        name = ray.get_runtime_context().get_job_id()
        name += f".{context.get_experiment_name()}" if context is not None else ""
    ends_s = time.monotonic() + timeout_s
    while True:
        actor = _make_actor(ray, name) if rank == 0 else _find_actor(ray, name, ends_s)
        left_s = max(ends_s - time.monotonic(), 1.0)
        try:
            return open_mailbox(_ActorMailbox(ray, actor, is_owner=rank == 0), rank, size, timeout_s=left_s)
        except CoordinatorLostError:
            # That was the actor of an earlier start of the job, which its rank 0 replaces.
            if rank == 0 or time.monotonic() > ends_s:
                raise


class _Post:
    """Runs in the actor: keeps values."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], bytes] = {}

    def put(self, directory: str, name: str, value: bytes) -> None:
        self._kept[directory, name] = value

    def look(self, directory: str, names: list[str]) -> dict[str, bytes]:
        return {name: self._kept[directory, name] for name in names if (directory, name) in self._kept}

    def names(self, directory: str) -> list[str]:
        return [name for one, name in self._kept if one == directory]

    def delete(self, directory: str, names: list[str]) -> None:
        for name in names:
            self._kept.pop((directory, name), None)


def _make_actor(ray: Any, name: str) -> Any:
    # One of an earlier start of the job, whose rank 0 may be about to go.
    with suppress(ValueError):
        ray.kill(ray.get_actor(name, namespace=_NAMESPACE))
    made = ray.remote(num_cpus=0)(_Post)
    while True:
        try:
            return made.options(name=name, namespace=_NAMESPACE).remote()
        except ValueError:
            # The name is free as soon as the killed one is gone.
            pause(0.05)


def _find_actor(ray: Any, name: str, ends_s: float) -> Any:
    while True:
        try:
            return ray.get_actor(name, namespace=_NAMESPACE)
        except ValueError:
            if time.monotonic() > ends_s:
                raise RanksMissingError(
                    f"rank 0 of the job {name!r} was not found in time", ranks=(0,), phase="open"
                ) from None
            pause(0.05)


class _ActorMailbox:
    """See `ckptstore.distributed.mailbox.Mailbox`."""

    max_value_bytes = 16 << 20
    shortest_wait_s = 0.003
    longest_wait_s = 0.25
    asks_each = False
    may_block = True

    def __init__(self, ray: Any, actor: Any, *, is_owner: bool) -> None:
        self._ray = ray
        self._actor = actor
        self._is_owner = is_owner

    def put(self, directory: str, name: str, value: bytes) -> None:
        self._call(lambda actor: actor.put.remote(directory, name, value))

    def look(self, directory: str, names: Sequence[str]) -> Mapping[str, bytes]:
        found: dict[str, bytes] = self._call(lambda actor: actor.look.remote(directory, list(names)))
        return found

    def delete(self, directory: str, names: Sequence[str]) -> None:
        self._call(lambda actor: actor.delete.remote(directory, list(names)))

    def announce(self, announcement: Announcement) -> None:
        self.put("hello", f"{announcement.rank}.{announcement.nonce}", b"")

    def announcements(self) -> Iterable[Announcement]:
        for name in self._call(lambda actor: actor.names.remote("hello")):
            rank, _, nonce = name.partition(".")
            yield Announcement(int(rank), nonce)

    def close(self) -> None:
        if self._is_owner:
            self._ray.kill(self._actor)

    def _call(self, call: Callable[[Any], Any]) -> Any:
        try:
            return self._ray.get(call(self._actor))
        except self._ray.exceptions.RayError as error:
            reason = str(error).partition("\n")[0][:200]
            raise CoordinatorLostError(f"the actor that keeps the messages is gone: {reason}") from error
