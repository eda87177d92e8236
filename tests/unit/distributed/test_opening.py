"""Ranks find each other, also where an earlier start of the job left its messages, and say what is wrong."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import pytest

import ckptstore as ck
from ckptstore.config import host_name
from ckptstore.distributed import opening
from ckptstore.distributed.framing import read_head, split
from ckptstore.distributed.mailbox import Announcement
from ckptstore.distributed.opening import open_mailbox
from tests.unit.distributed.memory_mailbox import MemoryMailbox

LONG_S = 60.0


def open_all(mailbox, sizes=(4, 4, 4, 4), ranks=None, timeout_s=LONG_S):
    """The coordinator of each rank, or its error."""

    def open_one(pair):
        try:
            return open_mailbox(mailbox, *pair, timeout_s=timeout_s)
        except ck.CkptStoreError as error:
            return error

    pairs = list(zip(ranks or range(len(sizes)), sizes, strict=True))
    with ThreadPoolExecutor(len(pairs)) as pool:
        return list(pool.map(open_one, pairs))


@pytest.fixture
def short_graces(monkeypatch):
    """For tests in which somebody waits in vain."""
    monkeypatch.setattr(opening, "_MEMBERS_GRACE_S", 0.1)
    monkeypatch.setattr(opening, "_GRACE_S", 0.1)


def test_all_find_each_other_and_know_the_hosts():
    opened = open_all(MemoryMailbox())
    assert [one.rank for one in opened] == [0, 1, 2, 3]
    assert len({one.run for one in opened}) == 1
    assert {one.host_names for one in opened} == {(host_name(),) * 4}
    for one in opened[1:]:
        one.gather("t", b"x", timeout_s=LONG_S)
    assert len(opened[0].gather("t", b"x", timeout_s=LONG_S)) == 4


def test_a_restart_under_the_same_job_hears_nothing_of_the_earlier_start():
    mailbox = MemoryMailbox()
    first = open_all(mailbox)
    first[1].gather("save.1", b"of the first start", timeout_s=LONG_S)
    second = open_all(mailbox)
    assert first[0].run != second[0].run
    assert second[0].gather("save.1", b"", timeout_s=0) == {0: b""}


def test_who_announced_itself_and_died_is_answered_in_vain():
    mailbox = MemoryMailbox()
    mailbox.announce(Announcement(1, "dead"))
    mailbox.announce(Announcement(7, "of a larger job"))
    assert [one.rank for one in open_all(mailbox)] == [0, 1, 2, 3]
    assert not [key for key in mailbox.values if key[0] == "open"]


def test_a_rank_that_does_not_come_is_named_by_all():
    errors = open_all(MemoryMailbox(), sizes=(3, 3), timeout_s=0.5)
    for error in errors:
        assert isinstance(error, ck.RanksMissingError)
        assert (error.ranks, error.phase) == ((2,), "open")
        assert "nothing was heard of rank 2" in str(error)


def test_a_chief_that_does_not_come_is_named(short_graces):
    (error,) = open_all(MemoryMailbox(), sizes=(3,), ranks=[1], timeout_s=0.2)
    assert isinstance(error, ck.RanksMissingError)
    assert error.ranks == (0,)


def test_another_number_of_ranks_is_an_error_that_names_both_on_all():
    errors = open_all(MemoryMailbox(), sizes=(3, 3, 8))
    for error in errors:
        assert isinstance(error, ck.UsageError)
        assert "the ranks have different numbers of ranks" in str(error)
        assert f"rank 0 ({host_name()}) 3, rank 2 ({host_name()}) 8" in str(error)


def replace_confirmation(mailbox, monkeypatch, rank, change):
    """Let what `rank` says of itself reach the chief changed."""
    put = mailbox.put

    def changed_put(directory, name, value):
        if directory.endswith("/g/opened") and name == str(rank):
            head = read_head(value, "it")
            value, _ = split(change(head.inline), mailbox.max_value_bytes)
        put(directory, name, value)

    monkeypatch.setattr(mailbox, "put", changed_put)


def test_another_version_is_an_error_that_names_both_on_all(monkeypatch):
    mailbox = MemoryMailbox()
    replace_confirmation(
        mailbox, monkeypatch, 2, lambda said: said.replace(ck.__version__.encode(), b"9.9.9")
    )
    for error in open_all(mailbox, sizes=(3, 3, 3)):
        assert isinstance(error, ck.UsageError)
        assert "different versions of ckptstore" in str(error)
        assert ck.__version__ in str(error)
        assert "9.9.9" in str(error)


@pytest.mark.parametrize("said", [b"[1]", b"\x80\x04pickle", b'{"size"'])
def test_what_no_rank_says_of_itself_is_a_typed_error(monkeypatch, short_graces, said):
    mailbox = MemoryMailbox()
    replace_confirmation(mailbox, monkeypatch, 1, lambda _: said)
    errors = open_all(mailbox, sizes=(2, 2), timeout_s=1)
    assert isinstance(errors[0], ck.CorruptError)
    assert "is not what this package writes" in str(errors[0])


def test_of_two_processes_of_the_same_rank_one_is_refused():
    opened = open_all(MemoryMailbox(), sizes=(3, 3, 3, 3), ranks=[0, 1, 2, 2], timeout_s=2)
    refused = [one for one in opened if isinstance(one, Exception)]
    assert len(refused) == 1
    # Who comes after the others have begun finds nobody.
    assert re.search("is rank 2 of this job too|did not find each other", str(refused[0]))


def test_a_mailbox_that_hangs_does_not_hold_the_opening(short_graces):
    mailbox = MemoryMailbox()
    mailbox.running.clear()
    try:
        (error,) = open_all(mailbox, sizes=(2,), ranks=[1], timeout_s=0.1)
        assert isinstance(error, ck.RanksMissingError)
    finally:
        mailbox.running.set()
