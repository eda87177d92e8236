"""The ranks of a job in one process, with messages that are lost or late, and ranks that are frozen."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from ckptstore.distributed.coordinator import check_message, check_timeout, check_topic, sent_twice
from ckptstore.errors import UsageError

__all__ = ["LocalCoordinator", "make_local_coordinators"]

# A frozen rank that nobody thaws fails the test, rather than to keep it for ever.
_FROZEN_AT_MOST_S: Final = 300.0


@dataclass
class _Message:
    data: bytes
    ready_at: float


@dataclass
class _Topic:
    gathered: dict[int, _Message] = field(default_factory=dict)
    broadcast: _Message | None = None
    # Of its own: the message of one rank does not wake those that wait for something else.
    changed: threading.Condition = field(default_factory=threading.Condition)


class _Mailbox:
    """What all ranks share."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._topics: dict[str, _Topic] = {}
        self._lock = threading.Lock()

    def topic(self, name: str) -> _Topic:
        with self._lock:
            return self._topics.setdefault(name, _Topic())

    def forget(self, name: str) -> None:
        with self._lock:
            self._topics.pop(name, None)

    def topics(self) -> list[_Topic]:
        with self._lock:
            return list(self._topics.values())

    def message_count(self) -> int:
        return sum(len(one.gathered) + (one.broadcast is not None) for one in self.topics())


def make_local_coordinators(size: int) -> list[LocalCoordinator]:
    """Return the coordinators of `size` ranks that share a mailbox in memory, in the order of the ranks.

    For tests, and to play many ranks in one process. Each may be used in a thread of its own; one thread may
    play all of them too, if it lets the other ranks hand over before the chief gathers, and the chief
    broadcast before the others ask.
    """
    mailbox = _Mailbox(size)
    return [LocalCoordinator(mailbox, rank) for rank in range(size)]


class LocalCoordinator:
    """One of the ranks that `make_local_coordinators` returns; see `ckptstore.distributed.Coordinator`."""

    def __init__(self, mailbox: _Mailbox, rank: int) -> None:
        self.rank = rank
        self.size = mailbox.size
        self.host_names = tuple(f"host-{one}" for one in range(mailbox.size))
        self.idle_look_s = 0.01
        self._mailbox = mailbox
        self._is_closed = False
        self._drops = False
        self._delay_s = 0.0
        self._thawed = threading.Event()
        self._thawed.set()

    # What goes wrong.

    def drop_messages(self, drops: bool = True) -> None:
        """Lose what this rank sends from now on, and what it is sent; False: no longer."""
        self._drops = drops

    def delay_messages(self, seconds: float) -> None:
        """Deliver what this rank sends from now on, and what it is sent, that much later."""
        self._delay_s = seconds

    def freeze(self) -> None:
        """Let no call of this rank begin or return before `thaw`; what it sent is not taken back."""
        self._thawed.clear()

    def thaw(self) -> None:
        """Let the calls of this rank go on."""
        self._thawed.set()

    def kept_messages(self) -> int:
        """Return how many messages the mailbox holds, of all ranks."""
        return self._mailbox.message_count()

    # The coordinator.

    def gather(
        self,
        topic: str,
        data: bytes,
        *,
        timeout_s: float,
        enough: Callable[[Mapping[int, bytes]], bool] | None = None,
    ) -> dict[int, bytes]:
        """Hand `data` to the chief; the chief waits for what all ranks hand over."""
        self._begin(topic, data, timeout_s)
        box = self._mailbox.topic(topic)
        if self.rank == 0:
            result = self._collect(box, data, time.monotonic() + timeout_s, enough)
        else:
            result = {}
            with box.changed:
                if self.rank in box.gathered:
                    raise sent_twice(self.rank, topic)
                if not self._drops:
                    box.gathered[self.rank] = _Message(data, time.monotonic() + self._delay_s)
                    box.changed.notify_all()
        self._wait_until_thawed()
        return result

    def broadcast(self, topic: str, data: bytes | None = None, *, timeout_s: float) -> bytes | None:
        """Hand the chief's `data` to all ranks."""
        self._begin(topic, data, timeout_s)
        if (data is None) is (self.rank == 0):
            raise UsageError("the chief broadcasts something, the others None", actual=f"rank {self.rank}")
        box = self._mailbox.topic(topic)
        if data is not None:
            with box.changed:
                if box.broadcast is not None:
                    raise sent_twice(0, topic)
                box.broadcast = _Message(data, time.monotonic() + self._delay_s)
                box.changed.notify_all()
        else:
            data = self._receive(box, time.monotonic() + timeout_s)
        self._wait_until_thawed()
        return data

    def forget(self, topic: str) -> None:
        """Drop what was sent under `topic`: the chief all of it, another rank what it sent itself."""
        check_topic(topic)
        self._wait_until_thawed()
        if self.rank == 0:
            self._mailbox.forget(topic)
        else:
            box = self._mailbox.topic(topic)
            with box.changed:
                box.gathered.pop(self.rank, None)

    def close(self) -> None:
        """End the use of the mailbox; waits in other threads return what they have."""
        self._is_closed = True
        for box in self._mailbox.topics():
            with box.changed:
                box.changed.notify_all()

    def _collect(
        self,
        box: _Topic,
        own: bytes,
        deadline: float,
        enough: Callable[[Mapping[int, bytes]], bool] | None,
    ) -> dict[int, bytes]:
        found = {0: own}
        asked_about = 0
        with box.changed:
            while True:
                now = time.monotonic()
                found |= {rank: one.data for rank, one in box.gathered.items() if one.ready_at <= now}
                if len(found) == self.size or self._is_closed:
                    break
                if enough is not None and len(found) != asked_about:
                    asked_about = len(found)
                    if enough(dict(found)):
                        break
                if now >= deadline:
                    break
                wakes_at = min([deadline, *(m.ready_at for m in box.gathered.values() if m.ready_at > now)])
                box.changed.wait(wakes_at - now)
        return dict(sorted(found.items()))

    def _receive(self, box: _Topic, deadline: float) -> bytes | None:
        with box.changed:
            while True:
                now = time.monotonic()
                message = None if self._drops else box.broadcast
                ready_at = None if message is None else message.ready_at + self._delay_s
                if message is not None and ready_at is not None and ready_at <= now:
                    return message.data
                if now >= deadline or self._is_closed:
                    return None
                box.changed.wait((deadline if ready_at is None else min(deadline, ready_at)) - now)

    def _begin(self, topic: str, data: bytes | None, timeout_s: float) -> None:
        if self._is_closed:
            raise UsageError("the coordinator is closed")
        check_topic(topic)
        check_timeout(timeout_s)
        if data is not None:
            check_message(topic, data)
        self._wait_until_thawed()

    def _wait_until_thawed(self) -> None:
        if not self._thawed.wait(_FROZEN_AT_MOST_S):
            raise AssertionError(f"rank {self.rank} was frozen and not thawed")
