"""The retry layer of the object stores: how often a request is sent, how long it may take.

The clients below send each request once. Known here, and nowhere else: how many attempts were made, how much
time they have, and what a failed one means (`faults.RULES`).
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ckptstore.storage.fork_safe_locks import ForkSafeLocks
from ckptstore.storage.object_store.faults import RULES, Fault, Kind
from ckptstore.storage.retry import pause
from ckptstore.storage.scope import Cancellation, current_scope

__all__ = ["Attempts", "RetryBudget", "RetryPolicy"]

_T = TypeVar("_T")

# What moved counts as progress by pieces of this size: a server that sends one byte a second makes none.
_PROGRESS_BYTES = 16 * 1024

# The most that a kernel buffers before a writer has to wait, and the slowest line on which the buffer drains.
_BUFFER_BYTES = 4 * 1024 * 1024
_SLOW_BYTES_PER_S = 256 * 1024


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long an operation may take.

    Attributes
    ----------
    deadline_s : float
        An operation ends when it made no progress for so long: 16 KiB of a body, sent or received.
    attempt_s : float
        One attempt ends when it made no progress for so long.
    pause_scale : float
        Factor on every pause; 0 in tests.
    """

    deadline_s: float = 60.0
    attempt_s: float = 20.0
    pause_scale: float = 1.0


