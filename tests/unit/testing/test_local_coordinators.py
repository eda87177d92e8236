"""The ranks of a job in one process: messages arrive, are lost, are late, and a frozen rank says nothing."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import ckptstore as ck
from ckptstore.distributed.coordinator import Coordinator
from ckptstore.testing import make_local_coordinators

LONG_S = 60.0


def test_one_thread_may_play_a_thousand_ranks():
    ranks = make_local_coordinators(1024)
    assert all(isinstance(one, Coordinator) for one in ranks[:2])
    assert [one.rank for one in ranks] == list(range(1024))
    for member in ranks[1:]:
        assert member.gather("plan", b"%d" % member.rank, timeout_s=LONG_S) == {}
    everything = ranks[0].gather("plan", b"0", timeout_s=LONG_S)
    assert everything == {rank: b"%d" % rank for rank in range(1024)}
    assert ranks[0].broadcast("plan", b"order", timeout_s=LONG_S) == b"order"
    assert {one.broadcast("plan", timeout_s=LONG_S) for one in ranks[1:]} == {b"order"}
    ranks[0].forget("plan")
    assert ranks[0].kept_messages() == 0


def test_ranks_in_threads_of_their_own_wait_for_each_other():
    ranks = make_local_coordinators(8)

    def play(one):
        sums = []
        for round_number in range(20):
            found = one.gather(f"r{round_number}", bytes([one.rank]), timeout_s=LONG_S)
            total = bytes([sum(data[0] for data in found.values())]) if found else None
            sums.append(one.broadcast(f"r{round_number}", total, timeout_s=LONG_S))
        return sums

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(play, ranks)) == [[bytes([28])] * 20] * 8


def test_the_chief_takes_what_came_in_time_and_may_look_again():
    chief, one, two = make_local_coordinators(3)
    one.gather("t", b"one", timeout_s=0)
    assert chief.gather("t", b"own", timeout_s=0.01) == {0: b"own", 1: b"one"}
    two.gather("t", b"two", timeout_s=0)
    assert chief.gather("t", b"own", timeout_s=0) == {0: b"own", 1: b"one", 2: b"two"}


def test_enough_ends_the_wait():
    chief, one, _ = make_local_coordinators(3)
    asked = []

    def enough(found):
        asked.append(sorted(found))
        return b"failed" in found.values()

    one.gather("t", b"failed", timeout_s=0)
    assert chief.gather("t", b"", timeout_s=LONG_S, enough=enough) == {0: b"", 1: b"failed"}
    assert asked == [[0, 1]]


def test_a_late_message_is_not_taken_for_one_of_another_topic():
    chief, one = make_local_coordinators(2)
    assert chief.gather("first", b"", timeout_s=0) == {0: b""}
    one.gather("first", b"late", timeout_s=0)
    assert chief.gather("second", b"", timeout_s=0) == {0: b""}


def test_nothing_came():
    _, one = make_local_coordinators(2)
    assert one.broadcast("t", timeout_s=0.01) is None


def test_a_topic_is_used_once():
    chief, one = make_local_coordinators(2)
    one.gather("t", b"", timeout_s=0)
    with pytest.raises(ck.UsageError, match="twice"):
        one.gather("t", b"", timeout_s=0)
    chief.broadcast("t", b"", timeout_s=0)
    with pytest.raises(ck.UsageError, match="twice"):
        chief.broadcast("t", b"", timeout_s=0)


def test_who_broadcasts_is_the_chief():
    chief, one = make_local_coordinators(2)
    with pytest.raises(ck.UsageError, match="the chief broadcasts"):
        chief.broadcast("t", timeout_s=0)
    with pytest.raises(ck.UsageError, match="the chief broadcasts"):
        one.broadcast("t", b"mine", timeout_s=0)


def test_messages_of_a_rank_that_is_cut_off_are_lost_both_ways():
    chief, one, two = make_local_coordinators(3)
    one.drop_messages()
    for member in (one, two):
        member.gather("t", b"%d" % member.rank, timeout_s=0)
    chief.broadcast("t", b"all", timeout_s=0)
    assert chief.gather("t", b"", timeout_s=0.01) == {0: b"", 2: b"2"}
    assert one.broadcast("t", timeout_s=0.01) is None
    assert two.broadcast("t", timeout_s=LONG_S) == b"all"
    one.drop_messages(False)
    assert one.broadcast("t", timeout_s=LONG_S) == b"all"


def test_messages_may_be_late_both_ways():
    chief, one = make_local_coordinators(2)
    one.delay_messages(0.2)
    one.gather("t", b"1", timeout_s=0)
    assert chief.gather("t", b"0", timeout_s=0) == {0: b"0"}
    assert chief.gather("t", b"0", timeout_s=LONG_S) == {0: b"0", 1: b"1"}
    chief.broadcast("t", b"out", timeout_s=0)
    assert one.broadcast("t", timeout_s=0) is None
    assert one.broadcast("t", timeout_s=LONG_S) == b"out"


def test_a_frozen_rank_says_nothing_until_it_is_thawed():
    chief, one = make_local_coordinators(2)
    one.freeze()
    sender = threading.Thread(target=one.gather, args=("t", b"1"), kwargs={"timeout_s": LONG_S})
    sender.start()
    try:
        assert chief.gather("t", b"0", timeout_s=0.05) == {0: b"0"}
        assert sender.is_alive()
    finally:
        one.thaw()
        sender.join(LONG_S)
    assert not sender.is_alive()
    assert chief.gather("t", b"0", timeout_s=0) == {0: b"0", 1: b"1"}


def test_closing_ends_the_waits_of_other_threads():
    chief, one = make_local_coordinators(2)
    is_waiting = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        gathering = pool.submit(
            chief.gather, "t", b"0", timeout_s=LONG_S, enough=lambda found: is_waiting.set() or False
        )
        assert is_waiting.wait(LONG_S)
        chief.close()
        assert gathering.result(LONG_S) == {0: b"0"}
    with pytest.raises(ck.UsageError, match="closed"):
        chief.gather("t", b"0", timeout_s=0)
    assert one.broadcast("t", timeout_s=0) is None


def test_a_rank_forgets_what_it_sent_and_the_chief_everything():
    chief, one, two = make_local_coordinators(3)
    for member in (one, two):
        member.gather("t", b"", timeout_s=0)
    chief.broadcast("t", b"", timeout_s=0)
    one.forget("t")
    assert chief.kept_messages() == 2
    chief.forget("t")
    assert chief.kept_messages() == 0
