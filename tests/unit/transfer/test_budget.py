from __future__ import annotations

import random
from functools import partial

import pytest

from ckptstore.errors import DeadlineError, TransientError, UsageError
from ckptstore.storage.scope import Scope
from ckptstore.transfer.budget import MemoryBudget
from tests.unit.transfer.helpers import eventually, in_background


def _waiting(budget: MemoryBudget) -> int:
    """How many threads wait for room."""
    return len(budget._queue)


def test_without_a_limit_it_only_counts() -> None:
    budget = MemoryBudget()
    budget.acquire(10**12)
    budget.acquire(5)
    budget.release(10**12)
    assert (budget.used_bytes, budget.high_water_bytes) == (5, 10**12 + 5)


def test_a_limit_is_a_number_of_bytes() -> None:
    with pytest.raises(UsageError):
        MemoryBudget(0)


def test_it_waits_for_room() -> None:
    budget = MemoryBudget(10)
    budget.acquire(8)
    wait = in_background(lambda: budget.acquire(3))
    assert eventually(lambda: _waiting(budget) > 0)
    assert budget.used_bytes == 8
    budget.release(8)
    wait()
    assert budget.used_bytes == 3


def test_a_large_request_is_not_overtaken_for_ever() -> None:
    budget = MemoryBudget(10)
    budget.acquire(6)
    large = in_background(lambda: budget.acquire(9))
    assert eventually(lambda: _waiting(budget) > 0)
    small = in_background(lambda: budget.acquire(2))
    assert eventually(lambda: _waiting(budget) == 2)
    assert budget.used_bytes == 6
    budget.release(6)
    large()
    assert budget.used_bytes == 9
    budget.release(9)
    small()
    assert budget.high_water_bytes == 9


def test_more_than_the_limit_is_granted_alone() -> None:
    budget = MemoryBudget(10)
    budget.acquire(1)
    wait = in_background(lambda: budget.acquire(100))
    assert eventually(lambda: _waiting(budget) > 0)
    budget.release(1)
    wait()
    assert budget.used_bytes == 100


def test_what_the_caller_keeps_meanwhile_is_not_waited_for() -> None:
    budget = MemoryBudget(10)
    budget.acquire(8)
    budget.acquire(8, beside=8)
    assert budget.used_bytes == 16
    kept = 0
    wait = in_background(lambda: budget.acquire(8, beside=lambda: kept))
    assert eventually(lambda: _waiting(budget) > 0)
    kept = 16
    budget.wake()
    wait()


def test_cancelling_ends_the_wait_and_leaves_the_queue_free() -> None:
    budget = MemoryBudget(10)
    budget.acquire(8)
    scope = Scope()
    wait = in_background(lambda: budget.acquire(5, scope=scope))
    assert eventually(lambda: _waiting(budget) > 0)
    behind = in_background(lambda: budget.acquire(2))
    assert eventually(lambda: _waiting(budget) == 2)
    scope.cancellation.cancel()
    with pytest.raises(TransientError):
        wait()
    behind()
    assert budget.used_bytes == 10


def test_the_deadline_of_the_scope_ends_the_wait() -> None:
    budget = MemoryBudget(10)
    budget.acquire(8)
    with Scope(0.01), pytest.raises(DeadlineError):
        budget.acquire(5)
    assert budget.used_bytes == 8


def test_it_is_never_exceeded_and_nobody_starves() -> None:
    budget = MemoryBudget(100)
    done: list[int] = []

    def user(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(100):
            with budget.hold(chance.randint(1, 100)):
                assert budget.used_bytes <= 100
        done.append(seed)

    for wait in [in_background(partial(user, seed)) for seed in range(6)]:
        wait()
    assert sorted(done) == list(range(6))
    assert budget.used_bytes == 0
    assert 50 < budget.high_water_bytes <= 100
