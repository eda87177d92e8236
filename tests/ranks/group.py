"""The ranks of one job as processes that the test talks to."""

from __future__ import annotations

import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from tests.meta.source import ROOT

__all__ = ["PATIENCE_S", "Group", "Nursery"]

SIZE = 4
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


class Group:
    """One start of a job of four ranks; a context manager that ends them."""

    def __init__(self, nursery: Nursery, directory: Path) -> None:
        # The path of a socket must be short.
        address = f"/tmp/ckptstore-ranks-{os.getpid()}-{next(_numbers)}"
        self._files: dict[int, Any] = {}
        self._sockets: dict[int, socket.socket] = {}
        self.pids: dict[int, int] = {}
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(address)
            server.listen(SIZE)
            server.settimeout(PATIENCE_S)
            attempt = str(next(_numbers))
            for rank in range(SIZE):
                nursery.fork(address=address, rank=rank, size=SIZE, mailbox=str(directory), attempt=attempt)
            for _ in range(SIZE):
                connection, _ = server.accept()
                connection.settimeout(PATIENCE_S)
                stream = connection.makefile("rw")
                hello = json.loads(stream.readline())
                self._sockets[hello["rank"]] = connection
                self._files[hello["rank"]] = stream
                self.pids[hello["rank"]] = hello["pid"]
        Path(address).unlink()
        for rank in range(SIZE):
            assert self.hear(rank) == {"opened": True}

    def tell(self, rank: int, do: str, **arguments: Any) -> None:
        self._files[rank].write(json.dumps({"do": do, **arguments}) + "\n")
        self._files[rank].flush()

    def hear(self, rank: int) -> dict[str, Any] | None:
        """Return what the rank says next; None if it is dead."""
        try:
            line = self._files[rank].readline()
        except ConnectionResetError:
            return None
        return json.loads(line) if line else None

    def each(
        self, do: str, ranks: Mapping[int, Mapping[str, Any]] | None = None, **arguments: Any
    ) -> list[dict[str, Any] | None]:
        """Return what all ranks say to a command; `ranks` has arguments of single ones."""
        self.begin(do, ranks, **arguments)
        return [self.hear(rank) for rank in range(SIZE)]

    def begin(self, do: str, ranks: Mapping[int, Mapping[str, Any]] | None = None, **arguments: Any) -> None:
        for rank in range(SIZE):
            self.tell(rank, do, **{**arguments, **(ranks or {}).get(rank, {})})

    def make_savers(self, **options: Any) -> None:
        assert self.each("saver", **options) == [{"ok": True}] * SIZE

    def is_silent(self, rank: int, seconds: float) -> bool:
        """Return whether the rank says nothing for so long."""
        return not select.select([self._sockets[rank]], [], [], seconds)[0]

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
        for rank, pid in self.pids.items():
            self._files[rank].close()
            self._sockets[rank].close()
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
