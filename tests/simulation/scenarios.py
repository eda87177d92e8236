"""The programs of one run: seven scenarios, each drawn from a seed."""

from __future__ import annotations

import functools
import gc
import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar, cast
from unittest import mock

import numpy as np

import ckptstore.directory.published_index
import ckptstore.directory.record_update
import ckptstore.distributed.rounds
import ckptstore.distributed.waiting
import ckptstore.saving.arguments
import ckptstore.saving.rank_task.base
import ckptstore.saving.rank_task.chief
import ckptstore.saving.rank_task.member
import ckptstore.storage.object_store.attempts
import ckptstore.storage.object_store.recent_versions
import ckptstore.storage.retry
import ckptstore.storage.scope
import ckptstore.train.checkpoint_management
import ckptstore.train.saver
from ckptstore.bundle.write.plan import SavePlan
from ckptstore.directory.garbage import collect_garbage
from ckptstore.directory.garbage_search import find_garbage
from ckptstore.directory.pins import add_pin, remove_pin
from ckptstore.directory.prune import PruneRequest, prune
from ckptstore.directory.retention_rules import Best, EveryNSteps, Latest, RetentionRule
from ckptstore.errors import (
    AccessError,
    AmbiguousOutcomeError,
    CkptStoreError,
    CkptStoreWarning,
    ConflictError,
    CorruptError,
    FencedError,
    NotFoundError,
)
from ckptstore.format.naming import data_name
from ckptstore.format.record import format_state
from ckptstore.saving.prepare import SavePreparation
from ckptstore.saving.saver_graph import SaverGraph
from ckptstore.storage.base import Location
from ckptstore.testing.invariants import (
    InvariantViolation,
    assert_failure_was_due,
    assert_no_orphans,
    assert_one_save,
    assert_reader_is_not_behind,
    assert_reader_was_served,
    data_files_of,
)
from ckptstore.train.checkpoint_management import latest_checkpoint
from ckptstore.train.saver import Saver
from tests.simulation.bucket import SimulatedBucket
from tests.simulation.history import DIRECTORY, RECORD, History, Save
from tests.simulation.memory import every_copy_of, no_threads, pure_functions_remember
from tests.simulation.processes import simulated_threading
from tests.simulation.scheduler import Actor, Endless, Scheduler, Step
from tests.simulation.storage import ActorStorage

__all__ = ["SCENARIOS", "Run", "Scenario", "simulation"]

URL = f"sim://{DIRECTORY}"
BASENAME = "model"
NEIGHBOUR = "critic"
BYSTANDER = "bystander"
STRANGER = "stranger"
READER_TRIES = 6

_MAY_BE_LATE = [
    *(("PUT", ".data-"), ("DELETE", ".data-"), ("DELETE MANY", ".data-")),
    *(("PUT", ".index"), ("PUT IF", ".index"), ("DELETE", ".index")),
]

# A mark is made of the number of a save and its step.
STEPS = 1000


@dataclass(frozen=True)
class Scenario:
    """What the runs of a training job do. A run that died is followed by another, which resumes.

    Attributes
    ----------
    name : str
    steps : bool
        Save ``model-1``, ``model-2``, …; otherwise ``model`` again and again.
    zombie : bool
        A second run begins while the first one stands still, or goes on.
    rollback : bool
        It goes back some steps, and saves those again.
    rules : bool
        It keeps checkpoints by rules and metrics, while somebody pins and unpins them, or prunes.
    refused : bool
        The second run begins when the first one may not write indexes any more: it saves the same steps,
        while what the first one deletes is still on its way.
    together : bool
        Two processes of one run, which save the same steps at about the same time.
    """

    name: str
    steps: bool = True
    zombie: bool = False
    rollback: bool = False
    rules: bool = False
    refused: bool = False
    together: bool = False


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("steps"),
        Scenario("overwrite", steps=False),
        Scenario("zombie", zombie=True),
        Scenario("zombie-same-prefix", steps=False, zombie=True),
        Scenario("zombie-rollback", zombie=True, rollback=True),
        Scenario("refused", zombie=True, refused=True),
        Scenario("refused-same-prefix", steps=False, zombie=True, refused=True),
        Scenario("rules", rules=True),
        Scenario("zombie-rules", zombie=True, rules=True),
        Scenario("same-run", together=True),
        Scenario("same-run-same-prefix", steps=False, together=True),
    )
}


