"""The storage of one actor: the real object-store code, over requests that the scheduler arranges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

from ckptstore.storage.object_store import probe
from ckptstore.storage.object_store.attempts import Attempts, RetryBudget
from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.object_store.probe import Verdicts
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
from ckptstore.storage.scope import Cancellation
from ckptstore.storage.values import Capabilities, ObjectInfo
from tests.simulation.bucket import NoSuchKey, PreconditionFailed
from tests.simulation.world import Actor, LostAnswer

_T = TypeVar("_T")

BUCKET = "bucket"

_places: dict[str, ObjectName] = {}


class SimulatedTransport(Transport):
    """One attempt of one request, as an S3 client would make it."""

    scheme = "sim"
    nominal = Capabilities("simulated", True, True, True, True, True, True)
    batch_size = 1000
    bogus_version = "0" * 32
    part_unit_bytes = 5 * 1024 * 1024
    most_parts = 10_000

    def __init__(self, actor: Actor) -> None:
        self._actor = actor
        self.bucket = bucket = actor.world.bucket
        self._endpoint = f"simulated {bucket.honours_conditions:d}{bucket.conditional_delete:d}"
        identity = (self.scheme, self._endpoint, BUCKET)
        if identity not in probe._known:
            # What the probe would find out; asking would be six requests more in every run.
            probe._known[identity] = Verdicts(
                create="yes" if bucket.honours_conditions else "ignored",
                cas="yes" if bucket.honours_conditions else "ignored",
                cas_missing="404" if bucket.honours_conditions else "created",
                cond_delete=bucket.conditional_delete,
                crc32c=False,
            )

    @property
    def endpoint(self) -> str:
        return self._endpoint

    def _send(self, attempts: str, key: str, apply: Callable[[], _T]) -> _T:
        try:
            return self._actor.request(attempts, key, apply)
        except LostAnswer:
            raise Fault(Kind.CUT, "the connection broke") from None
        except PreconditionFailed:
            raise Fault(Kind.PRECONDITION, "the condition does not hold") from None
        except NoSuchKey:
            # A HEAD has no body that says what is missing.
            raise Fault(Kind.UNPROVED if attempts == "HEAD" else Kind.ABSENT, "not there") from None

    def head(self, object_name: ObjectName, attempts: Attempts) -> ObjectInfo:
        key = object_name.key
        found = self._send("HEAD", key, lambda: self.bucket.get(key))
        return ObjectInfo(key, len(found.data), found.etag, found.mtime_s, found.write_id)

    def get(
        self,
        object_name: ObjectName,
        attempts: Attempts,
        *,
        byte_range: str | None,
        version: str | None,
        accept: Callable[[ResponseHead], Sink],
    ) -> None:
        key = object_name.key
        found = self._send("GET", key, lambda: self.bucket.get(key))
        if version is not None and found.etag != version:
            raise Fault(Kind.PRECONDITION, "another version is there")
        data = found.data
        if byte_range is None:
            copy_into(data, accept(ResponseHead(200, found.etag, len(data), None)))
            return
        first, _, last = byte_range.removeprefix("bytes=").partition("-")
        start = int(first) if first else max(0, len(data) - int(last))
        stop = min(int(last) + 1, len(data)) if first and last else len(data)
        if start >= len(data):
            raise Fault(Kind.BAD_RANGE, "behind the end")
        content_range = f"bytes {start}-{stop - 1}/{len(data)}"
        copy_into(data[start:stop], accept(ResponseHead(206, found.etag, stop - start, content_range)))

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
        key, content = object_name.key, b"".join(pieces)
        version = None if precondition is None else precondition.version
        if_absent = precondition is not None and version is None
        result = self._send(
            "PUT" if version is None else "PUT IF",
            key,
            lambda: self.bucket.put(key, content, write_id=write_id, if_absent=if_absent, if_match=version),
        )
        return PutResult(result.etag, crc32c)

    def delete(self, object_name: ObjectName, attempts: Attempts, *, version: str | None) -> None:
        key = object_name.key
        self._send("DELETE", key, lambda: self.bucket.delete(key, if_match=version))

    def delete_many(self, bucket: str, names: Sequence[str], attempts: Attempts) -> dict[str, Fault]:
        keys = [f"{bucket}/{name}" for name in names]
        self._send("DELETE MANY", " ".join(keys), lambda: self.bucket.delete_many(keys))
        return {}

    def list_page(self, bucket: str, prefix: str, token: str | None, attempts: Attempts) -> Page:
        start = f"{bucket}/{prefix}"
        found = self._send("LIST", start, lambda: self.bucket.list(start))
        return Page(
            [
                ObjectInfo(key, len(item.data), item.etag, item.mtime_s)
                for key, item in found
                if "/" not in key[len(start) :]
            ],
            None,
        )

    def begin(
        self,
        object_name: ObjectName,
        attempts: Attempts,
        *,
        size_bytes: int | None,
        write_id: str,
        precondition: Precondition | None,
    ) -> UploadSession:
        raise NotImplementedError("nothing here is that large")

    def list_uploads(self, bucket: str, prefix: str, attempts: Attempts) -> list[StaleUpload]:
        return []

    def abort_upload(self, object_name: ObjectName, upload_id: str, attempts: Attempts) -> None:
        raise NotImplementedError


class Uncancelled(Cancellation):
    """For uploads: there are no threads that could be told to stop."""

    is_cancelled = False

    def __init__(self) -> None:
        pass

    def cancel(self) -> None:
        pass


class _Waiting(Uncancelled):
    """Pauses that the scheduler counts."""

    def __init__(self, actor: Actor) -> None:
        self._world = actor.world

    def sleep(self, seconds: float) -> None:
        self._world.sleep(seconds)


class _NoLimit(RetryBudget):
    """Repeats are rare enough here."""

    def take(self) -> bool:
        return True

    def reward(self) -> None:
        pass


_NO_LIMIT = _NoLimit()


class ActorStorage(ObjectStorage):
    """The real storage in simulated time, without threads."""

    def __init__(self, actor: Actor) -> None:
        super().__init__(SimulatedTransport(actor))
        self._clock = actor.world.monotonic
        self._waiting = _Waiting(actor)
        self.budget = _NO_LIMIT

    def new_attempts(self, cancellation: Cancellation | None = None) -> Attempts:
        return Attempts(self.policy, self.budget, self._waiting, clock=self._clock)

    def object_name(self, key: str) -> ObjectName:
        # Mostly the same few keys, in every run.
        found = _places.get(key)
        if found is None:
            if len(_places) > 1000:
                _places.clear()
            found = _places[key] = super().object_name(key)
        return found

    def now_s(self) -> float:
        return self.transport.bucket.clock()

    def pool(self) -> NoReturn:
        raise NotImplementedError("the scheduler knows of no threads")
