"""An object store in a dictionary, whose faults a test lists beforehand.

::

    # The first request never arrives; the second does, and its answer is lost.
    transport.script("put", before(Kind.CUT), after(Kind.CUT))

`transport.calls` lists the requests.
"""

from __future__ import annotations

import itertools
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from ckptstore.checksums import crc32c
from ckptstore.storage.object_store.attempts import Attempts, RetryPolicy
from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.object_store.storage import ObjectStorage
from ckptstore.storage.object_store.transport import (
    ObjectName,
    Page,
    PutRequest,
    PutResult,
    Sink,
    StaleUpload,
    UploadSession,
    copy_into,
)
from ckptstore.storage.values import Capabilities, ObjectInfo
from tests.fake_transport import Call, FakeTransport, StoredObject

_T = TypeVar("_T")

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
        raise Fault(self.kind, "scripted by the test", code=self.code)


def before(kind: Kind, effect: Callable[[], object] | None = None) -> Step:
    """Fail without doing it; `effect` happens at that moment."""
    return Step(kind, effect=effect)


def after(kind: Kind, effect: Callable[[], object] | None = None) -> Step:
    """Do it, then fail: the answer is lost. A read fails after half of its body."""
    return Step(kind, is_after=True, effect=effect)


FINE = None


@dataclass
class DictObject:
    """One object."""

    data: bytes
    version: str
    write_id: str | None
    crc32c: int | None
    mtime_s: float = 1.5e9


