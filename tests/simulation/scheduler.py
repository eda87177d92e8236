"""Many programs, one bucket, and a scheduler that decides by a seed whose request comes next.

An actor is a real call of real code in a greenlet of its own. Before each of its requests it hands control to
the scheduler, which picks the next actor: one step is one request, and the same seed gives the same history.
Nothing sleeps: time passes with the requests, and jumps when everybody waits.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import greenlet

from ckptstore.testing import SimulatedCrash
from tests.simulation.bucket import NoSuchKey, PreconditionFailed, SimulatedBucket

_T = TypeVar("_T")

REQUEST_S = 0.02
CHANCE_OF_LOSS = 0.05


class LostAnswer(Exception):
    """The connection broke before the answer came; the request may have been carried out."""


class Endless(Exception):
    """The run does not come to its end."""


class Step(NamedTuple):
    """One line of a schedule."""

    actor: str
    deed: str
    key: str = ""
    outcome: str = ""


class Actor:
    """One program under the scheduler.

    Attributes
    ----------
    storage : ActorStorage
        The way to the bucket; set by the caller that starts it.
    crash_at : int
        The request before which it dies (negative: after which); 0 for never.
    freeze_at : int
        The request before which it stands still; 0 for never.
    freeze_before : str
        Of requests of this kind only, `freeze_at` counts; empty for all.
    freeze_steps : int
        How many requests of others pass meanwhile; -1: until nobody else can go on.
    on_freeze : callable or None
        Called when it stands still.
    is_reliable : bool
        Its answers are never lost.
    """

    def __init__(self, scheduler: Scheduler, name: str, program: Callable[[Actor], None]) -> None:
        self.scheduler = scheduler
        self.name = name
        self.storage: Any = None
        self.crash_at = 0
        self.freeze_at = 0
        self.freeze_before = ""
        self.freeze_steps = 0
        self.on_freeze: Callable[[], object] | None = None
        self.is_reliable = False
        self.is_dead = False
        self.wake_at = 0.0
        self.greenlet = greenlet.greenlet(self._run, scheduler.main)
        self._program = program
        self._requests = 0

    def _run(self) -> None:
        try:
            self._program(self)
        except SimulatedCrash:
            pass
        finally:
            self.is_dead = True
            self.scheduler.leave(self)

    def request(self, deed: str, key: str, apply: Callable[[], _T]) -> _T:
        """Make one request, whatever the seed does to it.

        Raises
        ------
        NoSuchKey, PreconditionFailed
            What `apply` raised.
        LostAnswer
            If the connection broke.
        SimulatedCrash
            If the actor dies, or is dead: the dead do not clean up.
        """
        if self.is_dead:
            raise SimulatedCrash(deed)
        scheduler = self.scheduler
        self._requests = number = self._requests + 1
        if self.freeze_at and deed.startswith(self.freeze_before):
            self.freeze_at -= 1
            if not self.freeze_at:
                scheduler.freeze(self)
        scheduler.step(self)
        if number == self.crash_at:
            self._die(deed, key, "dies before")
        loss = None if self.is_reliable else scheduler.draw_loss()
        if loss == "unsent":
            scheduler.trace.append(Step(self.name, deed, key, "connection lost before"))
            raise LostAnswer(deed, key)
        answer, refusal = tried(apply)
        if number == -self.crash_at:
            self._die(deed, key, "dies after")
        if loss is not None:
            # The actor does not notice at once.
            scheduler.stall(
                self, "answer lost" if loss == "unheard" else "answer lost, sent again", deed, key
            )
            if loss == "unheard":
                raise LostAnswer(deed, key)
            # Below the code under test: it sees the second answer only.
            answer, refusal = tried(apply)
        if refusal is not None:
            scheduler.trace.append(Step(self.name, deed, key, refusal.__name__))
            raise refusal(key)
        scheduler.trace.append(Step(self.name, deed, key))
        return answer  # type: ignore[return-value]

    def _die(self, deed: str, key: str, how: str) -> None:
        self.scheduler.trace.append(Step(self.name, deed, key, how))
        self.is_dead = True
        raise SimulatedCrash(how)


def tried(apply: Callable[[], _T]) -> tuple[_T | None, type[Exception] | None]:
    # Not the exception itself: with its traceback it would wait for the garbage collector.
    try:
        return apply(), None
    except (NoSuchKey, PreconditionFailed) as error:
        return None, type(error)


class Scheduler:
    """One run: a bucket, actors, a seed.

    Attributes
    ----------
    random : Random
        Every draw of the run comes from here.
    bucket : SimulatedBucket
    now_s : float
        Simulated time.
    current : Actor
        The one that runs.
    steps : int
        Requests so far.
    trace : list of Step
    """

    most_steps = 5_000  # a run has about fifty; one that never ends is a finding

    def __init__(self, seed: str, bucket: SimulatedBucket) -> None:
        self.random = random.Random(seed)
        self.bucket = bucket
        self.now_s = 0.0
        self.steps = 0
        self.trace: list[Step] = []
        self.main = greenlet.getcurrent()
        self.current: Actor | None = None
        # The chance that the running actor goes on without a draw. 0 is the finest mixture; a high chance
        # makes long runs of one actor, which then meets the others in the middle of something.
        self._patience = self.random.choice((0.0, 0.5, 0.9))
        self._actors: list[Actor] = []
        self._ready: list[Actor] = []
        self._sleeping: list[Actor] = []
        self._frozen: list[Actor] = []
        self._ids = 0

    def spawn(self, name: str, program: Callable[[Actor], None]) -> Actor:
        """Add an actor; it begins when the scheduler picks it."""
        actor = Actor(self, name, program)
        self._actors.append(actor)
        self._ready.append(actor)
        return actor

    def run(self) -> None:
        """Go on until every actor is done.

        Raises
        ------
        Endless
        """
        while (chosen := self._pick(None)) is not None:
            self.current = chosen
            chosen.greenlet.switch()

    def step(self, actor: Actor) -> None:
        """Let the scheduler choose the actor of the next request; return when it is `actor`."""
        self.steps += 1
        self.now_s += REQUEST_S
        if self.steps > self.most_steps:
            raise Endless(f"after {self.steps} requests")
        chosen = self._pick(actor)
        if chosen is not actor:
            assert chosen is not None
            self.current = chosen
            chosen.greenlet.switch()

    def sleep(self, seconds: float) -> None:
        """Let the present actor wait."""
        actor = self.current
        assert actor is not None
        if actor.is_dead:
            raise SimulatedCrash("sleep")
        self._ready.remove(actor)
        self._sleeping.append(actor)
        actor.wake_at = self.now_s + seconds
        self.step(actor)

    def monotonic(self) -> float:
        """Return the simulated time in seconds."""
        return self.now_s

    def new_id(self) -> str:
        """Return a name that is unique in this run, and the same in every replay."""
        self._ids += 1
        return f"id{self._ids}"

    def freeze(self, actor: Actor) -> None:
        """Stop `actor` until its time has come."""
        self._stop(actor, self.steps + actor.freeze_steps if actor.freeze_steps >= 0 else float("inf"))
        self.trace.append(Step(actor.name, "freezes"))
        if actor.on_freeze is not None:
            actor.on_freeze()

    def stall(self, actor: Actor, why: str, deed: str, key: str) -> None:
        """Let `actor` wait for an answer that does not come."""
        self.trace.append(Step(actor.name, deed, key, why))
        self._stop(actor, self.steps + self.random.choice((0, 2, 5, 15, 40)))
        self.step(actor)

    def _stop(self, actor: Actor, wake_at: float) -> None:
        self._ready.remove(actor)
        self._frozen.append(actor)
        actor.wake_at = wake_at

    def leave(self, actor: Actor) -> None:
        """Take out an actor that is done or dead."""
        if actor in self._ready:
            self._ready.remove(actor)

    def forget(self) -> None:
        """Break what points in circles, so that nothing of a run waits for the garbage collector."""
        for actor in self._actors:
            if actor.storage is not None:
                vars(actor.storage).clear()
            vars(actor).clear()
        self._actors.clear()
        self.current = None

    def draw_loss(self) -> str | None:
        """Return what becomes of a request; None if all is well."""
        drawn = self.random.random()
        if drawn >= CHANCE_OF_LOSS:
            return None
        share = drawn / CHANCE_OF_LOSS
        return "resent" if share < 0.5 else "unheard" if share < 0.8 else "unsent"

    def _pick(self, present: Actor | None) -> Actor | None:
        ready = self._ready
        if self._sleeping:
            due = [actor for actor in self._sleeping if actor.wake_at <= self.now_s]
            if not due and not ready:
                due = [min(self._sleeping, key=lambda actor: actor.wake_at)]
                self.now_s = due[0].wake_at
            for actor in due:
                self._sleeping.remove(actor)
                ready.append(actor)
        if self._frozen:
            due = [actor for actor in self._frozen if actor.wake_at <= self.steps]
            if not due and not ready:
                due = self._frozen[:1]
            for actor in due:
                self._frozen.remove(actor)
                ready.append(actor)
                if not actor.freeze_at:
                    self.trace.append(Step(actor.name, "wakes"))
        if len(ready) < 2:
            return ready[0] if ready else None
        if self.random.random() < self._patience and present in ready:
            return present
        return ready[int(self.random.random() * len(ready))]
