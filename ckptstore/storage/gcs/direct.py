"""The bulk requests of Google Cloud Storage over connections of our own, with the token of its client."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from urllib.parse import urlsplit

from ckptstore.storage.gcs.messages import Request
from ckptstore.storage.object_store.attempts import Attempts
from ckptstore.storage.wire.connections import Server
from ckptstore.storage.wire.exchange import Accept, DirectReply, DirectRequest, exchange

__all__ = ["GcsDirect"]

# Longer than three lost SYN packets. Without a connection nothing was written; a stall leaves that open.
_CONNECT_S = 10.0


class GcsDirect:
    """Sends requests with large bodies, or for them; of one process.

    Threads
    -------
    Safe for concurrent use.
    """

    def __init__(self) -> None:
        self._servers: dict[str, Server] = {}

    def send(
        self,
        url: str,
        request: Request,
        headers: Mapping[str, str],
        attempts: Attempts,
        accept: Accept | None,
    ) -> DirectReply:
        """Send `request` to `url`, which is complete, with these headers.

        Raises
        ------
        Fault
        """
        parts = urlsplit(url)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        host = parts.netloc.rpartition("@")[2]
        carried = {**headers, "Host": host}
        server = self._server(parts.scheme, parts.hostname or "", parts.port)
        return exchange(
            server, DirectRequest(request.method, target, carried, request.body), attempts, accept
        )

    def _server(self, scheme: str, host: str, port: int | None) -> Server:
        is_encrypted = scheme == "https"
        port = port or (443 if is_encrypted else 80)
        key = f"{scheme}://{host}:{port}"
        server = self._servers.get(key)
        if server is None:
            # As the client below does it: the authorities of the system.
            context = ssl.create_default_context() if is_encrypted else None
            server = self._servers.setdefault(key, Server(host, port, context, _CONNECT_S))
        return server