@dataclass
class ScriptedTransport(FakeTransport):
    """See the module."""

    scheme = "fake"
    nominal = Capabilities("fake", True, True, True, True, True, True)
    batch_size = 3
    bogus_version = "v0"
    object_hides_directory = False

    honours_create: bool = True
    honours_swap: bool = True
    honours_delete: bool = True
    creates_missing: bool = False
    returns_checksum: bool = True
    deletes_many: bool = True
    page_size: int = 2

    objects: dict[str, DictObject] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)
    sessions: list[ScriptedSession] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._endpoint = f"fake-{next(_endpoints)}"
        self._steps: defaultdict[str, deque[Step | None]] = defaultdict(deque)
        self._versions = itertools.count(1)
        self._step_of_body: Step | None = None

    @property
    def endpoint(self) -> str:
        return self._endpoint

    def script(self, call: str, *steps: Step | None) -> None:
        """Set what happens to the next requests of this kind; `FINE` = nothing."""
        self._steps[call].extend(steps)

    def asked(self, call: str) -> list[str]:
        """Return the names of the requests of this kind."""
        return [name for kind, name in self.calls if kind == call]

    def add_object(self, name: str, data: bytes, write_id: str | None = "theirs") -> str:
        """Put an object as another writer would; return its version."""
        version = f"v{next(self._versions)}"
        self.objects[name] = DictObject(data, version, write_id, crc32c(data))
        return version

    def perform(self, call: Call, apply: Callable[[], _T]) -> _T:
        def carry_out() -> _T:
            try:
                return apply()
            except Fault as fault:
                if call.kind == "head":
                    # The answer has no body that says what is missing.
                    fault.kind = Kind.UNPROVED
                raise

        label = [*call.names, call.detail if call.kind in ("get", "delete") else ""]
        return self.run_step(call.kind, " ".join(label).strip(), carry_out)

    def run_step(self, kind: str, label: str, apply: Callable[[], _T]) -> _T:
        """Carry out one request, with the next step of its kind."""
        self.calls.append((kind, label))
        steps = self._steps[kind]
        step = steps.popleft() if steps else None
        if step is not None and not step.is_after:
            step.fire()
        result = apply()
        if kind == "get":
            self._step_of_body = step
        elif step is not None:
            step.fire()
        return result

    def deliver(self, body: bytes, sink: Sink) -> None:
        if self._step_of_body is not None:
            copy_into(body[: len(body) // 2], sink)
            self._step_of_body.fire()
        copy_into(body, sink)

    def find(self, object_name: ObjectName) -> DictObject:
        found = self.objects.get(object_name.name)
        if found is None:
            raise Fault(Kind.ABSENT, "nothing is there")
        return found

    def store(self, request: PutRequest, data: bytes) -> DictObject:
        self.check_condition(request)
        self.add_object(request.target.name, data, request.write_id)
        return self.objects[request.target.name]

    def result_of(self, stored: StoredObject) -> PutResult:
        return PutResult(stored.version, stored.crc32c if self.returns_checksum else None)

    def check_condition(self, request: PutRequest) -> None:
        found = self.objects.get(request.target.name)
        if request.precondition is None:
            return
        wanted = request.precondition.version
        if wanted is None:
            if self.honours_create and found is not None:
                raise Fault(Kind.PRECONDITION, "412")
        elif self.honours_swap:
            if found is None and not self.creates_missing:
                raise Fault(Kind.ABSENT, "404")
            if found is not None and found.version != wanted:
                raise Fault(Kind.PRECONDITION, "412")

    def remove(self, object_name: ObjectName, version: str | None) -> None:
        found = self.find(object_name)
        if version is not None and self.honours_delete and found.version != version:
            raise Fault(Kind.PRECONDITION, "412")
        del self.objects[object_name.name]

    def remove_all(self, bucket: str, names: Sequence[str]) -> None:
        if not self.deletes_many:
            raise Fault(Kind.UNSUPPORTED, "501")
        for name in names:
            self.objects.pop(name, None)

    def below(self, bucket: str, prefix: str) -> list[tuple[str, StoredObject]]:
        return sorted(item for item in self.objects.items() if item[0].startswith(prefix))

    def page_of(self, objects: list[ObjectInfo], token: str | None) -> Page:
        first = int(token or 0)
        last = first + self.page_size
        return Page(objects[first:last], str(last) if last < len(objects) else None)

    def begin(self, request: PutRequest, attempts: Attempts) -> UploadSession:
        def begin() -> ScriptedSession:
            self.sessions.append(ScriptedSession(self, request, len(self.sessions)))
            return self.sessions[-1]

        return self.run_step("begin", request.target.name, begin)

    def list_uploads(self, bucket: str, prefix: str, attempts: Attempts) -> list[StaleUpload]:
        return self.run_step(
            "list_uploads",
            prefix,
            lambda: [
                StaleUpload(session.target.name, session.upload_id, 100.0)
                for session in self.sessions
                if session.is_open and session.target.name.startswith(prefix)
            ],
        )

    def abort_upload(self, object_name: ObjectName, upload_id: str, attempts: Attempts) -> None:
        def close() -> None:
            next(session for session in self.sessions if session.upload_id == upload_id).is_open = False

        self.run_step("abort_upload", object_name.name, close)


class ScriptedSession(UploadSession):
    sends_last_part = True

    def __init__(self, transport: ScriptedTransport, request: PutRequest, number: int) -> None:
        self._transport = transport
        self._request = request
        self._number = number
        self.target = request.target
        self.parts: dict[int, bytes] = {}
        self.is_open = True

    @property
    def upload_id(self) -> str:
        return f"upload-{self._number}"

    def send(
        self, number: int, offset: int, pieces: Sequence[memoryview], crc32c: int, attempts: Attempts
    ) -> None:
        def keep() -> None:
            self._check_open()
            self.parts[number] = b"".join(pieces)

        self._transport.run_step("send", f"{self.target.name} {number}", keep)

    def complete(
        self, last: Sequence[memoryview], size_bytes: int, crc32c: int, attempts: Attempts
    ) -> PutResult:
        def complete() -> PutResult:
            self._check_open()
            data = b"".join(self.parts[number] for number in sorted(self.parts)) + b"".join(last)
            stored = self._transport.store(self._request, data)
            self.is_open = False
            return self._transport.result_of(stored)

        return self._transport.run_step("complete", self.target.name, complete)

    def _check_open(self) -> None:
        if not self.is_open:
            raise Fault(Kind.UPLOAD_GONE, "no such upload")

    def abort(self, attempts: Attempts) -> None:
        def close() -> None:
            self.is_open = False

        self._transport.run_step("abort", self.target.name, close)


def storage_of(transport: ScriptedTransport) -> ObjectStorage:
    """Return a storage over it that does not pause between attempts, probed and with no calls recorded."""
    storage = ObjectStorage(transport, RetryPolicy(pause_scale=0.0))
    storage.probe("b/run/x")
    transport.calls.clear()
    return storage
