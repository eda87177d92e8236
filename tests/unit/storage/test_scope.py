"""What a scope gives to operations: an end, a way out, a count."""

from __future__ import annotations

import math
import time

import pytest

from ckptstore.errors import DeadlineError, TransientError
from ckptstore.storage.object_store.attempts import Attempts, RetryBudget, RetryPolicy
from ckptstore.storage.object_store.errors import error_of
from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.retry import Backoff
from ckptstore.storage.scope import Scope, current_scope
from ckptstore.testing import ManualClock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    clock = ManualClock(100.0)
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def _attempts(clock: ManualClock) -> Attempts:
    return Attempts(RetryPolicy(60.0, 20.0, 0.0), RetryBudget(clock=clock), clock=clock)


def test_it_is_current_inside_its_block_only() -> None:
    assert current_scope() is None
    with Scope() as outer:
        assert current_scope() is outer
        with Scope() as inner:
            assert current_scope() is inner
        assert current_scope() is outer
    assert current_scope() is None


def test_an_operation_ends_with_the_scope_however_much_moves(clock: ManualClock) -> None:
    with Scope(30.0) as scope:
        attempts = _attempts(clock)
        attempts.begin()
        clock.advance(15.0)
        attempts.record_progress()
        attempts.record_sent(1_000_000)
        assert attempts.remaining_s() == 15.0
        clock.advance(15.0)
        attempts.record_progress()
        assert attempts.remaining_s() == 0.0
        stalled = Fault(Kind.STALLED, "no byte moved")
        assert not attempts.wait_to_retry(stalled)
        error = error_of(stalled, "cannot send", "s3://b/k", attempts)
        assert isinstance(error, DeadlineError)
        assert error.expected == "an end within 30 s"
        with pytest.raises(DeadlineError, match="no time left"):
            scope.check()


def test_who_asks_is_told_when_bytes_come_also_those_of_scopes_inside(clock: ManualClock) -> None:
    told: list[str] = []
    with Scope() as outer:
        outer.on_progress = lambda: told.append("outer")
        branch = outer.branch()
        branch.on_progress = lambda: told.append("branch")
        attempts = branch.run(lambda: _attempts(clock))
        attempts.begin()
        attempts.record_received(1000)
        assert not told
        attempts.record_received(1_000_000)
        assert told == ["branch", "outer"]
        branch.detach()


def test_without_a_scope_the_policy_is_what_ran_out(clock: ManualClock) -> None:
    attempts = _attempts(clock)
    attempts.begin()
    assert attempts.time_allowed == "progress within 60 s"
    with Scope(1000.0):
        assert _attempts(clock).time_allowed == "progress within 60 s"


def test_no_request_is_made_after_the_deadline(clock: ManualClock) -> None:
    with Scope(30.0) as scope:
        clock.advance(31.0)
        attempts = _attempts(clock)
        with pytest.raises(Fault, match="no time left"):
            attempts.run(lambda attempts: None)
        assert attempts.is_out_of_time
        assert (attempts.tries, scope.requests) == (0, 0)


def test_cancelling_the_scope_gives_its_operations_up(clock: ManualClock) -> None:
    with Scope() as scope:
        attempts = _attempts(clock)
        scope.cancellation.cancel()
        with pytest.raises(Fault) as caught:
            attempts.begin()
    assert caught.value.kind is Kind.CANCELLED
    with pytest.raises(TransientError, match="given up"):
        scope.check()


def test_clean_up_inside_a_scope_that_was_given_up_has_time_of_its_own(clock: ManualClock) -> None:
    with Scope(5.0) as outer:
        outer.cancellation.cancel()
        clock.advance(100.0)
        with Scope(10.0) as inner:
            assert inner.remaining_s() == 10.0
            attempts = _attempts(clock)
            assert attempts.run(lambda attempts: "deleted") == "deleted"
            inner.check()
    assert (inner.requests, outer.requests) == (1, 1)


def test_a_branch_ends_with_its_scope_and_also_by_itself(clock: ManualClock) -> None:
    scope = Scope(5.0)
    one, two = scope.branch(), scope.branch()
    one.cancellation.cancel()
    assert (scope.cancellation.is_cancelled, two.cancellation.is_cancelled) == (False, False)
    assert two.remaining_s() == 5.0
    two.run(lambda: _attempts(clock).run(lambda attempts: None))
    assert (scope.requests, two.requests, one.requests) == (1, 1, 0)
    scope.cancellation.cancel()
    assert two.cancellation.is_cancelled


def test_a_detached_branch_is_forgotten() -> None:
    scope = Scope()
    branch = scope.branch()
    branch.detach()
    scope.cancellation.cancel()
    assert not branch.cancellation.is_cancelled
    assert not scope.cancellation._running


def test_repetitions_are_counted_as_such(clock: ManualClock) -> None:
    answers: list[Fault | str] = [Fault(Kind.SERVER, "oops"), Fault(Kind.SERVER, "oops"), "done"]

    def call(attempts: Attempts) -> str:
        answer = answers.pop(0)
        if isinstance(answer, Fault):
            raise answer
        return answer

    with Scope() as scope:
        assert _attempts(clock).run(call) == "done"
    assert (scope.requests, scope.retries) == (3, 2)


def test_waiting_for_others_ends_with_the_scope() -> None:
    with Scope(0.0):
        assert not Backoff(60.0).wait()
    with Scope() as scope:
        backoff = Backoff(60.0, shortest_s=0.0)
        scope.cancellation.cancel()
        assert not backoff.wait()


def test_without_a_deadline_there_is_no_end() -> None:
    assert Scope().remaining_s() == math.inf
    Scope().check()
