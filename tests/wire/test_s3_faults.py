"""Every primitive of S3 against every fault: the exact exception class, and the exact number of requests.

MinIO behind a proxy that fails as told. Pauses are switched off; what is counted is what crossed the wire.
"""

from __future__ import annotations

import datetime
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ckptstore.errors import (
    AccessError,
    CkptStoreError,
    NotFoundError,
    StorageFullError,
    TransientError,
    UnsupportedError,
    UsageError,
)
from ckptstore.storage.base import Location
from ckptstore.storage.object_store.attempts import RetryBudget, RetryPolicy
from ckptstore.storage.object_store.faults import RULES, Kind
from ckptstore.storage.object_store.storage import ObjectStorage
from ckptstore.storage.s3.client import S3Client
from ckptstore.storage.s3.transport import S3Transport
from ckptstore.storage.values import Ambiguous, Committed, Lost, SuffixRange
from ckptstore.types import ByteRange
from tests.servers.certificates import make_certificates
from tests.servers.fault_proxy import FaultProxy, _When
from tests.servers.s3 import S3Server

MIB = 1 << 20
_DATA = bytes(range(256))
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def proxy(minio: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(minio.process.port) as proxy:
        yield proxy


@pytest.fixture(scope="module", params=[True, False], ids=["direct", "s3fs"])
def storage(minio: S3Server, proxy: FaultProxy, request: pytest.FixtureRequest) -> ObjectStorage:
    options = minio.through(proxy.url).options | {"direct": request.param}
    storage = ObjectStorage(S3Transport(S3Client(options)), RetryPolicy(pause_scale=0.0))
    storage.service.budget = RetryBudget(1e9)
    return storage


@dataclass
class Scene:
    """A directory with an object of 256 bytes at `key`; its version is known."""

    server: S3Server
    proxy: FaultProxy
    storage: ObjectStorage
    bucket: str
    key: str
    version: str


@pytest.fixture(scope="module")
def bucket(minio: S3Server, storage: ObjectStorage) -> str:
    bucket = minio.make_bucket()
    storage.probe(f"{bucket}/run/x")
    return bucket


@pytest.fixture
def scene(minio: S3Server, proxy: FaultProxy, storage: ObjectStorage, bucket: str) -> Iterator[Scene]:
    name = f"run/{next(_numbers)}"
    minio.put(bucket, name, _DATA)
    key = f"{bucket}/{name}"
    version = storage.head(key).version
    proxy.clear()
    yield Scene(minio, proxy, storage, bucket, key, version)
    proxy.clear()
    for each in (name, name + "-new"):
        assert not minio.uploads(bucket, each)


# A part has five MiB at least; the last one may be small.
PART = 5 * MIB
SIZE = PART + 1000


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let objects be large that are not."""
    monkeypatch.setattr("ckptstore.storage.object_store.upload.SINGLE_SIZE_BYTES", PART)
    monkeypatch.setattr(S3Transport, "part_size_bytes", PART)


def _upload(scene: Scene) -> object:
    with scene.storage.upload(scene.key + "-new", SIZE) as upload:
        upload.write(bytes(SIZE))
        return upload.commit()


def _read_into(scene: Scene) -> bytes:
    memory = bytearray(20)
    scene.storage.read_into(scene.key, [ByteRange(10, 30)], [memoryview(memory)], version=scene.version)
    return bytes(memory)


@dataclass(frozen=True)
class Primitive:
    """One primitive, the request that is to fail, and the answer when all is well."""

    name: str
    method: str
    pattern: str
    call: Callable[[Scene], object]
    good: Callable[[object], bool]
    is_write: bool = False

    def __str__(self) -> str:
        return self.name


def _is_none(result: object) -> bool:
    return result is None


def _is_committed(result: object) -> bool:
    return isinstance(result, Committed)


PRIMITIVES = [
    Primitive("get", "GET", "", lambda s: s.storage.get(s.key).data, _DATA.__eq__),
    Primitive("get range", "GET", "", lambda s: s.storage.get(s.key, ByteRange(1, 3)).data, b"\1\2".__eq__),
    Primitive("get suffix", "GET", "", lambda s: s.storage.get(s.key, SuffixRange(1)).data, b"\xff".__eq__),
    Primitive("read_into", "GET", "", _read_into, _DATA[10:30].__eq__),
    Primitive("head", "HEAD", "", lambda s: s.storage.head(s.key).size_bytes, (256).__eq__),
    Primitive("list", "GET", "list-type", lambda s: len(list(s.storage.list(s.key))), (1).__eq__),
    Primitive(
        "delete_many",
        "POST",
        "delete",
        lambda s: s.storage.delete_many([s.key, s.key + "2"]),
        _is_none,
    ),
    Primitive("delete_one", "DELETE", "", lambda s: s.storage.delete_many([s.key]), _is_none),
    Primitive("delete_if", "DELETE", "", lambda s: s.storage.delete_if(s.key, s.version), True.__eq__),
    Primitive("begin", "POST", "uploads", _upload, _is_committed),
    Primitive("part", "PUT", "partNumber=2", _upload, _is_committed),
    Primitive(
        "put_new",
        "PUT",
        "",
        lambda s: s.storage.put_new(s.key + "-new", b"x"),
        _is_committed,
        True,
    ),
    Primitive(
        "put_if",
        "PUT",
        "",
        lambda s: s.storage.put_if(s.key, b"x", s.version),
        _is_committed,
        True,
    ),
    Primitive("complete", "POST", r"\?uploadId", _upload, _is_committed, True),
]
READS = [primitive for primitive in PRIMITIVES if not primitive.is_write]
WRITES = [primitive for primitive in PRIMITIVES if primitive.is_write]


@dataclass(frozen=True)
class Failure:
    """A fault that does not pass: how it is made, and what it is."""

    name: str
    make: Callable[[_When, int | None], None]
    kind: Kind
    error: type[CkptStoreError]

    def __str__(self) -> str:
        return self.name


def _answer(
    name: str, status: int, code: str, kind: Kind, error: type[CkptStoreError], message: str = "x"
) -> Failure:
    return Failure(name, lambda when, times: when.answer(status, code, message, times=times), kind, error)


PASSING = [
    _answer("503 SlowDown", 503, "SlowDown", Kind.THROTTLED, TransientError),
    _answer("503", 503, "", Kind.THROTTLED, TransientError),
    _answer("429", 429, "TooManyRequests", Kind.THROTTLED, TransientError),
    _answer("500", 500, "InternalError", Kind.SERVER, TransientError),
    _answer("502", 502, "", Kind.SERVER, TransientError),
    _answer("409", 409, "OperationAborted", Kind.CONFLICT, TransientError),
    _answer("400 RequestTimeout", 400, "RequestTimeout", Kind.CUT, TransientError),
]
FINAL = [
    _answer("403", 403, "AccessDenied", Kind.FORBIDDEN, AccessError),
    _answer("expired", 400, "ExpiredToken", Kind.FORBIDDEN, AccessError),
    _answer("skewed", 403, "RequestTimeTooSkewed", Kind.FORBIDDEN, AccessError),
    _answer("no bucket", 404, "NoSuchBucket", Kind.NO_BUCKET, AccessError),
    _answer("unknown user", 404, "XAdminUserNotFound", Kind.FORBIDDEN, AccessError),
    _answer("507", 507, "XMinioStorageFull", Kind.FULL, StorageFullError),
    _answer("500 full", 500, "InternalError", Kind.FULL, StorageFullError, "no space left on device"),
    _answer("400", 400, "InvalidArgument", Kind.BAD_REQUEST, UsageError),
]


# The answer to a HEAD has no body to say the code in.
_NEEDS_BODY = {"no bucket", "unknown user", "500 full", "expired", "400 RequestTimeout"}

# A server that refuses the form of a bulk delete gets single ones; and after a HEAD that is answered 400 the
# client below asks for the bucket's region first.
_OTHERWISE = {("delete_many", "400"), ("head", "400")}


# How often something is tried depends on its kind alone.
_ONE_OF_EACH_KIND = list({failure.kind: failure for failure in PASSING}.values())
# The same kinds by other words: what they are does not depend on the primitive.
_OTHER_WORDS = {"expired", "skewed", "unknown user", "500 full"}


def _pairs(primitives: list[Primitive], failures: list[Failure]) -> list[Any]:
    return [
        pytest.param(primitive, failure, id=f"{primitive}-{failure}")
        for primitive in primitives
        for failure in failures
        if not (primitive.method == "HEAD" and failure.name in _NEEDS_BODY)
        and not (failure.name in _OTHER_WORDS and primitive.name not in ("get", "put_new"))
        and (primitive.name, failure.name) not in _OTHERWISE
    ]


@pytest.mark.parametrize(("primitive", "failure"), _pairs(PRIMITIVES, PASSING))
def test_what_passes_is_outlasted(scene: Scene, primitive: Primitive, failure: Failure) -> None:
    failure.make(scene.proxy.when(primitive.method, primitive.pattern), 1)
    assert primitive.good(primitive.call(scene))
    assert scene.proxy.count(primitive.method, primitive.pattern) == 2


@pytest.mark.parametrize(("primitive", "failure"), _pairs(READS, _ONE_OF_EACH_KIND))
def test_what_does_not_pass_is_given_up_after_the_known_number(
    scene: Scene, primitive: Primitive, failure: Failure
) -> None:
    failure.make(scene.proxy.when(primitive.method, primitive.pattern), None)
    tries = RULES[failure.kind].tries
    with pytest.raises(failure.error, match=f"after {tries} attempts") as caught:
        primitive.call(scene)
    assert type(caught.value) is failure.error
    assert scene.key.rpartition("/")[0] in (caught.value.url or "")
    assert scene.proxy.count(primitive.method, primitive.pattern) == tries


@pytest.mark.parametrize(("primitive", "failure"), _pairs(PRIMITIVES, FINAL))
def test_what_is_final_is_asked_once(scene: Scene, primitive: Primitive, failure: Failure) -> None:
    path = scene.storage.transport.read_path(scene.bucket)
    asks_client = (
        path is not None
        and path.is_direct
        and primitive.method in ("GET", "HEAD")
        and failure.name in ("expired", "skewed", "unknown user", "400")
    )
    if asks_client:
        # Of its own: from then on this bucket is left to the client.
        options = scene.server.through(scene.proxy.url).options
        fresh = ObjectStorage(S3Transport(S3Client(options)), RetryPolicy(pause_scale=0.0))
        scene = replace(scene, storage=fresh)
    failure.make(scene.proxy.when(primitive.method, primitive.pattern), None)
    with pytest.raises(failure.error) as caught:
        primitive.call(scene)
    assert type(caught.value) is failure.error
    assert caught.value.hint
    expected = 1
    if (primitive.name, failure.name) == ("begin", "400"):
        expected = 3  # weaker checksums are tried first
    if asks_client:
        expected = 2  # the client may know better
    if primitive.name == "head" and failure.kind is Kind.FORBIDDEN:
        expected = 2  # a GET is asked for the reason, and works
    assert scene.proxy.count(primitive.method, primitive.pattern) == expected


@pytest.mark.parametrize("primitive", PRIMITIVES, ids=str)
def test_a_reset_before_the_server_heard_of_it_is_outlasted(scene: Scene, primitive: Primitive) -> None:
    scene.proxy.when(primitive.method, primitive.pattern).reset(times=1)
    assert primitive.good(primitive.call(scene))


@pytest.mark.parametrize("primitive", PRIMITIVES, ids=str)
def test_a_lost_answer_is_no_failure(scene: Scene, primitive: Primitive) -> None:
    scene.proxy.when(primitive.method, primitive.pattern).lose_answer(times=1)
    assert primitive.good(primitive.call(scene))
    if primitive.name == "begin":
        # The upload whose id was lost stays for `abort_stale_uploads`.
        scene.storage.abort_stale_uploads(scene.key + "-new", -60.0)


@pytest.mark.parametrize("primitive", READS, ids=str)
def test_resets_for_ever_are_given_up(scene: Scene, primitive: Primitive) -> None:
    scene.proxy.when(primitive.method, primitive.pattern).reset()
    tries = RULES[Kind.CUT].tries
    with pytest.raises(TransientError, match=f"after {tries} attempts"):
        primitive.call(scene)
    assert scene.proxy.count(primitive.method, primitive.pattern) == tries


@pytest.mark.parametrize(
    ("failure", "tries"),
    [("answer", RULES[Kind.SERVER].tries), ("reset", RULES[Kind.CUT].tries)],
)
@pytest.mark.parametrize("primitive", WRITES, ids=str)
def test_a_write_that_never_lands_is_ambiguous(
    scene: Scene, primitive: Primitive, failure: str, tries: int
) -> None:
    when = scene.proxy.when(primitive.method, primitive.pattern)
    if failure == "answer":
        when.answer(500, "InternalError")
    else:
        when.reset()
    assert isinstance(primitive.call(scene), Ambiguous)
    assert scene.proxy.count(primitive.method, primitive.pattern) == tries
    assert scene.proxy.count("HEAD") == tries
    scene.proxy.clear()
    scene.storage.abort_stale_uploads(scene.key + "-new", -60.0)


@pytest.mark.parametrize("primitive", WRITES, ids=str)
def test_a_throttled_write_is_refused_and_not_ambiguous(scene: Scene, primitive: Primitive) -> None:
    scene.proxy.when(primitive.method, primitive.pattern).answer(503, "SlowDown")
    with pytest.raises(TransientError, match="after 10 attempts"):
        primitive.call(scene)
    assert scene.proxy.count(primitive.method, primitive.pattern) == 10
    assert scene.proxy.count("HEAD") == 1


@pytest.mark.parametrize("primitive", WRITES, ids=str)
def test_a_write_that_cannot_be_read_back_is_ambiguous(scene: Scene, primitive: Primitive) -> None:
    scene.proxy.when(primitive.method, primitive.pattern).lose_answer()
    scene.proxy.when("HEAD").answer(403)
    assert isinstance(primitive.call(scene), Ambiguous)
    scene.proxy.clear()


@pytest.mark.parametrize("primitive", WRITES, ids=str)
@pytest.mark.parametrize("code", ["PreconditionFailed", ""])
def test_a_condition_that_failed_by_our_own_hand_is_success(
    scene: Scene, primitive: Primitive, code: str
) -> None:
    # The client sent it twice, and the second was told 412, with or without words.
    scene.proxy.when(primitive.method, primitive.pattern).answer(412, code, after=True, times=1)
    assert primitive.good(primitive.call(scene))


@pytest.mark.parametrize("primitive", WRITES, ids=str)
def test_a_lost_race_names_the_version_that_won(scene: Scene, primitive: Primitive) -> None:
    name = scene.key.partition("/")[2] + ("" if primitive.name == "put_if" else "-new")
    scene.server.put(scene.bucket, name, b"theirs")
    theirs = scene.storage.head(f"{scene.bucket}/{name}").version
    scene.proxy.clear()
    assert primitive.call(scene) == Lost(theirs)
    assert scene.proxy.count(primitive.method, primitive.pattern) == 1
    assert scene.server.get(scene.bucket, name) == b"theirs"


def test_a_good_status_with_an_error_inside_is_an_error(scene: Scene) -> None:
    # CompleteMultipartUpload answers 200 before it knows.
    scene.proxy.when("POST", r"\?uploadId").answer(200, "InternalError", times=1)
    assert isinstance(_upload(scene), Committed)


def test_an_answer_of_something_that_is_no_object_store_is_not_data(scene: Scene) -> None:
    page = b"<html><body>It works!</body></html>"
    scene.proxy.when("GET").answer(200, body=page)
    with pytest.raises(TransientError, match="not the object store"):
        scene.storage.get(scene.key)
    scene.proxy.clear()
    scene.proxy.when("GET").answer(404, body=page)
    scene.proxy.when("HEAD").answer(404)
    for call in (scene.storage.get, scene.storage.head):
        with pytest.raises(CkptStoreError) as caught:
            call(scene.key)
        assert not isinstance(caught.value, NotFoundError)


@pytest.mark.parametrize("count", [1, 2])
def test_a_delete_that_is_sent_once_is_one_request_whatever_happens(scene: Scene, count: int) -> None:
    # Neither a client nor a pool of connections sends it again.
    keys = [scene.key, scene.key + "2"][:count]
    method, pattern = ("DELETE", "") if count == 1 else ("POST", "delete")
    for fail in (scene.proxy.when(method, pattern).reset, scene.proxy.when(method, pattern).lose_answer):
        scene.proxy.clear()
        fail(times=1)
        with pytest.raises(TransientError):
            scene.storage.delete_once(keys)
        assert scene.proxy.count(method, pattern) == 1


def test_bulk_deletes_that_are_not_known_become_single_ones(scene: Scene) -> None:
    scene.proxy.when("POST", "delete").answer(501, "NotImplemented")
    scene.storage.delete_many([scene.key, scene.key + "2"])
    assert scene.proxy.count("DELETE") == 2
    with pytest.raises(NotFoundError):
        scene.storage.get(scene.key)


def test_a_server_without_checksums_of_the_whole_gets_those_of_the_parts(scene: Scene) -> None:
    scene.proxy.when("POST", "uploads", header="x-amz-checksum-type").answer(400, "InvalidRequest")
    transport = scene.storage.transport
    assert isinstance(transport, S3Transport)
    try:
        assert isinstance(_upload(scene), Committed)
    finally:
        transport._checksum_mode = 0
    assert scene.proxy.count("POST", "uploads") == 2
    # What nobody proved is looked at.
    assert scene.proxy.count("HEAD") == 1


def test_a_version_that_was_replaced_is_not_found_without_a_second_try(scene: Scene) -> None:
    scene.server.put(scene.bucket, scene.key.partition("/")[2], b"newer")
    with pytest.raises(NotFoundError, match="replaced"):
        scene.storage.get(scene.key, version=scene.version)
    with pytest.raises(NotFoundError, match="replaced"):
        _read_into(scene)
    assert scene.proxy.count("GET") == 2


def _with(fields: list[tuple[str, str]], name: str, value: str) -> list[tuple[str, str]]:
    return [*(field for field in fields if field[0].lower() != name.lower()), (name, value)]


def test_a_range_is_never_taken_from_another_place(scene: Scene) -> None:
    scene.proxy.when("GET").alter(
        lambda answer: (answer[0], _with(answer[1], "Content-Range", "bytes 0-1/256"), answer[2])
    )
    with pytest.raises(CkptStoreError):
        scene.storage.get(scene.key, ByteRange(10, 12))


def test_a_server_that_is_down_is_told_apart(minio: S3Server) -> None:
    storage = ObjectStorage(
        S3Transport(S3Client(minio.through("http://127.0.0.1:9").options)), RetryPolicy(pause_scale=0.0)
    )
    with pytest.raises(TransientError, match="after 8 attempts") as caught:
        storage.get("bucket/run/x")
    assert "that the server runs" in (caught.value.hint or "")
    # Certain: nobody heard of it.
    with pytest.raises(TransientError):
        storage.put_new("bucket/run/x", b"x")


def test_a_host_that_does_not_exist_is_told_apart(minio: S3Server) -> None:
    options = minio.options | {"endpoint_url": "https://no-such-host.invalid"}
    storage = ObjectStorage(S3Transport(S3Client(options)), RetryPolicy(pause_scale=0.0))
    with pytest.raises(TransientError, match="no-such-host"):
        storage.get("bucket/run/x")


def test_https_to_a_server_without_it_is_an_error_in_time(minio: S3Server) -> None:
    options = minio.options | {"endpoint_url": minio.url.replace("http:", "https:")}
    storage = ObjectStorage(S3Transport(S3Client(options)), RetryPolicy(pause_scale=0.0))
    with pytest.raises(CkptStoreError):
        storage.get("bucket/run/x")


def test_a_certificate_that_nobody_vouches_for_is_refused_at_once(minio: S3Server, tmp_path: Path) -> None:
    authority, context = make_certificates(tmp_path)
    bucket = minio.make_bucket()
    with FaultProxy(minio.process.port, tls=context) as proxy:
        options = minio.through(proxy.url).options
        storage = ObjectStorage(S3Transport(S3Client(options)), RetryPolicy(pause_scale=0.0))
        for call in (storage.get, lambda key: storage.put_new(key, b"x")):
            with pytest.raises(AccessError, match="certificate") as caught:
                call(f"{bucket}/run/x")
            assert "authority" in (caught.value.hint or "")
        assert proxy.requests == []
        trusting = options | {"client_kwargs": {"verify": str(authority), "region_name": "us-east-1"}}
        storage = ObjectStorage(S3Transport(S3Client(trusting)))
        assert isinstance(storage.put_new(f"{bucket}/run/x", b"x"), Committed)
        headers = {name.lower(): value for name, value in proxy.requests[-1].headers.items()}
        assert headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"


def test_a_clock_that_is_an_hour_wrong_is_named(minio: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    import botocore.auth

    from ckptstore.storage.s3 import signature

    now = botocore.auth.get_current_datetime
    ours = SimpleNamespace(strftime=time.strftime, gmtime=lambda _: time.gmtime(time.time() + 3600.0))
    monkeypatch.setattr(signature, "time", ours)

    def late(**arguments: Any) -> Any:
        return now(**arguments) + datetime.timedelta(hours=1)

    monkeypatch.setattr(botocore.auth, "get_current_datetime", late)
    storage = ObjectStorage(S3Transport(S3Client(minio.options)))
    with pytest.raises(AccessError, match="RequestTimeTooSkewed") as caught:
        storage.get("bucket/run/x")
    assert "clock" in (caught.value.hint or "")


def test_missing_credentials_are_named(minio: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    storage = ObjectStorage(S3Transport(S3Client({"endpoint_url": minio.url})))
    with pytest.raises(AccessError, match="credentials") as caught:
        storage.get("bucket/run/x")
    assert "AWS_ACCESS_KEY_ID" in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["B", "a..b", "under_score!", "x" * 70])
def test_a_bucket_that_cannot_exist_is_a_mistake_of_the_caller(scene: Scene, name: str) -> None:
    with pytest.raises((UsageError, AccessError)):
        scene.storage.get(f"{name}/run/x")


def test_unsupported_requests_say_so(scene: Scene) -> None:
    scene.proxy.when("GET").answer(501, "NotImplemented")
    with pytest.raises(UnsupportedError):
        scene.storage.get(scene.key)


def test_where_the_place_is_a_location_too(scene: Scene) -> None:
    location = Location(scene.storage, scene.key, f"s3://{scene.key}")
    assert location.storage.get(location.key).data == _DATA
