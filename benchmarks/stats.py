"""From the figures of rounds to medians, ratios and verdicts. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GIB = 2**30

Rounds = Mapping[int, Mapping[str, float]]
"""Round → what was measured in it."""


@dataclass(frozen=True)
class Spread:
    """Median, lowest and highest of some rounds."""

    median: float
    low: float
    high: float

    def scaled(self, factor: float) -> Spread:
        return Spread(self.median * factor, self.low * factor, self.high * factor)


def spread(values: Sequence[float]) -> Spread:
    """Return median, lowest and highest."""
    return Spread(statistics.median(values), min(values), max(values))


def values_of(rounds: Rounds, measure: str, set_bytes: int) -> dict[int, float]:
    """Return round → value of a measure: ``seconds``, ``peak_bytes``, ``cpu_s`` or ``cpu_per_gib``."""
    if measure == "cpu_per_gib":
        return {number: costs["cpu_s"] / (set_bytes / GIB) for number, costs in rounds.items()}
    return {number: costs[measure] for number, costs in rounds.items()}


def ratios(values: Mapping[int, float], reference: Mapping[int, float]) -> list[float]:
    """Return one ratio for each round that both took part in."""
    return [values[number] / reference[number] for number in sorted(values) if reference.get(number)]


def fastest(entries: Mapping[str, Mapping[int, float]], among: Sequence[str]) -> str | None:
    """Return whoever of `among` has the lowest median; None if none of them has a figure."""
    present = [name for name in among if entries.get(name)]
    return min(present, key=lambda name: statistics.median(entries[name].values()), default=None)


@dataclass(frozen=True)
class Verdict:
    """Whether a target is reached.

    Attributes
    ----------
    reference : str or None
        Whom the ratio is to; None where the value itself counts.
    value : Spread or None
        None if it is unknown, because a contender did not run.
    """

    who: str
    measure: str
    at_most: float
    reference: str | None
    value: Spread | None

    @property
    def is_met(self) -> bool | None:
        return None if self.value is None else self.value.median <= self.at_most


def verdict(row: Mapping[str, Any], target: Mapping[str, Any]) -> Verdict:
    """Return the verdict on one target of a row as it is in the results."""
    measure, who = target["measure"], target["who"]
    values = {
        entry["contender"]: values_of(
            {int(number): costs for number, costs in entry["rounds"].items()}, measure, row["set_bytes"]
        )
        for entry in row["entries"]
        if entry["rounds"]
    }
    ours = values.get(who)
    if not target["of"]:
        return Verdict(who, measure, target["at_most"], None, spread(list(ours.values())) if ours else None)
    best = fastest(values, target["of"])
    common = ratios(ours, values[best]) if ours and best else []
    return Verdict(who, measure, target["at_most"], best, spread(common) if common else None)
