"""A proxy that lets one request at a time through: what a server does in two steps is one step behind it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.servers.fault_proxy import FaultProxy, Request

__all__ = ["SerialProxy"]


@dataclass
class SerialProxy(FaultProxy):
    """See the module. The answers do not say which server it is."""

    _turn: threading.Lock = field(default_factory=threading.Lock)

    def take(self, request: Request) -> Callable[[Any, Request], None]:
        def act(handler: Any, request: Request) -> None:
            with self._turn:
                status, fields, body = handler.ask(request)
            fields = [(name, value) for name, value in fields if name.lower() != "server"]
            handler.reply((status, fields, body), request)

        return act
