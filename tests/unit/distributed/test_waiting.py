"""A rank that writes looks for messages seldom; when it has written, in a wait that begins then."""

from __future__ import annotations

import itertools
import threading

import pytest

from ckptstore.distributed import waiting
from ckptstore.distributed.waiting import UNHEARD_S, look_until_written


class Clock:
    """Stands still but for waits."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


class Written(threading.Event):
    """An event that is set at a time."""

    def __init__(self, clock: Clock, at_s: float) -> None:
        super().__init__()
        self.clock, self.at_s = clock, at_s

    def is_set(self) -> bool:
        return self.clock.now_s >= self.at_s

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        left_s = self.at_s - self.clock.now_s
        self.clock.now_s += max(0.0, min(timeout, left_s))
        return self.is_set()


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(waiting, "time", made)
    return made


@pytest.fixture
def looks():
    return []


@pytest.fixture
def look(clock, looks):
    def call(wait_s: float) -> str:
        looks.append((clock.now_s, wait_s))
        return ""

    return call


def test_who_does_not_write_looks_all_the_time(clock, look, looks):
    look_until_written(look, 1.0, clock.now_s, None)
    assert looks == [(100.0, 1.0)]


def test_a_part_that_is_written_soon_is_not_interrupted_by_a_look(clock, look, looks):
    look_until_written(look, 1.0, clock.now_s, Written(clock, 100.0 + 0.9 * UNHEARD_S))
    ((at_s, wait_s),) = looks
    assert (at_s, wait_s) == (pytest.approx(100.0 + 0.9 * UNHEARD_S), pytest.approx(1.0 - 0.9 * UNHEARD_S))


def test_pauses_grow_with_the_time_that_is_written(clock, look, looks):
    look_until_written(look, 30.0, clock.now_s, Written(clock, 120.0))
    *before, (last_s, left_s) = looks
    assert all(wait_s == 0.0 for _, wait_s in before)
    # A tenth of 20 s at most; ten in the first second, and 24 in each tenfold time.
    assert max(b - a for (a, _), (b, _) in itertools.pairwise(looks)) <= 2.0
    assert len(before) < 50
    assert (last_s, left_s) == (pytest.approx(120.0), pytest.approx(10.0))


def test_bad_news_ends_the_wait_before_anything_is_written(clock):
    def look(wait_s: float) -> str:
        return "failed" if clock.now_s > 100.5 else ""

    assert look_until_written(look, 30.0, clock.now_s, Written(clock, 120.0)) == "failed"
    assert clock.now_s < 100.5 + 2 * UNHEARD_S


@pytest.mark.parametrize("wait_s", [0.0, 0.05])
def test_there_is_one_look_however_short_the_wait(clock, look, looks, wait_s):
    look_until_written(look, wait_s, clock.now_s, Written(clock, 120.0))
    assert looks[-1] == (pytest.approx(100.0 + wait_s), 0.0)
