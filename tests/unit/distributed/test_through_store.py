"""Messages as objects: who finds what, what is left, and that no command takes them for a checkpoint."""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.directory.garbage_search import find_garbage
from ckptstore.distributed.through_store import open_coordinator
from ckptstore.storage.registry import locate
from tests.unit.transfer.helpers import eventually

LONG_S = 60.0


def open_all(url, size=3, attempt="job.1"):
    def open_one(rank):
        return open_coordinator(url=url, rank=rank, size=size, attempt=attempt, timeout_s=LONG_S)

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(open_one, range(size)))


def close_all(ranks):
    with ThreadPoolExecutor(len(ranks)) as pool:
        list(pool.map(lambda one: one.close(), ranks))


def test_nothing_is_left_after_the_end(tmp_path):
    ranks = open_all(tmp_path)
    for one in ranks[1:]:
        one.gather("t", bytes(1000), timeout_s=LONG_S)
    assert len(ranks[0].gather("t", b"", timeout_s=LONG_S)) == 3
    assert all(name.startswith(".ckptstore-ranks~job.1~") for name in os.listdir(tmp_path))
    close_all(ranks)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("attempt", ["job/1", "ü", "x" * 41, "", "a~b"])
def test_any_text_names_an_attempt(tmp_path, attempt):
    ranks = open_all(tmp_path, size=2, attempt=attempt)
    ranks[1].gather("t", b"x", timeout_s=LONG_S)
    assert len(ranks[0].gather("t", b"", timeout_s=LONG_S)) == 2
    close_all(ranks)


def test_no_name_is_too_long_for_a_disk(tmp_path):
    ranks = open_all(tmp_path, size=2, attempt="a" * 40)
    ranks[1].gather("t" * 100, b"x", timeout_s=LONG_S)
    assert max(map(len, os.listdir(tmp_path))) < 200
    close_all(ranks)


def test_two_jobs_in_one_directory_do_not_hear_each_other(tmp_path):
    first, second = open_all(tmp_path, size=2, attempt="1"), open_all(tmp_path, size=2, attempt="2")
    first[1].gather("t", b"first", timeout_s=LONG_S)
    assert second[0].gather("t", b"", timeout_s=0) == {0: b""}
    close_all(first)
    second[1].gather("u", b"second", timeout_s=LONG_S)
    assert second[0].gather("u", b"", timeout_s=LONG_S) == {0: b"", 1: b"second"}
    close_all(second)


def test_a_job_that_died_leaves_garbage_and_no_checkpoint(tmp_path):
    ranks = open_all(tmp_path)
    ranks[1].gather("model-7.index", b"x", timeout_s=LONG_S)
    left = sorted(os.listdir(tmp_path))
    assert left
    assert ck.latest_checkpoint(str(tmp_path)) is None
    with ck.Saver() as saver:
        prefix = saver.save({"w": np.zeros(3)}, str(tmp_path / "model"), global_step=1)
    assert ck.latest_checkpoint(str(tmp_path)) == prefix
    directory = locate(tmp_path)
    found = find_garbage(directory, [directory.child("checkpoint")], min_age_s=0)
    assert sorted(file.name for file in found.files) == left
    assert {file.reason for file in found.files} == {"temporary"}
    young = find_garbage(directory, [directory.child("checkpoint")], min_age_s=3600)
    assert sorted(file.name for file in young.young) == left
    close_all(ranks)


def test_messages_of_few_ranks_are_asked_for_without_a_list_and_dropped_by_topic(monkeypatch):
    directory = locate("memory://ranks-requests/run")
    ranks = open_all("memory://ranks-requests/run")
    asked = []
    for name in ("list", "delete_many"):
        method = getattr(type(directory.storage), name)

        def counting(self, argument, *rest, name=name, method=method, **options):
            asked.append((name, argument))
            return method(self, argument, *rest, **options)

        monkeypatch.setattr(type(directory.storage), name, counting)
    for number in range(12):
        for one in ranks[1:]:
            one.gather(f"t{number}", b"x", timeout_s=LONG_S)
        assert len(ranks[0].gather(f"t{number}", b"", timeout_s=LONG_S)) == 3
        ranks[0].broadcast(f"u{number}", b"x", timeout_s=LONG_S)
        for topic in (f"t{number}", f"u{number}"):
            ranks[0].forget(topic)
    assert eventually(lambda: len(asked) == 24)
    found = Counter((name, len(keys)) for name, keys in asked)
    assert found == {("delete_many", 1): 12, ("delete_many", 2): 12}
    close_all(ranks)
