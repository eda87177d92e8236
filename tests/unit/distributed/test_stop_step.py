"""All ranks agree on one step that none has passed, or on none."""

from __future__ import annotations

import logging
import random
import threading
import time

import pytest

from ckptstore.distributed.coordinator import SingleCoordinator
from ckptstore.distributed.stop_step import StopStep
from ckptstore.testing import make_local_coordinators

GRACE_S = 30.0


def start_all(coordinators, grace_s=GRACE_S):
    stops = [StopStep(one, grace_s) for one in coordinators]
    for one in stops:
        one.start()
    return stops


def walk(stop, saved, pause_s, first=0):
    """Take steps until the save, at a pace of its own."""
    for step in range(first, 100_000):
        if stop.should_save(step):
            saved.append(step)
            return
        time.sleep(random.uniform(0, pause_s))


@pytest.mark.parametrize("told", [0, 2])
def test_ranks_at_different_steps_save_at_the_same_one(told):
    coordinators = make_local_coordinators(4)
    stops = start_all(coordinators)
    saved: list[list[int]] = [[] for _ in stops]
    walkers = [
        threading.Thread(target=walk, args=(stop, saved[rank], 0.001 * (rank + 1)))
        for rank, stop in enumerate(stops)
    ]
    for one in walkers:
        one.start()
    time.sleep(0.1)
    stops[told].request()
    for one in walkers:
        one.join(60)
    assert len({tuple(one) for one in saved}) == 1
    assert len(saved[0]) == 1
    assert all(one.is_requested and 0 < one.left_s <= GRACE_S for one in stops)
    for stop in stops:
        stop.stop()


def test_two_notices_at_once_are_one():
    coordinators = make_local_coordinators(3)
    stops = start_all(coordinators)
    for one in stops:
        one.should_save(7)
        one.request()
    saved: list[list[int]] = [[], [], []]
    for stop, found in zip(stops, saved, strict=True):
        walk(stop, found, 0.001, first=7)
    assert len({tuple(found) for found in saved}) == 1


def test_a_rank_that_has_taken_no_step_yet_agrees_too():
    stops = start_all(make_local_coordinators(2))
    stops[1].should_save(5)
    stops[0].request()
    saved: list[list[int]] = [[], []]
    walk(stops[1], saved[1], 0.0, first=6)
    walk(stops[0], saved[0], 0.0)
    assert saved[0] == saved[1]
    assert saved[0][0] >= 6


def test_a_frozen_rank_means_that_nothing_is_saved_and_is_named(caplog):
    coordinators = make_local_coordinators(3)
    stops = start_all(coordinators, grace_s=1.5)
    coordinators[2].freeze()
    try:
        with caplog.at_level(logging.WARNING, "ckptstore"):
            stops[1].request()
            ends_s = time.monotonic() + 30
            while not caplog.records:
                assert time.monotonic() < ends_s
                assert not any(stop.should_save(step) for step, stop in enumerate(stops[:2]))
        assert "rank 2 (host-2) did not say at which step" in caplog.text
        assert not any(stop.should_save(100) for stop in stops[:2])
    finally:
        coordinators[2].thaw()


def test_a_member_that_loses_the_chief_goes_on():
    coordinators = make_local_coordinators(2)
    stops = start_all(coordinators, grace_s=1.5)
    coordinators[0].broadcast("preemption-0.begin", b'{"left_s": 1.5}', timeout_s=1)
    ends_s = time.monotonic() + 30
    while not stops[1].is_requested:
        assert time.monotonic() < ends_s
    assert not stops[1].should_save(3)


def test_one_rank_saves_at_its_next_step():
    stop = StopStep(SingleCoordinator(), 10.0)
    stop.start()
    assert not stop.should_save(41)
    assert stop.left_s == 10.0
    stop.request()
    assert stop.should_save(42)
    assert not stop.should_save(43)
    assert 0 < stop.left_s <= 10.0


def test_a_second_one_of_the_same_job_does_not_hear_the_first():
    coordinators = make_local_coordinators(2)
    for _ in range(3):
        stops = start_all(coordinators)
        stops[1].request()
        saved: list[list[int]] = [[], []]
        for stop, found in zip(stops, saved, strict=True):
            walk(stop, found, 0.001)
        assert saved[0] == saved[1]
        for stop in stops:
            stop.stop()
