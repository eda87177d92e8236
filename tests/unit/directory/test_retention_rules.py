"""The rules beside an oracle that goes through every checkpoint by brute force, on random histories."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.directory.retention import Entry, SaverRetention
from ckptstore.directory.retention_rules import RulesRetention, check_rules, kept_by

HISTORIES = 5000
HOUR_S = 3600.0


def is_kept(rule: Any, entries: Sequence[Entry], place: int, now_s: float) -> bool:
    """Say for one checkpoint whether `rule` keeps it, in the plainest words there are for it."""
    entry = entries[place]
    if isinstance(rule, ck.Latest):
        return len(entries) - place <= rule.n
    if isinstance(rule, ck.EveryNSteps):
        return entry.step is not None and entry.step in range(0, 10**6, rule.n)
    if isinstance(rule, ck.YoungerThan):
        return entry.time_s > now_s - rule.seconds
    if isinstance(rule, ck.EveryHours):
        before = [other for i, other in enumerate(entries[:place]) if is_kept(rule, entries, i, now_s)]
        if not before:
            return True
        gone_s = entry.time_s - before[-1].time_s
        return gone_s < 0 or gone_s >= rule.h * HOUR_S
    value = entry.metrics.get(rule.metric)
    if value is None or not math.isfinite(value):
        return False
    better = 0
    for i, other in enumerate(entries):
        there = other.metrics.get(rule.metric)
        if there is not None and math.isfinite(there):
            is_smaller = there < value if rule.mode == "min" else there > value
            better += is_smaller or (there == value and i > place)
    return better < rule.n


def some_rules(draw: random.Random) -> list[Any]:
    return draw.sample(
        [
            ck.Latest(draw.randint(1, 4)),
            ck.EveryNSteps(draw.choice((2, 3, 5, 10))),
            # In halves, so that no rounding decides.
            ck.EveryHours(draw.choice((0.5, 1, 2, 3))),
            ck.Best(draw.randint(1, 3), "loss"),
            ck.Best(draw.randint(1, 2), "accuracy", "max"),
            ck.YoungerThan(draw.choice((HOUR_S, 5 * HOUR_S))),
        ],
        draw.randint(1, 4),
    )


def some_metrics(draw: random.Random) -> dict[str, float]:
    values = (0.1, 0.2, 0.2, 0.3, 0.9, -1.0, math.nan, math.inf, -math.inf)
    return {name: draw.choice(values) for name in ("loss", "accuracy") if draw.random() < 0.7}


def test_random_histories_agree_with_brute_force() -> None:
    draw = random.Random(11)
    left = 0
    for _ in range(HISTORIES):
        retention = RulesRetention(check_rules(some_rules(draw)))
        window: tuple[Entry, ...] = ()
        now_s, step = 1.8e9, 0
        for _ in range(draw.randint(1, 14)):
            now_s += draw.choice((0.5, 0.5, 1, 1, 4, -0.5, -7)) * HOUR_S
            # Now and then back to an earlier step, which is saved again.
            step = max(0, step + draw.choice((1, 1, 1, 2, 5, -2)))
            saved = Entry(f"model-{step}", now_s, step, some_metrics(draw))
            window = (*(entry for entry in window if entry.prefix != saved.prefix), saved)
            verdict = retention.decide(window, None, now_s)
            expected = [
                entry
                for place, entry in enumerate(window)
                if place == len(window) - 1
                or any(is_kept(rule, window, place, now_s) for rule in retention.rules)
            ]
            assert list(verdict.window) == expected
            assert [*verdict.victims] == [entry for entry in window if entry not in expected]
            assert verdict.preserved == ()
            assert verdict.window[-1] is saved
            # What it said once it says again: nothing is forgotten by a restart.
            again = retention.decide(verdict.window, None, now_s)
            assert set(again.window) == set(verdict.window)
            left += len(verdict.victims)
            window = verdict.window
    assert left > HISTORIES


def test_the_newest_stays_although_no_rule_keeps_it() -> None:
    entries = (Entry("m-1", 0.0, 1, {"loss": 0.1}), Entry("m-2", 60.0, 2, {"loss": 0.9}))
    assert ck.Best(1, "loss").keep(entries, 60.0) == {"m-1"}
    verdict = RulesRetention((ck.Best(1, "loss"),)).decide(entries, None, 60.0)
    assert verdict.window == entries


def test_a_better_one_takes_the_place_and_a_multiple_stays_for_good() -> None:
    retention = RulesRetention((ck.Best(1, "loss"), ck.EveryNSteps(10)))
    window: tuple[Entry, ...] = ()
    for step, loss in ((8, 0.5), (10, 0.9), (12, 0.4), (14, 0.8), (16, math.nan), (18, 0.4)):
        window = (*window, Entry(f"m-{step}", 60.0 * step, step, {"loss": loss}))
        window = retention.decide(window, None, 60.0 * step).window
    # Of equal ones the later is the better.
    assert [entry.step for entry in window] == [10, 18]


def test_hours_begin_anew_where_a_clock_was_set_back() -> None:
    times = (1e9, 10.0, 11.0, 12.5, 13.0, 20.0)
    entries = [Entry(str(number), hours * HOUR_S) for number, hours in enumerate(times)]
    assert ck.EveryHours(2).keep(entries, 0.0) == {"0", "1", "3", "5"}


def test_what_the_user_set_leaves_the_list_and_is_not_deleted() -> None:
    window = (Entry("a", math.inf), Entry("b", 1.0), Entry("c", 2.0))
    verdict = RulesRetention((ck.Latest(1),)).decide(window, None, 2.0)
    assert ([e.prefix for e in verdict.victims], [e.prefix for e in verdict.preserved]) == (["b"], ["a"])


def test_the_clock_of_another_retention_is_left_alone() -> None:
    retention = RulesRetention((ck.Latest(1),))
    assert retention.decide((Entry("a", 1.0),), 7.5, 1.0).clock_s == 7.5
    assert retention.resume(7.5) == 7.5


def test_each_set_of_rules_has_a_number_of_its_own() -> None:
    class Mine:
        def keep(self, entries: Sequence[Entry], now_s: float) -> set[str]:
            return set()

    sets = [
        (ck.Latest(1),),
        (ck.Latest(2),),
        (ck.Latest(1), ck.Best(1, "loss")),
        (ck.Latest(1), ck.Best(1, "loss", "max")),
        (Mine(),),
    ]
    numbers = [RulesRetention(rules).keep for rules in sets]
    assert len(set(numbers)) == len(sets)
    assert max(numbers) < 0
    assert SaverRetention(3, 1.0, 0.0).keep == 3
    assert RulesRetention((ck.Latest(1),)).keep == numbers[0]


def test_a_rule_of_ones_own() -> None:
    class Fridays:
        def keep(self, entries: Sequence[Entry], now_s: float) -> set[str]:
            return {entry.prefix for entry in entries if entry.step == 5}

    entries = [Entry(f"m-{step}", 0.0, step) for step in range(7)]
    kept = kept_by(check_rules([Fridays(), ck.Latest(2)]), entries, 0.0)
    assert {prefix: len(rules) for prefix, rules in kept.items()} == {"m-5": 2, "m-6": 1}


@pytest.mark.parametrize(
    "make",
    [
        lambda: ck.Latest(0),
        lambda: ck.Latest(True),
        lambda: ck.Latest(1.5),  # type: ignore[arg-type]
        lambda: ck.EveryNSteps(-1),
        lambda: ck.EveryHours(0),
        lambda: ck.EveryHours(math.nan),
        lambda: ck.EveryHours(math.inf),
        lambda: ck.YoungerThan(-1),
        lambda: ck.YoungerThan("1d"),  # type: ignore[arg-type]
        lambda: ck.Best(1, ""),
        lambda: ck.Best(1, "loss", "least"),  # type: ignore[arg-type]
        lambda: ck.Best(0, "loss"),
        lambda: check_rules([]),
        lambda: check_rules(ck.Latest(1)),
        lambda: check_rules([ck.Latest]),
        lambda: check_rules(["Latest"]),
        lambda: check_rules("Latest"),
    ],
)
def test_wrong_rules_are_refused(make: Any) -> None:
    with pytest.raises(ck.UsageError):
        make()


def test_numbers_of_numpy_are_numbers() -> None:
    assert ck.Latest(np.int64(3)) == ck.Latest(3)  # type: ignore[arg-type]
    assert ck.YoungerThan(np.float32(3)) == ck.YoungerThan(3.0)  # type: ignore[arg-type]
    assert repr(ck.EveryHours(np.float64(2))) == "EveryHours(h=2.0)"
