"""The requests of an object store, carried out on objects in memory, for the code above the wire.

A driver says where the objects are, when each request happens, and what goes wrong with it. There are two:
`tests.unit.storage.object_store.scripted_transport`, whose faults a test lists beforehand, and
`tests.simulation.storage`, whose requests a scheduler arranges.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from ckptstore.storage.object_store.attempts import Attempts
from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.object_store.transport import (
    ObjectName,
    Page,
    PutRequest,
    PutResult,
    ResponseHead,
    Sink,
    StaleUpload,
    Transport,
    UploadSession,
    copy_into,
)
from ckptstore.storage.values import ObjectInfo

__all__ = ["Call", "FakeTransport", "StoredObject"]

_T = TypeVar("_T")


class StoredObject(Protocol):
    """One object of a driver."""

    @property
    def data(self) -> bytes: ...
    @property
    def version(self) -> str: ...
    @property
    def write_id(self) -> str | None: ...
    @property
    def crc32c(self) -> int | None: ...
    @property
    def mtime_s(self) -> float: ...


@dataclass(frozen=True)
class Call:
    """One request, as a driver sees it.

    Attributes
    ----------
    kind : str
        The name of the method of `Transport`.
    bucket : str
    names : sequence of str
        Of the objects; of a listing, the prefix.
    detail : str
        The range of a read, the version in the condition of a write or delete.
    """

    kind: str
    bucket: str
    names: Sequence[str]
    detail: str = ""


class FakeTransport(Transport):
    """See the module."""

    batch_size = 1000
    most_parts = 10_000

    @abstractmethod
    def perform(self, call: Call, apply: Callable[[], _T]) -> _T:
        """Return what `apply` returns; it is called when the request arrives, and again if it is repeated."""

    @abstractmethod
    def find(self, object_name: ObjectName) -> StoredObject:
        """Return an object."""

    @abstractmethod
    def store(self, request: PutRequest, data: bytes) -> StoredObject:
        """Store an object, under its condition."""

    @abstractmethod
    def remove(self, object_name: ObjectName, version: str | None) -> None:
        """Delete an object, on condition of its version."""

    @abstractmethod
    def remove_all(self, bucket: str, names: Sequence[str]) -> None:
        """Delete objects, missing ones included."""

    @abstractmethod
    def below(self, bucket: str, prefix: str) -> list[tuple[str, StoredObject]]:
        """Return name and object of everything whose name begins with `prefix`, ascending by name."""

    def page_of(self, objects: list[ObjectInfo], token: str | None) -> Page:
        """Return one page of a listing."""
        return Page(objects, None)

    def deliver(self, body: bytes, sink: Sink) -> None:
        """Send the body of an answer."""
        copy_into(body, sink)

    def result_of(self, stored: StoredObject) -> PutResult:
        """Return the answer to a write."""
        return PutResult(stored.version, stored.crc32c)

    def head(self, object_name: ObjectName, attempts: Attempts) -> ObjectInfo:
        call = Call("head", object_name.bucket, [object_name.name])
        found = self.perform(call, lambda: self.find(object_name))
        return ObjectInfo(
            object_name.key, len(found.data), found.version, found.mtime_s, found.write_id, found.crc32c
        )

    def get(
        self,
        object_name: ObjectName,
        attempts: Attempts,
        *,
        byte_range: str | None,
        version: str | None,
        unless_version: str | None = None,
        accept: Callable[[ResponseHead], Sink],
    ) -> None:
        call = Call("get", object_name.bucket, [object_name.name], byte_range or "")
        found = self.perform(call, lambda: self.find(object_name))
        if found.version == unless_version:
            raise Fault(Kind.UNCHANGED, "304")
        if version is not None and found.version != version:
            raise Fault(Kind.PRECONDITION, "another version is there")
        size = len(found.data)
        if byte_range is None:
            self.deliver(found.data, accept(ResponseHead(200, found.version, size, None)))
            return
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", byte_range)
        assert match is not None
        start = int(match[1]) if match[1] else max(0, size - int(match[2]))
        stop = min(size, int(match[2]) + 1) if match[1] else size
        if start >= size:
            raise Fault(Kind.BAD_RANGE, "416")
        content_range = f"bytes {start}-{stop - 1}/{size}"
        self.deliver(
            found.data[start:stop], accept(ResponseHead(206, found.version, stop - start, content_range))
        )

    def put(self, request: PutRequest, pieces: Sequence[memoryview], attempts: Attempts) -> PutResult:
        target, data = request.target, b"".join(pieces)
        wanted = request.precondition.version if request.precondition is not None else None
        call = Call("put", target.bucket, [target.name], wanted or "")
        return self.result_of(self.perform(call, lambda: self.store(request, data)))

    def delete(self, object_name: ObjectName, attempts: Attempts, *, version: str | None) -> None:
        call = Call("delete", object_name.bucket, [object_name.name], version or "")
        self.perform(call, lambda: self.remove(object_name, version))

    def delete_many(self, bucket: str, names: Sequence[str], attempts: Attempts) -> dict[str, Fault]:
        assert len(names) <= self.batch_size
        self.perform(Call("delete_many", bucket, names), lambda: self.remove_all(bucket, names))
        return {}

    def list_page(self, bucket: str, prefix: str, token: str | None, attempts: Attempts) -> Page:
        found = self.perform(Call("list_page", bucket, [prefix]), lambda: self.below(bucket, prefix))
        objects = [
            ObjectInfo(f"{bucket}/{name}", len(item.data), item.version, item.mtime_s)
            for name, item in found
            if "/" not in name[len(prefix) :]
        ]
        return self.page_of(objects, token)

    def begin(self, request: PutRequest, attempts: Attempts) -> UploadSession:
        raise NotImplementedError("this driver has no large objects")

    def list_uploads(self, bucket: str, prefix: str, attempts: Attempts) -> list[StaleUpload]:
        return []

    def abort_upload(self, object_name: ObjectName, upload_id: str, attempts: Attempts) -> None:
        raise NotImplementedError("this driver has no large objects")
