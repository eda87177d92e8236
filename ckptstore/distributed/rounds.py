"""The messages of one save of many ranks: what the chief says, and what it hears.

The chief says words, numbered from 0, which every rank hears in this order; a rank hands over its *hello*,
and a report for each *order*. While it writes, a rank hands over beats, so that a slow one can be told from a
frozen one. Every wait is bounded by what the chief has left, and the others wait a grace longer: they then
hear from the chief who is missing, rather than to miss the chief.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from ckptstore.distributed.coordinator import Coordinator, host_names_of
from ckptstore.distributed.messages import pack, pack_error, unpack, unpack_error
from ckptstore.distributed.waiting import UNHEARD_S, look_until_written
from ckptstore.errors import CkptStoreError, CoordinatorLostError, CorruptError, RanksMissingError
from ckptstore.storage.retry import pause

__all__ = ["Chief", "Member", "Message", "Round", "grace_s", "rank_name"]

_LOG = logging.getLogger("ckptstore")

# After this long without an answer of all, the chief looks for beats, and says that it is there.
_TICK_S: Final = 1.0
_LOG_EVERY_S: Final = 30.0
# Of the beats in one wait for a stalled rank.
_BEATS_PER_STALL: Final = 4
_SLOWEST_BEAT_S: Final = 15.0
_REQUESTS_OF_CHIEF: Final = 4
_REQUESTS_BETWEEN: Final = 2
# How long handing a message over may take; and where the save has failed anyway.
_SEND_S: Final = 20.0
_LAST_WORD_S: Final = 2.0


def grace_s(deadline_s: float) -> float:
    """Return how much longer than the chief the others wait."""
    return 2.0 + 0.01 * deadline_s


def rank_name(coordinator: Coordinator, rank: int) -> str:
    """Return how messages name a rank."""
    host = host_names_of(coordinator)[rank]
    return f"rank {rank} ({host})" if host else f"rank {rank}"


@dataclass(frozen=True, slots=True)
class Message:
    """A message of a rank."""

    head: Mapping[str, Any]
    blob: bytes = b""

    @staticmethod
    def read(data: bytes) -> Message:
        """Return the message in `data`.

        Raises
        ------
        CorruptError
            If it is none.
        """
        return Message(*unpack(data))


class Round:
    """What both sides of one save have."""

    def __init__(self, coordinator: Coordinator, name: str, stall_s: float) -> None:
        self.coordinator = coordinator
        self._name = name
        self._words = 0
        self._beat_s = min(_SLOWEST_BEAT_S, stall_s / _BEATS_PER_STALL)

        self._used: list[str] = []

    @property
    def number(self) -> int:
        """Of this save among those of its Saver."""
        return int(self._name.rpartition("-")[2])

    def _topic(self, phase: str) -> str:
        return f"{self._name}.{phase}"

    def forget(self) -> None:
        """Drop the messages of this save, of which every rank has the outcome."""
        used, self._used = self._used, []
        for topic in used:
            self.coordinator.forget(topic)


class _Heard(NamedTuple):
    """Of a rank: number of its next beat, what the last one said, since when it says that, when it came."""

    number: int
    progress: Any
    since_s: float
    at_s: float


class Chief(Round):
    """The chief's side of one save.

    Parameters
    ----------
    name : str
        Of the save, beginning of its topics; the same on all ranks.
    left_s : callable
        How many seconds the save may still take.
    stall_s : float
        How long a rank may write without getting on.
    check : callable, optional
        Raises what is to end a wait, such as `SaveCancelledError`; is called every second.

    Threads
    -------
    One thread, and another one for `collect`, which ends early when `fail` is called.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        name: str,
        left_s: Callable[[], float],
        stall_s: float,
        check: Callable[[], object] = lambda: None,
    ) -> None:
        super().__init__(coordinator, name, stall_s)
        self._left_s = left_s
        self._stall_s = stall_s
        self._check = check
        self._beats: dict[int, _Heard] = {}
        self._greeted: Collection[int] = ()
        # Ranks that came when half of the time, or more, was over; and how much then was left.
        self._late: dict[int, float] = {}
        self._is_over = False

    def hear(self, own: Message) -> dict[int, Message]:
        """Return the hello of every rank.

        Raises
        ------
        RanksMissingError
            If one does not come in time.
        CkptStoreError
            Of the first rank that says why it cannot save.
        """
        return self._gather("hello", own, "hello")

    def say(self, kind: str, blob: bytes = b"", **head: Any) -> None:
        """Say the next word to all ranks."""
        self._say(kind, blob, head, _SEND_S)

    def _say(self, kind: str, blob: bytes, head: Mapping[str, Any], timeout_s: float) -> None:
        topic = self._topic(f"word-{self._words}")
        self._words += 1
        self._used.append(topic)
        message = pack({"kind": kind, "left_s": max(0.0, self._left_s()), **head}, blob)
        self.coordinator.broadcast(topic, message, timeout_s=timeout_s)

    def was_left_by_all(self) -> bool:
        """Return whether all other ranks have given up this save, before they had an order."""
        topic = self._topic("done-0")
        self._used.append(topic)
        found = self.coordinator.gather(topic, pack({}), timeout_s=0.0)
        left = [rank for rank, data in found.items() if "error" in self._read(rank, data).head]
        return len(left) == self.coordinator.size - 1

    def fail(
        self, error: BaseException, *, may_be_published: bool, about: Mapping[str, Any] | None = None
    ) -> None:
        """Say that the save failed, and whether files have to stay; never fails itself.

        Parameters
        ----------
        about : mapping of str, optional
            Which save it is. Ranks that begin another one only now, and find this word, know by it that they
            have missed this one.
        """
        self._is_over = True
        rank = getattr(error, "_rank", 0)
        head = {"error": pack_error(error), "rank": rank, "keep": may_be_published}
        if about is not None:
            missing = [each for each in range(1, self.coordinator.size) if each not in self._greeted]
            head |= {**about, "missing": missing}
        try:
            self._say("failed", b"", head, _LAST_WORD_S)
        except CkptStoreError as lost:
            error.add_note(f"The other ranks could not be told: {lost}")

    def collect(self, order: int, has_written: threading.Event) -> dict[int, Message]:
        """Return the report of every rank on an order; errors as `hear`.

        Parameters
        ----------
        has_written : threading.Event
            Set when this rank's own part is written, or given up.
        """
        self._beats.clear()
        return self._gather(f"done-{order}", Message({}), "write", has_written)

    def _read(self, rank: int, data: bytes) -> Message:
        try:
            return Message.read(data)
        except CorruptError as error:
            raise CorruptError(
                f"{rank_name(self.coordinator, rank)}: {error.what}", actual=error.actual, hint=error.hint
            ) from error

    def _gather(
        self, phase: str, own: Message, what: str, has_written: threading.Event | None = None
    ) -> dict[int, Message]:
        topic, is_writing = self._topic(phase), has_written is not None
        self._used.append(topic)
        size, own_data = self.coordinator.size, pack(own.head, own.blob)
        read: dict[int, Message] = {}
        if not is_writing:
            self._greeted = read.keys()
        given_s = self._left_s()

        def is_enough(found: Mapping[int, bytes]) -> bool:
            for rank in found.keys() - read.keys():
                read[rank] = self._read(rank, found[rank])
                if not is_writing and (left_s := self._left_s()) < given_s / 2:
                    self._late[rank] = max(left_s, 0.0)
            return len(read) == size or any("error" in one.head for one in read.values())

        def look(wait_s: float) -> bool:
            return is_enough(self.coordinator.gather(topic, own_data, timeout_s=wait_s, enough=is_enough))

        begun_s = logged_s = time.monotonic()
        has_said = False
        while True:
            self._check()
            left_s = self._left_s()
            wait_s = max(0.0, min(_TICK_S, left_s))
            look_until_written(look, wait_s, begun_s, has_written)
            for rank, message in sorted(read.items()):
                if "error" in message.head:
                    raise self._error_of(rank, message.head["error"])
            if len(read) == size or self._is_over:
                return dict(sorted(read.items()))
            missing = [rank for rank in range(size) if rank not in read]
            if left_s <= 0.0:
                raise self._too_late(missing, what, time.monotonic() - begun_s)
            if not is_writing and not has_said:
                # Whoever waits knows from now on how long the chief will.
                self.say("wait")
                has_said = True
            if is_writing:
                stalled = self._stalled(missing, begun_s)
                if stalled:
                    raise self._missing(stalled, what, f"did not get on for {self._stall_s:g} s")
            if time.monotonic() - logged_s >= _LOG_EVERY_S:
                logged_s = time.monotonic()
                _LOG.warning("%s", self._waiting_text(missing))

    def _error_of(self, rank: int, told: Any) -> CkptStoreError:
        error = unpack_error(told, rank_name(self.coordinator, rank))
        error._rank = rank  # type: ignore[attr-defined]  # noqa: SLF001 (for `fail`)
        return error

    def _too_late(self, missing: Collection[int], what: str, waited_s: float) -> RanksMissingError:
        if what == "write" and self._late:
            # The others had no time to write.
            least_s = min(self._late.values())
            return self._missing(self._late, "hello", f"began it only {least_s:.1f} s before its end")
        return self._missing(missing, what, f"did not {_DUTY[what]} within {waited_s:.1f} s")

    def _missing(self, ranks: Collection[int], phase: str, how: str) -> RanksMissingError:
        names = host_names_of(self.coordinator)
        shown = ", ".join(rank_name(self.coordinator, rank) for rank in ranks)
        return RanksMissingError(
            f"the save failed: {shown} {how}",
            ranks=tuple(ranks),
            host_names=tuple(names[rank] for rank in ranks),
            phase=phase,
        )

    def _stalled(self, missing: Collection[int], begun_s: float) -> list[int]:
        """Return those of `missing` that have not got on for too long."""
        now_s = time.monotonic()
        heard = self._beats
        for rank in missing:
            heard.setdefault(rank, _Heard(0, None, begun_s, begun_s))
        while True:
            wanted = {rank: (heard[rank].number, *self._overdue(heard[rank], now_s)) for rank in missing}
            has_news = False
            for number in sorted({number for numbers in wanted.values() for number in numbers}):
                topic = self._topic(f"beat-{number}")
                found = self.coordinator.gather(topic, pack({}), timeout_s=0.0)
                for rank in found.keys() & wanted.keys():
                    if number in wanted[rank] and number >= heard[rank].number:
                        progress = self._read(rank, found[rank]).head.get("done")
                        since_s = now_s if progress != heard[rank].progress else heard[rank].since_s
                        heard[rank] = _Heard(number + 1, progress, since_s, now_s)
                        has_news = True
                        if topic not in self._used:
                            self._used.append(topic)
            if not has_news:
                break
        return [rank for rank in missing if now_s - heard[rank].since_s > self._stall_s]

    def _overdue(self, heard: _Heard, now_s: float) -> tuple[int, ...]:
        """Return the beat after the next one, if that was perhaps lost."""
        return (heard.number + 1,) if now_s - heard.at_s > 2 * self._beat_s else ()

    def _waiting_text(self, missing: Collection[int]) -> str:
        shown = []
        for rank in missing:
            done = self._beats[rank].progress if rank in self._beats else None
            share = f", {done:.0%}" if isinstance(done, float) else ""
            shown.append(f"{rank_name(self.coordinator, rank)}{share}")
        return f"waiting for {len(missing)} of {self.coordinator.size}: {'; '.join(shown)}"


