"""The storage of one actor: the real object-store code, over requests that the scheduler arranges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

from ckptstore.storage.object_store.attempts import Attempts, RetryBudget
from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.object_store.probe import Verdicts, remember_verdicts
from ckptstore.storage.object_store.service import ObjectService
from ckptstore.storage.object_store.storage import ObjectStorage
from ckptstore.storage.object_store.transport import ObjectName, PutRequest
from ckptstore.storage.scope import Cancellation
from ckptstore.storage.values import Capabilities
from tests.fake_transport import Call, FakeTransport, StoredObject
from tests.simulation.bucket import NoSuchKey, PreconditionFailed, SimulatedObject
from tests.simulation.scheduler import Actor, LostAnswer, Refused

_T = TypeVar("_T")

BUCKET = "bucket"

_DEEDS = {
    "head": "HEAD",
    "get": "GET",
    "put": "PUT",
    "delete": "DELETE",
    "delete_many": "DELETE MANY",
    "list_page": "LIST",
}

_object_names: dict[str, ObjectName] = {}


class SimulatedTransport(FakeTransport):
    """One attempt of one request, as an S3 client would make it."""

    scheme = "sim"
    nominal = Capabilities("simulated", True, True, True, True, True, True)
    bogus_version = "0" * 32

    def __init__(self, actor: Actor) -> None:
        self._actor = actor
        self.bucket = bucket = actor.scheduler.bucket
        self._endpoint = f"simulated {bucket.honours_conditions:d}{bucket.conditional_delete:d}"
        # What the probe would find out; asking would be six requests more in every run.
        verdicts = Verdicts(
            create="yes" if bucket.honours_conditions else "ignored",
            cas="yes" if bucket.honours_conditions else "ignored",
            cas_missing="404" if bucket.honours_conditions else "created",
            cond_delete=bucket.conditional_delete,
            crc32c=False,
        )
        remember_verdicts(self, BUCKET, verdicts)

    @property
    def endpoint(self) -> str:
        return self._endpoint

    def perform(self, call: Call, apply: Callable[[], _T]) -> _T:
        deed = "PUT IF" if call.kind == "put" and call.detail else _DEEDS[call.kind]
        key = " ".join(f"{call.bucket}/{name}" for name in call.names)
        try:
            return self._actor.request(deed, key, apply)
        except LostAnswer:
            raise Fault(Kind.CUT, "the connection broke") from None
        except Refused:
            raise Fault(Kind.FORBIDDEN, "not allowed") from None
        except PreconditionFailed:
            raise Fault(Kind.PRECONDITION, "the condition does not hold") from None
        except NoSuchKey:
            # The answer to a HEAD has no body that says what is missing.
            raise Fault(Kind.UNPROVED if call.kind == "head" else Kind.ABSENT, "not there") from None

    def find(self, object_name: ObjectName) -> SimulatedObject:
        return self.bucket.get(object_name.key)

    def store(self, request: PutRequest, data: bytes) -> SimulatedObject:
        condition = request.precondition
        return self.bucket.put(
            request.target.key,
            data,
            write_id=request.write_id,
            if_absent=condition is not None and condition.version is None,
            if_match=None if condition is None else condition.version,
        )

    def remove(self, object_name: ObjectName, version: str | None) -> None:
        self.bucket.delete(object_name.key, if_match=version)

    def remove_all(self, bucket: str, names: Sequence[str]) -> None:
        self.bucket.delete_many([f"{bucket}/{name}" for name in names])

    def below(self, bucket: str, prefix: str) -> list[tuple[str, StoredObject]]:
        start = len(bucket) + 1
        return [(key[start:], found) for key, found in self.bucket.list(f"{bucket}/{prefix}")]


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
        self._scheduler = actor.scheduler

    def sleep(self, seconds: float) -> None:
        self._scheduler.sleep(seconds)


class _NoLimit(RetryBudget):
    """Repeats are rare enough here."""

    def take(self) -> bool:
        return True

    def reward(self) -> None:
        pass


_NO_LIMIT = _NoLimit()


class ActorService(ObjectService):
    """The real service in simulated time, without threads."""

    def __init__(self, actor: Actor) -> None:
        super().__init__(SimulatedTransport(actor))
        self._bucket = actor.scheduler.bucket
        self._clock = actor.scheduler.monotonic
        self._waiting = _Waiting(actor)
        self.budget = _NO_LIMIT

    def new_attempts(self) -> Attempts:
        return Attempts(self.policy, self.budget, self._waiting, clock=self._clock)

    def object_name(self, key: str) -> ObjectName:
        # Mostly the same few keys, in every run.
        found = _object_names.get(key)
        if found is None:
            if len(_object_names) > 1000:
                _object_names.clear()
            found = _object_names[key] = super().object_name(key)
        return found

    def background(self) -> NoReturn:
        raise NotImplementedError("the scheduler has no threads")


class ActorStorage(ObjectStorage):
    """The real storage over an `ActorService`."""

    def __init__(self, actor: Actor) -> None:
        service = ActorService(actor)
        super().__init__(service.transport, service=service)
        self._bucket = actor.scheduler.bucket

    def now_s(self) -> float:
        return self._bucket.clock()