class Run:
    """One run of a scenario.

    Parameters
    ----------
    scenario : Scenario
    seed : int
    conditional_delete, honours_conditions : bool
        What the server knows; see `SimulatedBucket`.
    check_graphs : bool, optional
        Whether a listed checkpoint that lost its graph is a violation. By default only where one run saves at
        a time: a graph has no name of its own, so the late delete of a run that stood still takes that of a
        checkpoint which another run has saved again.

    Attributes
    ----------
    scheduler : Scheduler
    history : History
    """

    scheduler_class: ClassVar[type[Scheduler]] = Scheduler
    chance_of_aftermath = 0.1

    def __init__(
        self,
        scenario: Scenario,
        seed: int,
        *,
        conditional_delete: bool = True,
        honours_conditions: bool = True,
        check_graphs: bool | None = None,
    ) -> None:
        self.scenario = scenario
        bucket = SimulatedBucket(
            self.clock, conditional_delete=conditional_delete, honours_conditions=honours_conditions
        )
        self.scheduler = self.scheduler_class(f"{scenario.name} {seed}", bucket)
        self.random = draw = self.scheduler.random
        self.keep = draw.choice((1, 2, 2, 3))
        if scenario.together and scenario.steps:
            # Of two that are out of step, retention of one would take what the other saves late.
            self.keep = 10
        self.target = draw.choice((2, 2, 3, 3)) if scenario.zombie else draw.choice((3, 3, 4))
        # Deterministic training saves the same bytes for a step, in every run.
        self.repeats_values = scenario.rollback and draw.random() < 0.4
        self.has_graphs = draw.random() < 0.5
        self.has_shards = draw.random() < 0.25
        self.starts = 0
        self.deaths = 0
        self.scheduler.lateness = self._draw_lateness()
        self.scheduler.resends_deletes = not scenario.refused
        if check_graphs is None:
            check_graphs = not (scenario.zombie or scenario.together)
        # What a pruner may keep less than the Savers do is how many of the newest there are.
        self.rules: list[RetentionRule] = []
        self.has_pruner = scenario.rules and draw.random() < 0.3
        if scenario.rules:
            self.rules = [Best(1, "loss"), *draw.choice(([], [EveryNSteps(2)]))]
        counts_newest = not scenario.rules or draw.random() < 0.7
        self.saver_rules = [*self.rules, *([Latest(self.keep)] if counts_newest else [])]
        self.history = History(
            bucket,
            self.keep if counts_newest and not self.has_pruner else 1,
            has_graphs=self.has_graphs and check_graphs,
            rules=self.rules,
        )

    def go(self) -> History:
        """Let everything happen; return what happened."""
        global _scheduler  # noqa: PLW0603 (one run at a time)
        _scheduler = self.scheduler
        self._cast()
        try:
            self.scheduler.run()
            self._check_end()
            if not self.history.violations and self.random.random() < self.chance_of_aftermath:
                self._aftermath()
        except Endless as error:
            self.history.note("ENDLESS", str(error))
        self.scheduler.forget()
        return self.history

    def _check_end(self) -> None:
        if not self.scenario.together:
            self.history.check_acknowledged(BASENAME)
        self.history.check_acknowledged(NEIGHBOUR)

    def _draw_lateness(self) -> dict[tuple[str, str], float]:
        """Return how often requests are given up and arrive later."""
        if not self.scheduler.bucket.honours_conditions:
            # Nothing there refuses a late write of the record: it replaces what was saved since.
            return {}
        if not self.scenario.refused:
            return dict.fromkeys(_MAY_BE_LATE, 0.03)
        # Often enough for a delete to meet a name that is used again, if one ever is.
        often = {("DELETE", ".data-"): 0.4, ("DELETE MANY", ".data-"): 0.4}
        return {**dict.fromkeys(_MAY_BE_LATE, 0.03), **often}

    def clock(self) -> float:
        """Return the time that checkpoints are dated with: a minute for each save, in every run alike."""
        if self.scenario.together:
            # Which of two came first is told by their clock.
            return 1_800_000_000.0 + len(self.scheduler.trace)
        return 1_800_000_000.0 + 60.0 * len(self.history.saves)

    def _cast(self) -> None:
        """Bring in everybody, and draw when they stand still and die."""
        draw = self.random
        first = self._start_chief()
        if self.scenario.together or (self.scenario.zombie and draw.random() < 0.1):
            self._start_chief()
        elif self.scenario.refused:
            first.refuse_at = draw.randint(1, self.target)
            first.on_refusal = self._start_chief
        elif self.scenario.zombie:
            # Half of them where it hurts: just before something is changed or taken away.
            first.freeze_before = draw.choice(("", "", "PUT IF", "PUT", "DELETE", "DELETE MANY"))
            first.freeze_at = draw.randint(1, 4 if first.freeze_before else 12 + 7 * self.target)
            first.freeze_steps = draw.choice((draw.randint(5, 40), draw.randint(20, 120), -1))
            first.on_freeze = self._start_chief
        for number in range(draw.choice((0, 0, 1, 1, 2, 3))):
            reader = self.scheduler.spawn(f"reader {number}", self._reader)
            reader.freeze_at = draw.choice((1, 1, draw.randint(2, 8)))
            reader.freeze_steps = draw.randint(0, 60)
        other = None
        if self.scenario.name == "steps" and self.scheduler.bucket.honours_conditions:
            other = draw.choice((*[None] * 8, NEIGHBOUR, BYSTANDER))
            if other is not None:
                self.scheduler.spawn(other, self._neighbour if other == NEIGHBOUR else self._bystander)
        if self.scenario.rules:
            # One: where two pin and unpin the same, nobody can say what holds.
            keeper = self.scheduler.spawn("keeper", self._keeper)
            keeper.freeze_at = 1
            keeper.freeze_steps = draw.randint(5, 12 + 7 * self.target)
            if self.has_pruner:
                pruner = self.scheduler.spawn("pruner", self._pruner)
                pruner.freeze_at = draw.choice((1, 1, draw.randint(2, 12)))
                pruner.freeze_steps = draw.randint(5, 12 + 7 * self.target)
                pruner.crash_at = draw.choice((0, draw.randint(3, 25))) * draw.choice((1, -1))
            return
        # Whose a model with a number in its name is, only our lines tell.
        # Nor who of one run has saved what: the second one is fenced.
        lines_matter = other == BYSTANDER or self.scenario.together
        if self.scheduler.bucket.honours_conditions and not lines_matter and draw.random() < 0.1:
            stranger = self.scheduler.spawn(STRANGER, self._stranger)
            stranger.freeze_at = 1
            stranger.freeze_steps = draw.randint(5, 12 + 7 * self.target)
            stranger.is_reliable = True

    def _start_chief(self) -> Actor:
        self.starts += 1
        draw = self.random
        name = f"run {self.starts}"
        run = "job" if self.scenario.together else name
        is_first = self.starts == 1 or (self.scenario.together and self.starts == 2)
        actor = self.scheduler.spawn(name, lambda actor: self._chief(actor, run, is_first))
        if self.scenario.together and draw.random() < 0.5:
            actor.freeze_at, actor.freeze_steps = draw.randint(1, 12 + 7 * self.target), draw.randint(1, 30)
        if self.deaths < 3 and draw.random() < 0.3:
            actor.crash_at = draw.randint(1, 8 + 7 * self.target) * draw.choice((1, -1))
        return actor

    def _chief(self, actor: Actor, run: str, is_first: bool) -> None:
        try:
            self._train(actor, run, is_first)
        finally:
            if actor.is_dead:
                self.deaths += 1
                self._start_chief()

    def _train(self, actor: Actor, run: str, is_first: bool) -> None:
        """A training job: resume from the latest checkpoint, save some steps, keep the newest."""
        actor.storage = ActorStorage(actor)
        saver = self._saver(run)
        step = 0
        if not is_first:
            step = (self._restore_latest() or 0) % STEPS
            if self.scenario.rollback and not self.deaths:
                step = max(0, step - self.random.randint(0, 2))
        for _ in range(max(self.target - step, 1)):
            # After a restart other steps than before, as where the time decides: what died stays where it is.
            step += 1 if is_first or not self.scenario.steps else self.random.choice((1, 1, 1, 2))
            if not self._save(saver, run, BASENAME, step) and not self.scenario.together:
                return
            if self.scenario.rollback and not is_first and self.random.random() < 0.3:
                # The loss exploded: once more from an earlier checkpoint, with other data.
                step = max(0, step - self.random.randint(1, 3))

    def _neighbour(self, actor: Actor) -> None:
        """Another model in the same directory: one record, two owners."""
        actor.storage = ActorStorage(actor)
        saver = self._saver(NEIGHBOUR)
        for step in (1, 2):
            self._save(saver, NEIGHBOUR, NEIGHBOUR, step)

    def _bystander(self, actor: Actor) -> None:
        """Somebody keeps a milestone under the name of a step, and has a model with a number in its name."""
        actor.storage = ActorStorage(actor)
        saver = self._saver(BYSTANDER)
        for number, with_state in ((900, False), (901, True)):
            mark = (number + len(self.history.saves)) * STEPS
            values = {"a": np.array([mark], np.int32), "b": np.array([mark], np.int32)}
            prefix = f"{BASENAME}-{number}"
            saver.save(values, f"{URL}/{prefix}", write_state=with_state, write_meta_graph=self.has_graphs)
            self.history.bystanders.add(prefix)

    def _stranger(self, actor: Actor) -> None:
        """A program that does not know our lines writes the record as it finds it, in one step."""
        bucket = self.scheduler.bucket

        def rewrite() -> None:
            record = self.history.record
            if record is not None and record.state is not None:
                bucket.put(f"{DIRECTORY}/{RECORD}", format_state(record.state))

        actor.request("PUT", RECORD, rewrite)

    def _keeper(self, actor: Actor) -> None:
        """Somebody pins checkpoints, and unpins some, whatever else goes on."""
        actor.storage = ActorStorage(actor)
        history, draw = self.history, self.random
        record = locate(f"{URL}/{RECORD}")
        for _ in range(draw.choice((1, 2, 2, 3))):
            prefix = draw.choice(history.listed) if history.listed else f"{BASENAME}-1"
            place = locate(f"{URL}/{prefix}")
            try:
                add_pin(place, record)
                history.pins.add(prefix)
                self.scheduler.trace.append(Step(actor.name, "has pinned", prefix))
                if draw.random() < 0.4:
                    history.pins.discard(prefix)
                    remove_pin(place, record)
            except NotFoundError:
                continue
            except CkptStoreError as error:
                history.note("SPURIOUS", f"{actor.name} failed with {type(error).__name__}: {error}")

    def _pruner(self, actor: Actor) -> None:
        """Somebody deletes what no rule keeps, from a shell."""
        actor.storage = ActorStorage(actor)
        directory = locate(URL)
        rules = [("", rule) for rule in self.rules]
        request = PruneRequest(directory, directory.child(RECORD), rules)
        try:
            report = prune(request, request.plan())
            if report.error is not None:
                raise report.error
        except NotFoundError:
            return
        except CkptStoreError as error:
            self.history.note("SPURIOUS", f"a prune failed with {type(error).__name__}: {error}")

    def _saver(self, run: str) -> Saver:
        graph: Any = _TwoDevices() if self.has_shards else None
        if self.scenario.rules:
            rules = self.saver_rules
            return Saver(retention=rules, run=run, clock=self.clock, sharded=self.has_shards, graph=graph)
        return Saver(max_to_keep=self.keep, run=run, clock=self.clock, sharded=self.has_shards, graph=graph)

    def _save(self, saver: Saver, run: str, basename: str, step: int) -> bool:
        history = self.history
        with_step = self.scenario.steps or basename == NEIGHBOUR
        number = 0 if self.repeats_values else len(history.saves) + 1
        save = Save(number * STEPS + step, run, f"{basename}-{step}" if with_step else basename)
        save.actor, save.began = cast("Actor", self.scheduler.current).name, len(self.scheduler.trace)
        history.saves.append(save)
        try:
            self._call_save(saver, save.mark, basename, step if with_step else None)
        except Exception as error:  # noqa: BLE001  # a save that fails in any other way is a finding too
            save.ended = len(self.scheduler.trace)
            with history.noting:
                actor = cast("Actor", self.scheduler.current)
                if (
                    not (isinstance(error, ConflictError) and history.had_rival(save))
                    and not (isinstance(error, FencedError) and history.was_replaced(run, save.prefix))
                    and not (isinstance(error, (AccessError, AmbiguousOutcomeError)) and actor.is_refused)
                ):
                    assert_failure_was_due(error, run, basename, history.record)
            if isinstance(error, FencedError):
                self._check_finality(saver, run, basename, STEPS - 1 if with_step else None)
            return False
        save.is_acknowledged = True
        save.ended = len(self.scheduler.trace)
        history.check_is_alone(save, self.scheduler.trace)
        self.scheduler.trace.append(Step(run, f"has saved {save.mark}", save.prefix))
        return True

    def _call_save(self, saver: Saver, mark: int, basename: str, step: int | None) -> None:
        values = {"a": np.array([mark], np.int32), "b": np.array([mark], np.int32)}
        # Of every mark another one, in no order.
        metrics = {"loss": float(mark * 7919 % 104_729)} if self.scenario.rules else None
        saver.save(values, f"{URL}/{basename}", step, write_meta_graph=self.has_graphs, metrics=metrics)

    def _check_finality(self, saver: Saver, run: str, basename: str, step: int | None) -> None:
        """FENCE: a fenced run stays fenced, without a request."""
        before = len(self.scheduler.trace)
        try:
            self._call_save(saver, 0, basename, step)
        except FencedError:
            if len(self.scheduler.trace) == before:
                return
        self.history.note("FENCE", f"{run} was fenced and went on")

    def _reader(self, actor: Actor) -> None:
        actor.storage = ActorStorage(actor)
        for _ in range(self.random.choice((1, 1, 1, 1, 2))):
            mark = self._restore_latest()
            self.scheduler.trace.append(Step(actor.name, f"has restored {mark}"))

    def _restore_latest(self) -> int | None:
        """Restore the latest checkpoint as a careful program does; return its mark."""
        history = self.history
        at_start = history.latest_mark()
        since = history.seen[at_start] if at_start is not None else 0
        mark = None
        tries = 0
        with history.noting:
            for tries in range(1, READER_TRIES + 1):  # noqa: B007
                path = None
                values: dict[str, np.ndarray] = {}
                try:
                    path = latest_checkpoint(URL)
                    if path is None:
                        break
                    _restorer.restore(values, path)
                except NotFoundError:
                    continue
                except CorruptError as error:
                    if path is None or history.is_listed(path.rpartition("/")[2]):
                        raise InvariantViolation("CORR", f"a reader got {error}") from None
                    # What a run that stood still has put where retention had been meanwhile: no record names
                    # it, and nobody finds it complete.
                    continue
                mark = cast("int", assert_one_save(values))
                break
            assert_reader_was_served(mark, at_start is not None, tries)
            if mark is not None:
                assert_reader_is_not_behind(mark, history.seen.get(mark, 0), since)
        return mark

    def _aftermath(self) -> None:
        """Another run when all is quiet: it must find what is there, save any step, and clean up."""
        history = self.history
        if self.scenario.steps and self.random.random() < 0.5:
            self._tear()
        last = max(save.mark % STEPS for save in history.saves)
        steps = (self.random.randint(1, last), last + 1)

        def program(actor: Actor) -> None:
            actor.storage = ActorStorage(actor)
            expected = history.latest_mark()
            found = self._restore_latest()
            if expected is not None and found != expected:
                history.note("LOST", f"in the end {found} was found instead of {expected}")
            for number, step in enumerate(steps):
                # Each in a run of its own: what these leave to be done, the next one must do.
                run = f"aftermath {number}"
                before = history.record
                if not self._save(self._saver(run), run, BASENAME, step):
                    history.note("BLOCKED", f"step {step} cannot be saved any more")
                history.check_nothing_grows(before, BASENAME)
            directory = locate(URL)
            garbage = find_garbage(directory, [directory.child(RECORD)], min_age_s=0.0)
            collect_garbage(directory, garbage)

        self.scheduler.spawn("aftermath", program).is_reliable = True
        self.scheduler.run()
        history.check_acknowledged(BASENAME)
        if self.scenario.name in ("steps", "rules"):
            history.check_nothing_is_left()
        # gc does not open an index beside which the data files are numbered like those of one whole save.
        names = [{data_name(torn, shard, n) for shard in range(n)} for torn in history.torn for n in (1, 2)]
        files = dict(history.files)
        for whole in names:
            if whole <= files.keys():
                files = {name: data for name, data in files.items() if name not in whole}
        with history.noting:
            assert_no_orphans(files)

    def _tear(self) -> None:
        """Take the data of a listed checkpoint away, but not of the latest."""
        history = self.history
        older = history.older(BASENAME)
        if older:
            history.torn.add(torn := self.random.choice(older))
            for name in data_files_of(history.files, torn):
                del self.scheduler.bucket.objects[f"{DIRECTORY}/{name}"]