_DUTY: Final = {"hello": "begin it", "write": "write its part"}


class Member(Round):
    """The side of every rank but the chief; other parameters as `Chief`.

    Parameters
    ----------
    deadline_s : float
        How many seconds the save may take, from `greet` on.

    Attributes
    ----------
    left_s : float
        How many seconds to wait for the next word.
    is_stopped : bool
        Set it to end `listen`: nobody is interested any more.

    Threads
    -------
    One thread, and another one for `listen`, while the first does not `hear`.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        name: str,
        deadline_s: float,
        stall_s: float,
        check: Callable[[], object] = lambda: None,
    ) -> None:
        super().__init__(coordinator, name, stall_s)
        self._deadline_s = deadline_s
        self._grace_s = grace_s(deadline_s)
        self._check = check
        self._ends_s = time.monotonic() + deadline_s + self._grace_s
        self._beats = 0
        # What handing over a message took the last time.
        self._sent_s = 0.0
        # Nothing can have been said before.
        self._unheard_until_s = 0.0
        self.is_stopped = False

    @property
    def left_s(self) -> float:
        """How many seconds the chief has to say its next word."""
        return max(0.0, self._ends_s - time.monotonic())

    def greet(self, hello: Message) -> None:
        """Hand over the hello."""
        # Not before: an earlier save of this rank may have taken its time.
        self._ends_s = time.monotonic() + self._deadline_s + self._grace_s
        self._send("hello", hello)
        # The chief has to find it, and to say something in turn.
        self._unheard_until_s = time.monotonic() + min(_REQUESTS_BETWEEN * self._sent_s, UNHEARD_S)

    def report(self, order: int, report: Message) -> None:
        """Hand over the report on an order."""
        self._send(f"done-{order}", report)
        # The chief has to hear of it, to write three times and to say so: through a store, no request of this
        # rank may be in its way.
        self._unheard_until_s = time.monotonic() + min(_REQUESTS_OF_CHIEF * self._sent_s, UNHEARD_S)

    def fail(self, phases: Sequence[str], error: BaseException) -> None:
        """Say that this rank cannot go on; never fails itself.

        Parameters
        ----------
        phases : sequence of str
            The message that the chief waits for. Two, if it is not known whether the first was handed over.
        """
        lost: list[CkptStoreError] = []
        for phase in phases:
            try:
                self._send(phase, Message({"error": pack_error(error)}), _LAST_WORD_S)
            except CkptStoreError as failure:
                lost.append(failure)
        if phases and len(lost) == len(phases):
            error.add_note(f"The chief could not be told: {lost[0]}")

    def _send(self, phase: str, message: Message, timeout_s: float = _SEND_S) -> None:
        topic = self._topic(phase)
        self._used.append(topic)
        begun_s = time.monotonic()
        self.coordinator.gather(topic, pack(message.head, message.blob), timeout_s=timeout_s)
        self._sent_s = time.monotonic() - begun_s

    def beat(self, done: float) -> None:
        """Hand over how much of this rank's part is written, from 0 to 1."""
        topic = f"beat-{self._beats}"
        self._beats += 1
        self._send(topic, Message({"done": done}))

    def look(self, wait_s: float) -> Message | None:
        """Return the next word, None if it does not come within `wait_s`; words to wait are passed over.

        Raises
        ------
        CoordinatorLostError
            If the mailbox is gone.
        """
        ends_s = time.monotonic() + wait_s
        while True:
            topic = self._topic(f"word-{self._words}")
            data = self.coordinator.broadcast(topic, timeout_s=max(0.0, ends_s - time.monotonic()))
            if data is None:
                return None
            self._words += 1
            word = Message.read(data)
            left_s = word.head.get("left_s")
            if isinstance(left_s, (int, float)) and math.isfinite(left_s):
                self._ends_s = time.monotonic() + float(left_s) + self._grace_s
            if word.head.get("kind") != "wait":
                return word

    def _look_when_due(self, wait_s: float) -> Message | None:
        pause(max(0.0, self._unheard_until_s - time.monotonic()))
        return self.look(wait_s)

    def hear(self) -> Message | None:
        """Return the next word; None if the chief says nothing for too long, or the mailbox is gone."""
        while True:
            self._check()
            wait_s = self.left_s
            try:
                word = self._look_when_due(min(wait_s, _TICK_S))
            except CoordinatorLostError as error:
                _LOG.warning("the chief cannot be heard any more: %s", error)
                return None
            if word is not None or wait_s <= 0.0:
                return word

    def listen(self, progress: Callable[[], float], has_written: threading.Event) -> Message | None:
        """Return the next word, and hand over beats until it comes; None as `hear`.

        Parameters
        ----------
        progress : callable
            How much of this rank's part is written, from 0 to 1.
        has_written : threading.Event
            Set when this rank waits for nothing but the word. Until then, a mailbox that is gone may come
            back.
        """
        begun_s = time.monotonic()
        while not self.is_stopped:
            wait_s = min(self._beat_s, self.left_s)
            try:
                word = look_until_written(self._look_when_due, wait_s, begun_s, has_written)
                if word is not None or wait_s <= 0.0:
                    return word
                if not self.is_stopped:
                    self.beat(progress())
            except CkptStoreError as error:
                if isinstance(error, CorruptError) or has_written.is_set() or wait_s <= 0.0:
                    _LOG.warning("the chief cannot be heard any more: %s", error)
                    return None
                pause(min(_TICK_S, wait_s))
        return None

    def chief_missing(self, phase: str) -> RanksMissingError:
        """Return the error of a rank that has not heard from the chief."""
        return RanksMissingError(
            f"the save failed: {rank_name(self.coordinator, 0)}, the chief, was not heard of",
            ranks=(0,),
            host_names=host_names_of(self.coordinator)[:1],
            phase=phase,
        )
