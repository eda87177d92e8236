"""The side of the test: tells the ranks of a job what to do, over a socket to each, and hears them."""

from __future__ import annotations

import itertools
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["SIZE", "Talk"]

SIZE = 4
_numbers = itertools.count(1)


class Talk:
    """Lines of JSON to and from four ranks.

    Parameters
    ----------
    patience_s : float
        For anything that is to come at all, on a machine that is busy, in seconds.

    Attributes
    ----------
    address : str
        Of a socket to which each rank connects, and says ``{"rank": …, "pid": …}``.
    """

    def __init__(self, patience_s: float) -> None:
        # The path of a socket must be short.
        self.address = f"/tmp/ckptstore-ranks-{os.getpid()}-{next(_numbers)}"
        self.pids: dict[int, int] = {}
        self._files: dict[int, Any] = {}
        self._sockets: dict[int, socket.socket] = {}
        self._patience_s = patience_s
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(self.address)
        self._server.listen(SIZE)

    def accept(self, check: Callable[[], object] = lambda: None) -> None:
        """Wait for all ranks; `check` raises when there is nothing to wait for any more."""
        ends_s = time.monotonic() + self._patience_s
        while len(self.pids) < SIZE:
            while not select.select([self._server], [], [], 0.5)[0]:
                check()
                assert time.monotonic() < ends_s, f"only the ranks {sorted(self.pids)} came"
            connection, _ = self._server.accept()
            connection.settimeout(self._patience_s)
            stream = connection.makefile("rw")
            hello = json.loads(stream.readline())
            self._sockets[hello["rank"]] = connection
            self._files[hello["rank"]] = stream
            self.pids[hello["rank"]] = hello["pid"]
        self._stop_listening()

    def _stop_listening(self) -> None:
        self._server.close()
        Path(self.address).unlink(missing_ok=True)

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

    def hear_all(self) -> list[dict[str, Any] | None]:
        return [self.hear(rank) for rank in range(SIZE)]

    def begin(self, do: str, ranks: Mapping[int, Mapping[str, Any]] | None = None, **arguments: Any) -> None:
        """Tell all ranks; `ranks` has arguments of single ones."""
        for rank in range(SIZE):
            self.tell(rank, do, **{**arguments, **(ranks or {}).get(rank, {})})

    def each(
        self, do: str, ranks: Mapping[int, Mapping[str, Any]] | None = None, **arguments: Any
    ) -> list[dict[str, Any] | None]:
        """Return what all ranks say to a command."""
        self.begin(do, ranks, **arguments)
        return self.hear_all()

    def is_silent(self, rank: int, seconds: float) -> bool:
        """Return whether the rank says nothing for so long."""
        return not select.select([self._sockets[rank]], [], [], seconds)[0]

    def close(self) -> None:
        """Hang up."""
        self._stop_listening()
        for rank, stream in self._files.items():
            with suppress(OSError):
                stream.close()
            self._sockets[rank].close()

    def kill(self) -> None:
        """End the ranks, frozen ones too."""
        for pid in self.pids.values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
