"""Cutting into parts, checksums, memory, and what is left after an error."""

from __future__ import annotations

import itertools
import math
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.checksums import crc32c
from ckptstore.errors import TransientError, UsageError
from ckptstore.transfer.transfer import Transfer
from ckptstore.transfer.upload import BudgetLease, Checksum, PartSender
from tests.unit.bundle.helpers import Sink
from tests.unit.transfer.helpers import TIMEOUT_S, in_background


@given(
    st.lists(st.tuples(st.binary(max_size=50), st.booleans(), st.booleans()), max_size=12),
    st.integers(1, 20),
    st.integers(1, 3),
    st.booleans(),
)
def test_the_parts_are_those_of_the_joined_bytes(pieces, part_size, parallel, is_size_known) -> None:
    whole = b"".join(data for data, _, _ in pieces)
    sink = Sink(part_size, parallel)
    transfer = Transfer("save", "x")
    sender = PartSender(sink, transfer, len(whole) if is_size_known else None)
    checksums = []
    for data, is_owned, is_last_one_settled in pieces:
        memory = bytearray(data)
        checksum = Checksum()
        checksums.append(checksum)
        lease = sender.reserve(len(data)) if is_owned else None
        sender.put(memoryview(memory), checksum=checksum, lease=lease)
        if lease is not None:
            lease.release()
        elif is_last_one_settled:
            sender.detach_from_caller()
            memory[:] = bytes(len(memory))
    sender.finish()
    sink.commit()
    assert [sink.parts[n] for n in range(len(sink.parts))] == [
        whole[n * part_size : (n + 1) * part_size] for n in range(max(1, math.ceil(len(whole) / part_size)))
    ]
    assert [checksum.value for checksum in checksums] == [crc32c(data) for data, _, _ in pieces]
    assert (sender.crc32c, sender.size_bytes) == (crc32c(whole), len(whole))
    assert transfer.done_bytes == len(whole)
    sender.close()
    assert transfer.budget.used_bytes == 0


class _Held(Sink):
    """Sends when it is told to."""

    def __init__(self, part_size_bytes: int, parallel: int) -> None:
        super().__init__(part_size_bytes, parallel)
        self.let = threading.Semaphore(0)
        self.arrived = threading.Semaphore(0)

    def _send(self, *args: Any) -> None:
        self.arrived.release()
        assert self.let.acquire(timeout=TIMEOUT_S)
        super()._send(*args)


def test_no_more_parts_than_allowed_are_under_way() -> None:
    sink = _Held(10, 2)
    sender = PartSender(sink, Transfer("save", "x"), 60)
    wait = in_background(lambda: (sender.put(memoryview(bytes(60))), sender.finish()))
    for _ in range(2):
        assert sink.arrived.acquire(timeout=TIMEOUT_S)
    assert not sink.arrived.acquire(timeout=0.05)
    for _ in range(6):
        sink.let.release()
    wait()
    assert len(sink.data) == 60


def test_one_part_is_sent_in_the_caller_s_thread() -> None:
    threads = []

    class Noted(Sink):
        def _send(self, *args: Any) -> None:
            threads.append(threading.get_ident())
            super()._send(*args)

    sender = PartSender(Noted(100, 4), Transfer("save", "x"), 60)
    sender.put(memoryview(bytes(60)))
    sender.finish()
    assert threads == [threading.get_ident()]


def test_memory_is_given_back_with_its_last_part_and_that_of_the_last_part_at_the_end() -> None:
    freed: list[str] = []
    sink = Sink(10)
    transfer = Transfer("save", "x")
    sender = PartSender(sink, transfer, 30)

    def hold(name: str, size_bytes: int) -> BudgetLease:
        transfer.budget.acquire(size_bytes)
        return BudgetLease(transfer.budget, size_bytes, lambda: freed.append(name))

    for name, size_bytes in (("a", 5), ("b", 10), ("c", 15)):
        held = hold(name, size_bytes)
        sender.put(memoryview(bytes(size_bytes)), lease=held)
        held.release()
    assert freed == ["a", "b"]
    sender.finish()
    assert (freed, transfer.budget.used_bytes) == (["a", "b"], 15)
    sender.close()
    assert (freed, transfer.budget.used_bytes) == (["a", "b", "c"], 0)


def test_it_waits_for_memory_but_not_for_its_own() -> None:
    transfer = Transfer("save", "x", memory_budget=10)
    sink = Sink(100, 2)
    sender = PartSender(sink, transfer)
    for _ in range(30):
        lease = sender.reserve(8)
        sender.put(memoryview(bytes(8)), lease=lease)
        lease.release()
    sender.finish()
    sender.close()
    assert len(sink.data) == 240
    assert transfer.budget.used_bytes == 0


@pytest.mark.parametrize("parallel", [1, 3])
def test_after_an_error_nothing_runs_and_no_memory_is_held(parallel: int) -> None:
    class Broken(Sink):
        def _send(self, number: int, *args: Any) -> None:
            if number == 3:
                raise TransientError("the wire was cut")
            super()._send(number, *args)

    transfer = Transfer("save", "x", memory_budget=50)
    sender = PartSender(Broken(10, parallel), transfer, 1000)

    def feed() -> None:
        for _ in range(100):
            lease = sender.reserve(10)
            try:
                sender.put(memoryview(bytes(10)), lease=lease)
            finally:
                lease.release()
        sender.finish()

    with pytest.raises(TransientError, match="wire was cut"):
        feed()
    with pytest.raises(TransientError, match="wire was cut"):
        sender.put(memoryview(bytes(10)))
    sender.close()
    assert transfer.budget.used_bytes == 0


def test_bytes_that_are_missing_are_an_error_and_not_a_short_object() -> None:
    sender = PartSender(Sink(10), Transfer("save", "x"), 30)
    sender.put(memoryview(bytes(29)))
    with pytest.raises(UsageError, match="another size than planned"):
        sender.finish()


def test_a_checksum_is_combined_in_the_order_of_the_pieces() -> None:
    data = bytes(range(250)) * 3
    cuts = [0, 1, 100, 400, 750]
    checksum = Checksum()
    pieces = [data[start:stop] for start, stop in itertools.pairwise(cuts)]
    numbers = [checksum.add_piece(len(piece)) for piece in pieces]
    for number, piece in reversed(list(zip(numbers, pieces, strict=True))):
        checksum.set_piece(number, crc32c(piece))
    assert checksum.value == crc32c(data)
