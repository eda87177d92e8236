"""toxiproxy between a client and a server: cut, stalled, slow and refused connections."""

from __future__ import annotations

import itertools
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.servers.build import binary
from tests.servers.process import ServerProcess, free_port

__all__ = ["Proxy", "Toxiproxy", "toxiproxy"]

_numbers = itertools.count(1)


class Toxiproxy:
    """A running toxiproxy-server."""

    def __init__(self, process: ServerProcess) -> None:
        self.process = process

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.process.url + path, data, method=method)
        request.add_header("User-Agent", "ckptstore-tests")
        with urllib.request.urlopen(request, timeout=10) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    @contextmanager
    def proxy(self, upstream_port: int) -> Iterator[Proxy]:
        """Stand a proxy in front of a port while the block runs."""
        name = f"proxy-{next(_numbers)}"
        port = free_port()
        self.call(
            "POST",
            "/proxies",
            {
                "name": name,
                "listen": f"127.0.0.1:{port}",
                "upstream": f"127.0.0.1:{upstream_port}",
                "enabled": True,
            },
        )
        try:
            yield Proxy(self, name, port)
        finally:
            self.call("DELETE", f"/proxies/{name}")


class Proxy:
    """One proxy: `url` leads to the server, through whatever `toxic` is in force."""

    def __init__(self, owner: Toxiproxy, name: str, port: int) -> None:
        self._owner = owner
        self._name = name
        self.url = f"http://127.0.0.1:{port}"

    @contextmanager
    def toxic(
        self, kind: str, stream: str = "downstream", toxicity: float = 1.0, **attributes: int
    ) -> Iterator[None]:
        """Put a fault in force while the block runs, e.g. ``toxic("limit_data", bytes=40)``."""
        name = f"toxic-{next(_numbers)}"
        path = f"/proxies/{self._name}/toxics"
        self._owner.call(
            "POST",
            path,
            {"name": name, "type": kind, "stream": stream, "toxicity": toxicity, "attributes": attributes},
        )
        try:
            yield
        finally:
            with suppress(urllib.error.HTTPError):  # lifted already
                self._owner.call("DELETE", f"{path}/{name}")

    def lift(self) -> None:
        """Take every fault away now."""
        path = f"/proxies/{self._name}/toxics"
        for toxic in self._owner.call("GET", path):
            self._owner.call("DELETE", f"{path}/{toxic['name']}")

    @contextmanager
    def down(self) -> Iterator[None]:
        """Refuse every connection while the block runs."""
        self._owner.call("POST", f"/proxies/{self._name}", {"enabled": False})
        try:
            yield
        finally:
            self._owner.call("POST", f"/proxies/{self._name}", {"enabled": True})


def toxiproxy(directory: Path) -> Toxiproxy | None:
    """Return toxiproxy, not started; None if it was not built."""
    path = binary("toxiproxy-server")
    if path is None:
        return None
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [str(path), "-host", "127.0.0.1", "-port", str(port)]
    return Toxiproxy(ServerProcess(command, port, "/version", directory / "log"))
