"""Connections to one server, kept for the next request; each belongs to one thread while it is used."""

from __future__ import annotations

import http.client
import math
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import SplitResult

from ckptstore.storage.fork_safe_locks import ForkSafeLocks
from ckptstore.storage.object_store.attempts import Attempts
from ckptstore.storage.object_store.faults import Fault, Kind, scarcity_hint
from ckptstore.storage.reentry import refuse_reentry

__all__ = ["Connection", "Server", "Servers"]

# Idle connections. More threads than this on one server gain nothing.
_MOST_KEPT = 16

# How much is sent or received over TLS between two looks at the clock.
_TLS_BYTES = 256 * 1024

# Servers and balancers close silent connections after about a minute, and a request would notice it first.
_LONGEST_IDLE_S = 45.0


class Connection:
    """One connection, after its handshake.

    Threads
    -------
    One thread; `abort` from any.
    """

    def __init__(
        self, channel: http.client.HTTPConnection, pid: int, read_timeout_s: float = math.inf
    ) -> None:
        self.http = channel
        self.socket: socket.socket = channel.sock
        self.pid = pid
        self.idle_since_s = 0.0
        self._read_timeout_s = read_timeout_s

    def wait_at_most(self, attempts: Attempts, ends_s: float = math.inf) -> None:
        """Let the next send or receive wait as long as the attempt may, at most until `ends_s`.

        Raises
        ------
        Fault
            If that time is over.
        """
        remaining_s = min(attempts.remaining_s(), ends_s - time.monotonic())
        if remaining_s <= 0:
            raise attempts.stalled()
        self.socket.settimeout(min(remaining_s, self._read_timeout_s))

    def send(self, block: memoryview) -> int:
        """Send the beginning of `block`, and return how much of it went."""
        if isinstance(self.socket, ssl.SSLSocket):
            # TLS sends all or nothing; progress shows after each piece.
            block = block[:_TLS_BYTES]
        return self.socket.send(block)

    def receive_into(self, buffer: memoryview, attempts: Attempts) -> int:
        """Receive into the beginning of `buffer`; return how many bytes came, 0 at the end.

        One call of TLS returns no more than 16 KiB, so there are several.
        """
        if not isinstance(self.socket, ssl.SSLSocket):
            return self.socket.recv_into(buffer)
        buffer = buffer[:_TLS_BYTES]
        position = 0
        try:
            while position < len(buffer):
                size_bytes = self.socket.recv_into(buffer[position:])
                if not size_bytes:
                    break
                position += size_bytes
                if not attempts.remaining_s():
                    break
        except OSError:
            # What was received counts; the error shows again with the next call.
            if not position:
                raise
        return position

    def has_answer(self) -> bool:
        """Return whether the server sent something, or closed the connection."""
        poll = select.poll()
        try:
            poll.register(self.socket, select.POLLIN)
            return bool(poll.poll(0))
        except (OSError, ValueError):
            return True

    def abort(self) -> None:
        """Break the connection, also while another thread waits for it."""
        # Not the method of TLS sockets, which closes the TLS session while another thread uses it.
        with suppress(OSError):
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close it."""
        self.http.close()
        self.socket.close()


class Server:
    """A server, and the connections to it that wait for their next request.

    Parameters
    ----------
    context : ssl.SSLContext or None
        None: plain HTTP.
    read_timeout_s : float
        The longest wait for one piece of an answer.
    most_connections : int, optional
        How many may be in use at the same time.

    Threads
    -------
    Safe for concurrent use. A forked child makes new connections: closing those it inherited sends
    nothing to the server.
    """

    def __init__(
        self,
        host: str,
        port: int,
        context: ssl.SSLContext | None,
        connect_timeout_s: float,
        read_timeout_s: float = math.inf,
        most_connections: int | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self.context = context
        self._connect_timeout_s = connect_timeout_s
        self._read_timeout_s = read_timeout_s
        self._turns = None if most_connections is None else threading.BoundedSemaphore(most_connections)
        self._locks = ForkSafeLocks()
        self._kept: list[Connection] = []

    def __repr__(self) -> str:
        return f"<Server {self.host}:{self.port}>"

    @property
    def is_encrypted(self) -> bool:
        """Whether it is reached over TLS."""
        return self.context is not None

    @property
    def idle_connections(self) -> int:
        """How many connections wait for their next request."""
        return len(self._kept)

    @contextmanager
    def turn(self, attempts: Attempts) -> Iterator[None]:
        """Wait until one more connection may be in use, and count it while the block runs.

        Raises
        ------
        Fault
            If there was none for as long as the attempt may wait.
        """
        if self._turns is None:
            yield
            return
        if not self._turns.acquire(timeout=attempts.remaining_s()):
            raise attempts.stalled()
        try:
            yield
        finally:
            self._turns.release()

    def borrow(self, attempts: Attempts) -> Connection:
        """Return a connection for this thread alone: the one used last, or a new one.

        Raises
        ------
        Fault
        """
        refuse_reentry()
        while (connection := self._pop()) is not None:
            if connection.pid == os.getpid() and not self._is_stale(connection):
                return connection
            connection.close()
        return self._connect(attempts)

    def give_back(self, connection: Connection) -> None:
        """Keep a connection on which nothing is under way."""
        connection.idle_since_s = time.monotonic()
        with self._locks[0]:
            self._kept.append(connection)
            dropped = self._kept[:-_MOST_KEPT]
            del self._kept[:-_MOST_KEPT]
        for old in dropped:
            old.close()

    def close(self) -> None:
        """Close what is kept."""
        while (connection := self._pop()) is not None:
            connection.close()

    def __del__(self) -> None:
        for connection in self._kept:
            connection.close()

    def _pop(self) -> Connection | None:
        with self._locks[0]:
            return self._kept.pop() if self._kept else None

    @staticmethod
    def _is_stale(connection: Connection) -> bool:
        # Data without a request means that the connection is closed.
        return time.monotonic() - connection.idle_since_s > _LONGEST_IDLE_S or connection.has_answer()

    def _connect(self, attempts: Attempts) -> Connection:
        timeout_s = min(self._connect_timeout_s, attempts.remaining_s())
        if timeout_s <= 0:
            raise Fault(Kind.STALLED, "there was no time left to connect")
        options: dict[str, Any] = {"timeout": timeout_s, "blocksize": 1}
        channel: http.client.HTTPConnection
        if self.context is None:
            channel = http.client.HTTPConnection(self.host, self.port, **options)
        else:
            channel = http.client.HTTPSConnection(self.host, self.port, context=self.context, **options)
        # A broken connection is to be noticed here, not reopened below.
        channel.auto_open = 0
        try:
            channel.connect()
        except ssl.SSLCertVerificationError as error:
            channel.close()
            raise Fault(
                Kind.UNTRUSTED, f"{self.host}:{self.port}: certificate: {error.verify_message}"
            ) from None
        except (OSError, UnicodeError) as error:
            channel.close()
            # Before the end of the handshake no request can have arrived.
            reason = getattr(error, "strerror", None) or type(error).__name__
            if isinstance(error, TimeoutError):
                reason = f"no answer within {timeout_s:g} s"
            raise Fault(
                Kind.NOT_SENT,
                f"cannot connect to {self.host}:{self.port}: {reason}",
                hint=scarcity_hint(error),
            ) from None
        return Connection(channel, os.getpid(), self._read_timeout_s)


class Servers:
    """The servers of one client: one `Server` for each scheme, host and port.

    Threads
    -------
    Safe for concurrent use.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, int], Server] = {}

    def at(
        self,
        url: SplitResult,
        new_context: Callable[[], ssl.SSLContext],
        connect_timeout_s: float,
        read_timeout_s: float = math.inf,
        most_connections: int | None = None,
    ) -> Server:
        """Return the server of `url`; `new_context` is called for a new one that is reached over TLS."""
        is_encrypted = url.scheme == "https"
        port = url.port or (443 if is_encrypted else 80)
        key = (url.scheme, url.hostname or "", port)
        server = self._known.get(key)
        if server is None:
            context = new_context() if is_encrypted else None
            server = Server(key[1], port, context, connect_timeout_s, read_timeout_s, most_connections)
            server = self._known.setdefault(key, server)
        return server
