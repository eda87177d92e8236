"""Preempts a job of four processes with real signals, and looks at which step each rank saved."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from threading import Timer

from tests.meta.source import ROOT


def steps_saved(size: int, environment: Mapping[str, str], rounds: int) -> list[list[int]]:
    """Run ranks without an engine, send SIGTERM to one of them in each round, and return the steps."""
    commands = [
        (sys.executable, "-m", "tests.preempted_rank", str(rank), str(size), str(rounds))
        for rank in range(size)
    ]
    with ExitStack() as stack:
        ranks = [
            stack.enter_context(
                subprocess.Popen(command, cwd=ROOT, env=dict(environment), stdout=subprocess.PIPE, text=True)
            )
            for command in commands
        ]
        # Reading then ends, and so does the test.
        alarm = Timer(200, lambda: [one.kill() for one in ranks])
        alarm.start()
        stack.callback(alarm.cancel)
        stack.callback(lambda: [one.kill() for one in ranks])
        found = []
        for number in range(rounds):
            pids = [int(_said(one, "ready")) for one in ranks]
            os.kill(pids[number % len(pids)], signal.SIGTERM)
            found.append([int(_said(one, "saved")) for one in ranks])
        return found


def _said(rank: subprocess.Popen[str], word: str) -> str:
    assert rank.stdout is not None
    line = rank.stdout.readline()
    assert line.startswith(f"{word} "), f"a rank said {line!r} instead of {word!r}"
    return line.split()[1]
