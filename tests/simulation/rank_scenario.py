"""The ranks of a job save one checkpoint together, through a mailbox, on the bad days.

A rank is a process (`processes`) with a real Saver; its coordinator is a simulated `mailbox`. Ranks die and
stand still at any request and any message, messages come late or not at all, the mailbox is gone, a whole job
is started again, and a second job begins while the first one still works. As in training, the ranks of most
jobs wait for each other before each save, outside of the code under test: whoever stood still joins them
again, and the next save must succeed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ckptstore.directory.garbage import collect_garbage
from ckptstore.directory.garbage_search import find_garbage
from ckptstore.errors import (
    AmbiguousOutcomeError,
    CkptStoreError,
    CoordinatorLostError,
    FencedError,
    RanksMissingError,
)
from ckptstore.testing.invariants import (
    InvariantViolation,
    assert_chief_is_missing,
    assert_no_orphans,
    assert_ranks_agree,
    assert_save_is_whole,
)
from ckptstore.train.saver import Saver
from ckptstore.types import Piece
from tests.simulation.history import RECORD, Save
from tests.simulation.mailbox import Mailbox, SimulatedCoordinator
from tests.simulation.processes import Process, ProcessScheduler
from tests.simulation.scenarios import BASENAME, STEPS, URL, Run, Scenario, locate
from tests.simulation.scheduler import Actor, Step
from tests.simulation.storage import ActorStorage

__all__ = ["RANKS", "RankRun"]

RANKS = Scenario("ranks")

_MOST_DEATHS = 3

# What a rank that is going to stand still does next; "" for anything.
_FREEZES_BEFORE = (
    *("", "", "PUT", "PUT IF", "DELETE", "listens", "says", "gathers"),
    # The second message of a rank is its first report.
    *["hands over"] * 4,
)


class Job:
    """One start of a training job: some ranks, a mailbox, and what is wrong with them.

    Attributes
    ----------
    name : str
        Of the run, for fencing.
    processes : list of Process
        By rank.
    first_step : int or None
        The step after which it goes on; None until the chief has found the latest checkpoint.
    saves : dict of int to Save
        By number: each is one save of all ranks.
    outcomes : dict of int to dict
        Number of the save → rank → how it ended there.
    """

    def __init__(self, scheduler: ProcessScheduler, name: str, *, is_reliable: bool) -> None:
        self.scheduler = scheduler
        draw = scheduler.random
        self.name = name
        self.is_reliable = is_reliable
        self.size = draw.choice((3, 3, 4))
        self.deadline_s = draw.choice((15.0, 15.0, 40.0))
        self.stall_s = draw.choice((5.0, 120.0))
        self.meets = is_reliable or draw.random() < 0.8
        # The last one may hold nothing but what all hold.
        self.writers = self.size - (draw.random() < 0.2)
        self.steps = [draw.choice((1, 1, 0)) for _ in range(10)]
        self.mailbox = Mailbox(scheduler, self.size, 1.5 * self.deadline_s)
        self.mailbox.disturb = self.disturb
        self.processes: list[Process] = []
        self.first_step: int | None = None
        self.saves: dict[int, Save] = {}
        self.begun_s: dict[int, float] = {}
        self.outcomes: dict[int, dict[int, str]] = {}
        self._met: dict[int, int] = {}
        self._began_s = scheduler.now_s
        # Rank, from when, until when.
        self._disturbances: list[tuple[int, float, float]] = []

    @property
    def is_broken(self) -> bool:
        """Whether a rank is gone: the engine would end the others."""
        return any(process.is_dead for process in self.processes)

    @property
    def has_ended(self) -> bool:
        return all(process.is_dead for process in self.processes)

    def disturb(self, rank: int, until_s: float = float("inf")) -> None:
        """Take down that something is wrong with a rank from now on."""
        self._disturbances.append((rank, self.scheduler.now_s, until_s))

    def disturbed_in(self, number: int) -> set[int]:
        """Return the ranks with which something was wrong since a save began, or since ever."""
        begun_s = self.begun_s[number] if self.meets else self._began_s
        now_s = self.scheduler.now_s
        found = {
            rank for rank, since_s, until_s in self._disturbances if since_s <= now_s and until_s >= begun_s
        }
        ended = self.outcomes.get(number, {})
        # Killed, or ended by its engine before it had an outcome.
        return found | {
            rank for rank, each in enumerate(self.processes) if each.is_dead and rank not in ended
        }

    def meet(self, rank: int, number: int) -> bool:
        """Wait for the other ranks, as training does; False if one of them is gone."""
        if self.meets:
            self._met[rank] = number
            self.scheduler.look_again()
            self.scheduler.wait(
                lambda: self.is_broken or all(self._met.get(each, -1) >= number for each in range(self.size))
            )
        return not self.is_broken

    def draw_faults(self) -> None:
        """Decide what will be wrong."""
        draw = self.scheduler.random
        for process in self.processes:
            if draw.random() < 0.1:
                process.crash_at = draw.randint(1, 80) * draw.choice((1, -1))
            if draw.random() < 0.2:
                process.freeze_before = draw.choice(_FREEZES_BEFORE)
                process.freeze_at = (
                    draw.choice((1, 2, 2, 3, 4, 6)) if process.freeze_before else draw.randint(1, 80)
                )
                process.freeze_s = self.deadline_s * draw.choice((0.1, 0.6, 1.0, 1.1, 1.2, 3.0))
        if draw.random() < 0.15:
            rank = draw.randrange(self.size)
            since_s = self.scheduler.now_s + draw.uniform(0.0, 8.0)
            until_s = since_s + draw.choice((1.0, 6.0, self.deadline_s, 2 * self.deadline_s))
            self.mailbox.lost[rank] = since_s, until_s
            self._disturbances.append((rank, since_s, until_s))
        if draw.random() < 0.06:
            gone_s = self.scheduler.now_s + draw.uniform(0.0, 8.0)
            for rank in draw.choice(([draw.randrange(self.size)], range(self.size))):
                self.mailbox.gone_at_s[rank] = gone_s
                self._disturbances.append((rank, gone_s, float("inf")))

    def values(self, rank: int, mark: int) -> dict[str, Any]:
        """Return what a rank holds: its rows, a replica, and an array of its own."""
        held: dict[str, Any] = {"bias": np.array([mark], np.int32)}
        if rank < self.writers:
            shape = (2 * self.writers,)
            held["rows"] = Piece(np.full(2, mark, np.int32), shape, (2 * rank,))
            held[f"own/{rank}"] = np.array([mark], np.int32)
        return held

    @property
    def size_bytes(self) -> int:
        """Of a checkpoint."""
        return 4 * (1 + 3 * self.writers)


class RankRun(Run):
    """One run of the scenario; see `Run`."""

    scheduler: ProcessScheduler
    scheduler_class = ProcessScheduler
    chance_of_aftermath = 0.4

    def __init__(self, seed: int, **server: bool) -> None:
        super().__init__(RANKS, seed, check_graphs=False, **server)
        draw = self.random
        self.scenario = Scenario("ranks", steps=draw.random() < 0.6)
        self._can_be_replaced = draw.random() < 0.35
        self._jobs: list[Job] = []
        self._restored: dict[str, int | None] = {}
        # Mark → bytes of that checkpoint.
        self._sizes: dict[int, int] = {}
        self.scheduler.resends_deletes = False
        self.history.on_index = self._check_index

    def outcomes(self) -> list[set[str]]:
        """Return of each save what its ranks were told."""
        return [set(each.values()) for job in self._jobs for each in job.outcomes.values()]

    def _draw_lateness(self) -> dict[tuple[str, str], float]:
        # Often enough for a delete to meet a name that is used again, if one ever is.
        often = {("DELETE", ".data-"): 0.3, ("DELETE MANY", ".data-"): 0.3}
        return {**super()._draw_lateness(), **often}

    def _cast(self) -> None:
        first = self._start_job()
        if self._can_be_replaced and self.random.random() < 0.3:
            self._start_job(after_s=self.random.uniform(0.0, 10.0))
        elif self._can_be_replaced:
            for process in first.processes:
                if process.freeze_at and self.starts < 2:
                    process.on_freeze = _both(process.on_freeze, self._start_job)

    def _start_job(self, *, after_s: float = 0.0, is_reliable: bool = False) -> Job:
        self.starts += 1
        job = Job(self.scheduler, f"run {self.starts}", is_reliable=is_reliable)
        self._jobs.append(job)
        saves = 2 if is_reliable else self.target
        for rank in range(job.size):
            process = self.scheduler.start(f"{self.starts}.{rank}", self._program(job, rank, after_s, saves))
            process.is_reliable = is_reliable
            process.on_freeze = _disturbs(job, rank, process)
            process.on_end = lambda: self._after(job)
            job.processes.append(process)
        if not is_reliable:
            job.draw_faults()
        return job

    def _program(self, job: Job, rank: int, after_s: float, saves: int) -> Callable[[Actor], None]:
        def program(process: Any) -> None:
            self.scheduler.sleep(after_s)
            process.storage = ActorStorage(process)
            coordinator: Any = SimulatedCoordinator(job.mailbox, rank, process)
            saver = Saver(
                max_to_keep=self.keep,
                run=job.name,
                clock=self.clock,
                coordinator=coordinator,
                deadline_s=job.deadline_s,
                stall_s=job.stall_s,
            )
            if rank == 0:
                self._restored[job.name] = found = self._restore_latest()
                job.first_step = (found or 0) % STEPS
                self.scheduler.look_again()
            else:
                self.scheduler.wait(lambda: job.is_broken or job.first_step is not None)
            for number in range(saves):
                if job.first_step is None or not job.meet(rank, number):
                    return
                if not self._save_part(saver, job, rank, number):
                    return

        return program

    def _after(self, job: Job) -> None:
        """The engine starts a job again when a rank of it has died."""
        has_died = any(process.has_crashed for process in job.processes)
        if job.has_ended and has_died and self.deaths < _MOST_DEATHS:
            self.deaths += 1
            self._start_job(after_s=self.scheduler.latest_arrival_s + 1.0)

    def _save_part(self, saver: Saver, job: Job, rank: int, number: int) -> bool:
        """Save with one rank; return whether it may go on."""
        history = self.history
        if number not in job.saves:
            assert job.first_step is not None
            step = job.first_step + 1 + sum(job.steps[:number])
            prefix = f"{BASENAME}-{step}" if self.scenario.steps else BASENAME
            save = Save((len(history.saves) + 1) * STEPS + step, job.name, prefix)
            history.saves.append(save)
            job.saves[number] = save
            job.begun_s[number] = self.scheduler.now_s
            self._sizes[save.mark] = job.size_bytes
        save = job.saves[number]
        global_step = save.mark % STEPS if self.scenario.steps else None
        try:
            values = job.values(rank, save.mark)
            saver.save(values, f"{URL}/{BASENAME}", global_step, write_meta_graph=self.has_graphs)
        except Exception as error:  # noqa: BLE001 - a save that fails in any other way is a finding too
            with history.noting:
                self._check_failure(error, job, rank, number)
            return not isinstance(error, FencedError)
        save.is_acknowledged = True
        job.outcomes.setdefault(number, {})[rank] = "committed"
        if save.mark not in history.seen:
            history.note("PHANTOM", f"rank {rank} was told of {save.mark}, which nobody published")
        self.scheduler.trace.append(Step(f"{job.name[4:]}.{rank}", f"has saved {save.mark}", save.prefix))
        return True

    def _check_failure(self, error: Exception, job: Job, rank: int, number: int) -> None:
        save = job.saves[number]
        outcome = "failed"
        if isinstance(error, (CoordinatorLostError, AmbiguousOutcomeError)) or "is published" in str(error):
            outcome = "unknown"
        elif isinstance(error, FencedError):
            outcome = "fenced"
        job.outcomes.setdefault(number, {})[rank] = outcome
        name = f"{job.name[4:]}.{rank}"
        self.scheduler.trace.append(Step(name, f"{outcome} {save.mark}", save.prefix, type(error).__name__))
        if not isinstance(error, CkptStoreError):
            raise InvariantViolation("ERROR", f"rank {rank} failed with {error!r}") from error
        if isinstance(error, FencedError):
            if not self.history.was_replaced(job.name, save.prefix):
                raise InvariantViolation("SPURIOUS", f"rank {rank} was fenced by nobody: {error}")
            return
        disturbed = job.disturbed_in(number)
        if not disturbed:
            raise InvariantViolation(
                "SPURIOUS", f"rank {rank} of {job.name} failed with {error!r}"
            ) from error
        # Ranks that do not wait for each other are missed by those that went on without them.
        if isinstance(error, RanksMissingError) and job.meets:
            assert_chief_is_missing(error, rank, disturbed)

    def _check_index(self, prefix: str) -> None:
        mark = self.history.mark_at(prefix)
        assert_save_is_whole(self.history.files, prefix, self._sizes.get(mark or 0, 0))

    def _check_end(self) -> None:
        record = self.history.record
        announced = set() if record is None else {intent.prefix for intent in record.intents}
        for job in self._jobs:
            for number, outcomes in job.outcomes.items():
                save = job.saves[number]
                if outcomes.get(0) != "committed" and (record is None or save.prefix in announced):
                    # The others have found the index: the next save brings it into the record.
                    save.is_acknowledged = False
        super()._check_end()
        for job in self._jobs:
            for number, outcomes in job.outcomes.items():
                with self.history.noting:
                    assert_ranks_agree(outcomes, is_published=job.saves[number].mark in self.history.seen)

    def _aftermath(self) -> None:
        """Another job when all is quiet: it must find what is there, save, and clean up."""
        history = self.history
        before = history.latest_mark()
        self._start_job(is_reliable=True, after_s=self.scheduler.latest_arrival_s + 1.0)
        self.scheduler.run()
        if before is not None and self._restored.get(f"run {self.starts}") != before:
            history.note("LOST", f"in the end {self._restored} was found instead of {before}")
        self._check_end()

        def clean(process: Any) -> None:
            process.storage = ActorStorage(process)
            directory = locate(URL)
            garbage = find_garbage(directory, [directory.child(RECORD)], min_age_s=0.0)
            collect_garbage(directory, garbage)

        self.scheduler.start("gc", clean).is_reliable = True
        self.scheduler.run()
        if self.scenario.steps and not self._can_be_replaced:
            history.check_nothing_is_left()
        with history.noting:
            assert_no_orphans(history.files)


def _disturbs(job: Job, rank: int, process: Process) -> Callable[[], object]:
    return lambda: job.disturb(rank, process.frozen_until_s)


def _both(first: Callable[[], object] | None, second: Callable[[], object]) -> Callable[[], None]:
    def call() -> None:
        if first is not None:
            first()
        second()

    return call
