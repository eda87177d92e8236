"""Tasks at the same time: order, bounds, the first error, and ends that leave nothing behind."""

from __future__ import annotations

import contextvars
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from ckptstore.errors import DeadlineError, TransientError, UsageError
from ckptstore.storage.scope import Scope, current_scope
from ckptstore.testing.faulty import SimulatedCrash
from ckptstore.transfer import pool
from ckptstore.transfer.pool import TaskGroup, run_tasks
from tests.meta.source import ROOT
from tests.unit.transfer.helpers import TIMEOUT_S, eventually, in_background, transfer_threads


@pytest.mark.parametrize("parallel", [1, 2, 5])
def test_results_come_in_the_order_of_the_tasks(parallel: int) -> None:
    assert run_tasks(Scope(), (partial(pow, n, 2) for n in range(200)), parallel) == [
        n * n for n in range(200)
    ]
    assert run_tasks(Scope(), [], parallel) == []


def test_one_at_a_time_needs_no_thread() -> None:
    here = threading.get_ident()
    assert run_tasks(Scope(), [threading.get_ident] * 3, 1) == [here] * 3


def test_no_more_tasks_than_allowed_are_under_way_and_the_next_is_made_when_there_is_room() -> None:
    lock = threading.Lock()
    running = most = made = done = 0
    ahead: list[int] = []

    def tasks() -> Iterator[Callable[[], None]]:
        nonlocal made
        for _ in range(60):
            made += 1
            ahead.append(made - done)
            yield task

    def task() -> None:
        nonlocal running, most, done
        with lock:
            running += 1
            most = max(most, running)
        together.wait(TIMEOUT_S)
        with lock:
            running -= 1
            done += 1

    together = threading.Barrier(3)
    run_tasks(Scope(), tasks(), 3)
    assert most == 3
    assert max(ahead) <= 4


def test_threads_are_used_again_and_end_when_nothing_comes() -> None:
    names = {ident for _ in range(20) for ident in run_tasks(Scope(), [threading.get_ident] * 8, 2)}
    assert len(names) < 40
    assert not any(thread.daemon for thread in transfer_threads())
    assert eventually(lambda: not transfer_threads())


@pytest.mark.parametrize(
    "error", [TransientError("cut"), SimulatedCrash("died"), KeyboardInterrupt(), ValueError()]
)
@pytest.mark.parametrize("parallel", [1, 3])
def test_the_first_error_ends_the_others_and_is_raised(error: BaseException, parallel: int) -> None:
    under_way = threading.Semaphore(0)
    started: list[int] = []
    ended: list[int] = []

    def waits(number: int) -> None:
        scope = current_scope()
        assert scope is not None
        started.append(number)
        under_way.release()
        scope.cancellation.sleep(TIMEOUT_S)
        ended.append(number)
        scope.check()

    def fails() -> None:
        for _ in range(parallel - 1):
            assert under_way.acquire(timeout=TIMEOUT_S)
        raise error

    tasks = [lambda n=n: waits(n) for n in range(parallel - 1)] + [fails] + [lambda: waits(99)] * 5
    with pytest.raises(type(error)) as caught:
        run_tasks(Scope(), tasks, parallel)
    assert caught.value is error
    assert sorted(started) == sorted(ended) == list(range(parallel - 1))


def test_an_error_of_whoever_makes_the_tasks_ends_them_too() -> None:
    ended: list[bool] = []
    under_way = threading.Event()

    def waits() -> None:
        scope = current_scope()
        assert scope is not None
        under_way.set()
        scope.cancellation.sleep(TIMEOUT_S)
        ended.append(True)

    def tasks() -> Iterator[Callable[[], None]]:
        yield waits
        assert under_way.wait(TIMEOUT_S)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_tasks(Scope(), tasks(), 2)
    assert ended == [True]


def test_the_error_of_a_task_comes_before_what_follows_from_it() -> None:
    failed = threading.Event()

    def fails() -> None:
        failed.set()
        raise ZeroDivisionError

    def tasks() -> Iterator[Callable[[], None]]:
        yield fails
        assert failed.wait(TIMEOUT_S)
        scope = current_scope()
        assert scope is not None
        scope.cancellation.sleep(TIMEOUT_S)
        scope.check()

    with pytest.raises(ZeroDivisionError):
        run_tasks(Scope(), tasks(), 2)


