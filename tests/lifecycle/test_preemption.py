"""Signals: what a process does when it is told that it will end, alone and as one of many ranks."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

import ckptstore as ck
from tests.preempted_job import steps_saved


def wait_for(what):
    ends_s = time.monotonic() + 30
    while not what():
        assert time.monotonic() < ends_s
        time.sleep(0.001)


def test_a_signal_is_seen_while_the_main_thread_does_not_run_python():
    with ck.Preemption(grace_s=30) as preemption:
        assert not preemption.should_save(0)
        assert (preemption.requested, preemption.left_s) == (False, 30)
        seen: list[bool] = []
        looking = threading.Thread(target=lambda: (wait_for(lambda: preemption.requested), seen.append(True)))
        looking.start()
        os.kill(os.getpid(), signal.SIGTERM)
        looking.join(30)
        assert seen == [True]
        assert preemption.should_save(1)
        assert not preemption.should_save(2)
        assert 0 < preemption.left_s < 30


def test_earlier_handlers_and_an_earlier_descriptor_hear_of_signals_too():
    heard: list[int] = []
    reading, writing = socket.socketpair()
    with reading, writing:
        writing.setblocking(False)
        before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
        before_fd = signal.set_wakeup_fd(writing.fileno())
        try:
            with ck.Preemption(signals=[signal.SIGUSR1]) as preemption:
                os.kill(os.getpid(), signal.SIGUSR1)
                reading.settimeout(30)
                assert reading.recv(10) == bytes([signal.SIGUSR1])
                wait_for(lambda: preemption.requested)
            assert heard == [signal.SIGUSR1]
            os.kill(os.getpid(), signal.SIGUSR1)
            assert reading.recv(10) == bytes([signal.SIGUSR1])
            assert heard == [signal.SIGUSR1] * 2
            assert signal.set_wakeup_fd(before_fd) == writing.fileno()
        finally:
            signal.set_wakeup_fd(before_fd)
            signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("end", [SystemExit(1), KeyboardInterrupt()])
def test_an_earlier_handler_that_ends_the_process_does_not(end):
    def handle(number, frame):
        heard.append(number)
        raise end

    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, handle)
    try:
        with ck.Preemption(signals=[signal.SIGUSR1]) as preemption:
            os.kill(os.getpid(), signal.SIGUSR1)
            wait_for(lambda: preemption.requested)
        assert heard == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_afterwards_everything_is_as_before():
    before = signal.getsignal(signal.SIGTERM)
    threads = threading.active_count()
    with ck.Preemption(), ck.Preemption():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
    assert signal.set_wakeup_fd(-1) == -1
    wait_for(lambda: threading.active_count() <= threads)


def test_a_handler_that_somebody_installed_inside_stays():
    before = signal.getsignal(signal.SIGTERM)
    try:
        with ck.Preemption():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_signal_to_a_forked_child_is_not_taken_for_one_to_its_parent():
    with ck.Preemption() as preemption:
        pid = os.fork()
        if pid == 0:
            for _ in range(600):  # in naps, as in child.py
                time.sleep(0.1)
            os._exit(0)
        time.sleep(0.1)
        os.kill(pid, signal.SIGTERM)
        _, status = os.waitpid(pid, 0)
        assert os.WTERMSIG(status) == signal.SIGTERM
        assert not preemption.requested
        assert not preemption.should_save(0)


def test_it_is_entered_in_the_main_thread():
    errors: list[BaseException] = []

    def enter():
        try:
            ck.Preemption().__enter__()
        except ck.UsageError as error:
            errors.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join(30)
    assert "main thread" in str(errors[0])


@pytest.mark.parametrize("grace_s", [0, -1, float("nan")])
def test_there_has_to_be_some_time(grace_s):
    with pytest.raises(ck.UsageError, match="grace_s must be positive"):
        ck.Preemption(grace_s=grace_s)


def test_a_process_that_waits_in_a_system_call_saves_and_ends_by_itself():
    code = (
        "import ckptstore as ck, sys, threading, time\n"
        "with ck.Preemption() as preemption:\n"
        "    print('ready', flush=True)\n"
        "    sys.stdin.read()\n"
        "    assert preemption.requested and preemption.should_save(1)\n"
        "print('saved', flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert process.communicate(timeout=30)[0] == "saved\n"
        assert process.returncode == 0


def test_one_of_four_ranks_gets_a_signal_and_all_save_at_one_step_each_time(tmp_path):
    environment = {**os.environ, "STORE_URL": str(tmp_path), "STORE_OPTIONS": json.dumps({})}
    saved = steps_saved(4, environment, rounds=4)
    assert len(saved) == 4
    for steps in saved:
        assert len(set(steps)) == 1, f"the ranks saved at {steps}"
