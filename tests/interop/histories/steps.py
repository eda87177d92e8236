"""What users do in a directory of checkpoints: the steps of a history, and a generator of histories."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "Advance",
    "DeleteFiles",
    "History",
    "ManagerSave",
    "NewManager",
    "NewSaver",
    "Recover",
    "Remove",
    "Restart",
    "Save",
    "SetLast",
    "Step",
    "UpdateState",
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
    """The process ends: all Savers and managers are gone. Another one begins.

    Attributes
    ----------
    swaps : bool
        Each program goes on in the directory of the other one.
    deletes : str or None
        Record that is deleted by hand.
    """

    swaps: bool = False
    deletes: str | None = None


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


@dataclass(frozen=True)
class NewManager:
    """Make a CheckpointManager for a new Checkpoint, and let it restore what is there or not."""

    max_to_keep: int | None
    hours: float | None
    interval: int | None
    restores: bool


@dataclass(frozen=True)
class ManagerSave:
    """Train for some steps, and save with the manager."""

    trained: int
    number: int | None
    check_interval: bool


@dataclass(frozen=True)
class UpdateState:
    """``update_checkpoint_state`` by hand: the one listed `back` entries ago is the latest.

    Attributes
    ----------
    is_cut : bool
        What is newer is not listed any more.
    with_times : bool
        Only where it is cut: TensorFlow wants one time more otherwise.
    """

    record: str | None
    back: int
    is_cut: bool
    with_times: bool


Step = (
    NewSaver
    | Save
    | Advance
    | Restart
    | Recover
    | SetLast
    | Remove
    | DeleteFiles
    | NewManager
    | ManagerSave
    | UpdateState
)


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
        self.savers = self.random.choice((0, 1, 1, 1, 2))
        self.slots = max(1, self.savers)
        self.managed = 1.0 if self.savers == 0 else self.random.choice((0.0, 0.0, 0.3))
        self.clock_goes_back = self.random.random() < 0.15
        self.swaps = self.random.choice((0.0, 0.0, 0.5, 1.0))
        self.updates = self.random.choice((0.0, 0.0, 0.5, 1.0))
        self.faults = self.random.choice((0.0, 0.0, 0.5, 1.0))
        self.counter = self.random.choice((0, 0, 1, 100, 2**33))

    def history(self) -> History:
        steps: list[Step] = self.begin()
        for _ in range(self.random.randint(4, 16)):
            steps += self.some()
        return History(self.random.random() < 0.4, self.random.random() < 0.4, tuple(steps))

    def begin(self) -> list[Step]:
        managers = [self.manager()] if self.managed else []
        return [*(self.saver(slot) for slot in range(self.savers)), *managers]

    def restart(self) -> Restart:
        deletes = self.random.random() < 0.2 * self.faults
        record = (self.random.choice(self.records) or "checkpoint") if deletes else None
        return Restart(self.random.random() < self.swaps, record)

    def manager(self) -> NewManager:
        return NewManager(
            self.random.choice((None, 1, 2, 2, 3, 5)),
            self.random.choice((None, None, 1.0, 2.5, 0.25)),
            self.random.choice((None, None, 1, 10)),
            self.random.random() < 0.6,
        )

    def manager_save(self) -> ManagerSave:
        number = None if self.random.random() < 0.85 else self.random.choice((0, 1, 2, 7, 2**33))
        return ManagerSave(self.random.choice((0, 1, 5, 10)), number, self.random.random() < 0.7)

    def some(self) -> list[Step]:
        slot = self.random.randrange(self.slots)
        record = self.random.choice(self.records)
        kinds = ("save", "advance", "new", "recover", "set", "update", "fault", "restart")
        kind = self.random.choices(kinds, (15, 1, 1, 1, 1, 2 * self.updates, 3 * self.faults, 2))[0]
        match kind:
            case "advance":
                return [Advance(self.seconds())]
            case "new":
                return [self.manager() if self.random.random() < self.managed else self.saver(slot)]
            case "recover":
                return [Recover(slot, record)]
            case "set":
                return [SetLast(slot, record, self.random.choice((0, 1, 2, 4)), self.random.random() < 0.7)]
            case "update":
                is_cut = self.random.random() < 0.5
                with_times = is_cut and self.random.random() < 0.5
                return [UpdateState(record, self.random.choice((0, 1, 1, 2)), is_cut, with_times)]
            case "fault":
                return [self.fault()]
            case "restart":
                recovers = [Recover(slot, record)] if self.random.random() < 0.3 else []
                return [self.restart(), *self.begin(), *recovers]
        if self.random.random() < self.managed:
            return [Advance(self.seconds()), self.manager_save()]
        return [Advance(self.seconds()), self.save(slot)]

    def fault(self) -> Step:
        back = self.random.choice((0, 0, 1, 1, 2, 3))
        if self.random.random() < 0.4:
            return Remove(back)
        return DeleteFiles(back, self.random.choice(("index", "data", "meta", "all")))

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
