"""The ranks of one job as processes that the test talks to."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

from tests.meta.source import ROOT
from tests.rank_talk import SIZE, Talk

__all__ = ["PATIENCE_S", "SIZE", "Group", "Nursery"]

# For anything that is to come at all, on a machine that is busy.
PATIENCE_S = 120.0
_numbers = itertools.count(1)


class Nursery:
    """The process that forks ranks."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.ranks.nursery"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def fork(self, **arguments: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(arguments) + "\n")
        self._process.stdin.flush()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE_S)


class Group(Talk):
    """One start of a job of four ranks; a context manager that ends them."""

    def __init__(self, nursery: Nursery, directory: Path) -> None:
        super().__init__(PATIENCE_S)
        attempt = str(next(_numbers))
        for rank in range(SIZE):
            nursery.fork(address=self.address, rank=rank, size=SIZE, mailbox=str(directory), attempt=attempt)
        self.accept()
        assert self.hear_all() == [{"opened": True}] * SIZE

    def make_savers(self, **options: Any) -> None:
        assert self.each("saver", **options) == [{"ok": True}] * SIZE

    def thaw(self, rank: int) -> None:
        os.kill(self.pids[rank], signal.SIGCONT)

    def wait_until_frozen(self, rank: int) -> None:
        ends_s = time.monotonic() + PATIENCE_S
        while Path(f"/proc/{self.pids[rank]}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            assert time.monotonic() < ends_s
            time.sleep(0.01)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self.kill()
