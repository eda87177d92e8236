"""The one retry layer: how often, how long, and when it is enough."""

from __future__ import annotations

import os
import threading

import pytest

from ckptstore.errors import CkptStoreError, DeadlineError, TransientError
from ckptstore.storage.object_store.attempts import Attempts, RetryBudget, RetryPolicy
from ckptstore.storage.object_store.errors import error_of
from ckptstore.storage.object_store.faults import RULES, Fault, Kind
from ckptstore.storage.retry import Backoff
from ckptstore.storage.scope import Cancellation
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


def _attempts(
    clock: ManualClock, policy: RetryPolicy | None = None, budget: RetryBudget | None = None
) -> Attempts:
    budget = budget or RetryBudget(clock=clock)
    return Attempts(policy or RetryPolicy(), budget, _Clocked(clock), clock=clock)


def _fail(attempts: Attempts, kind: Kind, **more: float) -> Fault:
    def call(attempts: Attempts) -> None:
        raise Fault(kind, "again", **more)  # type: ignore[arg-type]

    with pytest.raises(Fault) as caught:
        attempts.run(call)
    return caught.value


@pytest.mark.parametrize("kind", list(Kind))
def test_every_kind_has_a_rule_and_is_tried_as_often_as_it_says(clock: ManualClock, kind: Kind) -> None:
    attempts = _attempts(clock)
    assert _fail(attempts, kind).kind is kind
    # Only a write that was read back asks again whether its condition holds.
    assert attempts.tries == (1 if kind is Kind.PRECONDITION else RULES[kind].tries)


def test_the_answer_of_a_later_attempt_is_the_answer(clock: ManualClock) -> None:
    attempts = _attempts(clock)
    answers = [Fault(Kind.THROTTLED, "busy"), Fault(Kind.SERVER, "oops"), "done"]

    def call(attempts: Attempts) -> str:
        answer = answers.pop(0)
        if isinstance(answer, Fault):
            raise answer
        return answer  # type: ignore[return-value]

    assert attempts.run(call) == "done"
    assert attempts.tries == 3


def test_pauses_grow_at_random_up_to_a_bound(clock: ManualClock) -> None:
    seen: list[list[float]] = []
    for _ in range(50):
        attempts = _attempts(clock)
        _fail(attempts, Kind.SERVER)
        assert isinstance(attempts.cancellation, _Clocked)
        seen.append(attempts.cancellation.pauses)
    rule = RULES[Kind.SERVER]
    for number, pauses in enumerate(zip(*seen, strict=True)):
        bound_s = min(rule.first_pause_s * 2**number, rule.longest_pause_s)
        assert all(0 <= pause_s <= bound_s for pause_s in pauses)
        # Full jitter: neither all early nor all late.
        assert min(pauses) < bound_s / 4
        assert max(pauses) > bound_s * 3 / 4


def test_a_server_that_names_a_pause_gets_it(clock: ManualClock) -> None:
    attempts = _attempts(clock)
    _fail(attempts, Kind.THROTTLED, retry_after_s=3.0)
    assert isinstance(attempts.cancellation, _Clocked)
    assert all(pause_s >= 3.0 for pause_s in attempts.cancellation.pauses)


def test_no_pause_leads_beyond_the_deadline(clock: ManualClock) -> None:
    attempts = _attempts(clock, RetryPolicy(deadline_s=10.0))
    _fail(attempts, Kind.THROTTLED, retry_after_s=4.0)
    assert attempts.is_out_of_time
    assert clock.now_s < 10.0
    assert attempts.tries <= 3


def test_a_stalled_operation_ends_at_its_deadline(clock: ManualClock) -> None:
    attempts = _attempts(clock)

    def stall(attempts: Attempts) -> None:
        clock.advance(attempts.remaining_s())
        raise Fault(Kind.STALLED, "nothing moved")

    with pytest.raises(Fault) as caught:
        attempts.run(stall)
    assert clock.now_s <= 60.0
    error = error_of(caught.value, "cannot read the object", "s3://b/k", attempts)
    assert isinstance(error, DeadlineError)
    assert "progress within 60 s" in str(error)


def test_an_attempt_may_take_any_time_while_bytes_move(clock: ManualClock) -> None:
    attempts = _attempts(clock)

    def trickle(attempts: Attempts) -> str:
        for _ in range(100):
            clock.advance(19.0)
            assert attempts.remaining_s() > 0
            attempts.record_progress()
        return "all"

    assert attempts.run(trickle) == "all"


def test_an_attempt_without_a_byte_may_take_twenty_seconds(clock: ManualClock) -> None:
    attempts = _attempts(clock)
    attempts.begin()
    assert attempts.remaining_s() == 20.0
    clock.advance(50.0)
    assert attempts.remaining_s() == 0.0
    attempts.begin()
    assert attempts.remaining_s() == 10.0


