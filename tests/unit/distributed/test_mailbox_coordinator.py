"""The two verbs over any mailbox: parts, late and mangled messages, frozen and lost mailboxes, leftovers."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import ckptstore as ck
from ckptstore.distributed import mailbox_coordinator
from ckptstore.distributed.coordinator import Coordinator
from ckptstore.distributed.mailbox_coordinator import MailboxCoordinator
from tests.unit.distributed.memory_mailbox import MemoryMailbox

LONG_S = 60.0


@pytest.fixture
def mailbox():
    return MemoryMailbox()


@pytest.fixture
def ranks(mailbox):
    return [MailboxCoordinator(mailbox, rank, 4, "run") for rank in range(4)]


def test_it_is_a_coordinator(ranks):
    assert isinstance(ranks[0], Coordinator)
    assert repr(ranks[2]) == "<coordinator of rank 2 of 4>"


@pytest.mark.parametrize("size", [0, 1, 1000, 1024, 100_000])
def test_messages_of_any_size_arrive(mailbox, ranks, size):
    messages = {rank: bytes([rank]) * size for rank in range(4)}
    for rank in (1, 2, 3):
        assert ranks[rank].gather("t", messages[rank], timeout_s=LONG_S) == {}
    assert ranks[0].gather("t", messages[0], timeout_s=LONG_S) == messages
    assert ranks[0].broadcast("t", messages[3], timeout_s=LONG_S) == messages[3]
    assert [one.broadcast("t", timeout_s=LONG_S) for one in ranks[1:]] == [messages[3]] * 3
    assert mailbox.largest <= mailbox.max_value_bytes


def test_forgetting_leaves_nothing(mailbox, ranks):
    for one in ranks[1:3]:
        one.gather("read", bytes(5000), timeout_s=LONG_S)
    for topic in ("read", "strange"):
        ranks[0].gather(topic, b"", timeout_s=0)
    # Neither of these is looked at, and one is none of ours.
    ranks[3].gather("read", bytes(5000), timeout_s=LONG_S)
    mailbox.values["run/g/strange", "2"] = b"who are you"
    for topic in ("read", "strange"):
        ranks[0].broadcast(topic, bytes(5000), timeout_s=LONG_S)
        ranks[0].forget(topic)
    for one in reversed(ranks):
        one.close()
    assert mailbox.values == {}


def test_what_the_chief_only_said_is_dropped_without_a_look(mailbox, ranks):
    ranks[0].broadcast("t", bytes(5000), timeout_s=LONG_S)
    ranks[0].forget("t")
    for one in reversed(ranks):
        one.close()
    assert mailbox.values == {}
    assert "run/g/t" not in dict(mailbox.looked)


def test_where_each_name_is_a_request_one_is_asked_for_at_a_time(mailbox, ranks):
    mailbox.asks_each = True
    assert ranks[0].gather("t", b"", timeout_s=0.5) == {0: b""}
    asked = [names for _, names in mailbox.looked if names]
    assert asked[:4] == [["1", "2", "3"], ["2"], ["3"], ["1"]]
    assert {len(names) for names in asked[1:]} == {1}
    mailbox.looked.clear()
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(ranks[0].gather, "u", b"", timeout_s=LONG_S)
        while len(mailbox.looked) < 2:
            time.sleep(0.001)
        for one in ranks[1:]:
            one.gather("u", bytes(5000), timeout_s=LONG_S)
        assert found.result(LONG_S).keys() == {0, 1, 2, 3}


def test_a_member_forgets_what_came_too_late(mailbox, ranks):
    ranks[0].gather("t", b"", timeout_s=0)
    ranks[0].forget("t")
    ranks[2].gather("t", bytes(5000), timeout_s=LONG_S)
    ranks[2].forget("t")
    for one in reversed(ranks):
        one.close()
    assert mailbox.values == {}


def test_a_message_whose_parts_are_not_there_yet_has_not_come(mailbox, ranks):
    ranks[1].gather("t", bytes(5000), timeout_s=LONG_S)
    part = mailbox.values.pop(("run/g-parts/t/1", "3"))
    assert ranks[0].gather("t", b"", timeout_s=0.05) == {0: b""}
    mailbox.values["run/g-parts/t/1", "3"] = part
    assert ranks[0].gather("t", b"", timeout_s=0) == {0: b"", 1: bytes(5000)}


@pytest.mark.parametrize("value", [b"", b"hostile", b"ckM1" + b"\xff" * 16])
def test_a_message_of_somebody_else_is_a_typed_error(mailbox, ranks, value):
    mailbox.values["run/g/t", "2"] = value
    with pytest.raises(ck.CorruptError, match="the message of rank 2 under topic 't'"):
        ranks[0].gather("t", b"", timeout_s=LONG_S)
    mailbox.values["run/b/t", "0"] = value
    with pytest.raises(ck.CorruptError, match="the message of rank 0"):
        ranks[1].broadcast("t", timeout_s=LONG_S)


def test_a_frozen_mailbox_holds_nobody_beyond_the_time(mailbox, ranks, monkeypatch):
    monkeypatch.setattr(mailbox_coordinator, "_GRACE_S", 0.1)
    ranks[1].gather("t", b"1", timeout_s=LONG_S)
    mailbox.running.clear()
    began = time.monotonic()
    try:
        assert ranks[0].gather("t", b"0", timeout_s=0.1) == {0: b"0"}
        assert ranks[2].broadcast("t", timeout_s=0.1) is None
        with pytest.raises(ck.CoordinatorLostError, match=r"rank 3 could not hand over .* within 0.1 s"):
            ranks[3].gather("t", b"3", timeout_s=0.1)
        assert time.monotonic() - began < LONG_S
    finally:
        mailbox.running.set()
    assert ranks[0].gather("t", b"0", timeout_s=0.5) == {0: b"0", 1: b"1", 3: b"3"}


def test_a_lost_mailbox_is_a_typed_error_and_closing_it_is_none(mailbox, ranks):
    mailbox.is_lost = True
    for call in (
        lambda: ranks[0].gather("t", b"", timeout_s=1),
        lambda: ranks[1].gather("t", b"", timeout_s=1),
        lambda: ranks[0].broadcast("t", b"", timeout_s=1),
        lambda: ranks[1].broadcast("t", timeout_s=1),
    ):
        with pytest.raises(ck.CoordinatorLostError):
            call()
    for one in ranks:
        one.forget("t")
    for one in reversed(ranks):
        one.close()


def test_what_enough_raises_ends_the_gathering(ranks):
    ranks[1].gather("t", b"1", timeout_s=LONG_S)

    def enough(found):
        raise LookupError(str(sorted(found)))

    with pytest.raises(LookupError, match=r"\[0, 1\]"):
        ranks[0].gather("t", b"0", timeout_s=LONG_S, enough=enough)


def test_topics_do_not_disturb_each_other(ranks):
    def exchange(number):
        topic = f"t{number}"

        def play(one):
            found = one.gather(topic, b"%d" % number, timeout_s=LONG_S)
            return one.broadcast(topic, b"".join(found.values()) or None, timeout_s=LONG_S)

        with ThreadPoolExecutor(4) as pool:
            return set(pool.map(play, ranks))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(exchange, range(20))) == [{b"%d" % n * 4} for n in range(20)]


def test_a_topic_is_used_once(ranks):
    ranks[1].gather("t", b"", timeout_s=1)
    with pytest.raises(ck.UsageError, match="rank 1 sends twice under topic 't'"):
        ranks[1].gather("t", b"", timeout_s=1)
    ranks[0].broadcast("t", b"", timeout_s=1)
    with pytest.raises(ck.UsageError, match="rank 0 sends twice under topic 't'"):
        ranks[0].broadcast("t", b"", timeout_s=1)


def test_the_chief_waits_for_the_others_when_it_closes(mailbox, ranks):
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(ranks[0].close)
        for one in ranks[1:]:
            assert not closing.done()
            one.close()
        closing.result(LONG_S)
    with pytest.raises(ck.UsageError, match="closed"):
        ranks[0].broadcast("t", b"", timeout_s=1)
    assert mailbox.values == {}
