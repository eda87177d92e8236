"""The one retry layer: how often, how long, and when it is enough."""

from __future__ import annotations

import os
import threading

import pytest

from ckptstore.errors import CkptStoreError, DeadlineError, TransientError
from ckptstore.storage.object_store.faults import RULES, Fault, Kind, error_of
from ckptstore.storage.retry import Backoff, Cancellation, Operation, RetryBudget, RetryPolicy
from ckptstore.testing import ManualClock


class _Clocked(Cancellation):
    """Sleeps by moving a clock, and remembers how long."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__()
        self.clock = clock
        self.pauses: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.clock.advance(seconds)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(0.0)


def _operation(
    clock: ManualClock, policy: RetryPolicy | None = None, budget: RetryBudget | None = None
) -> Operation:
    budget = budget or RetryBudget(clock=clock)
    return Operation(policy or RetryPolicy(), budget, _Clocked(clock), clock=clock)


def _fail(operation: Operation, kind: Kind, **more: float) -> Fault:
    def call(op: Operation) -> None:
        raise Fault(kind, "again", **more)  # type: ignore[arg-type]

    with pytest.raises(Fault) as caught:
        operation.run(call)
    return caught.value


@pytest.mark.parametrize("kind", list(Kind))
def test_every_kind_has_a_rule_and_is_tried_as_often_as_it_says(clock: ManualClock, kind: Kind) -> None:
    operation = _operation(clock)
    assert _fail(operation, kind).kind is kind
    # Only a write that was read back asks again whether its condition holds.
    assert operation.tries == (1 if kind is Kind.PRECONDITION else RULES[kind].tries)


def test_the_answer_of_a_later_attempt_is_the_answer(clock: ManualClock) -> None:
    operation = _operation(clock)
    answers = [Fault(Kind.THROTTLED, "busy"), Fault(Kind.SERVER, "oops"), "done"]

    def call(op: Operation) -> str:
        answer = answers.pop(0)
        if isinstance(answer, Fault):
            raise answer
        return answer  # type: ignore[return-value]

    assert operation.run(call) == "done"
    assert operation.tries == 3


def test_pauses_grow_at_random_up_to_a_bound(clock: ManualClock) -> None:
    seen: list[list[float]] = []
    for _ in range(50):
        operation = _operation(clock)
        _fail(operation, Kind.SERVER)
        assert isinstance(operation.cancellation, _Clocked)
        seen.append(operation.cancellation.pauses)
    rule = RULES[Kind.SERVER]
    for number, pauses in enumerate(zip(*seen, strict=True)):
        bound_s = min(rule.first_pause_s * 2**number, rule.longest_pause_s)
        assert all(0 <= pause_s <= bound_s for pause_s in pauses)
        # Full jitter: neither all early nor all late.
        assert min(pauses) < bound_s / 4
        assert max(pauses) > bound_s * 3 / 4


def test_a_server_that_names_a_pause_gets_it(clock: ManualClock) -> None:
    operation = _operation(clock)
    _fail(operation, Kind.THROTTLED, retry_after_s=3.0)
    assert isinstance(operation.cancellation, _Clocked)
    assert all(pause_s >= 3.0 for pause_s in operation.cancellation.pauses)


def test_no_pause_leads_beyond_the_deadline(clock: ManualClock) -> None:
    operation = _operation(clock, RetryPolicy(deadline_s=10.0))
    _fail(operation, Kind.THROTTLED, retry_after_s=4.0)
    assert operation.is_over
    assert clock.now_s < 10.0
    assert operation.tries <= 3


def test_a_stalled_operation_ends_at_its_deadline(clock: ManualClock) -> None:
    operation = _operation(clock)

    def stall(op: Operation) -> None:
        clock.advance(op.remaining_s())
        raise Fault(Kind.STALLED, "nothing moved")

    with pytest.raises(Fault) as caught:
        operation.run(stall)
    assert clock.now_s <= 60.0
    error = error_of(caught.value, "cannot read the object", "s3://b/k", operation)
    assert isinstance(error, DeadlineError)
    assert "progress within 60 s" in str(error)


def test_an_attempt_may_take_any_time_while_bytes_move(clock: ManualClock) -> None:
    operation = _operation(clock)

    def trickle(op: Operation) -> str:
        for _ in range(100):
            clock.advance(19.0)
            assert op.remaining_s() > 0
            op.progress()
        return "all"

    assert operation.run(trickle) == "all"


def test_an_attempt_without_a_byte_may_take_twenty_seconds(clock: ManualClock) -> None:
    operation = _operation(clock)
    operation.begin()
    assert operation.remaining_s() == 20.0
    clock.advance(50.0)
    assert operation.remaining_s() == 0.0
    operation.begin()
    assert operation.remaining_s() == 10.0


def test_bytes_that_went_are_progress_where_no_attempt_was_before(clock: ManualClock) -> None:
    operation = _operation(clock)
    operation.begin()
    clock.advance(19.0)
    operation.sent(1000)
    clock.advance(19.0)
    operation.sent(2000)
    ends_s = clock.now_s + 60.0
    clock.advance(20.0)
    operation.begin()
    # The same bytes once more: the attempt has time again, the operation has not.
    operation.sent(1000)
    assert operation.remaining_s() == pytest.approx(20.0, abs=0.1)
    clock.now_s = ends_s - 5.0
    operation.sent(2000)
    assert operation.remaining_s() == 5.0


def test_the_answer_to_a_large_body_has_time_until_the_buffers_are_empty(clock: ManualClock) -> None:
    operation = _operation(clock)
    operation.begin()
    operation.sent(1 << 20)
    assert operation.remaining_s() == 24.0
    operation.sent(100 << 20)
    assert operation.remaining_s() == 36.0


def test_attempts_that_brought_a_good_part_do_not_count(clock: ManualClock) -> None:
    operation = _operation(clock)
    left = 30

    def bring(op: Operation) -> str:
        nonlocal left
        op.progress()
        op.forgive()
        left -= 1
        if left:
            raise Fault(Kind.CUT, "broke off")
        return "whole"

    assert operation.run(bring) == "whole"
    assert operation.tries == 30


def test_an_operation_inside_another_shares_its_deadline_and_counts_for_itself(clock: ManualClock) -> None:
    outer = _operation(clock)
    outer.begin()
    clock.advance(55.0)
    inner = outer.child()
    inner.begin()
    assert inner.remaining_s() == 5.0
    assert (outer.tries, inner.tries) == (1, 1)


def test_many_threads_on_a_dead_server_are_held_back(clock: ManualClock) -> None:
    budget = RetryBudget(20.0, clock=clock)
    tries = []
    for _ in range(50):
        operation = Operation(RetryPolicy(pause_scale=0.0), budget, _Clocked(clock), clock=clock)
        _fail(operation, Kind.CUT)
        tries.append(operation.tries)
    assert sum(tries) == 50 + 20


def test_time_and_success_refill_the_budget(clock: ManualClock) -> None:
    budget = RetryBudget(2.0, per_second=1.0, per_success=0.5, clock=clock)
    assert [budget.take() for _ in range(3)] == [True, True, False]
    clock.advance(1.0)
    assert [budget.take() for _ in range(2)] == [True, False]
    budget.reward()
    assert not budget.take()
    budget.reward()
    assert budget.take()
    clock.advance(1000.0)
    assert [budget.take() for _ in range(3)] == [True, True, False]


def test_one_thread_whose_pauses_grow_never_empties_the_budget(clock: ManualClock) -> None:
    budget = RetryBudget(clock=clock)
    for _ in range(100):
        operation = _operation(clock, budget=budget)
        _fail(operation, Kind.NOT_SENT)
        assert operation.tries == RULES[Kind.NOT_SENT].tries


def test_a_cancelled_operation_makes_no_further_attempt() -> None:
    cancellation = Cancellation()
    operation = Operation(RetryPolicy(), RetryBudget(), cancellation)

    def call(op: Operation) -> None:
        cancellation.cancel()
        raise Fault(Kind.CUT, "broke off")

    with pytest.raises(Fault, match="broke off"):
        operation.run(call)
    assert operation.tries == 1
    with pytest.raises(Fault) as caught:
        operation.begin()
    assert caught.value.kind is Kind.CANCELLED


def test_a_pause_ends_when_the_operation_is_cancelled() -> None:
    cancellation = Cancellation()
    operation = Operation(RetryPolicy(), RetryBudget(), cancellation)
    operation.begin()
    timer = threading.Timer(0.05, cancellation.cancel)
    timer.start()
    # An hour, if it were not for the cancellation.
    assert not operation.again(Fault(Kind.THROTTLED, "busy", retry_after_s=30.0))
    timer.join()


def test_what_is_watched_after_the_cancellation_is_dropped_at_once() -> None:
    cancellation = Cancellation()
    dropped: list[str] = []
    forgotten = cancellation.watch
    cancellation.watch(lambda: dropped.append("first"))

    def second() -> None:
        dropped.append("second")

    forgotten(second)
    cancellation.unwatch(second)
    cancellation.cancel()
    cancellation.watch(lambda: dropped.append("third"))
    assert dropped == ["first", "third"]


def test_a_forked_child_finds_the_budget_free() -> None:
    budget = RetryBudget()
    with budget._locks[0]:
        child = os.fork()
        if child == 0:
            os._exit(0 if budget.take() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("kind", list(Kind))
def test_every_fault_becomes_an_error_that_says_what_where_and_what_to_do(kind: Kind) -> None:
    fault = Fault(kind, "the server's words", code="SomeCode")
    error = error_of(fault, "cannot read the object", "s3://bucket/key")
    assert isinstance(error, CkptStoreError)
    assert error.url == "s3://bucket/key"
    assert error.hint
    assert str(error).startswith("cannot read the object: SomeCode: the server's words [s3://bucket/key]")


def test_an_error_counts_the_attempts(clock: ManualClock) -> None:
    operation = _operation(clock)
    error = error_of(_fail(operation, Kind.SERVER), "cannot read the object", "s3://b/k", operation)
    assert type(error) is TransientError
    assert f"after {RULES[Kind.SERVER].tries} attempts" in str(error)


def test_backoff_gives_up_at_its_deadline() -> None:
    backoff = Backoff(0.0)
    assert not backoff.wait()
    assert backoff.attempts == 1
