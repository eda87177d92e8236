"""Starts the processes of a job and ends them, frozen ones too."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from tests.meta.source import ROOT

PROGRAM = (sys.executable, "-m", "tests.rank_program")


@contextmanager
def running(
    commands: Sequence[Sequence[str]], environment: Mapping[str, str] | None = None
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run `commands` from the root of the checkout until the block is left; `environment`: all of it."""
    processes = [
        subprocess.Popen(command, cwd=ROOT, env=None if environment is None else dict(environment))
        for command in commands
    ]
    try:
        yield processes
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
        ends_s = time.monotonic() + 5
        for process in processes:
            try:
                process.wait(max(ends_s - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
