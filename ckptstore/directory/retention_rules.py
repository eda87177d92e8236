"""Rules that say which checkpoints stay: pure functions of what is listed, joined by "any keeps".

A rule has no state: what it keeps stays listed, so after a restart it finds the same again
(docs/design/020-retention-rules.md). TensorFlow's two algorithms, which have a clock, are in `retention`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, ClassVar, Literal, Protocol, get_args, runtime_checkable

import numpy as np

from ckptstore.checksums import crc32c
from ckptstore.directory.retention import ClockName, Entry, Verdict
from ckptstore.errors import UsageError

__all__ = [
    "Best",
    "EveryHours",
    "EveryNSteps",
    "Latest",
    "RetentionRule",
    "RulesRetention",
    "YoungerThan",
    "check_rules",
    "kept_by",
]

_SECONDS_PER_HOUR = 3600.0


@runtime_checkable
class RetentionRule(Protocol):
    """Chooses checkpoints that stay. Implementations are pure: the same arguments, the same answer."""

    __slots__ = ()

    def keep(self, entries: Sequence[Entry], now_s: float) -> set[str]:
        """Return the prefixes of `entries` that this rule keeps.

        Parameters
        ----------
        entries : sequence of Entry
            All that retention counts, oldest first, with prefix, step, time and metrics.
        now_s : float
            Seconds since 1970.
        """


@dataclass(frozen=True, slots=True)
class Latest(RetentionRule):
    """Keeps the `n` newest checkpoints.

    Parameters
    ----------
    n : int
        At least 1.

    Raises
    ------
    UsageError
        If `n` is not a positive integer.

    Threads
    -------
    Safe for concurrent use.

    Examples
    --------
    >>> from ckptstore.directory.retention import Entry
    >>> sorted(Latest(2).keep([Entry("m-1", 0.0), Entry("m-2", 60.0), Entry("m-3", 120.0)], 200.0))
    ['m-2', 'm-3']
    """

    n: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", _count("Latest", self.n))

    def keep(self, entries: Sequence[Entry], now_s: float) -> set[str]:
        """Return the prefixes of the last `n`."""
        return {entry.prefix for entry in entries[-self.n :]}


@dataclass(frozen=True, slots=True)
class EveryNSteps(RetentionRule):
    """Keeps each checkpoint whose step is a multiple of `n`, for as long as the Saver has this rule.

    A checkpoint that was saved without a step is not kept by it.

    Parameters
    ----------
    n : int
        At least 1.

    Raises
    ------
    UsageError
        If `n` is not a positive integer.

    Threads
    -------
    Safe for concurrent use.

    Examples
    --------
    >>> from ckptstore.directory.retention import Entry
    >>> EveryNSteps(1000).keep([Entry("m-1000", 0.0, 1000), Entry("m-1200", 60.0, 1200)], 60.0)
    {'m-1000'}
    """

    n: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", _count("EveryNSteps", self.n))

    def keep(self, entries: Sequence[Entry], now_s: float) -> set[str]:
        """Return the prefixes of those whose step is a multiple of `n`."""
        return {entry.prefix for entry in entries if entry.step is not None and entry.step % self.n == 0}


@dataclass(frozen=True, slots=True)
class EveryHours(RetentionRule):
    """Keeps the first checkpoint, and then each that is at least `h` hours later than the last it kept.

    Parameters
    ----------
    h : float
        Hours, above 0.

    Raises
    ------
    UsageError
        If `h` is not a positive, finite number.

    Notes
    -----
    Where the times in the list go back, because a clock was set back, it begins anew.

    Threads
    -------
    Safe for concurrent use.

    Examples
    --------
    >>> from ckptstore.directory.retention import Entry
    >>> entries = [Entry(f"m-{hour}", 3600.0 * hour) for hour in range(6)]
    >>> sorted(EveryHours(2).keep(entries, 3600.0 * 5))
    ['m-0', 'm-2', 'm-4']
    """

    h: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "h", _positive("EveryHours", "hours", self.h))

    def keep(self, entries: Sequence[Entry], now_s: float) -> set[str]:
        """Return the prefixes of those that are at least `h` hours apart."""
        every_s = self.h * _SECONDS_PER_HOUR
        kept = set()
        last_s = math.inf
        for entry in entries:
            if not last_s <= entry.time_s < last_s + every_s:
                kept.add(entry.prefix)
                last_s = entry.time_s
        return kept


@dataclass(frozen=True, slots=True)
class Best(RetentionRule):
    """Keeps the `n` checkpoints with the best values of one metric.

    One without this metric is not kept by it, and neither is one whose value is NaN or infinite. Of equal
    values the later checkpoint is better.

    Parameters
    ----------
    n : int
        At least 1.
    metric : str
        Its name in ``save(…, metrics={…})``.
    mode : {"min", "max"}
        Whether small values are better, or large ones.

    Raises
    ------
    UsageError
        If an argument is wrong.

    Threads
    -------
    Safe for concurrent use.

    Examples
    --------
    >>> from ckptstore.directory.retention import Entry
    >>> losses = (0.9, 0.2, 0.5)
    >>> entries = [Entry(f"m-{i}", 60.0 * i, i, {"loss": loss}) for i, loss in enumerate(losses)]
    >>> Best(1, "loss").keep(entries, 180.0)
    {'m-1'}
    """

    n: int
    metric: str
    mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", _count("Best", self.n))
        if not isinstance(self.metric, str) or not self.metric:
            raise UsageError("Best needs the name of a metric", expected="text", actual=repr(self.metric))
        modes = get_args(Literal["min", "max"])
        if self.mode not in modes:
            raise UsageError(
                "Best has an unknown mode",
                expected=" or ".join(map(repr, modes)),
                actual=repr(self.mode),
            )

    def keep(self, entries: Sequence[Entry], now_s: float) -> set[str]:
        """Return the prefixes of the `n` best."""
        sign = 1.0 if self.mode == "min" else -1.0
        ranked = []
        for place, entry in enumerate(entries):
            value = entry.metrics.get(self.metric, math.nan)
            if math.isfinite(value):
                ranked.append((sign * value, -place, entry.prefix))
        ranked.sort()
        return {prefix for _, _, prefix in ranked[: self.n]}


@dataclass(frozen=True, slots=True)
class YoungerThan(RetentionRule):
    """Keeps each checkpoint that was saved less than `seconds` ago.

    Parameters
    ----------
    seconds : float
        Above 0.

    Raises
    ------
    UsageError
        If `seconds` is not a positive, finite number.

    Notes
    -----
    One that is dated in the future, because a clock was set back, is young. After a long pause everything is
    old, and the next save deletes all that no other rule keeps: combine it with `Latest`.

    Threads
    -------
    Safe for concurrent use.

    Examples
    --------
    >>> from ckptstore.directory.retention import Entry
    >>> YoungerThan(3600).keep([Entry("m-1", 0.0), Entry("m-2", 5000.0)], 6000.0)
    {'m-2'}
    """

    seconds: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "seconds", _positive("YoungerThan", "seconds", self.seconds))

    def keep(self, entries: Sequence[Entry], now_s: float) -> set[str]:
        """Return the prefixes of those that are younger than `seconds`."""
        return {entry.prefix for entry in entries if now_s - entry.time_s < self.seconds}


@dataclass(frozen=True, slots=True)
class RulesRetention:
    """Keeps what any of its rules keeps, and the newest.

    Attributes
    ----------
    rules : tuple of RetentionRule
        At least one.
    """

    clock_name: ClassVar[ClockName] = "next_keep_s"

    rules: tuple[RetentionRule, ...]

    @property
    def keep(self) -> int:
        """A negative number that tells these rules from others, and from any ``max_to_keep``."""
        names = [repr(rule) if is_dataclass(rule) else type(rule).__qualname__ for rule in self.rules]
        return -1 - crc32c("\n".join(names).encode())

    @property
    def usual(self) -> int:
        """One for each rule, and the one that stayed only because it was the newest."""
        return len(self.rules) + 1

    @property
    def reason(self) -> str:
        """Why a checkpoint goes."""
        return "no rule keeps them"

    def decide(self, window: tuple[Entry, ...], clock_s: float | None, now_s: float) -> Verdict:
        """Return the verdict over `window`. The clock of another retention stays as it is."""
        kept = {*kept_by(self.rules, window, now_s), window[-1].prefix}
        go = [entry for entry in window if entry.prefix not in kept]
        return Verdict(
            tuple(entry for entry in window if entry.prefix in kept),
            # What `set_last_checkpoints` was given is never deleted.
            tuple(entry for entry in go if entry.time_s < math.inf),
            tuple(entry for entry in go if not entry.time_s < math.inf),
            clock_s,
        )

    def resume(self, clock_s: float) -> float:
        """Return `clock_s`."""
        return clock_s


def kept_by(
    rules: Iterable[RetentionRule], entries: Sequence[Entry], now_s: float
) -> dict[str, list[RetentionRule]]:
    """Return prefix → the rules that keep it, of those that any keeps."""
    kept: dict[str, list[RetentionRule]] = {}
    for rule in rules:
        for prefix in rule.keep(entries, now_s):
            kept.setdefault(prefix, []).append(rule)
    return kept


def check_rules(rules: Any) -> tuple[RetentionRule, ...]:
    """Return `rules` as a tuple.

    Raises
    ------
    UsageError
        If it is not a sequence of at least one rule.
    """
    if not isinstance(rules, list | tuple) or not rules:
        raise UsageError(
            "retention must be a list of at least one rule",
            actual=repr(rules),
            hint="For example retention=[Latest(5), EveryNSteps(10_000)].",
        )
    for rule in rules:
        if isinstance(rule, type) or not isinstance(rule, RetentionRule):
            raise UsageError(
                "this is not a retention rule: it has no method keep(entries, now_s)",
                expected="Latest, EveryNSteps, EveryHours, Best, YoungerThan or a rule of your own",
                actual=repr(rule),
            )
    return tuple(rules)


def _count(rule: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise UsageError(f"{rule} needs a positive integer", expected="1 or more", actual=repr(value))
    return int(value)


def _positive(rule: str, unit: str, value: Any) -> float:
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:
        raise UsageError(f"{rule} needs a number of {unit} above 0", actual=repr(value))
    return float(value)
