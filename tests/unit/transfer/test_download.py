from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest

from ckptstore.errors import TransientError
from ckptstore.transfer.download import Download, Request, joined
from ckptstore.transfer.transfer import Transfer
from ckptstore.types import ByteRange

KIB = 1024
WATCHDOG_S = 30


class Place:
    """A million bytes to read from, in which every byte is told by its position."""

    def __init__(self, fail_at: int | None = None, meet: int = 1) -> None:
        self.data = (np.arange(1 << 20) % 251).astype(np.uint8)
        self.begun: list[int] = []
        self.threads: set[int] = set()
        self.at_a_time = 0
        self.most_at_a_time = 0
        self._fail_at = fail_at
        self._lock = threading.Lock()
        self._together = threading.Barrier(meet)

    def read_into(self, ranges: Sequence[ByteRange], buffers: Sequence[memoryview], tensor: str) -> None:
        with self._lock:
            self.begun.append(ranges[0].start)
            self.threads.add(threading.get_ident())
            self.at_a_time += 1
            self.most_at_a_time = max(self.most_at_a_time, self.at_a_time)
        try:
            if ranges[0].start == self._fail_at:
                raise TransientError(f"no answer for {tensor}")
            self._together.wait(WATCHDOG_S)
            for wanted, buffer in zip(ranges, buffers, strict=True):
                buffer[:] = self.data.data[wanted.start : wanted.stop]
        finally:
            with self._lock:
                self.at_a_time -= 1


def requests_for(place: Place, target: np.ndarray, size: int, *, lent: bool) -> list[Request]:
    """Return requests that copy all of `place`, through lent blocks or straight."""

    def request(start: int) -> Request:
        part = target.data[start : start + size]

        def take(buffers: Sequence[memoryview]) -> None:
            part[:] = buffers[0]

        return Request(place, "w", [ByteRange(start, start + size)], [None if lent else part], take)

    return [request(start) for start in range(0, len(target), size)]


@pytest.mark.parametrize("lent", [True, False])
@pytest.mark.parametrize("parallel", [1, 4])
def test_every_byte_arrives_at_its_place(parallel: int, lent: bool) -> None:
    place, target = Place(), np.zeros(1 << 20, np.uint8)
    Download(parallel).run(requests_for(place, target, 64 * KIB, lent=lent))
    np.testing.assert_array_equal(target, place.data)
    if parallel == 1:
        assert place.begun == sorted(place.begun)
        assert place.threads == {threading.get_ident()}


def test_requests_travel_at_the_same_time() -> None:
    place, target = Place(meet=4), np.zeros(1 << 20, np.uint8)
    Download(4).run(requests_for(place, target, 64 * KIB, lent=True))
    assert place.most_at_a_time == 4
    assert threading.get_ident() not in place.threads


def test_a_single_request_is_made_in_the_thread_of_the_caller() -> None:
    place, target = Place(), np.zeros(1 << 20, np.uint8)
    Download(4).run(requests_for(place, target, 1 << 20, lent=False))
    assert place.threads == {threading.get_ident()}


def test_the_blocks_that_are_lent_stay_within_the_budget() -> None:
    place, target = Place(), np.zeros(1 << 20, np.uint8)
    with Transfer("restore", "here", memory_budget=600 * KIB) as transfer:
        download = Download(4, transfer)
        assert (download.size_bytes, download.parallel) == (256 * KIB, 2)
        download.run(requests_for(place, target, 256 * KIB, lent=True))
        assert 0 < transfer.budget.high_water_bytes <= 600 * KIB
        assert transfer.budget.used_bytes == 0
    assert place.most_at_a_time <= 2
    np.testing.assert_array_equal(target, place.data)


def test_a_budget_below_one_block_still_reads_one_after_the_other() -> None:
    place, target = Place(), np.zeros(1 << 20, np.uint8)
    Download(4, memory_budget=1).run(requests_for(place, target, 256 * KIB, lent=True))
    assert place.most_at_a_time == 1
    np.testing.assert_array_equal(target, place.data)


def test_the_first_error_ends_the_others_and_nothing_is_written_afterwards() -> None:
    place, target = Place(fail_at=512 * KIB), np.zeros(1 << 20, np.uint8)
    with pytest.raises(TransientError, match="no answer for w"):
        Download(4).run(requests_for(place, target, 64 * KIB, lent=False))
    assert place.at_a_time == 0
    before = target.copy()
    assert len(place.begun) < 16
    target[:] = 9
    assert (target == 9).all()
    assert before[900 * KIB :].sum() == 0


