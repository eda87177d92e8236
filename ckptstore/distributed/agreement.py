"""What ranks decide together outside of a save: one answer for all, and all or none."""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Self

from ckptstore.distributed.coordinator import Coordinator, host_names_of, longest_deadline_of
from ckptstore.distributed.messages import pack, pack_error, unpack, unpack_error
from ckptstore.distributed.rounds import grace_s, rank_name
from ckptstore.errors import CkptStoreError, RanksMissingError

__all__ = ["Agreement"]

_AGREEMENT_S: Final = 600.0
"""How long the chief waits for the others in each step if no deadline is given; they wait a little longer."""

_SEND_S: Final = 20.0

_LOCK = threading.Lock()
_CALLS: weakref.WeakKeyDictionary[Coordinator, Iterator[int]] = weakref.WeakKeyDictionary()
# Topics of calls that some rank may not have finished.
_OPEN: weakref.WeakKeyDictionary[Coordinator, list[Agreement]] = weakref.WeakKeyDictionary()


class Agreement:
    """One call that all ranks make alike, in the same order; a context manager.

    Parameters
    ----------
    coordinator : Coordinator
    what : str
        What the call does, for messages: ``"restore"``.
    deadline_s : float, optional
        How many seconds the call may take as a whole, from now on. None: each step may take 600, or less
        where the engine would end the job before.

    Attributes
    ----------
    name : str
        Beginning of its topics; the same on all ranks.
    topics : list of str
        Used so far.

    Threads
    -------
    One thread at a time for one coordinator.
    """

    def __init__(self, coordinator: Coordinator, what: str, *, deadline_s: float | None = None) -> None:
        self._coordinator = coordinator
        self._what = what
        self._limit_s = deadline_s or min(_AGREEMENT_S, longest_deadline_of(coordinator))
        self._ends_s = None if deadline_s is None else time.monotonic() + deadline_s
        with _LOCK:
            number = next(_CALLS.setdefault(coordinator, itertools.count()))
        self.name = f"call-{number}"
        self._steps = 0
        self.topics: list[str] = []

    @property
    def is_chief(self) -> bool:
        """Whether this is rank 0."""
        return self._coordinator.rank == 0

    def ask_chief(self, answer: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Return on all ranks what `answer` returns on the chief.

        Parameters
        ----------
        answer : callable
            Called on the chief alone; returns what JSON can express.

        Raises
        ------
        CkptStoreError
            What `answer` raised on the chief; the same class on all ranks.
        RanksMissingError
            If the chief does not answer.
        """
        topic = self._next_topic()
        if self.is_chief:
            try:
                told = dict(answer())
            except BaseException as error:
                self._say(topic, {"error": pack_error(error)})
                raise
            self._say(topic, {"answer": told})
            return told
        return dict(self._hear(topic)["answer"])

    def all_or_none(self, check: Callable[[], Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return what `check` returned on each rank if it succeeds on all; else raise on all of them.

        Parameters
        ----------
        check : callable
            Returns what JSON can express.

        Raises
        ------
        CkptStoreError
            Of the first rank whose `check` raised one; the same class on all.
        RanksMissingError
            If a rank was not heard of.
        """
        topic = self._next_topic()
        failure: BaseException | None = None
        try:
            own = {"answer": dict(check())}
        except BaseException as error:  # noqa: BLE001 - raised below, when the others know
            failure = error
            own = {"error": pack_error(error)}
        if not self.is_chief:
            self._coordinator.gather(topic, pack(own), timeout_s=_SEND_S)
            if failure is not None and not isinstance(failure, Exception):
                raise failure
            try:
                return list(self._hear(topic)["answer"])
            except CkptStoreError as told:
                if failure is not None and type(told) is type(failure):
                    raise failure from None
                raise told from failure
        try:
            if failure is not None:
                raise failure
            answers = self._gather(topic, own)
        except BaseException as error:
            self._say(topic, {"error": pack_error(error)})
            raise
        self._say(topic, {"answer": answers})
        return answers

    def _gather(self, topic: str, own: Mapping[str, Any]) -> list[dict[str, Any]]:
        size = self._coordinator.size
        read: dict[int, dict[str, Any]] = {}

        def is_enough(found: Mapping[int, bytes]) -> bool:
            for rank in found.keys() - read.keys():
                read[rank], _ = unpack(found[rank])
            return len(read) == size or any("error" in one for one in read.values())

        found = self._coordinator.gather(topic, pack(own), timeout_s=self._left_s(), enough=is_enough)
        is_enough(found)
        for rank, head in sorted(read.items()):
            if "error" in head:
                raise unpack_error(head["error"], rank_name(self._coordinator, rank))
        missing = [rank for rank in range(size) if rank not in read]
        if missing:
            shown = ", ".join(rank_name(self._coordinator, rank) for rank in missing)
            raise RanksMissingError(
                f"cannot {self._what}: {shown} did not come",
                expected=f"all ranks within {self._limit_s:g} s",
                ranks=missing,
                host_names=[host_names_of(self._coordinator)[rank] for rank in missing],
                phase=self._what,
            )
        return [dict(read[rank]["answer"]) for rank in range(size)]

    def _left_s(self) -> float:
        """How many seconds the chief waits for the others now."""
        return self._limit_s if self._ends_s is None else max(0.0, self._ends_s - time.monotonic())

    def _next_topic(self) -> str:
        topic = f"{self.name}-{self._steps}"
        self._steps += 1
        self.topics.append(topic)
        return topic

    def _say(self, topic: str, head: Mapping[str, Any]) -> None:
        self._coordinator.broadcast(topic, pack(head), timeout_s=_SEND_S)

    def _hear(self, topic: str) -> dict[str, Any]:
        # The chief says who is missing: it is waited for a little longer.
        data = self._coordinator.broadcast(topic, timeout_s=self._left_s() + grace_s(self._limit_s))
        if data is None:
            raise RanksMissingError(
                f"cannot {self._what}: {rank_name(self._coordinator, 0)}, the chief, was not heard of",
                ranks=(0,),
                host_names=host_names_of(self._coordinator)[:1],
                phase=self._what,
            )
        head, _ = unpack(data)
        if "error" in head:
            raise unpack_error(head["error"], "")
        return head

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        """Say that this rank has finished the call; the chief drops what was said in calls that all have."""
        if not self.is_chief:
            try:
                self._coordinator.gather(f"{self.name}-end", b"", timeout_s=_SEND_S)
            except CkptStoreError:
                # The message of the call itself was read: nothing is missing but its clean-up.
                return
            return
        with _LOCK:
            waiting = _OPEN.setdefault(self._coordinator, [])
            waiting.append(self)
        for earlier in list(waiting):
            end = f"{earlier.name}-end"
            if len(self._coordinator.gather(end, b"", timeout_s=0.0)) == self._coordinator.size:
                for topic in (*earlier.topics, end):
                    self._coordinator.forget(topic)
                waiting.remove(earlier)
