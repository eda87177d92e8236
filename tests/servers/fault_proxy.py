"""A proxy that understands HTTP, and fails as it is told: what toxiproxy, which sees bytes only, cannot do.

::

    with FaultProxy(server.process.port) as proxy:
        proxy.when("PUT", "model-1.index").answer(503, "SlowDown", times=3)
        proxy.when("PUT", "checkpoint").lose_answer(times=1)
        ...
        assert proxy.count("PUT", "model-1.index") == 4
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

__all__ = ["FaultProxy", "Request"]

_HOP_BY_HOP = {"connection", "transfer-encoding", "expect", "keep-alive"}


@dataclass(frozen=True)
class Request:
    """One request as it came; `path` holds the query, percent-encoded."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    def without(self, *names: str) -> Request:
        """Return it without these headers."""
        gone = {name.lower() for name in names}
        kept = {name: value for name, value in self.headers.items() if name.lower() not in gone}
        return replace(self, headers=kept)


Answer = tuple[int, list[tuple[str, str]], bytes]


@dataclass
class _Rule:
    """What happens to requests that match, as often as `left` says; None = always."""

    method: str
    pattern: re.Pattern[str]
    header: str
    act: Callable[[_Handler, Request], None] = lambda handler, request: handler.pass_on(request)
    left: int | None = 0

    def matches(self, request: Request) -> bool:
        if self.method not in ("", request.method) or self.left == 0:
            return False
        names = {name.lower() for name in request.headers}
        return bool(self.pattern.search(request.path)) and self.header.lower() in {*names, ""}


class _When:
    """The left half of a rule; each method completes it."""

    def __init__(self, proxy: FaultProxy, rule: _Rule) -> None:
        self._proxy = proxy
        self._rule = rule

    def _do(self, act: Callable[[_Handler, Request], None], times: int | None) -> None:
        self._proxy.add(replace(self._rule, act=act, left=times))

    def answer(
        self,
        status: int,
        code: str = "",
        message: str = "as told by the test",
        *,
        times: int | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        after: bool = False,
    ) -> None:
        """Answer so, without asking the server, or `after` it did as it was asked."""
        if body is None:
            text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
            body = text.encode() if code else b""

        def act(handler: _Handler, request: Request) -> None:
            if after:
                handler.ask(request)
            fields = [("Content-Type", "application/xml"), *(headers or {}).items()]
            handler.reply((status, fields, body), request)

        self._do(act, times)

    def echo(self, status: int, code: str) -> None:
        """Refuse, and repeat every header and the body in the reason, as some proxies do."""

        def act(handler: _Handler, request: Request) -> None:
            said = "; ".join(f"{name}: {value}" for name, value in request.headers.items())
            said += f"; {request.body[:2000].decode('latin-1')}"
            message = said.replace("&", "&amp;").replace("<", "&lt;")
            text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
            handler.reply((status, [("Content-Type", "application/xml")], text.encode()), request)

        self._do(act, None)

    def reset(self, *, times: int | None = None) -> None:
        """Break the connection before the server hears of it."""
        self._do(lambda handler, request: handler.reset(), times)

    def lose_answer(self, *, times: int | None = None) -> None:
        """Have the server do it, and break the connection then."""

        def act(handler: _Handler, request: Request) -> None:
            handler.ask(request)
            handler.reset()

        self._do(act, times)

    def cut_body(self, size_bytes: int, *, times: int | None = None) -> None:
        """Let so much of the answer's body through, and break the connection then."""

        def act(handler: _Handler, request: Request) -> None:
            status, fields, body = handler.ask(request)
            handler.reply((status, fields, body), request, only=size_bytes)

        self._do(act, times)

    def stall(self, *, times: int | None = None) -> None:
        """Never answer."""

        def act(handler: _Handler, request: Request) -> None:
            self._proxy.released.wait(120)
            handler.reset()

        self._do(act, times)

    def rewrite(
        self, change: Callable[[Request], Request], *, times: int | None = None, sign: bool = True
    ) -> None:
        """Pass on something else; signed anew, for servers that check signatures."""

        def act(handler: _Handler, request: Request) -> None:
            changed = change(request)
            handler.pass_on(self._proxy.signed(changed) if sign else changed)

        self._do(act, times)

    def alter(self, change: Callable[[Answer], Answer], *, times: int | None = None) -> None:
        """Change the answer on its way back."""

        def act(handler: _Handler, request: Request) -> None:
            handler.reply(change(handler.ask(request)), request)

        self._do(act, times)

    def call(self, hook: Callable[[Request], object], *, times: int | None = None) -> None:
        """Call `hook` once the server has answered, and pass the answer on."""

        def act(handler: _Handler, request: Request) -> None:
            answer = handler.ask(request)
            hook(request)
            handler.reply(answer, request)

        self._do(act, times)


