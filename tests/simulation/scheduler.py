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


class Refused(Exception):
    """The server does not allow it (HTTP 403)."""


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
    refuse_at : int
        The write of an index that the server refuses, and every one after it; 0 for none.
    on_refusal : callable or None
        Called when it is.
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
        self.refuse_at = 0
        self.on_refusal: Callable[[], object] | None = None
        self.is_refused = False
        self.is_reliable = False
        self.is_dead = False
        self.wake_at = 0.0
        self.greenlet = greenlet.greenlet(self._run, scheduler.main)
        self._program = program
        self._requests = 0
        self._indexes = 0

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
        Refused
            If its time for that has come.
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
        if self.refuse_at and deed.startswith("PUT") and key.endswith(".index"):
            self._indexes += 1
            if self._indexes >= self.refuse_at:
                self._refuse(deed, key)
        if not self.is_reliable and scheduler.draw_lateness(deed, key):
            scheduler.trace.append(Step(self.name, deed, key, "connection lost before, may arrive"))
            scheduler.arrive_later(self.name, deed, key, apply)
            raise LostAnswer(deed, key)
        loss = None if self.is_reliable else scheduler.draw_loss(deed)
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

    def _refuse(self, deed: str, key: str) -> None:
        self.scheduler.trace.append(Step(self.name, deed, key, "Refused"))
        self.is_refused = True
        if self.on_refusal is not None:
            on_refusal, self.on_refusal = self.on_refusal, None
            on_refusal()
        raise Refused(key)

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
    resends_deletes : bool
        Whether a proxy sends a delete again by itself when it loses the answer: our clients do not.
    lateness : dict
        Kind of request and what is in the names of its objects → chance that the sender gives it up, and it
        arrives later.
    """

    # After this long nothing of a request is on its way any more.
    latest_arrival_s = 50 * REQUEST_S
    most_steps = 5_000  # a run has about fifty; one that never ends is a finding

    def __init__(self, seed: str, bucket: SimulatedBucket) -> None:
        self.random = random.Random(seed)
        self.bucket = bucket
        self.now_s = 0.0
        self.steps = 0
        self.trace: list[Step] = []
        self.resends_deletes = True
        self.lateness: dict[tuple[str, str], float] = {}
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

    def draw_loss(self, deed: str) -> str | None:
        """Return what becomes of a request; None if all is well."""
        drawn = self.random.random()
        if drawn >= CHANCE_OF_LOSS:
            return None
        share = drawn / CHANCE_OF_LOSS
        if share < 0.5 and deed.startswith("DELETE") and not self.resends_deletes:
            return "unheard"
        return "resent" if share < 0.5 else "unheard" if share < 0.8 else "unsent"

    def draw_lateness(self, deed: str, key: str) -> bool:
        """Return whether a request is given up, and arrives later."""
        # A graph has no name of its own: what is late there hits that of another run (design note 007).
        if ".meta" in key:
            return False
        chances = [each for (kind, part), each in self.lateness.items() if kind == deed and part in key]
        return bool(chances) and self.random.random() < max(chances)

    def arrive_later(self, name: str, deed: str, key: str, apply: Callable[[], _T]) -> None:
        """Let a request reach the storage when its sender does not wait for it any more."""
        delay_s = self.random.uniform(0.0, self.latest_arrival_s)

        def program(_: Actor) -> None:
            self.sleep(delay_s)
            refusal = tried(apply)[1]
            outcome = "arrives" if refusal is None else f"arrives: {refusal.__name__}"
            self.trace.append(Step(name, deed, key, outcome))

        self.spawn(f"{name}'s", program).is_reliable = True

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
