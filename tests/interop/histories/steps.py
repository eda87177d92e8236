"""What users do in a directory of checkpoints: the steps of a history, and a generator of histories."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "Advance",
    "DeleteFiles",
    "History",
    "NewSaver",
    "Recover",
    "Remove",
    "Restart",
    "Save",
    "SetLast",
    "Step",
    "draw",
]


@dataclass(frozen=True)
class NewSaver:
    """Make a Saver, in the place of the one in `slot`."""

    slot: int
    max_to_keep: int | None
    hours: float
    relative: bool
    pad: bool


@dataclass(frozen=True)
class Save:
    """Save with the Saver in `slot`."""

    slot: int
    name: str
    global_step: int | None
    record: str | None
    graph: bool
    state: bool


@dataclass(frozen=True)
class Advance:
    """Let time pass; a negative number sets the clock back."""

    seconds: float


@dataclass(frozen=True)
class Restart:
    """The process ends: all Savers and managers are gone. Another one begins."""


@dataclass(frozen=True)
class Recover:
    """``recover_last_checkpoints`` with what the record lists, as tutorials do after a restart."""

    slot: int
    record: str | None


@dataclass(frozen=True)
class SetLast:
    """``set_last_checkpoints_with_time``, or the one without, of the newest `count` that the record lists."""

    slot: int
    record: str | None
    count: int
    with_times: bool


@dataclass(frozen=True)
class Remove:
    """``remove_checkpoint`` of the checkpoint saved `back` saves ago."""

    back: int


@dataclass(frozen=True)
class DeleteFiles:
    """Files of the checkpoint saved `back` saves ago are deleted by hand: its index, data, graph, or all."""

    back: int
    kind: Literal["index", "data", "meta", "all"]


Step = NewSaver | Save | Advance | Restart | Recover | SetLast | Remove | DeleteFiles


@dataclass(frozen=True)
class History:
    """A directory, named relative to the working directory or not, and what happens in it.

    Attributes
    ----------
    fresh_start : bool
        Of ckptstore's Savers and managers.
    """

    is_relative: bool
    fresh_start: bool
    steps: tuple[Step, ...]


NAMES = ("model", "model", "model", "resnet-18", "resnet", "model.ckpt", "run-2026-11-28", "model-", "a b")
HOUR_S = 3600.0


class _Generator:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        # Of most of a history: users rarely mix names and records.
        self.names = self.random.sample(NAMES, self.random.choice((1, 1, 2, 3)))
        self.records = self.random.choice(((None,), (None,), (None, None, "best"), ("latest",)))
        self.graphs = self.random.choice((1.0, 1.0, 0.5, 0.1))
        self.without_state = self.random.choice((0.0, 0.0, 0.1, 0.3))
        self.with_step = self.random.choice((1.0, 1.0, 0.9, 0.5, 0.0))
        self.is_stepwise = self.random.random() < 0.7
        self.slots = self.random.choice((1, 1, 1, 2))
        self.clock_goes_back = self.random.random() < 0.15
        self.faults = self.random.choice((0.0, 0.0, 0.3, 0.6))
        self.counter = self.random.choice((0, 0, 1, 100, 2**33))

    def history(self) -> History:
        steps: list[Step] = [self.saver(slot) for slot in range(self.slots)]
        for _ in range(self.random.randint(4, 16)):
            steps += self.some()
        return History(self.random.random() < 0.4, self.random.random() < 0.4, tuple(steps))

    def some(self) -> list[Step]:
        kind = self.random.random()
        slot = self.random.randrange(self.slots)
        if kind < 0.66:
            return [Advance(self.seconds()), self.save(slot)]
        if kind < 0.72:
            return [Advance(self.seconds())]
        if kind < 0.76:
            return [self.saver(slot)]
        if kind < 0.80:
            return [Recover(slot, self.random.choice(self.records))]
        if kind < 0.84:
            count = self.random.choice((0, 1, 2, 4))
            return [SetLast(slot, self.random.choice(self.records), count, self.random.random() < 0.7)]
        if kind < 0.91 and self.random.random() < self.faults:
            back = self.random.choice((0, 1, 1, 2, 3))
            kinds: tuple[Literal["index", "data", "meta", "all"], ...] = ("index", "data", "meta", "all")
            return [self.random.choice((Remove(back), DeleteFiles(back, self.random.choice(kinds))))]
        restart: list[Step] = [Restart(), *(self.saver(slot) for slot in range(self.slots))]
        if self.random.random() < 0.4:
            restart.append(Recover(slot, self.random.choice(self.records)))
        return restart

    def saver(self, slot: int) -> NewSaver:
        return NewSaver(
            slot,
            self.random.choice((None, 0, 1, 2, 2, 3, 3, 5)),
            self.random.choice((10_000.0, 10_000.0, 1.0, 2.5, 0.25)),
            self.random.random() < 0.3,
            self.random.random() < 0.1,
        )

    def save(self, slot: int) -> Save:
        return Save(
            slot,
            self.random.choice(self.names),
            self.step() if self.random.random() < self.with_step else None,
            self.random.choice(self.records),
            self.random.random() < self.graphs,
            self.random.random() >= self.without_state,
        )

    def step(self) -> int:
        if self.is_stepwise and self.random.random() < 0.85:
            self.counter += self.random.choice((1, 1, 1, 0, 100))
            return self.counter
        return self.random.choice((0, 1, 2, 3, 18, self.counter, self.counter - 1, -1, -7, 10**15))

    def seconds(self) -> float:
        if self.clock_goes_back and self.random.random() < 0.1:
            return -self.random.choice((1.0, 0.5 * HOUR_S, 30 * HOUR_S))
        return self.random.choice((0.0, 0.25, 60.0, 0.5 * HOUR_S, HOUR_S, 3 * HOUR_S))


def draw(seed: int) -> History:
    """Return the history of `seed`, always the same one."""
    return _Generator(seed).history()
