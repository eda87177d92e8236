"""Programs of several threads under the scheduler: they stand still, and die, together.

The code under test is not told: the names ``threading`` and ``time`` of its modules mean the scheduler's. A
thread is an actor of its own, so another one may go on at each request, each message, and each wait.

What is sent may also arrive late: the sender has given it up, or is dead, and the request is still under way.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeVar

from ckptstore.testing import SimulatedCrash
from tests.simulation.bucket import SimulatedBucket
from tests.simulation.scheduler import Actor, Scheduler, Step

__all__ = ["Process", "ProcessScheduler", "Thread", "simulated_threading"]

_T = TypeVar("_T")


class Thread(Actor):
    """One thread of a process; the first one is the process itself."""

    scheduler: ProcessScheduler

    def __init__(self, process: Process, program: Callable[[Actor], None]) -> None:
        super().__init__(process.scheduler, process.name, program)
        self.process = process

    def _run(self) -> None:
        super()._run()
        self.process.threads.remove(self)
        self.scheduler.look_again()


class Process(Actor):
    """A program whose requests and messages are counted together, and which dies as a whole.

    Attributes
    ----------
    freeze_s : float
        How long it stands still.
    frozen_until_s : float
    threads : list of Thread
        Beside the first one.
    on_end : callable
        Called when its first thread has ended, however it did.
    """

    scheduler: ProcessScheduler

    def __init__(self, scheduler: ProcessScheduler, name: str, program: Callable[[Actor], None]) -> None:
        super().__init__(scheduler, name, program)
        self.process = self
        self.freeze_s = 0.0
        self.frozen_until_s = 0.0
        self.threads: list[Thread] = []
        self.has_crashed = False
        self.on_end: Callable[[], object] = lambda: None

    def _run(self) -> None:
        try:
            super()._run()
        finally:
            # The others are daemons.
            self.kill(is_crash=False)
            self.on_end()
            self.scheduler.look_again()

    def kill(self, *, is_crash: bool = True) -> None:
        """End all threads at once."""
        self.has_crashed = self.has_crashed or is_crash
        for each in (self, *self.threads):
            each.is_dead = True
            self.frozen_until_s = 0.0
            self.scheduler.wake(each)

    def message(self, deed: str, topic: str, apply: Callable[[], _T]) -> _T:
        """Send or look for a message, in whichever thread."""
        self._begin(deed)
        number = self._requests
        if number == self.crash_at:
            self._die(deed, topic, "dies before")
        answer = apply()
        if number == -self.crash_at:
            self._die(deed, topic, "dies after")
        self.scheduler.trace.append(Step(self.name, deed, topic))
        return answer

    def _begin(self, deed: str) -> None:
        if self.is_dead:
            raise SimulatedCrash(deed)
        self._requests += 1
        if self.freeze_at and deed.startswith(self.freeze_before):
            self.freeze_at -= 1
            if not self.freeze_at:
                self.scheduler.freeze(self)
        current = self.scheduler.current
        assert current is not None
        self.scheduler.step(current)
        if self.is_dead:
            raise SimulatedCrash(deed)

    def _die(self, deed: str, key: str, how: str) -> None:
        self.kill()
        super()._die(deed, key, how)


class ProcessScheduler(Scheduler):
    """A scheduler of processes; time, not requests, says when one that stands still goes on."""

    latest_arrival_s = 4.0
    most_steps = 20_000

    def __init__(self, seed: str, bucket: SimulatedBucket) -> None:
        super().__init__(seed, bucket)
        self._waiting: dict[Actor, Callable[[], bool]] = {}

    def start(self, name: str, program: Callable[[Actor], None]) -> Process:
        """Add a process."""
        process = Process(self, name, program)
        self._actors.append(process)
        self._ready.append(process)
        return process

    spawn = start

    def start_thread(self, program: Callable[[], None]) -> Thread:
        """Add a thread to the present process."""
        process = self.process
        thread = Thread(process, lambda _: program())
        process.threads.append(thread)
        self._actors.append(thread)
        self._ready.append(thread)
        return thread

    @property
    def process(self) -> Process:
        """The process of the present thread."""
        assert self.current is not None
        return self.current.process  # type: ignore[attr-defined]

    def freeze(self, actor: Actor) -> None:
        """Stop all threads of a process for `Process.freeze_s`."""
        process: Process = actor.process  # type: ignore[attr-defined]
        process.frozen_until_s = until_s = self.now_s + process.freeze_s
        for each in (process, *process.threads):
            if each in self._ready:
                self._ready.remove(each)
                self._sleeping.append(each)
                each.wake_at = until_s
            else:
                each.wake_at = max(each.wake_at, until_s)
        self.trace.append(Step(actor.name, "freezes"))
        if actor.on_freeze is not None:
            actor.on_freeze()

    def stall(self, actor: Actor, why: str, deed: str, key: str) -> None:
        """Let a thread wait for an answer that does not come."""
        self.trace.append(Step(actor.name, deed, key, why))
        self.sleep(self.random.choice((0.0, 0.05, 0.1, 0.3, 0.8)))

    def sleep(self, seconds: float) -> None:
        """Let the present thread wait."""
        super().sleep(seconds)
        if self.current is not None and self.current.is_dead:
            raise SimulatedCrash("sleep")

    def wait(self, is_there: Callable[[], bool], seconds: float = 1e6) -> bool:
        """Let the present thread wait until `is_there`, which `look_again` asks; False after `seconds`."""
        actor = self.current
        assert actor is not None
        until_s = self.now_s + seconds
        try:
            while not is_there():
                if self.now_s >= until_s:
                    return False
                self._waiting[actor] = is_there
                self.sleep(until_s - self.now_s)
        finally:
            self._waiting.pop(actor, None)
        return True

    def wake(self, actor: Actor, at_s: float = 0.0) -> None:
        """Let `actor` go on at `at_s`, if it sleeps."""
        if actor in self._sleeping:
            frozen_until_s: float = actor.process.frozen_until_s  # type: ignore[attr-defined]
            actor.wake_at = max(frozen_until_s, min(actor.wake_at, at_s))

    def look_again(self) -> None:
        """Let those threads go on that have waited for what is there now."""
        for actor, is_there in self._waiting.items():
            if is_there():
                self.wake(actor)


class _SimulatedThread:
    """`threading.Thread`."""

    def __init__(self, scheduler: ProcessScheduler, target: Callable[[], object]) -> None:
        self._scheduler = scheduler
        self._target = target
        self._is_done = False

    def start(self) -> None:
        def run() -> None:
            self._target()
            self._is_done = True

        self._scheduler.start_thread(run)

    def join(self) -> None:
        self._scheduler.wait(lambda: self._is_done)


class _SimulatedEvent:
    """`threading.Event`."""

    def __init__(self, scheduler: ProcessScheduler) -> None:
        self._scheduler = scheduler
        self._is_set = False

    def set(self) -> None:
        self._is_set = True
        self._scheduler.look_again()

    def is_set(self) -> bool:
        return self._is_set

    def wait(self, timeout: float = 1e6) -> bool:
        return self._scheduler.wait(lambda: self._is_set, timeout)


def simulated_threading(scheduler: Callable[[], Any]) -> SimpleNamespace:
    """Return what stands for the module ``threading``; `scheduler` returns that of the present run."""
    return SimpleNamespace(
        Thread=lambda target, **_: _SimulatedThread(scheduler(), target),
        Event=lambda: _SimulatedEvent(scheduler()),
    )
