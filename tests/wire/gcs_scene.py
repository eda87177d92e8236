"""A bucket of a GCS server behind the fault proxy, and what the tests of its requests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ckptstore.storage.base import Location
from ckptstore.storage.gcs.transport import GcsTransport
from ckptstore.storage.object_store.attempts import RetryPolicy
from ckptstore.storage.object_store.storage import ObjectStorage
from ckptstore.storage.values import PutOutcome
from tests.servers.gcs import GcsServer
from tests.wire.requests import Deed, Seen, WireProxy

__all__ = [
    "CHUNK",
    "QUICK",
    "Scene",
    "first_only",
    "is_chunk",
    "is_post",
    "lines",
    "storage_of",
    "upload_to",
]

# Pauses cost nothing here.
QUICK = RetryPolicy(deadline_s=60.0, attempt_s=20.0, pause_scale=0.0)
CHUNK = 1024 * 1024


def storage_of(options: dict[str, Any]) -> ObjectStorage:
    """Return a storage that does not pause, and sends large objects in one stream, in chunks of `CHUNK`."""
    transport = GcsTransport(options | {"parallel_uploads": False})
    transport.part_size_bytes = CHUNK
    return ObjectStorage(transport, QUICK)


class Scene:
    """A storage behind the proxy, in a bucket of its own whose probe is over."""

    def __init__(self, proxy: WireProxy, server: GcsServer, *, direct: bool = True) -> None:
        self.proxy = proxy
        self.server = server
        self.bucket = server.make_bucket()
        options = server.options | {"endpoint_url": proxy.url, "direct": direct}
        self.storage = storage_of(options)
        self.directory = Location(self.storage, f"{self.bucket}/run", f"gs://{self.bucket}/run")
        self.storage.probe(self.directory.child("x").key)

    def put(self, name: str, data: bytes) -> str:
        """Put an object past the proxy; return its key."""
        self.server.put(self.bucket, f"run/{name}", data)
        return f"{self.bucket}/run/{name}"

    def raw(self, name: str) -> bytes | None:
        return self.server.get(self.bucket, f"run/{name}")

    def key(self, name: str) -> str:
        return self.directory.child(name).key


def first_only(deed: Deed, of: Callable[[Seen], bool] = lambda seen: True) -> Callable[[Seen], Deed]:
    """Do it to the first request that fits, and to no other."""
    waiting = [deed]
    return lambda seen: waiting.pop() if waiting and of(seen) else None


def upload_to(storage: ObjectStorage, key: str, data: bytes) -> PutOutcome:
    with storage.upload(key, len(data)) as upload:
        upload.write(data)
        return upload.commit()


def lines(seen: list[Seen]) -> list[str]:
    return [one.method for one in seen]


def is_post(seen: Seen) -> bool:
    return seen.method == "POST"


def is_chunk(seen: Seen) -> bool:
    return seen.method == "PUT" and bool(seen.body)
