"""The side of the rank: carries out what the test asks for, each request in a thread of its own.

Requests and answers are lines of JSON over a connection on this machine. Messages are not sent with them, but
named by a text and a size, and answered by size and checksum.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any

from ckptstore.checksums import crc32c
from ckptstore.distributed.coordinator import Coordinator, host_names_of

__all__ = ["make_message", "serve_rank", "summary"]


def make_message(text: str, size_bytes: int | None = None) -> bytes:
    """Return `text`, or what it makes when it is repeated up to that size."""
    data = text.encode()
    if size_bytes is None:
        return data
    return (data * (size_bytes // max(len(data), 1) + 1))[:size_bytes]


def summary(data: bytes | None) -> list[Any] | None:
    """Return how a message is answered: its size, its CRC32C, its beginning."""
    return None if data is None else [len(data), crc32c(data), data[:40].decode("latin-1")]


def serve_rank(address: str, open_coordinator: Callable[[], Coordinator]) -> None:
    """Open the coordinator and do what the test asks for, until it closes the connection.

    Parameters
    ----------
    address : str
        What the test gave to the process: port and password of `RankProcesses`.
    open_coordinator : callable
        Called at the beginning, and again when the test asks for it.
    """
    port, _, password = address.partition(":")
    with socket.create_connection(("127.0.0.1", int(port))) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        rank = _ServedRank(connection, open_coordinator)
        rank.say(password=password, pid=os.getpid(), **rank.open())
        with connection.makefile("r", encoding="utf-8") as lines:
            for line in lines:
                threading.Thread(target=rank.do, args=(json.loads(line),), daemon=True).start()


class _ServedRank:
    def __init__(self, connection: socket.socket, open_coordinator: Callable[[], Coordinator]) -> None:
        self._connection = connection
        self._open_coordinator = open_coordinator
        self._coordinator: Coordinator | None = None
        self._lock = threading.Lock()

    def say(self, **what: Any) -> None:
        line = json.dumps(what).encode() + b"\n"
        with self._lock:
            self._connection.sendall(line)

    def open(self) -> dict[str, Any]:
        self._coordinator = one = self._open_coordinator()
        return {"rank": one.rank, "size": one.size, "host_names": list(host_names_of(one))}

    def do(self, request: dict[str, Any]) -> None:
        number = request.pop("number")
        try:
            answer: Any = getattr(self, f"_{request.pop('verb')}")(**request)
        except Exception as error:  # noqa: BLE001 - raised again in the test
            self.say(number=number, error=[type(error).__name__, str(error)])
        else:
            self.say(number=number, answer=answer)

    @property
    def _it(self) -> Coordinator:
        assert self._coordinator is not None
        return self._coordinator

    def _reopen(self) -> dict[str, Any]:
        return self.open()

    def _gather(
        self, topic: str, message: list[Any], timeout_s: float, enough: str | None = None
    ) -> dict[str, Any]:
        def is_enough(found: Mapping[int, bytes]) -> bool:
            return enough is not None and enough.encode() in found.values()

        found = self._it.gather(
            topic, make_message(*message), timeout_s=timeout_s, enough=is_enough if enough else None
        )
        return {str(rank): summary(data) for rank, data in found.items()}

    def _broadcast(self, topic: str, timeout_s: float, message: list[Any] | None = None) -> Any:
        data = None if message is None else make_message(*message)
        return summary(self._it.broadcast(topic, data, timeout_s=timeout_s))

    def _forget(self, topic: str) -> None:
        self._it.forget(topic)

    def _close(self) -> None:
        self._it.close()

    def _inject(self, topic: str, text: str) -> bool:
        """Put something under the name of this rank's message; False where there is no mailbox to do so."""
        mailbox: Any = getattr(self._it, "mailbox", None)
        if mailbox is None:
            return False
        mailbox.put(f"{getattr(self._it, 'run', '')}/g/{topic}", str(self._it.rank), text.encode("latin-1"))
        return True
