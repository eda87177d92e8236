"""The fault proxy, told by a function what becomes of each request: for what depends on those before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from urllib.parse import parse_qs, unquote, urlsplit

from tests.servers.fault_proxy import FaultProxy, Request

__all__ = ["Changed", "Cut", "Lose", "Refuse", "Reply", "Seen", "Stall", "WireProxy"]


@dataclass
class Seen:
    """One request as it came; the names of headers are in title case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def path(self) -> str:
        return unquote(urlsplit(self.target).path)

    @property
    def query(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(urlsplit(self.target).query).items()}


@dataclass
class Reply:
    """Answer without asking the server."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Refuse:
    """Reset the connection; the server does not hear of the request."""


@dataclass
class Lose:
    """Let the server do it, and reset the connection instead of answering."""


@dataclass
class Stall:
    """Never answer."""


@dataclass
class Cut:
    """Pass on the first bytes of the answer's body, then close the connection."""

    size_bytes: int


@dataclass
class Changed:
    """Send something else to the server: another body, without these headers."""

    body: bytes | None = None
    without: tuple[str, ...] = ()


Deed: TypeAlias = Reply | Refuse | Lose | Stall | Cut | Changed | None
Plan: TypeAlias = Callable[[Seen], Deed]


@dataclass
class WireProxy(FaultProxy):
    """A proxy in front of a port of this machine while its block runs.

    Attributes
    ----------
    seen : list of Seen
        The requests of the present block, in order.
    plan : callable
        Says what happens to a request; None = it is passed on.
    """

    seen: list[Seen] = field(default_factory=list)
    plan: Plan = lambda seen: None

    @contextmanager
    def doing(self, plan: Plan) -> Iterator[list[Seen]]:
        """Follow `plan` while the block runs; the list fills with the requests of the block."""
        seen: list[Seen] = []
        self.seen = seen
        self.plan = plan
        try:
            yield seen
        finally:
            self.plan = lambda seen: None

    def noting(self) -> Any:
        """Only write down what comes."""
        return self.doing(lambda seen: None)

    def take(self, request: Request) -> Callable[[Any, Request], None]:
        headers = {name.title(): value for name, value in request.headers.items()}
        seen = Seen(request.method, request.path, headers, request.body)
        self.seen.append(seen)
        deed = self.plan(seen)

        def act(handler: Any, request: Request) -> None:
            if isinstance(deed, Reply):
                return handler.reply((deed.status, list(deed.headers.items()), deed.body), request)
            if isinstance(deed, Refuse):
                return handler.reset()
            if isinstance(deed, Stall):
                self.released.wait(60)
                return handler.reset()
            if isinstance(deed, Changed):
                body = request.body if deed.body is None else deed.body
                request = Request(request.method, request.path, request.without(*deed.without).headers, body)
            status, fields, body = handler.ask(request)
            if isinstance(deed, Lose):
                return handler.reset()
            # A session's URL leads past the proxy otherwise.
            theirs = f"http://127.0.0.1:{self.upstream_port}"
            fields = [(name, value.replace(theirs, self.url)) for name, value in fields]
            only = deed.size_bytes if isinstance(deed, Cut) else None
            return handler.reply((status, fields, body), request, only=only)

        return act