def test_bytes_that_went_are_progress_where_no_attempt_was_before(clock: ManualClock) -> None:
    attempts = _attempts(clock)
    attempts.begin()
    clock.advance(19.0)
    attempts.record_sent(100_000)
    clock.advance(19.0)
    attempts.record_sent(200_000)
    ends_s = clock.now_s + 60.0
    clock.advance(20.0)
    attempts.begin()
    # The same bytes once more: the attempt has time again, the operation has not.
    attempts.record_sent(100_000)
    assert attempts.remaining_s() == pytest.approx(20.0, abs=1.0)
    clock.now_s = ends_s - 5.0
    attempts.record_sent(200_000)
    assert attempts.remaining_s() == 5.0


def test_a_few_bytes_are_no_progress_and_many_together_are(clock: ManualClock) -> None:
    attempts = _attempts(clock)
    attempts.begin()
    clock.advance(15.0)
    attempts.record_received(1000)
    assert attempts.remaining_s() == 5.0
    for _ in range(16):
        attempts.record_received(1000)
    assert attempts.remaining_s() == 20.0
    clock.advance(15.0)
    for position in range(1000, 17_000, 1000):
        attempts.record_sent(position)
    clock.advance(60.0)
    attempts.begin()
    assert attempts.remaining_s() == 0.0


def test_the_head_of_an_answer_gives_time_for_the_body_and_the_operation_no_more(clock: ManualClock) -> None:
    attempts = _attempts(clock)
    attempts.begin()
    clock.advance(19.0)
    attempts.record_head()
    assert attempts.remaining_s() == 20.0
    for _ in range(20):
        clock.advance(2.5)
        attempts.record_head()
    assert attempts.remaining_s() == 0.0


def test_the_answer_to_a_large_body_has_time_until_the_buffers_are_empty(clock: ManualClock) -> None:
    attempts = _attempts(clock)
    attempts.begin()
    attempts.record_sent(1 << 20)
    assert attempts.remaining_s() == 24.0
    attempts.record_sent(100 << 20)
    assert attempts.remaining_s() == 36.0


def test_attempts_that_brought_a_good_part_do_not_count(clock: ManualClock) -> None:
    attempts = _attempts(clock)
    left = 30

    def bring(attempts: Attempts) -> str:
        nonlocal left
        attempts.record_progress()
        attempts.reset_failures()
        left -= 1
        if left:
            raise Fault(Kind.CUT, "broke off")
        return "whole"

    assert attempts.run(bring) == "whole"
    assert attempts.tries == 30


def test_an_operation_inside_another_shares_its_deadline_and_counts_for_itself(clock: ManualClock) -> None:
    outer = _attempts(clock)
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
        attempts = Attempts(RetryPolicy(pause_scale=0.0), budget, _Clocked(clock), clock=clock)
        _fail(attempts, Kind.CUT)
        tries.append(attempts.tries)
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
        attempts = _attempts(clock, budget=budget)
        _fail(attempts, Kind.NOT_SENT)
        assert attempts.tries == RULES[Kind.NOT_SENT].tries


def test_a_cancelled_operation_makes_no_further_attempt() -> None:
    cancellation = Cancellation()
    attempts = Attempts(RetryPolicy(), RetryBudget(), cancellation)

    def call(attempts: Attempts) -> None:
        cancellation.cancel()
        raise Fault(Kind.CUT, "broke off")

    with pytest.raises(Fault, match="broke off"):
        attempts.run(call)
    assert attempts.tries == 1
    with pytest.raises(Fault) as caught:
        attempts.begin()
    assert caught.value.kind is Kind.CANCELLED


def test_a_pause_ends_when_the_operation_is_cancelled() -> None:
    cancellation = Cancellation()
    attempts = Attempts(RetryPolicy(), RetryBudget(), cancellation)
    attempts.begin()
    timer = threading.Timer(0.05, cancellation.cancel)
    timer.start()
    # An hour, if it were not for the cancellation.
    assert not attempts.wait_to_retry(Fault(Kind.THROTTLED, "busy", retry_after_s=30.0))
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
    attempts = _attempts(clock)
    error = error_of(_fail(attempts, Kind.SERVER), "cannot read the object", "s3://b/k", attempts)
    assert type(error) is TransientError
    assert f"after {RULES[Kind.SERVER].tries} attempts" in str(error)


def test_backoff_gives_up_at_its_deadline() -> None:
    backoff = Backoff(0.0)
    assert not backoff.wait()
    assert backoff.attempts == 1
