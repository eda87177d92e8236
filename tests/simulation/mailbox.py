"""The messages of the ranks of one job, under the scheduler: late, lost, and in any order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from ckptstore.errors import CoordinatorLostError, UsageError
from tests.simulation.processes import Process, ProcessScheduler
from tests.simulation.scheduler import Actor

__all__ = ["Mailbox", "SimulatedCoordinator"]

_CHANCE_OF_LATE_MESSAGE = 0.004


@dataclass
class _Topic:
    gathered: dict[int, tuple[bytes, float]] = field(default_factory=dict)
    broadcast: bytes | None = None
    # Of the broadcast, by rank.
    arrival_s: dict[int, float] = field(default_factory=dict)
    waiting: dict[Actor, None] = field(default_factory=dict)


class Mailbox:
    """What the ranks of one job share.

    Parameters
    ----------
    longest_delay_s : float
        Of a message that is late.

    Attributes
    ----------
    refuses_repeats : bool
        Whether a rank that sends twice under one topic is told; otherwise the later message counts.
    lost : dict
        Rank → from when to when (exclusive, in seconds) what it sends is lost and nothing reaches it.
    gone_at_s : dict
        Rank → from when on the mailbox is gone for it.
    disturb : callable
        Called with a rank and until when one of its messages is late.
    """

    refuses_repeats = True

    def __init__(self, scheduler: ProcessScheduler, size: int, longest_delay_s: float) -> None:
        self.scheduler = scheduler
        self.size = size
        self.longest_delay_s = longest_delay_s
        self.lost: dict[int, tuple[float, float]] = {}
        self.gone_at_s: dict[int, float] = {}
        self.disturb: Callable[[int, float], object] = lambda *_: None
        self.topics: dict[str, _Topic] = {}

    def topic(self, name: str) -> _Topic:
        return self.topics.setdefault(name, _Topic())

    def arrival_s(self, rank: int) -> float:
        """Return when a message of `rank`, or to it, arrives that is sent now."""
        draw, now_s = self.scheduler.random, self.scheduler.now_s
        if draw.random() >= _CHANCE_OF_LATE_MESSAGE:
            return now_s + draw.choice((0.0, 0.0, 0.01, 0.1, 0.3))
        late_s = now_s + draw.uniform(1.0, self.longest_delay_s)
        self.disturb(rank, late_s)
        return late_s

    def is_lost(self, rank: int) -> bool:
        since_s, until_s = self.lost.get(rank, (0.0, 0.0))
        return since_s <= self.scheduler.now_s < until_s


class SimulatedCoordinator:
    """The mailbox as one rank sees it; see `ckptstore.distributed.Coordinator`."""

    def __init__(self, mailbox: Mailbox, rank: int, process: Process) -> None:
        self.rank = rank
        self.size = mailbox.size
        self.host_names = tuple(f"host-{one}" for one in range(mailbox.size))
        self._mailbox = mailbox
        self._process = process
        self._scheduler = mailbox.scheduler

    def gather(
        self,
        topic: str,
        data: bytes,
        *,
        timeout_s: float,
        enough: Callable[[Mapping[int, bytes]], bool] | None = None,
    ) -> dict[int, bytes]:
        if self.rank == 0:
            return self._collect(topic, data, timeout_s, enough)
        self._process.message("hands over", topic, lambda: self._hand_over(topic, data))
        return {}

    def _hand_over(self, topic: str, data: bytes) -> None:
        self._check()
        mailbox = self._mailbox
        box = mailbox.topic(topic)
        if self.rank in box.gathered and mailbox.refuses_repeats:
            raise UsageError(f"rank {self.rank} sends twice under topic {topic!r}")
        if not mailbox.is_lost(self.rank) and not mailbox.is_lost(0):
            arrival_s = mailbox.arrival_s(self.rank)
            box.gathered[self.rank] = data, arrival_s
            self._wake(box, arrival_s)

    def _collect(
        self,
        topic: str,
        data: bytes,
        timeout_s: float,
        enough: Callable[[Mapping[int, bytes]], bool] | None,
    ) -> dict[int, bytes]:
        scheduler, box = self._scheduler, self._mailbox.topic(topic)
        ends_s = scheduler.now_s + timeout_s
        asked_about = 0

        def look() -> dict[int, bytes]:
            self._check()
            if self._mailbox.is_lost(0):
                return {0: data}
            now_s = scheduler.now_s
            return {0: data} | {r: d for r, (d, arrival_s) in box.gathered.items() if arrival_s <= now_s}

        while True:
            found = self._process.message("gathers", topic, look)
            if len(found) == self.size:
                break
            if enough is not None and len(found) != asked_about:
                asked_about = len(found)
                if enough(dict(found)):
                    break
            if not self._sleep(box, ends_s, [arrival_s for _, arrival_s in box.gathered.values()]):
                break
        return dict(sorted(found.items()))

    def broadcast(self, topic: str, data: bytes | None = None, *, timeout_s: float) -> bytes | None:
        box = self._mailbox.topic(topic)
        if data is None:
            return self._receive(topic, box, timeout_s)
        self._process.message("says", topic, lambda: self._say(topic, box, data))
        return data

    def _say(self, topic: str, box: _Topic, data: bytes) -> None:
        self._check()
        mailbox = self._mailbox
        if box.broadcast is not None and mailbox.refuses_repeats:
            raise UsageError(f"rank 0 sends twice under topic {topic!r}")
        if mailbox.is_lost(0):
            return
        box.broadcast = data
        for rank in range(1, self.size):
            box.arrival_s[rank] = arrival_s = mailbox.arrival_s(rank)
            self._wake(box, arrival_s)

    def _receive(self, topic: str, box: _Topic, timeout_s: float) -> bytes | None:
        scheduler = self._scheduler
        ends_s = scheduler.now_s + timeout_s

        def look() -> bytes | None:
            self._check()
            is_there = box.broadcast is not None and box.arrival_s[self.rank] <= scheduler.now_s
            return box.broadcast if is_there and not self._mailbox.is_lost(self.rank) else None

        while True:
            found = self._process.message("listens", topic, look)
            if found is not None:
                return found
            if not self._sleep(box, ends_s, box.arrival_s.values()):
                return None

    def forget(self, topic: str) -> None:
        def drop() -> None:
            if self.rank == 0:
                self._mailbox.topics.pop(topic, None)
            else:
                self._mailbox.topic(topic).gathered.pop(self.rank, None)

        self._process.message("forgets", topic, drop)

    def close(self) -> None:
        pass

    def _check(self) -> None:
        if self._scheduler.now_s >= self._mailbox.gone_at_s.get(self.rank, float("inf")):
            raise CoordinatorLostError("the mailbox is gone")

    def _sleep(self, box: _Topic, ends_s: float, arrivals_s: Iterable[float]) -> bool:
        """Sleep until something comes; False if that is not before `ends_s`."""
        scheduler, actor = self._scheduler, self._scheduler.current
        assert actor is not None
        now_s = scheduler.now_s
        if now_s >= ends_s:
            return False
        _, lost_until_s = self._mailbox.lost.get(self.rank, (0.0, 0.0))
        news_s = [at_s for at_s in (*arrivals_s, lost_until_s) if at_s > now_s]
        box.waiting[actor] = None
        try:
            scheduler.sleep(min([ends_s, *news_s]) - now_s)
        finally:
            box.waiting.pop(actor, None)
        return True

    def _wake(self, box: _Topic, at_s: float) -> None:
        for actor in box.waiting:
            self._scheduler.wake(actor, at_s)
