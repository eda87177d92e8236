"""Which checkpoints stay: pure verdicts, no files, no clock.

Two algorithms, because TensorFlow has two: `SaverRetention` (``tf.train.Saver``) and `ManagerRetention`
(``tf.train.CheckpointManager``). Both look at the window of checkpoints listed for one owner, oldest first,
and decide when a checkpoint leaves it: deleted, or preserved for good because enough hours have passed.
Rules without a clock are in `retention_rules`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, TypeAlias

__all__ = ["ClockName", "Entry", "KeepNewest", "ManagerRetention", "Retention", "SaverRetention", "Verdict"]


ClockName: TypeAlias = Literal["next_keep_s", "last_preserved_s"]
"""The field of the record's owner line that holds an algorithm's clock."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One checkpoint of a window.

    Attributes
    ----------
    prefix : str
        Relative to the directory of the record.
    time_s : float
        When its save was complete, seconds since 1970.
    step : int or None
        With which it was saved; known where a rule asks.
    metrics : mapping
        Of its save, by name; known where a rule asks, or the record does not have them yet.
    """

    prefix: str
    time_s: float
    step: int | None = field(default=None, compare=False)
    metrics: Mapping[str, float] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a retention algorithm decided.

    Attributes
    ----------
    window : tuple of Entry
        What stays listed, oldest first.
    victims : tuple of Entry
        What is to be deleted.
    preserved : tuple of Entry
        What leaves the list and stays on the storage for good.
    clock_s : float or None
        The algorithm's own clock after this decision (`next_keep` or `last_preserved`).
    """

    window: tuple[Entry, ...]
    victims: tuple[Entry, ...] = ()
    preserved: tuple[Entry, ...] = ()
    clock_s: float | None = None


class Retention(Protocol):
    """Decides over one window. Implementations are pure."""

    clock_name: ClassVar[ClockName]

    @property
    def keep(self) -> int:
        """How many stay; 0 without a limit; a negative number that stands for rules."""

    @property
    def usual(self) -> int:
        """How many one save drops in the ordinary course; more are announced by a warning."""

    @property
    def reason(self) -> str:
        """Why checkpoints go, for this warning."""

    def decide(self, window: tuple[Entry, ...], clock_s: float | None, now_s: float) -> Verdict:
        """Return the verdict over `window`, which is not empty.

        Its last entry is the checkpoint being saved, unless that is pinned.
        """

    def resume(self, clock_s: float) -> float:
        """Return the clock with which to go on from the one that an earlier run stored."""


@dataclass(frozen=True, slots=True)
class KeepNewest:
    """Delete nothing and list only the newest, as TensorFlow does without ``max_to_keep``."""

    clock_name: ClassVar[ClockName] = "next_keep_s"
    keep: ClassVar[int] = 0
    usual: ClassVar[int] = 1
    reason: ClassVar[str] = "all but the newest leave the list"

    def decide(self, window: tuple[Entry, ...], clock_s: float | None, now_s: float) -> Verdict:
        return Verdict(window[-1:], clock_s=clock_s)

    def resume(self, clock_s: float) -> float:
        return clock_s


@dataclass(frozen=True, slots=True)
class SaverRetention:
    """``tf.train.Saver``: keep the last `max_to_keep`; of those that leave, one every `every_s` seconds.

    The clock is `next_keep`: a checkpoint that leaves the window is preserved when its time lies strictly
    after it, and it then advances from its old value, not from now: after a long gap several in a row are
    preserved until it has caught up. Unlike TensorFlow, which lets at most one go a save, a window that is
    too long converges at once.

    Format
    ------
    Mirrors ``tensorflow/python/training/saver.py``, ``_RecordLastCheckpoint`` and
    ``_MaybeDeleteOldCheckpoints``.
    """

    clock_name: ClassVar[ClockName] = "next_keep_s"
    usual: ClassVar[int] = 1

    max_to_keep: int
    every_s: float
    built_s: float

    @property
    def keep(self) -> int:
        return self.max_to_keep

    @property
    def reason(self) -> str:
        return f"only {self.max_to_keep} are to be kept"

    def decide(self, window: tuple[Entry, ...], clock_s: float | None, now_s: float) -> Verdict:
        next_keep_s = self.built_s + self.every_s if clock_s is None else clock_s
        # Later only if the clock was set back: nothing would be preserved until it has caught up.
        next_keep_s = min(next_keep_s, now_s + self.every_s)
        surplus = max(0, len(window) - self.max_to_keep)
        victims = []
        preserved = []
        for entry in window[:surplus]:
            if entry.time_s > next_keep_s:
                next_keep_s += self.every_s
                preserved.append(entry)
            else:
                victims.append(entry)
        return Verdict(window[surplus:], tuple(victims), tuple(preserved), next_keep_s)

    def resume(self, clock_s: float) -> float:
        # A shortened interval takes effect at once; otherwise the stored clock is never later than this.
        return min(clock_s, self.built_s + self.every_s)


@dataclass(frozen=True, slots=True)
class ManagerRetention:
    """``tf.train.CheckpointManager``: keep the last `max_to_keep` (None: all), one every `every_s` seconds.

    The clock is `last_preserved`: a checkpoint that leaves is preserved when at least `every_s` seconds have
    passed since the last one that was.

    Format
    ------
    Mirrors ``tensorflow/python/checkpoint/checkpoint_management.py``, ``CheckpointManager._sweep``.
    """

    clock_name: ClassVar[ClockName] = "last_preserved_s"
    usual: ClassVar[int] = 1

    max_to_keep: int | None
    every_s: float | None
    built_s: float

    @property
    def keep(self) -> int:
        return self.max_to_keep or 0

    @property
    def reason(self) -> str:
        return f"only {self.max_to_keep} are to be kept"

    def decide(self, window: tuple[Entry, ...], clock_s: float | None, now_s: float) -> Verdict:
        # One second back, as TensorFlow starts it: a checkpoint saved at once counts as later.
        last_preserved_s = self.built_s - 1.0 if clock_s is None else clock_s
        # Later only if the clock was set back: nothing would be preserved until it has caught up.
        last_preserved_s = min(last_preserved_s, now_s)
        surplus = 0 if self.max_to_keep is None else max(0, len(window) - self.max_to_keep)
        victims = []
        preserved = []
        for entry in window[:surplus]:
            if self.every_s is not None and entry.time_s - self.every_s >= last_preserved_s:
                last_preserved_s = entry.time_s
                preserved.append(entry)
            else:
                victims.append(entry)
        return Verdict(window[surplus:], tuple(victims), tuple(preserved), last_preserved_s)

    def resume(self, clock_s: float) -> float:
        # A clock that lies in the future (another machine's) would preserve nothing for as long.
        return min(clock_s, self.built_s)