@pytest.mark.parametrize("parallel", [1, 2])
def test_cancelling_ends_it_whoever_waits(parallel: int) -> None:
    scope = Scope(what="cannot save", url="memory://x")
    begun = threading.Event()

    def task() -> None:
        begun.set()
        scope.cancellation.sleep(TIMEOUT_S)

    wait = in_background(lambda: run_tasks(scope, iter(lambda: task, None), parallel))
    assert begun.wait(TIMEOUT_S)
    scope.cancellation.cancel()
    with pytest.raises(TransientError, match="cannot save: it was given up"):
        wait()


@pytest.mark.parametrize("parallel", [1, 2])
def test_no_task_begins_after_the_deadline(parallel: int) -> None:
    ran: list[int] = []
    with pytest.raises(DeadlineError):
        run_tasks(Scope(0.0), [lambda: ran.append(1)] * 3, parallel)
    assert ran == []


def test_tasks_run_in_the_context_and_in_a_branch_of_the_scope() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    variable.set("here")
    scope = Scope()

    def task() -> str:
        inner = current_scope()
        assert inner is not None
        inner.count(requests=1)
        return variable.get()

    assert run_tasks(scope, [task] * 5, 2) == ["here"] * 5
    assert scope.requests == 5
    assert current_scope() is None


def test_a_task_may_have_tasks_of_its_own() -> None:
    def outer() -> int:
        return sum(run_tasks(current_scope() or Scope(), [lambda: 1] * 4, 2))

    assert run_tasks(Scope(), [outer] * 4, 2) == [4] * 4


def test_finished_groups_hang_on_no_scope() -> None:
    scope = Scope()
    for _ in range(3):
        run_tasks(scope, [lambda: None] * 3, 2)
    assert not scope.cancellation._running


def test_where_no_thread_can_be_started_the_caller_works(monkeypatch: pytest.MonkeyPatch) -> None:
    assert eventually(lambda: not transfer_threads())

    def refused(self: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    here = threading.get_ident()
    assert run_tasks(Scope(), [threading.get_ident] * 5, 3) == [here] * 5


def test_a_forked_child_has_threads_of_its_own_and_none_of_the_parent_s_tasks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What is idle here is not idle there.
    monkeypatch.setattr(pool, "_IDLE_S", 1.0)
    run_tasks(Scope(), [lambda: threading.Event().wait(0.05)] * 4, 4)
    scope = Scope()
    group: TaskGroup[object] = TaskGroup(scope, 2)
    go_on = threading.Event()
    group.submit(lambda: go_on.wait(TIMEOUT_S))
    child = os.fork()
    if not child:
        code = 1
        try:
            signal.alarm(int(TIMEOUT_S))
            if run_tasks(Scope(), [lambda: 1] * 6, 3) == [1] * 6:
                group.stop()
                try:
                    group.submit(lambda: None)
                except UsageError:
                    code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    go_on.set()
    group.finish()
    assert status == 0


def test_ctrl_c_in_the_waiting_main_thread_ends_the_tasks_first() -> None:
    done = _run(
        """
        import os, signal, threading
        from ckptstore.storage.scope import Scope, current_scope
        from ckptstore.transfer.pool import run_tasks

        begun, ended = [], []

        def task():
            begun.append(1)
            os.kill(os.getpid(), signal.SIGINT)
            current_scope().cancellation.sleep(30)
            # Once more, while the main thread waits for the end of this.
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(0.3)
            ended.append(1)

        try:
            run_tasks(Scope(), [task] * 5, 2)
        except KeyboardInterrupt:
            print("interrupted", bool(ended), len(begun) == len(ended))
        """
    )
    assert done.stdout.split() == ["interrupted", "True", "True"], done.stderr


def test_the_interpreter_ends_although_threads_are_idle() -> None:
    done = _run(
        """
        from ckptstore.storage.scope import Scope
        from ckptstore.transfer.pool import run_tasks
        print(sum(run_tasks(Scope(), [lambda: 1] * 10, 4)))
        """
    )
    assert (done.stdout.strip(), done.returncode) == ("10", 0), done.stderr


def _run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
