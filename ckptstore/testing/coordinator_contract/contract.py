"""What every coordinator does, also while a rank is frozen or dead."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from typing import Any, TypeAlias

import pytest

from ckptstore.errors import CoordinatorLostError, CorruptError, UsageError
from ckptstore.testing.coordinator_contract.processes import RankProcesses, RemoteRank
from ckptstore.testing.coordinator_contract.serve import make_message, summary

__all__ = ["CoordinatorContract", "StartRanks"]

StartRanks: TypeAlias = Callable[[int, str], AbstractContextManager[None]]

_SIZE = 4
# A wait that is to end for another reason than its time-out.
_LONG_S = 100.0
# Within which every call of a test has to come back: more than any time-out that a test lets pass.
_BOUND_S = 60.0
_MIB = 1 << 20


class _Group:
    """The processes of a class of tests, started again when a test has killed some."""

    def __init__(self, start_ranks: StartRanks) -> None:
        self._start_ranks = start_ranks
        self._stack = ExitStack()
        self._ranks: list[RemoteRank] = []
        self.is_spent = False

    def ranks(self) -> list[RemoteRank]:
        if self.is_spent:
            self.end()
        if not self._ranks:
            processes = self._stack.enter_context(RankProcesses())
            self._stack.enter_context(self._start_ranks(_SIZE, processes.address))
            self._ranks = processes.accept(_SIZE)
        return self._ranks

    def end(self) -> None:
        for one in self._ranks:
            one.close()
        self._stack.close()
        self._ranks = []
        self.is_spent = False


class CoordinatorContract:
    """Every promise of `ckptstore.distributed.coordinator.Coordinator`, each a test with four processes.

    Attributes
    ----------
    survives_death : bool
        Whether the engine lets the other processes live when one is killed.
    """

    survives_death = True

    @pytest.fixture(scope="class")
    @classmethod
    def group(cls, start_ranks: StartRanks) -> Iterator[_Group]:
        group = _Group(start_ranks)
        yield group
        group.end()

    @pytest.fixture
    def ranks(self, group: _Group) -> list[RemoteRank]:
        return group.ranks()

    @pytest.fixture(scope="class")
    @classmethod
    def topics(cls) -> Iterator[str]:
        return (f"topic-{number}" for number in itertools.count())

    @pytest.fixture
    def topic(self, topics: Iterator[str]) -> str:
        return next(topics)

    def test_each_rank_knows_itself_and_the_others(self, ranks: list[RemoteRank]) -> None:
        assert [one.rank for one in ranks] == list(range(_SIZE))
        assert {one.size for one in ranks} == {_SIZE}
        assert {one.host_names for one in ranks} == {ranks[0].host_names}
        assert len(ranks[0].host_names) == _SIZE

    @pytest.mark.parametrize("size_bytes", [0, 1, 100_000, 8 * _MIB], ids=["0", "1 B", "100 kB", "8 MiB"])
    def test_messages_of_any_size_arrive_both_ways(
        self, ranks: list[RemoteRank], topic: str, size_bytes: int
    ) -> None:
        _exchange(ranks, topic, size_bytes)

    def test_the_largest_message_arrives(self, ranks: list[RemoteRank], topic: str) -> None:
        data = make_message("largest", 64 * _MIB)
        message = ["largest", len(data)]
        assert ranks[2].call("gather", topic=topic, message=message, timeout_s=_LONG_S) == {}
        found = self._gather_until(ranks[0], topic, 2)
        assert found["2"] == summary(data)
        for one in (ranks[2], ranks[0]):
            one.call("forget", topic=topic)

    def _gather_until(self, chief: RemoteRank, topic: str, rank: int) -> Any:
        """Ask as often as the chief may, until the message of `rank` is there."""
        ends_s = time.monotonic() + _BOUND_S
        while True:
            found = chief.call("gather", topic=topic, message=["0"], timeout_s=0.2, within_s=_BOUND_S)
            if str(rank) in found or time.monotonic() > ends_s:
                return found

    def test_members_hand_over_and_go_on(self, ranks: list[RemoteRank], topic: str) -> None:
        for one in ranks[1:]:
            # Nobody gathers yet.
            assert one.call("gather", topic=topic, message=[f"{one.rank}"], timeout_s=_LONG_S) == {}
        found = ranks[0].call("gather", topic=topic, message=["0"], timeout_s=_LONG_S)
        assert found == {str(rank): summary(b"%d" % rank) for rank in range(_SIZE)}

    def test_the_chief_hands_out_and_goes_on(self, ranks: list[RemoteRank], topic: str) -> None:
        # Nobody listens yet.
        said = summary(b"order")
        assert ranks[0].call("broadcast", topic=topic, message=["order"], timeout_s=_LONG_S) == said
        assert [one.call("broadcast", topic=topic, timeout_s=_LONG_S) for one in ranks[1:]] == [said] * 3

    def test_the_chief_gets_what_came_in_time_and_may_look_again(
        self, ranks: list[RemoteRank], topic: str
    ) -> None:
        ranks[3].call("gather", topic=topic, message=["3"], timeout_s=1)
        found = self._gather_until(ranks[0], topic, 3)
        assert set(found) == {"0", "3"}
        ranks[1].call("gather", topic=topic, message=["late"], timeout_s=1)
        found = self._gather_until(ranks[0], topic, 1)
        assert found["1"] == summary(b"late")
        assert set(found) == {"0", "1", "3"}

    def test_enough_ends_the_wait(self, ranks: list[RemoteRank], topic: str) -> None:
        waiting = ranks[0].start("gather", topic=topic, message=["0"], timeout_s=_LONG_S, enough="failed")
        ranks[1].call("gather", topic=topic, message=["fine"], timeout_s=1)
        ranks[2].call("gather", topic=topic, message=["failed"], timeout_s=1)
        found = waiting.result(_BOUND_S)
        assert found["2"] == summary(b"failed")
        assert "3" not in found

    def test_what_comes_late_is_not_taken_for_another_topic(
        self, ranks: list[RemoteRank], topics: Iterator[str]
    ) -> None:
        first, second = next(topics), next(topics)
        assert set(ranks[0].call("gather", topic=first, message=["0"], timeout_s=0)) == {"0"}
        ranks[2].call("gather", topic=first, message=["late"], timeout_s=1)
        assert set(ranks[0].call("gather", topic=second, message=["0"], timeout_s=0.3)) == {"0"}
        # The name of one begins with that of the other.
        longer = f"{first}.1"
        assert set(ranks[0].call("gather", topic=longer, message=["0"], timeout_s=0.3)) == {"0"}

    def test_nothing_comes_from_a_chief_that_says_nothing(self, ranks: list[RemoteRank], topic: str) -> None:
        assert ranks[1].call("broadcast", topic=topic, timeout_s=0.2) is None
        assert ranks[1].call("broadcast", topic=topic, timeout_s=-1) is None
        ranks[0].call("broadcast", topic=topic, message=["at last"], timeout_s=1)
        assert ranks[1].call("broadcast", topic=topic, timeout_s=_LONG_S) == summary(b"at last")

    def test_several_threads_at_once_do_not_disturb_each_other(
        self, ranks: list[RemoteRank], topics: Iterator[str]
    ) -> None:
        names = [next(topics) for _ in range(16)]
        gathering = {
            (topic, one.rank): one.start(
                "gather", topic=topic, message=[f"{topic} {one.rank} ", 3000], timeout_s=_LONG_S
            )
            for topic in names
            for one in reversed(ranks)
        }
        for (topic, rank), outcome in gathering.items():
            expected = {str(r): summary(make_message(f"{topic} {r} ", 3000)) for r in range(_SIZE)}
            assert outcome.result(_BOUND_S) == ({} if rank else expected)

    def test_a_thread_that_waits_holds_up_no_other(
        self, ranks: list[RemoteRank], topics: Iterator[str]
    ) -> None:
        never = next(topics)
        waiting = [one.start("broadcast", topic=never, timeout_s=_LONG_S) for one in ranks[1:]]
        waiting += [ranks[0].start("gather", topic=never, message=["0"], timeout_s=_LONG_S)]
        for _ in range(5):
            _exchange(ranks, next(topics), 10)
        assert not any(outcome.done() for outcome in waiting)
        # Let them end.
        ranks[0].call("broadcast", topic=never, message=["go"], timeout_s=1)
        for one in ranks[1:]:
            one.call("gather", topic=never, message=["go"], timeout_s=1)
        for outcome in waiting:
            outcome.result(_BOUND_S)

    def test_a_topic_is_used_once(self, ranks: list[RemoteRank], topic: str) -> None:
        ranks[1].call("gather", topic=topic, message=["1"], timeout_s=1)
        with pytest.raises(UsageError):
            ranks[1].call("gather", topic=topic, message=["1"], timeout_s=1)
        ranks[0].call("broadcast", topic=topic, message=["0"], timeout_s=1)
        with pytest.raises(UsageError):
            ranks[0].call("broadcast", topic=topic, message=["0"], timeout_s=1)

    def test_wrong_arguments_are_refused(self, ranks: list[RemoteRank], topic: str) -> None:
        for one in ranks[:2]:
            with pytest.raises(UsageError):
                one.call("gather", topic="no/topic", message=["x"], timeout_s=1)
            with pytest.raises(UsageError):
                one.call("gather", topic=topic, message=["x"], timeout_s=None)
            with pytest.raises(UsageError):
                one.call("gather", topic=topic, message=["x", 64 * _MIB + 1], timeout_s=1)
        with pytest.raises(UsageError):
            ranks[0].call("broadcast", topic=topic, timeout_s=1)
        with pytest.raises(UsageError):
            ranks[1].call("broadcast", topic=topic, message=["x"], timeout_s=1)

    def test_what_was_forgotten_is_gone(self, ranks: list[RemoteRank], topic: str) -> None:
        _exchange(ranks, topic, 300_000)
        for one in reversed(ranks):
            one.call("forget", topic=topic)
        ends_s = time.monotonic() + _BOUND_S
        while len(ranks[0].call("gather", topic=topic, message=["0"], timeout_s=0)) > 1:
            assert time.monotonic() < ends_s, "the messages are still there"
        while ranks[2].call("broadcast", topic=topic, timeout_s=0) is not None:
            assert time.monotonic() < ends_s, "the message is still there"

    @pytest.mark.parametrize("text", ["", "\x80\x04\x95hostile", "ckM1" + "\xff" * 16])
    def test_a_message_of_somebody_else_is_a_typed_error(
        self, ranks: list[RemoteRank], topic: str, text: str
    ) -> None:
        assert ranks[2].call("inject", topic=topic, text=text)
        with pytest.raises(CorruptError):
            self._gather_until(ranks[0], topic, 2)
        ranks[0].call("forget", topic=topic)

    def test_a_frozen_member_is_missing_and_comes_back(
        self, ranks: list[RemoteRank], topics: Iterator[str]
    ) -> None:
        first, second = next(topics), next(topics)
        ranks[2].freeze()
        try:
            late = ranks[2].start("gather", topic=first, message=["woke up"], timeout_s=_LONG_S)
            for one in (ranks[1], ranks[3]):
                one.call("gather", topic=first, message=["in time"], timeout_s=1)
            found = ranks[0].call("gather", topic=first, message=["0"], timeout_s=2)
            assert set(found) == {"0", "1", "3"}
            ranks[0].call("broadcast", topic=first, message=["failed"], timeout_s=1)
            assert ranks[3].call("broadcast", topic=first, timeout_s=_LONG_S) == summary(b"failed")
        finally:
            ranks[2].thaw()
        assert late.result(_BOUND_S) == {}
        assert ranks[2].call("broadcast", topic=first, timeout_s=_LONG_S) == summary(b"failed")
        _exchange(ranks, second, 10)

    def test_nobody_waits_longer_for_a_frozen_chief(
        self, ranks: list[RemoteRank], topics: Iterator[str]
    ) -> None:
        first, second = next(topics), next(topics)
        ranks[0].freeze()
        try:
            listening = [one.start("broadcast", topic=first, timeout_s=1) for one in ranks[1:]]
            sending = ranks[1].start("gather", topic=first, message=["1"], timeout_s=1)
            assert [outcome.result(_BOUND_S) for outcome in listening] == [None] * 3
            # Whether or not it could be handed over.
            with suppress(CoordinatorLostError):
                assert sending.result(_BOUND_S) == {}
        finally:
            ranks[0].thaw()
        _exchange(ranks, second, 10)

    def test_a_coordinator_is_closed_for_good_and_another_one_opened(
        self, ranks: list[RemoteRank], topics: Iterator[str]
    ) -> None:
        topic = next(topics)
        ranks[1].call("gather", topic=topic, message=["of the first"], timeout_s=1)
        closing = [one.start("close") for one in ranks]
        for outcome in closing:
            outcome.result(_BOUND_S)
        for one in ranks:
            one.call("close")
            with pytest.raises(UsageError):
                one.call("broadcast", topic=topic, timeout_s=1)
        opening = [one.start("reopen") for one in ranks]
        assert [outcome.result(_BOUND_S)["rank"] for outcome in opening] == list(range(_SIZE))
        # Nothing of the first one is heard.
        assert set(ranks[0].call("gather", topic=topic, message=["0"], timeout_s=0.3)) == {"0"}
        _exchange(ranks, next(topics), 10)

    def test_ranks_may_be_killed_the_chief_at_last(
        self, group: _Group, ranks: list[RemoteRank], topics: Iterator[str]
    ) -> None:
        group.is_spent = True
        first, second = next(topics), next(topics)
        waiting = ranks[1].start("broadcast", topic=second, timeout_s=_LONG_S)
        ranks[2].kill()
        if not self.survives_death:
            with pytest.raises(ConnectionError):
                waiting.result(_BOUND_S)
            return
        for one in (ranks[1], ranks[3]):
            one.call("gather", topic=first, message=["alive"], timeout_s=1)
        found = ranks[0].call("gather", topic=first, message=["0"], timeout_s=1)
        assert set(found) == {"0", "1", "3"}
        ranks[0].call("broadcast", topic=first, message=["go"], timeout_s=1)
        assert ranks[3].call("broadcast", topic=first, timeout_s=_LONG_S) == summary(b"go")
        assert not waiting.done()
        ranks[0].kill()
        self.check_without_chief(ranks[3], next(topics))

    def check_without_chief(self, member: RemoteRank, topic: str) -> None:
        """Check that `member` does not wait longer than it said; its engine may end the process."""
        with suppress(CoordinatorLostError, ConnectionError):
            assert member.call("broadcast", topic=topic, timeout_s=1) is None


def _exchange(ranks: list[RemoteRank], topic: str, size_bytes: int) -> None:
    """Let all ranks hand over, and the chief hand out, messages of that size."""
    messages = [make_message(f"{topic} {one.rank} ", size_bytes) for one in ranks]
    gathering = [
        one.start("gather", topic=topic, message=[f"{topic} {one.rank} ", size_bytes], timeout_s=_LONG_S)
        for one in ranks
    ]
    found = [outcome.result(_BOUND_S) for outcome in gathering]
    assert found[0] == {str(rank): summary(data) for rank, data in enumerate(messages)}
    assert found[1:] == [{}] * (len(ranks) - 1)
    said = [f"{topic} says ", size_bytes]
    broadcasting = [
        one.start("broadcast", topic=topic, message=None if one.rank else said, timeout_s=_LONG_S)
        for one in ranks
    ]
    expected = summary(make_message(f"{topic} says ", size_bytes))
    assert [outcome.result(_BOUND_S) for outcome in broadcasting] == [expected] * len(ranks)
