"""What the ranks of a job talk through: two verbs over a mailbox, never a collective.

A collective has no name, cannot be cancelled, and keeps everyone behind the slowest. A mailbox has names and
time-outs, and what comes late stays under the name that it was sent for. Every engine of distributed training
has one beside its collectives.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Final, Protocol, runtime_checkable

from ckptstore.errors import UsageError

__all__ = [
    "MAX_MESSAGE_BYTES",
    "Coordinator",
    "SingleCoordinator",
    "check_message",
    "check_timeout",
    "check_topic",
    "host_names_of",
    "longest_deadline_of",
    "sent_twice",
]

MAX_MESSAGE_BYTES: Final = 64 << 20
"""The largest message that every coordinator takes."""

# What every mailbox takes as a part of a key, and every storage as a part of an object's name.
_TOPIC: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@runtime_checkable
class Coordinator(Protocol):
    """Messages between the ranks of a job.

    A topic names one exchange: an attempt and its phase. It is never used again, so a late message cannot be
    taken for one of another exchange. `gather` and `broadcast` may use the same topic, once each. A topic has
    1 to 100 letters, digits, ``.``, ``_`` and ``-``, and begins with a letter or a digit.

    A barrier is ``gather(topic, b"")`` followed by ``broadcast(topic, b"")``.

    Threads
    -------
    Every method may be called in any thread, for several topics at once, beside the engine's collectives.
    """

    @property
    def rank(self) -> int:
        """The number of this process, from 0; rank 0 is the chief."""
        ...

    @property
    def size(self) -> int:
        """The number of ranks."""
        ...

    def gather(
        self,
        topic: str,
        data: bytes,
        *,
        timeout_s: float,
        enough: Callable[[Mapping[int, bytes]], bool] | None = None,
    ) -> dict[int, bytes]:
        """Hand `data` to the chief; the chief waits for what all ranks hand over.

        Parameters
        ----------
        topic : str
        data : bytes
            At most 64 MiB.
        timeout_s : float
            How long the chief waits, in seconds; 0 or less: it takes what is there. The others return as soon
            as the message is handed over.
        enough : callable, optional
            Asked by the chief with what came so far, again whenever something came: True ends the wait. It
            is called in the thread that waits.

        Returns
        -------
        dict of int to bytes
            Chief: rank → message, its own included, of those that came in time; fewer than all is no error.
            It may ask again, with the same data, for what came later. Others: empty.

        Raises
        ------
        UsageError
            A rank hands over twice under one topic, or an argument is wrong.
        CorruptError
            What came under the topic is not a message of this package.
        CoordinatorLostError
            The mailbox is gone, or did not take the message within `timeout_s`.
        """
        ...

    def broadcast(self, topic: str, data: bytes | None = None, *, timeout_s: float) -> bytes | None:
        """Hand the chief's `data` to all ranks.

        Parameters
        ----------
        topic : str
        data : bytes, optional
            The chief's message, at most 64 MiB; the others pass None.
        timeout_s : float
            How long the others wait, in seconds; 0 or less: they look once. The chief returns at once.

        Returns
        -------
        bytes or None
            The chief's message; None if it did not come in time. Then a rank may ask again.

        Raises
        ------
        UsageError, CorruptError, CoordinatorLostError
            As `gather`.
        """
        ...

    def forget(self, topic: str) -> None:
        """Drop what was sent under `topic`: the chief all of it, another rank what it sent itself.

        For topics that no rank waits for any more. A message that comes later stays until the rank that sent
        it forgets the topic too. Never fails; what cannot be dropped stays until the job ends.
        """
        ...

    def close(self) -> None:
        """End the use of the mailbox; waits in other threads return what they have. May be called again.

        Every later call of another method raises `UsageError`.
        """
        ...


class SingleCoordinator:
    """The coordinator of a job that is one process: nobody to talk to."""

    rank = 0
    size = 1

    def __init__(self) -> None:
        self._is_closed = False

    def gather(
        self,
        topic: str,
        data: bytes,
        *,
        timeout_s: float,
        enough: Callable[[Mapping[int, bytes]], bool] | None = None,
    ) -> dict[int, bytes]:
        """Return the own message."""
        self._check(topic, data, timeout_s)
        return {0: data}

    def broadcast(self, topic: str, data: bytes | None = None, *, timeout_s: float) -> bytes | None:
        """Return the own message."""
        self._check(topic, data, timeout_s)
        if data is None:
            raise UsageError("the chief broadcasts something", hint="Pass `data` on rank 0.")
        return data

    def forget(self, topic: str) -> None:
        """Do nothing: nothing is kept."""
        check_topic(topic)

    def close(self) -> None:
        """Refuse further calls."""
        self._is_closed = True

    def _check(self, topic: str, data: bytes | None, timeout_s: float) -> None:
        if self._is_closed:
            raise UsageError("the coordinator is closed")
        check_topic(topic)
        check_timeout(timeout_s)
        if data is not None:
            check_message(topic, data)


def check_topic(topic: str) -> None:
    """Raise `UsageError` unless `topic` is one that every mailbox takes."""
    if not isinstance(topic, str) or not _TOPIC.fullmatch(topic):
        raise UsageError(
            "a topic has 1 to 100 letters, digits, '.', '_' and '-', and begins with a letter or a digit",
            actual=repr(topic),
        )


def sent_twice(rank: int, topic: str) -> UsageError:
    """Return the error of a rank that sends twice under one topic."""
    return UsageError(
        f"rank {rank} sends twice under topic {topic!r}",
        hint=(
            "Use each topic once: name it by its attempt. All Savers of a process take the same coordinator"
            " object: another one over the same mailbox uses the same topics."
        ),
    )


def check_timeout(timeout_s: float) -> None:
    """Raise `UsageError` unless `timeout_s` is a number of seconds, and not infinite."""
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, (int, float)) or not math.isfinite(timeout_s):
        raise UsageError("timeout_s must be a finite number of seconds", actual=repr(timeout_s))


def check_message(topic: str, data: bytes) -> None:
    """Raise `UsageError` unless `data` is bytes that every mailbox takes."""
    if not isinstance(data, bytes):
        raise UsageError(f"a message is bytes (topic {topic!r})", actual=type(data).__name__)
    if len(data) > MAX_MESSAGE_BYTES:
        raise UsageError(
            f"a message has at most {MAX_MESSAGE_BYTES >> 20} MiB (topic {topic!r})",
            actual=f"{len(data)} bytes",
        )


def host_names_of(coordinator: Coordinator) -> tuple[str, ...]:
    """Return the host name of each rank, for messages; empty names where the coordinator knows none."""
    names = getattr(coordinator, "host_names", ())
    return tuple(names) if len(names) == coordinator.size else ("",) * coordinator.size


def longest_deadline_of(coordinator: Coordinator) -> float:
    """Return after how many seconds of silence the engine ends the job; infinity where it does not."""
    return float(getattr(coordinator, "longest_deadline_s", math.inf))