class _TwoDevices:
    """A graph that puts every variable on a device of its own, so that each gets a data file."""

    def get_operation_by_name(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(device=f"/job:{name}")


_scheduler: Scheduler
_restorer = Saver()
_plan = SavePreparation.plan


@functools.lru_cache(512)
def _plan_of(mark: int, has_shards: bool) -> SavePlan:
    array = np.array([mark], np.int32)
    graph: Any = _TwoDevices() if has_shards else None
    return _plan(Saver(sharded=has_shards, graph=graph)._preparation, {"a": array, "b": array})


def _plan_from_memory(self: SavePreparation, values: dict[str, np.ndarray]) -> SavePlan:
    if self.ranks is not None:
        return _plan(self, values)
    return _plan_of(int(values["a"][0]), self.graph.graph is not None)


class _Time:
    @staticmethod
    def monotonic() -> float:
        return _scheduler.now_s

    @staticmethod
    def sleep(seconds: float) -> None:
        _scheduler.sleep(seconds)


class _Random:
    @staticmethod
    def uniform(low: float, high: float) -> float:
        return _scheduler.random.uniform(low, high)

    @staticmethod
    def SystemRandom() -> Any:
        return _scheduler.random


def locate(url: str, storage_options: object = None) -> Location:
    assert _scheduler.current is not None
    return Location(_scheduler.current.storage, url.removeprefix("sim://"), url)


@contextmanager
def _time_of_the_scheduler() -> Iterator[None]:
    """Give the modules that look at the time, wait or start a thread the scheduler's time and threads."""
    room = ckptstore.saving.rank_task
    threads = simulated_threading(lambda: _scheduler)
    with ExitStack() as stack:
        for module in (
            *(
                ckptstore.storage.retry,
                ckptstore.storage.object_store.recent_versions,
                ckptstore.storage.scope,
            ),
            *(ckptstore.distributed.rounds, ckptstore.distributed.waiting),
            *(room.base, room.chief, room.member),
        ):
            stack.enter_context(mock.patch.object(module, "time", _Time))
        for module in (room.chief, room.member):
            stack.enter_context(mock.patch.object(module, "threading", threads))
        yield


@contextmanager
def simulation() -> Iterator[None]:
    """Give the code under test the scheduler's time, chance and storage, for as many runs as wanted."""
    with (
        pure_functions_remember(),
        no_threads(),
        _time_of_the_scheduler(),
        mock.patch.object(ckptstore.storage.retry, "random", _Random),
        mock.patch.object(ckptstore.storage.object_store.attempts, "random", _Random),
        mock.patch.object(ckptstore.directory.published_index, "random", _Random),
        every_copy_of("new_write_id", lambda: _scheduler.new_id()),  # noqa: PLW0108 (it changes)
        mock.patch.object(ckptstore.train.saver, "locate", locate),
        mock.patch.object(ckptstore.saving.arguments, "locate", locate),
        mock.patch.object(ckptstore.train.checkpoint_management, "locate", locate),
        mock.patch.object(SavePreparation, "plan", _plan_from_memory),
        mock.patch.object(SaverGraph, "to_bytes", lambda *_, **__: b"the same graph"),
        warnings.catch_warnings(),
        mock.patch.object(logging.getLogger("ckptstore"), "disabled", True),
        _rare_collections(),
    ):
        warnings.simplefilter("ignore", CkptStoreWarning)
        yield


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Let the garbage collector look seldom: a run leaves little, and looking took a tenth of the time."""
    before = gc.get_threshold()
    gc.set_threshold(200_000, 10, 10)
    try:
        yield
    finally:
        gc.set_threshold(*before)
