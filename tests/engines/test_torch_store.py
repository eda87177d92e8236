"""What the coordinator leaves in the store of torch.distributed, which belongs to the job."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

import ckptstore as ck
from tests.servers.process import free_port

SIZE = 4
LONG_S = 60.0


@pytest.fixture
def store() -> dist.TCPStore:
    return dist.TCPStore("127.0.0.1", free_port(), None, True, timedelta(seconds=60), wait_for_workers=False)


@pytest.fixture
def ranks(store: dist.TCPStore) -> Iterator[list[Any]]:
    def open_one(rank: int) -> Any:
        client = dist.TCPStore(store.host, store.port, None, False, timedelta(seconds=60))
        return ck.coordinator("torch", rank=rank, size=SIZE, store=client)

    with ThreadPoolExecutor(SIZE) as pool:
        ranks = list(pool.map(open_one, range(SIZE)))
        yield ranks
        list(pool.map(lambda one: one.close(), ranks))


def test_a_hundred_saves_leave_a_few_keys(store: dist.TCPStore, ranks: list[Any]) -> None:
    for number in range(100):
        topic = f"save.{number}"
        for one in ranks[1:]:
            one.gather(topic, b"done", timeout_s=LONG_S)
        assert len(ranks[0].gather(topic, b"", timeout_s=LONG_S)) == SIZE
        ranks[0].broadcast(topic, b"committed", timeout_s=LONG_S)
        assert [one.broadcast(topic, timeout_s=LONG_S) for one in ranks[1:]] == [b"committed"] * 3
        if number:
            ranks[0].forget(f"save.{number - 1}")
    assert store.num_keys() <= 8 * SIZE


def test_no_value_is_larger_than_a_mebibyte(store: dist.TCPStore, ranks: list[Any]) -> None:
    data = bytes(3_000_000)
    ranks[1].gather("large", data, timeout_s=LONG_S)
    ranks[0].broadcast("large", data, timeout_s=LONG_S)
    assert ranks[2].broadcast("large", timeout_s=LONG_S) == data
    found = ranks[0].gather("large", b"", timeout_s=LONG_S, enough=lambda found: 1 in found)
    assert found[1] == data
    sizes = [len(store.get(key)) for key in store.list_keys()]
    assert sum(sizes) > 2 * len(data)
    assert max(sizes) <= 1 << 20


def test_a_thread_that_waits_on_the_store_of_the_job_holds_up_nothing(
    store: dist.TCPStore, ranks: list[Any]
) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(store.wait, ["later"], timedelta(seconds=60))
        for one in ranks[1:]:
            one.gather("t", b"", timeout_s=LONG_S)
        assert len(ranks[0].gather("t", b"", timeout_s=LONG_S)) == SIZE
        assert not waiting.done()
        dist.TCPStore(store.host, store.port, None, False).set("later", "now")
        waiting.result(LONG_S)


def test_without_a_process_group_it_says_what_to_do() -> None:
    with pytest.raises(ck.UsageError, match=r"not initialised\. Call torch.distributed.init_process_group"):
        ck.coordinator("torch")


def test_a_store_without_a_clone_is_refused() -> None:
    with pytest.raises(ck.UsageError, match=r"cannot be cloned.*Pass store="):
        ck.coordinator("torch", rank=0, size=1, store=object())
