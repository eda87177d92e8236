"""The worked timelines of TensorFlow's two retention algorithms, and what holds for any timeline."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.directory.retention import Entry, KeepNewest, ManagerRetention, Retention, SaverRetention

HOUR_S = 3600.0


class Timeline:
    """Saves one checkpoint after the other and remembers what is on the disk."""

    def __init__(self, retention: Retention) -> None:
        self.retention = retention
        self.window: tuple[Entry, ...] = ()
        self.clock_s: float | None = None
        self.on_disk: list[str] = []

    def save(self, name: str, hours: float) -> None:
        window = (*(e for e in self.window if e.prefix != name), Entry(name, hours * HOUR_S))
        verdict = self.retention.decide(window, self.clock_s, hours * HOUR_S)
        self.window, self.clock_s = verdict.window, verdict.clock_s
        gone = {entry.prefix for entry in verdict.victims}
        self.on_disk = [n for n in self.on_disk if n != name and n not in gone] + [name]

    @property
    def names(self) -> list[str]:
        return [entry.prefix for entry in self.window]


# Save number k happens at 0.5 k hours.
SAVER_TIMELINE = {
    2: ("1 2", "1 2", 2),
    3: ("2 3", "2 3", 2),
    5: ("4 5", "4 5", 2),
    6: ("5 6", "5 6", 2),
    7: ("6 7", "5 6 7", 4),
    8: ("7 8", "5 7 8", 4),
    11: ("10 11", "5 9 10 11", 6),
    14: ("13 14", "5 9 13 14", 6),
}


def test_saver_keeps_two_and_one_every_two_hours() -> None:
    timeline = Timeline(SaverRetention(2, 2 * HOUR_S, built_s=0.0))
    for k in range(1, 15):
        timeline.save(str(k), 0.5 * k)
        if k in SAVER_TIMELINE:
            listed, on_disk, next_keep_hours = SAVER_TIMELINE[k]
            assert timeline.names == listed.split(), k
            assert timeline.on_disk == on_disk.split(), k
            assert timeline.clock_s == next_keep_hours * HOUR_S, k


def test_saver_catches_up_after_a_gap() -> None:
    timeline = Timeline(SaverRetention(1, HOUR_S, built_s=0.0))
    for hours in (0.5, 5.0, 5.1, 5.2, 5.3, 5.4, 5.5, 5.6):
        timeline.save(str(hours), hours)
    assert timeline.on_disk == ["5.0", "5.1", "5.2", "5.3", "5.4", "5.6"]


def test_manager_keeps_every_fourth_of_a_half_hour_timeline() -> None:
    timeline = Timeline(ManagerRetention(2, 2 * HOUR_S, built_s=0.0))
    for k in range(1, 15):
        timeline.save(str(k), 0.5 * k)
    assert timeline.on_disk == ["4", "8", "12", "13", "14"]


def test_zero_hours_preserve_everything() -> None:
    timeline = Timeline(SaverRetention(1, 0.0, built_s=0.0))
    for k in range(1, 6):
        timeline.save(str(k), float(k))
    assert timeline.on_disk == ["1", "2", "3", "4", "5"]
    assert timeline.names == ["5"]


def test_infinite_times_are_never_deleted_and_move_the_clock() -> None:
    retention = SaverRetention(1, HOUR_S, built_s=0.0)
    verdict = retention.decide((Entry("a", float("inf")), Entry("b", 10.0)), None, 10.0)
    assert [entry.prefix for entry in verdict.preserved] == ["a"]
    assert verdict.clock_s == 2 * HOUR_S


def test_a_lowered_limit_converges_at_once() -> None:
    window = tuple(Entry(str(k), float(k)) for k in range(10))
    verdict = SaverRetention(3, 1e9, built_s=0.0).decide(window, None, 9.0)
    assert [entry.prefix for entry in verdict.window] == ["7", "8", "9"]
    assert [entry.prefix for entry in verdict.victims] == ["0", "1", "2", "3", "4", "5", "6"]


def test_the_clock_survives_a_restart_and_a_shorter_interval_counts_at_once() -> None:
    window = (Entry("a", 2.5 * HOUR_S), Entry("b", 3 * HOUR_S))
    restarted = SaverRetention(1, 2 * HOUR_S, built_s=2.9 * HOUR_S)
    now_s = 3 * HOUR_S
    verdict = restarted.decide(window, restarted.resume(2 * HOUR_S), now_s)
    assert [entry.prefix for entry in verdict.preserved] == ["a"]
    assert restarted.decide(window, None, now_s).preserved == ()
    shortened = SaverRetention(1, HOUR_S, built_s=0.0)
    clock_s = shortened.resume(10_000 * HOUR_S)
    assert [e.prefix for e in shortened.decide(window, clock_s, now_s).preserved] == ["a"]
    assert ManagerRetention(1, HOUR_S, built_s=5.0).resume(9.0) == 5.0


def test_saving_a_name_again_moves_it_to_the_end() -> None:
    timeline = Timeline(SaverRetention(2, 1e9, built_s=0.0))
    for name, hours in (("a", 1), ("b", 2), ("a", 3), ("c", 4)):
        timeline.save(name, hours)
    assert timeline.names == ["a", "c"]
    assert timeline.on_disk == ["a", "c"]


def test_without_a_limit_only_the_newest_is_listed_and_nothing_deleted() -> None:
    timeline = Timeline(KeepNewest())
    for k in range(3):
        timeline.save(str(k), k)
    assert timeline.names == ["2"]
    assert timeline.on_disk == ["0", "1", "2"]


@given(
    st.lists(st.floats(0, 100), min_size=1, max_size=40),
    st.integers(1, 5),
    st.floats(0, 20),
    st.booleans(),
)
def test_nothing_is_lost_and_the_newest_stay(
    gaps: list[float], keep: int, every: float, manager: bool
) -> None:
    retention: Retention
    retention = ManagerRetention(keep, every, 0.0) if manager else SaverRetention(keep, every, 0.0)
    window: tuple[Entry, ...] = ()
    clock_s = None
    now_s = 0.0
    for number, gap in enumerate(gaps):
        now_s += gap
        before = (*window, Entry(str(number), now_s))
        verdict = retention.decide(before, clock_s, now_s)
        window, clock_s = verdict.window, verdict.clock_s
        assert sorted(
            [*verdict.window, *verdict.victims, *verdict.preserved], key=lambda e: int(e.prefix)
        ) == list(before)
        assert window == before[-keep:]


def test_verdicts_do_not_depend_on_how_often_they_are_asked() -> None:
    retention = SaverRetention(1, HOUR_S, built_s=0.0)
    window = (Entry("a", 2 * HOUR_S), Entry("b", 3 * HOUR_S))
    asked = (window, 1.5 * HOUR_S, 3 * HOUR_S)
    assert retention.decide(*asked) == retention.decide(*asked)


@pytest.mark.parametrize("keep", [1, 3])
def test_manager_without_hours_preserves_nothing(keep: int) -> None:
    window = tuple(Entry(str(k), k * HOUR_S) for k in range(6))
    assert ManagerRetention(keep, None, 0.0).decide(window, None, 5 * HOUR_S).preserved == ()
    assert ManagerRetention(None, 1.0, 0.0).decide(window, None, 5 * HOUR_S).window == window


@pytest.mark.parametrize(
    "retention",
    [SaverRetention(1, HOUR_S, built_s=1e6 * HOUR_S), ManagerRetention(1, HOUR_S, built_s=1e6 * HOUR_S)],
    ids=["saver", "manager"],
)
def test_a_clock_that_was_set_back_does_not_stop_it(retention: Retention) -> None:
    timeline = Timeline(retention)
    for hours in (1e6, 1e6 + 1.5, 1e6 + 3.0):
        timeline.save(str(hours), hours)
    # It had run a hundred years fast.
    for hours in (10.0, 11.5, 13.0, 14.5, 16.0):
        timeline.save(str(hours), hours)
    assert {"13.0", "14.5", "16.0"} <= set(timeline.on_disk)
