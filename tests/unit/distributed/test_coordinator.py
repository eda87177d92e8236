"""The coordinator of one rank, and what every coordinator refuses."""

from __future__ import annotations

import pytest

import ckptstore as ck
from ckptstore.distributed.coordinator import (
    MAX_MESSAGE_BYTES,
    Coordinator,
    SingleCoordinator,
    check_message,
    check_timeout,
    check_topic,
    host_names_of,
)
from tests.does_not_raise import does_not_raise


def test_one_rank_hears_itself():
    single = SingleCoordinator()
    assert isinstance(single, Coordinator)
    assert (single.rank, single.size) == (0, 1)
    assert single.gather("save.1.done", b"own", timeout_s=0) == {0: b"own"}
    assert single.broadcast("save.1.done", b"out", timeout_s=0) == b"out"
    single.forget("save.1.done")


def test_one_rank_is_the_chief_and_has_to_say_something():
    with pytest.raises(ck.UsageError, match="the chief broadcasts something"):
        SingleCoordinator().broadcast("t", timeout_s=1)


def test_a_closed_coordinator_refuses_calls():
    single = SingleCoordinator()
    single.close()
    single.close()
    with pytest.raises(ck.UsageError, match="closed"):
        single.gather("t", b"", timeout_s=0)
    with pytest.raises(ck.UsageError, match="closed"):
        single.broadcast("t", b"", timeout_s=0)


@pytest.mark.parametrize("topic", ["", ".hidden", "a/b", "a b", "ü", "a\n", "x" * 101, None, 3])
def test_a_topic_that_some_mailbox_would_not_take_is_refused(topic):
    with pytest.raises(ck.UsageError, match="a topic has 1 to 100"):
        check_topic(topic)


@pytest.mark.parametrize("topic", ["a", "save.7f3a-2.write", "0", "x" * 100])
def test_a_topic_that_every_mailbox_takes_is_accepted(topic):
    with does_not_raise():
        check_topic(topic)


@pytest.mark.parametrize("seconds", [None, "1", True, float("inf"), float("nan")])
def test_waiting_has_an_end(seconds):
    with pytest.raises(ck.UsageError, match="finite number of seconds"):
        check_timeout(seconds)


@pytest.mark.parametrize("data", ["text", bytearray(b"x"), None, memoryview(b"x")])
def test_a_message_is_bytes(data):
    with pytest.raises(ck.UsageError, match="a message is bytes"):
        check_message("t", data)


def test_a_message_beyond_the_limit_is_refused():
    with does_not_raise():
        check_message("t", bytes(MAX_MESSAGE_BYTES))
    with pytest.raises(ck.UsageError, match="at most 64 MiB"):
        check_message("t", bytes(MAX_MESSAGE_BYTES + 1))


def test_host_names_are_empty_where_the_coordinator_knows_none():
    assert host_names_of(SingleCoordinator()) == ("",)