@dataclass
class FaultProxy:
    """A running proxy in front of a local port.

    Attributes
    ----------
    requests : list of Request
        Everything that came, in order.
    connections : set of socket
        Those of clients, that are open.
    tls : ssl.SSLContext, optional
        Speak HTTPS to the client; to the server it is HTTP.
    """

    upstream_port: int
    key: str = "testtest"
    secret: str = "testtest"
    tls: ssl.SSLContext | None = None
    requests: list[Request] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    _rules: list[_Rule] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    connections: set[socket.socket] = field(default_factory=set)

    @property
    def url(self) -> str:
        scheme = "https" if self.tls else "http"
        return f"{scheme}://127.0.0.1:{self._server.server_address[1]}"

    def when(self, method: str = "", pattern: str = "", header: str = "") -> _When:
        """Begin a rule for requests of this method, whose path matches, and which carry the header.

        A rule made later is asked earlier.
        """
        return _When(self, _Rule(method, re.compile(pattern), header))

    def add(self, rule: _Rule) -> None:
        with self._lock:
            self._rules.insert(0, rule)

    def clear(self) -> None:
        """Forget rules and requests."""
        with self._lock:
            self._rules.clear()
            self.requests.clear()

    @contextmanager
    def counting(self) -> Iterator[list[str]]:
        """Collect the methods of the requests that come while the block runs."""
        before = len(self.requests)
        methods: list[str] = []
        yield methods
        methods.extend(request.method for request in self.requests[before:])

    def count(self, method: str = "", pattern: str = "") -> int:
        """Return how many such requests came."""
        return sum(
            method in ("", request.method) and bool(re.search(pattern, request.path))
            for request in self.requests
        )

    def take(self, request: Request) -> Callable[[_Handler, Request], None] | None:
        """Note a request and return what is to happen to it."""
        with self._lock:
            self.requests.append(request)
            for rule in self._rules:
                if rule.matches(request):
                    if rule.left is not None:
                        rule.left -= 1
                    return rule.act
        return None

    def signed(self, request: Request) -> Request:
        """Return it with a signature of its own."""
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.credentials import Credentials

        bare = request.without("authorization", "x-amz-date", "x-amz-content-sha256", "date", "expect")
        host = next(value for name, value in bare.headers.items() if name.lower() == "host")
        aws = AWSRequest(request.method, f"http://{host}{request.path}", headers=dict(bare.headers))
        aws.context["payload_signing_enabled"] = False
        aws.headers["X-Amz-Content-SHA256"] = "UNSIGNED-PAYLOAD"

        class _Unsigned(S3SigV4Auth):
            def payload(self, request: Any) -> str:
                return "UNSIGNED-PAYLOAD"

        _Unsigned(Credentials(self.key, self.secret), "s3", "us-east-1").add_auth(aws)
        return replace(bare, headers=dict(aws.headers.items()))

    def __enter__(self) -> Self:
        proxy: FaultProxy = self

        class Handler(_Handler):
            owner = proxy

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        # A client that speaks no TLS, or breaks off, is what some tests are about.
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        if self.tls is not None:
            # The handshake belongs into the thread of the connection, not into the one that accepts.
            self._server.socket = self.tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)
        for connection in list(self.connections):
            # Its thread wakes up and closes it.
            with suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: FaultProxy
    timeout = 120

    def setup(self) -> None:
        super().setup()
        self.owner.connections.add(self.connection)

    def finish(self) -> None:
        self.owner.connections.discard(self.connection)
        super().finish()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _serve(self) -> None:
        headers = dict(self.headers.items())
        request = Request(self.command, self.path, headers, self._read_body())
        act = self.owner.take(request)
        try:
            if act is None:
                self.pass_on(request)
            else:
                act(self, request)
        except OSError:
            self.close_connection = True

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = _serve

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def ask(self, request: Request) -> Answer:
        """Have the server do it and return its answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.owner.upstream_port, timeout=60)
        try:
            connection.putrequest(request.method, request.path, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.items():
                if name.lower() not in _HOP_BY_HOP | {"content-length"}:
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(request.body)))
            connection.endheaders(request.body)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def pass_on(self, request: Request) -> None:
        """Have the server do it and pass its answer on."""
        self.reply(self.ask(request), request)

    def reply(self, answer: Answer, request: Request, only: int | None = None) -> None:
        """Send an answer, or the beginning of its body."""
        status, fields, body = answer
        self.send_response_only(status)
        length = None
        for name, value in fields:
            if name.lower() == "content-length":
                length = value
            elif name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        # What a HEAD says of the length is not the length of its own body.
        if status not in (204, 304):
            self.send_header(
                "Content-Length", (length if request.method == "HEAD" else None) or str(len(body))
            )
        self.end_headers()
        if request.method != "HEAD":
            self.wfile.write(body if only is None else body[:only])
        if only is not None and only < len(body):
            self.wfile.flush()
            self.reset(politely=True)

    def reset(self, *, politely: bool = False) -> None:
        """Break the connection: with a reset, or by closing it."""
        self.close_connection = True
        if not politely:
            # A linger time of zero makes the kernel send a reset.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.wfile.flush()
        self.connection.close()
        raise ConnectionAbortedError
