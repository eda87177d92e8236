"""Bulk bytes over HTTP/1.1 with nothing in between: out of the caller's memory, and into it.

A checkpoint needs no buffering, no re-chunking and no event loop; each of these costs a copy or a switch for
every piece of it. A request belongs to one thread; several at a time need several threads.

Nothing here retries or sleeps: a request is one attempt of an operation, and a failure is a `Fault`.
"""

from __future__ import annotations

import http.client
import io
import math
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias, cast

from ckptstore.errors import CkptStoreError
from ckptstore.storage.object_store.attempts import Attempts
from ckptstore.storage.object_store.bodies import LONGEST_REFUSAL_BYTES
from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.object_store.transport import Sink, copy_into
from ckptstore.storage.wire.connections import Connection, Server

__all__ = ["DIRECT_FROM_BYTES", "HttpRequest", "HttpResponse", "exchange"]

DIRECT_FROM_BYTES = 64 * 1024
"""On GCS bodies from this size on are sent directly; smaller ones go through the service's client."""

# Pieces smaller than this are joined to blocks of this size before they are sent.
_JOINED_BYTES = 128 * 1024

# A server that refuses a request before the end of its body has answered by then.
_EARLY_ANSWER_S = 0.5


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One request; `repr` shows neither headers nor target, which may hold credentials.

    Attributes
    ----------
    target : str
        Path and query, percent-encoded.
    headers : mapping
        For `exchange` all of them, ``Host`` included; ``Content-Length`` is added where there is a body.
    body : sequence of bytes-like
        Sent one after the other, without a copy.
    """

    method: str
    target: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: Sequence[bytes | memoryview] = field(default=(), repr=False)


class HttpResponse(NamedTuple):
    """An answer of any status; the body is empty if a sink took it. Header names match in any case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


Accept: TypeAlias = Callable[[int, Mapping[str, str]], Sink]
"""Takes status and headers of an answer 200 or 206 to a GET, returns the sink for its body. May raise."""


def exchange(
    server: Server, request: HttpRequest, attempts: Attempts, accept: Accept | None = None
) -> HttpResponse:
    """Send `request` once, as an attempt of `attempts`, and return the answer.

    Raises
    ------
    Fault
        If there is no answer, or only a part of it.
    CkptStoreError
        From `accept`.
    """
    with server.turn(attempts):
        return _exchange(server, request, attempts, accept)


def _exchange(
    server: Server, request: HttpRequest, attempts: Attempts, accept: Accept | None
) -> HttpResponse:
    connection = server.borrow(attempts)
    attempts.cancellation.watch(connection.abort)
    is_reusable = False
    try:
        response = _ask(connection, request, attempts)
        attempts.record_head()
        reply, is_reusable = _take(connection, response, request, attempts, accept)
        if attempts.cancellation.is_cancelled and not is_reusable:
            raise _cancelled()
        return reply
    except (Fault, CkptStoreError):
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        fault = _cancelled() if attempts.cancellation.is_cancelled else _fault_of(error, attempts)
    finally:
        attempts.cancellation.unwatch(connection.abort)
        if is_reusable:
            server.give_back(connection)
        else:
            connection.close()
    # Not "from": the messages of these libraries may hold a header.
    raise fault


def _ask(connection: Connection, request: HttpRequest, attempts: Attempts) -> http.client.HTTPResponse:
    """Send all of `request` and return the head of the answer."""
    channel = connection.http
    # Without this header a proxy may compress. It is not signed: some balancers rewrite it.
    is_given = "accept-encoding" in map(str.lower, request.headers)
    channel.putrequest(request.method, request.target, skip_host=True, skip_accept_encoding=is_given)
    for name, value in request.headers.items():
        channel.putheader(name, value)
    if request.body or request.method in ("PUT", "POST"):
        channel.putheader("Content-Length", str(sum(map(len, request.body))))
    connection.wait_at_most(attempts)
    try:
        channel.endheaders()
        position = 0
        for block in _blocks(request.body):
            position = _send(connection, block, position, attempts)
    except OSError:
        # A server that refuses a request may stop reading its body. The refusal explains more than the error.
        refusal = _early_answer(connection, attempts)
        if refusal is None:
            raise
        return refusal
    receiver = _Receiver(connection, attempts)
    channel.response_class = cast(
        "type[http.client.HTTPResponse]", lambda _, method: _response(receiver, method)
    )
    try:
        response = channel.getresponse()
        if receiver.has_ended:
            # The standard library takes the headers that came for all.
            response.close()
            raise Fault(Kind.CUT, "the connection ended within the head of the answer")
        return response
    finally:
        # It refers to the connection, which would not be freed before the next garbage collection.
        del channel.response_class