class RetryBudget:
    """A bound on the share of requests that are retries, so that a failing server does not get ever more.

    A bucket of tokens: a retry takes one, time and success add some. A single thread, whose pauses grow,
    never empties it; many threads on one dead server do.

    Threads
    -------
    Safe for concurrent use.
    """

    def __init__(
        self,
        capacity: float = 100.0,
        *,
        per_second: float = 10.0,
        per_success: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._capacity = capacity
        self._per_second = per_second
        self._per_success = per_success
        self._clock = clock
        self._locks = ForkSafeLocks()
        self._tokens = capacity
        self._filled_s = clock()

    def take(self) -> bool:
        """Take one token if there is one."""
        with self._locks[0]:
            self._fill()
            if self._tokens < 1.0:
                return False
            self._tokens -= 1.0
            return True

    def reward(self) -> None:
        """Add tokens for a request that succeeded."""
        with self._locks[0]:
            self._fill()
            self._tokens = min(self._capacity, self._tokens + self._per_success)

    def _fill(self) -> None:
        now_s = self._clock()
        self._tokens = min(self._capacity, self._tokens + (now_s - self._filled_s) * self._per_second)
        self._filled_s = now_s


class Attempts:
    """The attempts of one operation: how many were made, how long they may take, which failures are retried.

    Calls
    -----
    `begin` before each attempt, `wait_to_retry` after each failed one; or `run`, which does both. The code
    that moves bytes calls `record_received` and `record_sent`, and waits for the next byte no longer than
    `remaining_s`.

    Inside a scope (`scope.current_scope`) the operation is cancelled with the scope, ends with it at the
    latest, and its attempts are counted there.

    Attributes
    ----------
    cancellation : Cancellation
        The one it was given, otherwise that of the scope.
    tries : int
        Attempts so far.
    is_out_of_time : bool
        Whether it ended because time ran out.

    Threads
    -------
    One thread, besides `record_received` and `record_progress`.
    """

    # Invariants: `_strikes` counts the attempts since the start or the last `reset_failures`, `tries` all of
    # them. `_ends_s` is the end of the operation without further progress, `_attempt_ends_s` that of this
    # attempt; neither is later than `_limit_s`, the end of the scope. `_furthest` is the furthest byte of a
    # request's body that counted as progress; `_received` counts those that do not yet.

    def __init__(
        self,
        policy: RetryPolicy,
        budget: RetryBudget,
        cancellation: Cancellation | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.policy = policy
        self._scope = scope = current_scope()
        if cancellation is None:
            cancellation = Cancellation() if scope is None else scope.cancellation
        self.cancellation = cancellation
        self.tries = 0
        self.is_out_of_time = False
        self._budget = budget
        self._clock = clock
        self._strikes = 0
        self._furthest = 0
        self._received = 0
        now_s = clock()
        self._limit_s = math.inf if scope is None else now_s + scope.remaining_s()
        self._ends_s = min(now_s + policy.deadline_s, self._limit_s)
        self._attempt_ends_s = self._ends_s

    def child(self) -> Attempts:
        """Return the attempts of an operation inside this one: same deadline, own count."""
        child = Attempts(self.policy, self._budget, self.cancellation, clock=self._clock)
        child._ends_s = self._ends_s
        child._limit_s = self._limit_s
        return child

    @property
    def is_cancelled(self) -> bool:
        """Whether it was cancelled, by itself or with its scope."""
        scope = self._scope
        return self.cancellation.is_cancelled or (scope is not None and scope.cancellation.is_cancelled)

    @property
    def time_allowed(self) -> str:
        """The time it was given, for messages."""
        if self._scope is not None and self._scope.deadline_s is not None and self._ends_s >= self._limit_s:
            return f"an end within {self._scope.deadline_s:g} s"
        return f"progress within {self.policy.deadline_s:g} s"

    def begin(self) -> None:
        """Begin an attempt.

        Raises
        ------
        Fault
            If the operation was cancelled, or the time of its scope is over.
        """
        if self.is_cancelled:
            raise Fault(Kind.CANCELLED, "the operation was given up")
        now_s = self._clock()
        if now_s >= self._limit_s:
            self.is_out_of_time = True
            raise Fault(Kind.STALLED, "there is no time left")
        self.tries += 1
        self._strikes += 1
        self._received = 0
        self._attempt_ends_s = min(now_s + self.policy.attempt_s, self._ends_s)
        if self._scope is not None:
            self._scope.count(requests=1, retries=int(self.tries > 1))

    def record_head(self) -> None:
        """Record that the head of an answer is complete. It gives the attempt time for the body, no more."""
        self._attempt_ends_s = min(self._clock() + self.policy.attempt_s, self._ends_s)

    def record_received(self, size_bytes: int) -> None:
        """Record that more bytes of a body came."""
        self._received += size_bytes
        if self._received >= _PROGRESS_BYTES:
            self._received = 0
            self.record_progress()

    def record_progress(self) -> None:
        """Record progress: deadlines count from here."""
        now_s = self._clock()
        self._ends_s = min(now_s + self.policy.deadline_s, self._limit_s)
        self._attempt_ends_s = min(now_s + self.policy.attempt_s, self._limit_s)
        if self._scope is not None:
            self._scope.record_progress()

    def record_sent(self, position: int) -> None:
        """Record that the bytes of a request's body up to `position` were handed to the kernel.

        A repeated attempt that gets no further than an earlier one is not progress of the operation. The
        bytes may still be in the kernel's buffers, so the answer has time until these are empty.
        """
        now_s = self._clock()
        if position >= self._furthest + _PROGRESS_BYTES:
            self._furthest = position
            self._ends_s = min(now_s + self.policy.deadline_s, self._limit_s)
        drain_s = min(position, _BUFFER_BYTES) / _SLOW_BYTES_PER_S
        self._attempt_ends_s = min(now_s + self.policy.attempt_s + drain_s, self._ends_s)

    def reset_failures(self) -> None:
        """Forget the failures so far, because the attempt that failed last transferred a good part."""
        self._strikes = 0

    def remaining_s(self) -> float:
        """Return how long this attempt may wait from now on without progress."""
        return max(0.0, self._attempt_ends_s - self._clock())

    def stalled(self) -> Fault:
        """Return the fault of an attempt whose time is over."""
        if self._attempt_ends_s >= self._limit_s:
            return Fault(Kind.STALLED, "no answer in the time that was left")
        return Fault(Kind.STALLED, f"no progress for {self.policy.attempt_s:g} s")

    def wait_to_retry(self, fault: Fault) -> bool:
        """Sleep and return True if another attempt is due; return False if the operation has failed."""
        rule = RULES[fault.kind]
        if self._strikes >= rule.tries or self.is_cancelled:
            # A stall means that time ran out, however many attempts were made in that time.
            self.is_out_of_time = fault.kind is Kind.STALLED
            return False
        if self._scope is not None and not self._scope.retries_failed:
            return False
        bound_s = min(rule.first_pause_s * 2.0 ** (max(self._strikes, 1) - 1), rule.longest_pause_s)
        pause_s = (fault.retry_after_s + random.uniform(0.0, bound_s)) * self.policy.pause_scale
        if self._clock() + pause_s >= self._ends_s:
            self.is_out_of_time = True
            return False
        if not self._budget.take():
            return False
        pause(pause_s, self.cancellation)
        return not self.is_cancelled

    def run(self, call: Callable[[Attempts], _T], *, is_repeated: bool = True) -> _T:
        """Return what `call` returns, after as many attempts as its faults allow; or after one alone.

        Raises
        ------
        Fault
            The last one.
        """
        while True:
            self.begin()
            try:
                answer = call(self)
            except Fault as fault:
                # A condition that does not hold is tried again after a read-back only: `ConditionalWrite`.
                is_final = fault.kind is Kind.PRECONDITION or not is_repeated
                if is_final or not self.wait_to_retry(fault):
                    raise
            else:
                self._budget.reward()
                return answer
