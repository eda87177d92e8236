"""The side of the test: ranks as objects whose calls are made in another process."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from types import TracebackType
from typing import Any

from ckptstore import errors

__all__ = ["RankProcesses", "RemoteRank"]


class RemoteRank:
    """A rank in another process.

    Attributes
    ----------
    rank, size, pid : int
    host_names : tuple of str
        As its coordinator knows them.
    """

    def __init__(self, connection: socket.socket, hello: dict[str, Any]) -> None:
        self.rank = int(hello["rank"])
        self.size = int(hello["size"])
        self.pid = int(hello["pid"])
        self.host_names = tuple(hello["host_names"])
        self._connection = connection
        self._lock = threading.Lock()
        self._asked: dict[int, Future[Any]] = {}
        self._number = 0
        threading.Thread(target=self._listen, daemon=True).start()

    def start(self, verb: str, **arguments: Any) -> Future[Any]:
        """Begin a call; its outcome is the future's."""
        outcome: Future[Any] = Future()
        with self._lock:
            self._number += 1
            self._asked[self._number] = outcome
            line = json.dumps({"number": self._number, "verb": verb, **arguments}).encode() + b"\n"
            self._connection.sendall(line)
        return outcome

    def call(self, verb: str, *, within_s: float = 60.0, **arguments: Any) -> Any:
        """Make a call and return its answer, or raise its error."""
        return self.start(verb, **arguments).result(within_s)

    def freeze(self) -> None:
        """Stop the process, as a debugger or a full machine would (SIGSTOP)."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let the process go on (SIGCONT)."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Kill the process (SIGKILL)."""
        os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Close the connection; the process ends then."""
        # Also while the thread that listens has it open.
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _listen(self) -> None:
        try:
            with self._connection.makefile("r", encoding="utf-8") as lines:
                for line in lines:
                    said = json.loads(line)
                    outcome = self._asked.pop(said["number"])
                    if "error" in said:
                        outcome.set_exception(_error(*said["error"]))
                    else:
                        outcome.set_result(said["answer"])
        except (OSError, ValueError):
            pass  # the process died, or the test is over
        for outcome in self._asked.values():
            outcome.set_exception(ConnectionError(f"the process of rank {self.rank} ended"))


def _error(name: str, text: str) -> Exception:
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, errors.CkptStoreError):
        return kind(text)
    return AssertionError(f"{name}: {text}")


class RankProcesses:
    """Accepts the processes of a test.

    Attributes
    ----------
    address : str
        For `serve_rank`: give it to each process.
    """

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._password = secrets.token_hex(8)
        self.address = f"{self._server.getsockname()[1]}:{self._password}"
        self._ranks: list[RemoteRank] = []

    def __enter__(self) -> RankProcesses:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def accept(self, size: int, timeout_s: float = 300.0) -> list[RemoteRank]:
        """Return the ranks, in order, when `size` processes have opened their coordinators."""
        ends_s = time.monotonic() + timeout_s
        while len(self._ranks) < size:
            self._server.settimeout(max(ends_s - time.monotonic(), 0.01))
            connection, _ = self._server.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # It comes before the coordinator is open.
            connection.settimeout(max(ends_s - time.monotonic(), 0.01))
            line = b""
            while not line.endswith(b"\n"):
                piece = connection.recv(1)
                if not piece:
                    raise ConnectionError("a process ended while it opened its coordinator")
                line += piece
            connection.settimeout(None)
            hello = json.loads(line)
            if hello.pop("password") == self._password:
                self._ranks.append(RemoteRank(connection, hello))
        self._ranks.sort(key=lambda one: one.rank)
        return list(self._ranks)

    def close(self) -> None:
        """Close all connections: the processes end."""
        for one in self._ranks:
            one.close()
        self._server.close()