class _Receiver(io.RawIOBase):
    """What the standard library reads an answer from; in its place it would wait anew for each byte.

    Attributes
    ----------
    ends_s : float
        When waiting ends, if not earlier with the attempt.
    has_ended : bool
        Whether the server sends nothing any more.
    """

    def __init__(self, connection: Connection, attempts: Attempts) -> None:
        super().__init__()
        self._connection = connection
        self._attempts = attempts
        # It keeps the socket open that the standard library closes once the head says so.
        self._raw = connection.socket.makefile("rb", buffering=0)
        self.ends_s = math.inf
        self.has_ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._connection.wait_at_most(self._attempts, self.ends_s)
        size_bytes = self._raw.readinto(buffer)
        self.has_ended = size_bytes == 0
        return size_bytes

    def close(self) -> None:
        self._raw.close()
        super().close()

    def makefile(self, mode: str) -> io.BufferedReader:
        """Return the file that `http.client.HTTPResponse` asks a socket for."""
        return io.BufferedReader(self)


def _response(receiver: _Receiver, method: str | None = None) -> http.client.HTTPResponse:
    return http.client.HTTPResponse(cast("socket.socket", receiver), method=method)


def _send(connection: Connection, block: memoryview, position: int, attempts: Attempts) -> int:
    """Send `block`, which begins at `position` of the body; return where it ends."""
    while block:
        connection.wait_at_most(attempts)
        size_bytes = connection.send(block)
        block = block[size_bytes:]
        position += size_bytes
        attempts.record_sent(position)
    return position


def _blocks(pieces: Sequence[bytes | memoryview]) -> Iterator[memoryview]:
    """Yield the bytes of all pieces: large ones as they are, runs of small ones joined."""
    joined = bytearray()
    for piece in pieces:
        if joined and len(joined) + len(piece) > _JOINED_BYTES:
            yield memoryview(joined)
            joined = bytearray()
        if len(piece) < _JOINED_BYTES:
            joined += piece
        else:
            yield memoryview(piece)
    if joined:
        yield memoryview(joined)


def _early_answer(connection: Connection, attempts: Attempts) -> http.client.HTTPResponse | None:
    """Return the refusal that came while the body was sent, None if none came."""
    if not connection.has_answer():
        return None
    with suppress(OSError, http.client.HTTPException, ValueError, Fault):
        receiver = _Receiver(connection, attempts)
        receiver.ends_s = time.monotonic() + _EARLY_ANSWER_S
        # Less was sent than announced, and the connection's own `getresponse` refuses to read then.
        response = _response(receiver)
        response.begin()
        receiver.ends_s = math.inf
        response.will_close = True
        if response.status >= 300:
            return response
    return None


def _take(
    connection: Connection,
    response: http.client.HTTPResponse,
    request: HttpRequest,
    attempts: Attempts,
    accept: Accept | None,
) -> tuple[HttpResponse, bool]:
    """Read the body of an answer; return it, and whether the connection is good for another request."""
    # Header names match in any case, upper or lower.
    headers = cast("Mapping[str, str]", response.headers)
    try:
        if accept is None or response.status not in (200, 206):
            body = response.read(LONGEST_REFUSAL_BYTES)
            if response.length and len(body) < LONGEST_REFUSAL_BYTES and not response.will_close:
                # A refusal without its code is easily taken for another one.
                raise Fault(Kind.CUT, f"the answer ended after {len(body)} bytes")
            is_whole = response.isclosed()
            return HttpResponse(response.status, headers, body), is_whole and not response.will_close
        sink = accept(response.status, headers)
        if response.length is None:
            while piece := response.read1(_JOINED_BYTES):
                copy_into(piece, sink)
                attempts.record_received(len(piece))
            is_whole = response.chunked and response.isclosed()
        else:
            is_whole = _fill(connection, response, response.length, sink, attempts)
        return HttpResponse(response.status, headers, b""), is_whole and not response.will_close
    finally:
        response.close()


def _fill(
    connection: Connection,
    response: http.client.HTTPResponse,
    left_bytes: int,
    sink: Sink,
    attempts: Attempts,
) -> bool:
    """Receive a body of known length straight into `sink`; return whether all of it came."""
    # What came together with the head is in the response's buffer; a longer read than that empties it.
    is_buffered = True
    while left_bytes:
        buffer = sink.get_buffer()
        if len(buffer) > left_bytes:
            buffer = buffer[:left_bytes]
        if is_buffered or len(buffer) <= io.DEFAULT_BUFFER_SIZE:
            size_bytes = response.fp.readinto1(buffer)
            is_buffered = len(buffer) <= io.DEFAULT_BUFFER_SIZE
        else:
            connection.wait_at_most(attempts)
            size_bytes = connection.receive_into(buffer, attempts)
        if not size_bytes:
            return False
        sink.buffer_updated(size_bytes)
        attempts.record_received(size_bytes)
        left_bytes -= size_bytes
    return True


def _cancelled() -> Fault:
    return Fault(Kind.CANCELLED, "the request was given up")


def _fault_of(error: Exception, attempts: Attempts) -> Fault:
    code = type(error).__name__
    if isinstance(error, TimeoutError):
        return attempts.stalled()
    if isinstance(error, http.client.RemoteDisconnected | http.client.IncompleteRead):
        return Fault(Kind.CUT, "the server closed the connection before it answered", code=code)
    if isinstance(error, OSError):
        return Fault(Kind.CUT, error.strerror or "the connection broke", code=code)
    # Without its message, which quotes what was received, or what was to be sent.
    return Fault(Kind.GARBLED, "the answer is not valid HTTP", code=code)
