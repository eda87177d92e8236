"""The GCS server of the tests: fake-gcs-server, bare or behind the strict front."""

from __future__ import annotations

import itertools
import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.servers.build import binary
from tests.servers.process import ServerProcess, free_port

__all__ = ["GcsServer", "fake_gcs", "strict_gcs"]

_numbers = itertools.count(1)


@dataclass
class GcsServer:
    """A running GCS server.

    Attributes
    ----------
    processes : tuple of ServerProcess
        In the order in which they are started.
    url : str
        Endpoint.
    """

    processes: tuple[ServerProcess, ...]
    url: str

    @property
    def options(self) -> dict[str, Any]:
        """``storage_options`` for it."""
        return {"endpoint_url": self.url, "token": "anon", "project": "p"}

    @property
    def environment(self) -> dict[str, str]:
        """The same as environment variables."""
        return {"STORAGE_EMULATOR_HOST": self.url}

    def start(self) -> None:
        for process in self.processes:
            process.start()

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.stop()

    def make_bucket(self, name: str | None = None) -> str:
        """Make a bucket, by default one that no other test has, and return its name."""
        name = name or f"bucket-{os.getpid()}-{next(_numbers)}"
        self._call("POST", "/storage/v1/b?project=p", json.dumps({"name": name}).encode())
        return name

    def get(self, bucket: str, key: str) -> bytes | None:
        """Return an object, None if it is not there."""
        try:
            return self._call("GET", f"{self._object(bucket, key)}?alt=media")
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def put(self, bucket: str, key: str, data: bytes) -> None:
        """Put an object."""
        name = urllib.parse.quote(key, safe="")
        self._call("POST", f"/upload/storage/v1/b/{bucket}/o?uploadType=media&name={name}", data)

    def remove(self, bucket: str, key: str) -> None:
        """Remove an object."""
        self._call("DELETE", self._object(bucket, key))

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """Return every key there is, ascending."""
        query = urllib.parse.urlencode({"prefix": prefix, "maxResults": 100_000})
        answer = json.loads(self._call("GET", f"/storage/v1/b/{bucket}/o?{query}"))
        return sorted(item["name"] for item in answer.get("items", ()))

    @staticmethod
    def _object(bucket: str, key: str) -> str:
        return f"/storage/v1/b/{bucket}/o/{urllib.parse.quote(key, safe='')}"

    def _call(self, method: str, path: str, data: bytes | None = None) -> bytes:
        request = urllib.request.Request(self.url + path, data, method=method)
        request.add_header(
            "Content-Type", "application/octet-stream" if "upload" in path else "application/json"
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bytes(answer.read())


def fake_gcs(directory: Path) -> GcsServer | None:
    """Return fake-gcs-server, not started; None if it was not built.

    Alone it honours conditions on uploads only, and corrupts resumable uploads.
    """
    path = binary("fake-gcs-server")
    if path is None:
        return None
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [str(path), "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"]
    command += ["-public-host", f"127.0.0.1:{port}", "-external-url", f"http://127.0.0.1:{port}"]
    command += ["-log-level", "warn"]
    process = ServerProcess(command, port, "/_internal/healthcheck", directory / "log")
    return GcsServer((process,), process.url)


def strict_gcs(directory: Path) -> GcsServer | None:
    """Return fake-gcs-server behind the strict front, not started: it behaves as the service documents."""
    server = fake_gcs(directory)
    if server is None:
        return None
    port = free_port()
    front = Path(__file__).with_name("gcs_strict.py")
    command = [sys.executable, str(front), str(port), str(server.processes[0].port)]
    process = ServerProcess(command, port, "/_internal/healthcheck", directory / "front.log")
    return GcsServer((*server.processes, process), process.url)
