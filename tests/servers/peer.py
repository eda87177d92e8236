"""A server of a few lines, which says byte for byte what a test wants."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

__all__ = ["DRIPS", "PATIENCE_S", "Conversation", "Peer", "drip", "running"]

PATIENCE_S = 60.0
"""As long is waited only if a test fails."""


class Peer:
    """A server of a few lines: `serve` is called with each connection, in a thread of its own."""

    def __init__(
        self, serve: Callable[[Conversation], object], context: ssl.SSLContext | None = None
    ) -> None:
        self.connections = 0
        self._serve = serve
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads: list[threading.Thread] = []
        self._taken: list[socket.socket] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._taken.append(connection)
            thread = threading.Thread(target=self._run, args=(connection,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _run(self, connection: socket.socket) -> None:
        connection.settimeout(PATIENCE_S)
        try:
            if self._context is not None:
                connection = self._context.wrap_socket(connection, server_side=True)
                self._taken.append(connection)
            with connection:
                self._serve(Conversation(connection))
        except (OSError, EOFError):
            connection.close()

    def close(self) -> None:
        # A close alone does not wake the thread that accepts.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(PATIENCE_S)
        for connection in self._taken:
            with suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE_S)


class Conversation:
    """One connection, seen from the server."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._file = connection.makefile("rb")

    def head(self) -> dict[str, str]:
        """Read the head of a request; raise EOFError at the end of the connection."""
        line = self._file.readline()
        if not line:
            raise EOFError
        fields = {"": line.decode().strip()}
        while (line := self._file.readline().strip()) != b"":
            name, _, value = line.decode().partition(": ")
            fields[name.lower()] = value
        return fields

    def body(self, size_bytes: int) -> bytes:
        return self._file.read(size_bytes)

    def take(self) -> tuple[dict[str, str], bytes]:
        head = self.head()
        return head, self.body(int(head.get("content-length", 0)))

    def say(self, text: str, body: bytes = b"") -> None:
        self.socket.sendall(text.replace("\n", "\r\n").encode() + body)

    def answer(self, body: bytes = b"", status: str = "200 OK", fields: str = "") -> None:
        self.say(f"HTTP/1.1 {status}\nContent-Length: {len(body)}\n{fields}\n", body)


@contextmanager
def running(serve: Callable[[Conversation], object], context: ssl.SSLContext | None = None) -> Iterator[Peer]:
    peer = Peer(serve, context)
    try:
        yield peer
    finally:
        peer.close()


DRIPS = {
    "head": (b"HTTP/1.1 200 OK\r\nX-Padding: ", b"x"),
    "continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "fields": (b"HTTP/1.1 200 OK\r\n", b"X: x\r\n"),
    "body": (
        b'HTTP/1.1 200 OK\r\nETag: "e"\r\nX-Goog-Generation: 1\r\nContent-Length: 1000000\r\n\r\n',
        b"x",
    ),
    "chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "refusal": (b"HTTP/1.1 503 Slow\r\nContent-Length: 1000000\r\n\r\n", b"x"),
}
"""Answers without an end: how each begins, and what is said again and again, every 20 ms."""


def drip(where: str, talk: Conversation) -> None:
    """Answer every request as `DRIPS` says."""
    talk.take()
    begin, again = DRIPS[where]
    talk.socket.sendall(begin)
    while True:
        talk.socket.sendall(again)
        threading.Event().wait(0.02)
