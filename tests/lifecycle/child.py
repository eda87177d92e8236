"""A Python program of its own, with a watchdog; and what such programs need."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

WATCHDOG_S = 240.0

# What each program begins with. `stuck` calls never come back, `slow` ones take a moment.
PRELUDE = """
import os, sys, threading, time, signal
import numpy as np
import ckptstore as ck
from ckptstore.saving import at_exit
from ckptstore.storage.registry import use_wrapper
from ckptstore.storage.wrappers import StorageWrapper

reached = threading.Event()

class Held(StorageWrapper):
    def __init__(self, inner, primitive, seconds):
        super().__init__(inner)
        self.primitive, self.seconds = primitive, seconds
    def intercept(self, primitive, keys, call):
        if primitive == self.primitive:
            reached.set()
            threading.Event().wait(self.seconds)
        return call()

blocks = []

def wrap(storage):
    blocks.append(use_wrapper(storage))
    blocks[-1].__enter__()

def hold(primitive, seconds=None):
    wrap(lambda inner: Held(inner, primitive, seconds))

interrupted = threading.Event()

def on_signal(number, frame):
    interrupted.set()
    raise KeyboardInterrupt

class HeldForSignal(Held):
    def intercept(self, primitive, keys, call):
        if primitive == self.primitive:
            reached.set()
            interrupted.wait(60)
        return super().intercept(primitive, keys, call)

def hold_for_signal(primitive, seconds):
    # It takes its seconds after the signal has come, however late that is.
    signal.signal(signal.SIGINT, on_signal)
    wrap(lambda inner: HeldForSignal(inner, primitive, seconds))

def ready():
    print("READY", flush=True)

def asleep():
    # In naps: a signal that comes just before CPython blocks is not seen until that wait ends (1 in 100).
    while True:
        threading.Event().wait(0.1)

def waits_in_ckptstore():
    frame = sys._current_frames()[threading.main_thread().ident]
    files = [frame.f_code.co_filename]
    while frame := frame.f_back:
        files.append(frame.f_code.co_filename)
    return files[0] == threading.__file__ and any(f"{os.sep}ckptstore{os.sep}" in file for file in files)

def soon_ready(after=lambda: None):
    # Not in the thread that is to be interrupted while it waits.
    def look():
        after()
        ends = time.monotonic() + 2
        while not waits_in_ckptstore() and time.monotonic() < ends:
            threading.Event().wait(0.01)
        ready()
    threading.Thread(target=look, daemon=True).start()

def left(directory):
    return sorted(set(os.listdir(directory)) - {".ckptstore.lock"}) if os.path.isdir(directory) else []

def others():
    return [one.name for one in threading.enumerate() if one is not threading.main_thread()]

def quiet():
    # Threads that are lent out end a moment after their last task. The one that sends requests stays.
    ends = time.monotonic() + 60
    while set(others()) - {"ckptstore-requests"} and time.monotonic() < ends:
        threading.Event().wait(0.01)
    return others()

W = {"w": np.ones(1000), "b": np.arange(5)}
"""


class Child:
    """A program that runs; `signal` waits until it says that it is ready."""

    def __init__(self, program: str, *arguments: str, environment: dict[str, str] | None = None) -> None:
        root = str(Path(__file__).parents[2])
        self._process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + textwrap.dedent(program), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": root, **(environment or {})},
        )
        self._dog = threading.Timer(WATCHDOG_S, self._process.kill)
        self._dog.start()

    def signal_when_ready(self, number: int = signal.SIGINT) -> None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line == "READY\n", line + self.end()[2]
        self._process.send_signal(number)

    def end(self) -> tuple[int, str, str]:
        """Return exit code, output and errors."""
        out, err = self._process.communicate()
        self._dog.cancel()
        assert self._process.returncode != -signal.SIGKILL, f"the watchdog ended it\n{out}\n{err}"
        return self._process.returncode, out, err


def run(program: str, *arguments: str, environment: dict[str, str] | None = None) -> tuple[str, str]:
    """Run a program to its end, which is to be a good one; return output and errors."""
    code, out, err = Child(program, *arguments, environment=environment).end()
    assert code == 0, err
    return out, err
