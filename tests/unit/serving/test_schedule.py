"""When a host looks: spread over the period, and the same place each time."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from ckptstore.serving.schedule import Schedule

HOSTS = [f"node-{number:04d}" for number in range(1000)]
URL = "s3://bucket/run"


def looks(schedule: Schedule, until_s: float) -> list[float]:
    """Return the times of all looks, each of which takes no time."""
    times = []
    while schedule.next_s < until_s:
        times.append(schedule.next_s)
        schedule.looked(schedule.next_s)
    return times


def fullest(places: list[float], size: float) -> float:
    """Return the share of the fullest of ten bins of [0, size), as a multiple of the mean."""
    bins = Counter(int(place % size / size * 10) for place in places)
    return max(bins.values()) / (len(places) / 10)


def test_the_first_look_is_at_once_and_then_one_a_period() -> None:
    times = looks(Schedule(2.0, 0.0, "host", URL, 100.0), 700.0)
    assert times[0] == 100.0
    assert 298 <= len(times) <= 302
    gaps = [after - before for before, after in pairwise(times[1:])]
    assert min(gaps) >= 2.0 * 0.6 - 1e-9
    assert max(gaps) <= 2.0 * 1.4 + 1e-9


def test_a_thousand_hosts_that_start_together_look_at_all_times() -> None:
    places = [place for host in HOSTS for place in looks(Schedule(10.0, 0.0, host, URL, 0.0), 60.0)[1:]]
    assert fullest(places, 10.0) <= 1.3


def test_a_thousand_hosts_take_a_step_at_all_times() -> None:
    delays = [Schedule(10.0, 300.0, host, URL, 0.0).delay_s for host in HOSTS]
    assert 0 <= min(delays) < max(delays) < 300
    assert fullest(delays, 300.0) <= 1.3


def test_a_host_has_the_same_place_each_time_and_another_in_another_directory() -> None:
    first, again = Schedule(10.0, 300.0, "host", URL, 0.0), Schedule(10.0, 300.0, "host", URL, 77.0)
    assert first.delay_s == again.delay_s
    assert first.delay_s != Schedule(10.0, 300.0, "host", f"{URL}2", 0.0).delay_s
    places = [time % 10.0 for time in looks(first, 1000.0)[1:]]
    assert max(places) - min(places) <= 4.0 + 1e-9 or max(places) - min(places) >= 6.0


def test_failures_make_looks_rarer_up_to_eight_periods() -> None:
    schedule = Schedule(10.0, 0.0, "host", URL, 0.0)
    pauses = []
    for _ in range(8):
        now_s = schedule.next_s
        schedule.failed(now_s)
        pauses.append(schedule.next_s - now_s)
    for pause_s, periods in zip(pauses[1:], [2, 4, 8, 8, 8, 8, 8], strict=True):
        assert (periods - 0.4) * 10 - 1e-6 <= pause_s <= (periods + 0.4) * 10 + 1e-6
    now_s = schedule.next_s
    schedule.looked(now_s)
    assert schedule.next_s - now_s <= 14.0 + 1e-6


@pytest.mark.parametrize("late_s", [0.0, 3.0, 9.9, 1234.5])
def test_after_a_late_look_the_next_one_is_at_the_place_of_this_host_again(late_s: float) -> None:
    schedule = Schedule(10.0, 0.0, "host", URL, 0.0)
    phase_s = looks(Schedule(10.0, 0.0, "host", URL, 0.0), 5000.0)
    schedule.looked(late_s)
    assert late_s <= schedule.next_s <= late_s + 14.0
    distance = min((schedule.next_s - time) % 10.0 for time in phase_s[1:])
    assert distance <= 4.0