def test_an_error_of_whoever_takes_the_bytes_is_raised_as_it_is() -> None:
    class DamagedError(Exception):
        pass

    def refuse(buffers: Sequence[memoryview]) -> None:
        raise DamagedError

    place = Place()
    made = [Request(place, "w", [ByteRange(start, start + 1)], [None], refuse) for start in range(8)]
    with pytest.raises(DamagedError):
        Download(4).run(made)


def test_cancelling_the_transfer_ends_it() -> None:
    place, target = Place(), np.zeros(1 << 20, np.uint8)
    with Transfer("restore", "here") as transfer:

        def cancel(buffers: Sequence[memoryview]) -> None:
            transfer.cancel()

        made = [
            request._replace(take=cancel) for request in requests_for(place, target, 64 * KIB, lent=False)
        ]
        with pytest.raises(TransientError):
            Download(2, transfer).run(made)
    assert place.at_a_time == 0
    assert len(place.begun) < 16


def test_several_ranges_of_one_request_may_be_lent_and_owned() -> None:
    place, own = Place(), np.zeros(10, np.uint8)
    got: list[bytes] = []
    ranges = [ByteRange(5, 9), ByteRange(100, 110), ByteRange(7, 7), ByteRange(50, 53)]

    def take(buffers: Sequence[memoryview]) -> None:
        got.extend(bytes(buffer) for buffer in buffers)

    Download(4).run([Request(place, "w", ranges, [None, own.data, None, None], take)])
    assert got == [place.data[wanted.start : wanted.stop].tobytes() for wanted in ranges]
    np.testing.assert_array_equal(own, place.data[100:110])


def test_requests_are_asked_for_when_there_is_a_thread_for_them() -> None:
    """A terabyte is not cut into requests beforehand, nor is what they hold kept."""
    place, target = Place(), np.zeros(1 << 20, np.uint8)
    ahead: list[int] = []

    def made():
        for number, request in enumerate(requests_for(place, target, 64 * KIB, lent=True)):
            ahead.append(number - len(place.begun))
            yield request

    Download(2).run(made())
    assert len(ahead) == 16
    assert max(ahead) <= 3


def test_neighbours_travel_together_up_to_the_size_and_each_gets_its_own_bytes() -> None:
    place = Place()
    target = np.zeros(1 << 20, np.uint8)
    requests = requests_for(place, target, 16 * KIB, lent=True)
    together = list(joined(requests, 64 * KIB))
    assert [len(request.ranges) for request in together] == [4] * 16
    assert [request.ranges[0].start for request in together] == list(range(0, 1 << 20, 64 * KIB))
    Download(2).run(together, lent_size_bytes=64 * KIB)
    np.testing.assert_array_equal(target, place.data)


def test_what_lies_apart_or_in_another_file_is_asked_for_apart() -> None:
    place, other = Place(), Place()
    target = np.zeros(1 << 20, np.uint8)
    at = {
        request.ranges[0].start // KIB: request
        for request in requests_for(place, target, 4 * KIB, lent=False)
    }
    elsewhere = requests_for(other, target, 4 * KIB, lent=False)[3]
    wanted = [at[0], at[8], at[256], elsewhere, at[260], at[508], at[512]]
    # Near, far, another file, back again, across the grid.
    assert [[part.start // KIB for part in request.ranges] for request in joined(wanted, 512 * KIB)] == [
        [0, 8],
        [256],
        [12],
        [260],
        [508],
        [512],
    ]
    # Backwards and over one another: never together.
    assert len(list(joined([at[8], at[4], at[4]], 512 * KIB))) == 3


def test_when_the_first_of_several_refuses_its_bytes_the_others_get_none() -> None:
    place = Place()
    taken: list[int] = []

    def take(number: int, buffers: Sequence[memoryview]) -> None:
        taken.append(number)
        raise ValueError(number)

    requests = [
        Request(place, "w", [ByteRange(8 * n, 8 * n + 8)], [None], partial(take, n)) for n in range(3)
    ]
    with pytest.raises(ValueError, match="0"):
        Download(1).run(joined(requests, 512 * KIB))
    assert taken == [0]
