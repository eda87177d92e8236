"""The options of a Saver, a manager or a checkpoint for each save, checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np

from ckptstore.errors import UsageError
from ckptstore.storage.abilities import SupportsRelaxedDurability
from ckptstore.transfer.budget import check_memory_budget
from ckptstore.transfer.progress import Progress, reporter
from ckptstore.transfer.transfer import Transfer

if TYPE_CHECKING:
    from ckptstore.storage.base import Location

__all__ = ["Durability", "QueuePolicy", "SaveOptions", "check_one_of", "positive_seconds"]

Durability: TypeAlias = Literal["disk", "cache"]
QueuePolicy: TypeAlias = Literal["wait", "skip", "refuse"]


@dataclass(frozen=True, slots=True)
class SaveOptions:
    """Options of each save; see `Saver` for what they mean.

    Raises
    ------
    UsageError
        If one of them is wrong.
    """

    deadline_s: float | None = None
    memory_budget: int | None = None
    durability: Durability = "disk"
    progress: Progress = None
    reuse_unchanged: bool = False
    queue: QueuePolicy = "wait"
    fresh_start: bool = False

    def __post_init__(self) -> None:
        if self.deadline_s is not None:
            object.__setattr__(self, "deadline_s", positive_seconds("deadline_s", self.deadline_s))
        object.__setattr__(self, "memory_budget", check_memory_budget(self.memory_budget))
        check_one_of("durability", self.durability, get_args(Durability))
        check_one_of("queue", self.queue, get_args(QueuePolicy))
        reporter(self.progress)
        _check_bool("reuse_unchanged", self.reuse_unchanged)
        _check_bool("fresh_start", self.fresh_start)

    def place(self, location: Location) -> Location:
        """Return `location` in a storage with the durability of these options."""
        storage = location.storage
        if self.durability == "disk" or not isinstance(storage, SupportsRelaxedDurability):
            return location
        return replace(location, storage=storage.without_sync())

    def transfer(self, url: str, step: int | None) -> Transfer:
        """Return the transfer of a save of `url` with these options; its deadline begins now."""
        return Transfer(
            "save",
            url,
            step=step,
            memory_budget=self.memory_budget,
            deadline_s=self.deadline_s,
            report=reporter(self.progress),
        )


def positive_seconds(name: str, value: Any) -> float:
    """Return the option `name`, a number of seconds above 0; anything else is a `UsageError`."""
    # A comparison with NaN is false, in numpy as in Python.
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:
        raise UsageError(
            f"{name} must be a number of seconds above 0, or None for no limit",
            expected="a number of seconds",
            actual=repr(value),
        )
    return float(value)


def _check_bool(name: str, value: object) -> None:
    if not isinstance(value, bool | np.bool_):
        raise UsageError(f"{name} must be True or False", expected="a bool", actual=repr(value))


def check_one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    """Raise `UsageError` unless the option `name` is one of `known`."""
    if not isinstance(value, str) or value not in known:
        raise UsageError(
            f"{name} has an unknown value",
            expected=" or ".join(repr(one) for one in known),
            actual=repr(value),
        )
