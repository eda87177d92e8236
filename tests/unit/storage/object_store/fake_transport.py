"""An object store in a dictionary, which fails as it is told: for the logic above the wire.

::

    transport.script("put", before(Kind.CUT), after(Kind.CUT))  # the first never arrives, the second does

A step is asked before each request of its kind; `transport.calls` holds what was asked for.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ckptstore.checksums import crc32c
from ckptstore.storage.object_store.attempts import Attempts, RetryPolicy
from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.object_store.storage import ObjectStorage
from ckptstore.storage.object_store.transport import (
    ObjectName,
    Page,
    Precondition,
    PutResult,
    ResponseHead,
    Sink,
    StaleUpload,
    Transport,
    UploadSession,
    copy_into,
)
from ckptstore.storage.values import Capabilities, ObjectInfo

_endpoints = itertools.count(1)


@dataclass
class Step:
    """One fault: instead of the request, or after it was carried out."""

    kind: Kind
    is_after: bool = False
    effect: Callable[[], object] | None = None
    code: str = ""

    def fire(self) -> None:
        if self.effect is not None:
            self.effect()
        raise Fault(self.kind, "as told by the test", code=self.code)


def before(kind: Kind, effect: Callable[[], object] | None = None) -> Step:
    """Fail without doing it; `effect` happens at that moment."""
    return Step(kind, effect=effect)


def after(kind: Kind, effect: Callable[[], object] | None = None) -> Step:
    """Do it, then fail: the answer is lost."""
    return Step(kind, is_after=True, effect=effect)


FINE = None


@dataclass
class Stone:
    """One object."""

    data: bytes
    version: str
    write_id: str | None
    crc32c: int | None


@dataclass
class FakeTransport(Transport):
    """See the module."""

    scheme = "fake"
    nominal = Capabilities("fake", True, True, True, True, True, True)
    batch_size = 3
    bogus_version = "v0"
    part_unit_bytes = 1
    most_parts = 10_000
    object_hides_directory = False

    honours_create: bool = True
    honours_swap: bool = True
    honours_delete: bool = True
    creates_missing: bool = False
    tells_checksum: bool = True
    deletes_many: bool = True
    page_size: int = 2

    objects: dict[str, Stone] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)
    sessions: list[FakeSession] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._endpoint = f"fake-{next(_endpoints)}"
        self._steps: defaultdict[str, deque[Step | None]] = defaultdict(deque)
        self._versions = itertools.count(1)

    @property
    def endpoint(self) -> str:
        return self._endpoint

    def script(self, call: str, *steps: Step | None) -> None:
        """Let the next requests of this kind go so; `FINE` = as they should."""
        self._steps[call].extend(steps)

    def asked(self, call: str) -> list[str]:
        """Return the names of the requests of this kind."""
        return [name for kind, name in self.calls if kind == call]

    def place_raw(self, name: str, data: bytes, write_id: str | None = "theirs") -> str:
        """Put an object as somebody else would; return its version."""
        version = f"v{next(self._versions)}"
        self.objects[name] = Stone(data, version, write_id, crc32c(data))
        return version

    def _step(self, call: str, name: str) -> Step | None:
        self.calls.append((call, name))
        steps = self._steps[call]
        step = steps.popleft() if steps else None
        if step is not None and not step.is_after:
            step.fire()
        return step

    @staticmethod
    def _end(step: Step | None) -> None:
        if step is not None:
            step.fire()

    def _find(self, name: str) -> Stone:
        if name not in self.objects:
            raise Fault(Kind.ABSENT, "nothing there")
        return self.objects[name]

    def head(self, object_name: ObjectName, attempts: Attempts) -> ObjectInfo:
        step = self._step("head", object_name.name)
        stone = self.objects.get(object_name.name)
        if stone is None:
            raise Fault(Kind.UNPROVED, "404")
        self._end(step)
        return ObjectInfo(
            object_name.key, len(stone.data), stone.version, 1.5e9, stone.write_id, stone.crc32c
        )

    def get(
        self,
        object_name: ObjectName,
        attempts: Attempts,
        *,
        byte_range: str | None,
        version: str | None,
        accept: Callable[[ResponseHead], Sink],
    ) -> None:
        step = self._step("get", f"{object_name.name} {byte_range or ''}".strip())
        stone = self._find(object_name.name)
        if version is not None and stone.version != version:
            raise Fault(Kind.PRECONDITION, "another version")
        size = len(stone.data)
        if byte_range is None:
            head, body = ResponseHead(200, stone.version, size, None), stone.data
        else:
            match = re.fullmatch(r"bytes=(\d*)-(\d*)", byte_range)
            assert match is not None
            start = int(match[1]) if match[1] else max(0, size - int(match[2]))
            stop = min(size, int(match[2]) + 1) if match[1] else size
            if start >= size:
                raise Fault(Kind.BAD_RANGE, "416")
            body = stone.data[start:stop]
            head = ResponseHead(206, stone.version, len(body), f"bytes {start}-{stop - 1}/{size}")
        sink = accept(head)
        if step is not None:
            copy_into(body[: len(body) // 2], sink)
            step.fire()
        copy_into(body, sink)

    def put(
        self,
        object_name: ObjectName,
        pieces: Sequence[memoryview],
        attempts: Attempts,
        *,
        crc32c: int,
        write_id: str,
        precondition: Precondition | None,
    ) -> PutResult:
        step = self._step("put", object_name.name)
        self._check(object_name.name, precondition)
        version = self.place_raw(object_name.name, b"".join(pieces), write_id)
        self._end(step)
        return PutResult(version, self.objects[object_name.name].crc32c if self.tells_checksum else None)

    def _check(self, name: str, precondition: Precondition | None) -> None:
        stone = self.objects.get(name)
        if precondition is None:
            return
        if precondition.version is None:
            if self.honours_create and stone is not None:
                raise Fault(Kind.PRECONDITION, "412")
        elif self.honours_swap:
            if stone is None and not self.creates_missing:
                raise Fault(Kind.ABSENT, "404")
            if stone is not None and stone.version != precondition.version:
                raise Fault(Kind.PRECONDITION, "412")

    def delete(self, object_name: ObjectName, attempts: Attempts, *, version: str | None) -> None:
        step = self._step("delete", f"{object_name.name} {version or ''}".strip())
        stone = self.objects.get(object_name.name)
        if stone is None:
            raise Fault(Kind.ABSENT, "404")
        if version is not None and self.honours_delete and stone.version != version:
            raise Fault(Kind.PRECONDITION, "412")
        del self.objects[object_name.name]
        self._end(step)

    def delete_many(self, bucket: str, names: Sequence[str], attempts: Attempts) -> dict[str, Fault]:
        step = self._step("delete_many", " ".join(names))
        assert len(names) <= self.batch_size
        if not self.deletes_many:
            raise Fault(Kind.UNSUPPORTED, "501")
        for name in names:
            self.objects.pop(name, None)
        self._end(step)
        return {}

    def list_page(self, bucket: str, prefix: str, token: str | None, attempts: Attempts) -> Page:
        self._end(self._step("list_page", prefix))
        names = sorted(
            name for name in self.objects if name.startswith(prefix) and "/" not in name[len(prefix) :]
        )
        first = int(token or 0)
        infos = [
            ObjectInfo(f"{bucket}/{name}", len(self.objects[name].data), self.objects[name].version, 1.5e9)
            for name in names[first : first + self.page_size]
        ]
        last = first + self.page_size
        return Page(infos, str(last) if last < len(names) else None)

    def begin(
        self,
        object_name: ObjectName,
        attempts: Attempts,
        *,
        size_bytes: int | None,
        write_id: str,
        precondition: Precondition | None,
    ) -> UploadSession:
        self._end(self._step("begin", object_name.name))
        session = FakeSession(self, object_name, write_id, precondition, len(self.sessions))
        self.sessions.append(session)
        return session

    def list_uploads(self, bucket: str, prefix: str, attempts: Attempts) -> list[StaleUpload]:
        self._end(self._step("list_uploads", prefix))
        return [
            StaleUpload(session.object_name.name, session.upload_id, 100.0)
            for session in self.sessions
            if session.is_open and session.object_name.name.startswith(prefix)
        ]

    def abort_upload(self, object_name: ObjectName, upload_id: str, attempts: Attempts) -> None:
        self._end(self._step("abort_upload", object_name.name))
        next(session for session in self.sessions if session.upload_id == upload_id).is_open = False


class FakeSession(UploadSession):
    sends_last_part = True

    def __init__(
        self,
        transport: FakeTransport,
        object_name: ObjectName,
        write_id: str,
        precondition: Precondition | None,
        number: int,
    ) -> None:
        self._transport = transport
        self.object_name = object_name
        self._write_id = write_id
        self._precondition = precondition
        self._number = number
        self.parts: dict[int, bytes] = {}
        self.is_open = True

    @property
    def upload_id(self) -> str:
        return f"upload-{self._number}"

    def send(
        self, number: int, offset: int, pieces: Sequence[memoryview], crc32c: int, attempts: Attempts
    ) -> None:
        step = self._transport._step("send", f"{self.object_name.name} {number}")
        if not self.is_open:
            raise Fault(Kind.UPLOAD_GONE, "no such upload")
        self.parts[number] = b"".join(pieces)
        self._transport._end(step)

    def complete(
        self, last: Sequence[memoryview], size_bytes: int, crc32c: int, attempts: Attempts
    ) -> PutResult:
        step = self._transport._step("complete", self.object_name.name)
        if not self.is_open:
            raise Fault(Kind.UPLOAD_GONE, "no such upload")
        self._transport._check(self.object_name.name, self._precondition)
        data = b"".join(self.parts[number] for number in sorted(self.parts)) + b"".join(last)
        version = self._transport.place_raw(self.object_name.name, data, self._write_id)
        self.is_open = False
        self._transport._end(step)
        stone = self._transport.objects[self.object_name.name]
        return PutResult(version, stone.crc32c if self._transport.tells_checksum else None)

    def abort(self, attempts: Attempts) -> None:
        self._transport._end(self._transport._step("abort", self.object_name.name))
        self.is_open = False


def storage_of(transport: FakeTransport) -> ObjectStorage:
    """Return a storage over it that does not pause between attempts, probed and with nothing noted."""
    storage = ObjectStorage(transport, RetryPolicy(pause_scale=0.0))
    storage.probe("b/run/x")
    transport.calls.clear()
    return storage
