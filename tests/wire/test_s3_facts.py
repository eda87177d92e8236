"""Facts about s3fs, botocore and S3 servers on which the code relies: docs/object-stores.md."""

from __future__ import annotations

import gc
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from ckptstore.errors import (
    AccessError,
    ChecksumError,
    CkptStoreError,
    DeadlineError,
    NotFoundError,
    TruncatedFileError,
    UnsupportedError,
    UsageError,
)
from ckptstore.storage.base import Location
from ckptstore.storage.object_store.attempts import RetryPolicy
from ckptstore.storage.object_store.storage import ObjectStorage
from ckptstore.storage.registry import locate
from ckptstore.storage.retry import pause
from ckptstore.storage.s3.client import S3Client
from ckptstore.storage.s3.transport import S3Transport
from ckptstore.storage.values import Ambiguous, Committed, Lost
from ckptstore.types import ByteRange
from tests.servers.fault_proxy import FaultProxy
from tests.servers.s3 import S3Server

MIB = 1 << 20


@pytest.fixture
def bucket(minio: S3Server) -> str:
    return minio.make_bucket()


@pytest.fixture
def directory(minio: S3Server, bucket: str) -> Location:
    return locate(f"s3://{bucket}/run", minio.options)


@pytest.fixture
def proxy(minio: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(minio.process.port) as proxy:
        yield proxy


def _through(proxy: FaultProxy, minio: S3Server, bucket: str, policy: RetryPolicy | None = None) -> Location:
    """Return a directory behind the proxy, with the probe done and forgotten."""
    transport = S3Transport(S3Client(minio.through(proxy.url).options))
    # Its own policy: an impatient one would not survive the start.
    ObjectStorage(transport).probe(f"{bucket}/run/x")
    storage = ObjectStorage(transport, policy or RetryPolicy(pause_scale=0.0))
    proxy.clear()
    return Location(storage, f"{bucket}/run", f"s3://{bucket}/run")


def _write_and_raise(directory: Location) -> None:
    with directory.storage.upload(directory.child("m.data").key, 20 * MIB) as upload:
        upload.write(bytes(20 * MIB))
        raise ValueError("mine")


def test_a_block_that_raises_publishes_nothing(minio: S3Server, bucket: str, directory: Location) -> None:
    with pytest.raises(ValueError, match="mine"):
        _write_and_raise(directory)
    assert minio.keys(bucket) == []
    assert minio.uploads(bucket, "run/m.data") == []


def test_an_upload_that_is_collected_publishes_nothing(
    minio: S3Server, bucket: str, directory: Location
) -> None:
    upload = directory.storage.upload(directory.child("m.data").key, 20 * MIB)
    upload.write(bytes(20 * MIB))
    assert minio.uploads(bucket, "run/m.data") == ["run/m.data"]
    del upload
    gc.collect()
    # It is aborted in the background.
    deadline_s = time.monotonic() + 60
    while minio.uploads(bucket, "run/m.data") and time.monotonic() < deadline_s:
        pause(0.02)
    assert minio.keys(bucket) == []
    assert minio.uploads(bucket, "run/m.data") == []


def test_a_pattern_deletes_nothing_but_its_own_name(
    minio: S3Server, bucket: str, directory: Location
) -> None:
    for name in ("run/m1.index", "run/m[1].index", "run/m*.index", "run/m?.index"):
        minio.put(bucket, name, b"x")
    directory.storage.delete_many([directory.child("m[1].index").key, directory.child("m*.index").key])
    version = directory.storage.head(directory.child("m?.index").key).version
    assert directory.storage.delete_if(directory.child("m?.index").key, version)
    assert minio.keys(bucket) == ["run/m1.index"]


def test_a_refused_delete_inside_a_good_answer_is_raised(minio: S3Server, bucket: str) -> None:
    import json

    import boto3

    policy = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"],
                "Resource": [f"arn:aws:s3:::{bucket}/run/mine/*"],
            }
        ],
    }
    sts = boto3.client(
        "sts",
        endpoint_url=minio.url,
        aws_access_key_id=minio.key,
        aws_secret_access_key=minio.secret,
        region_name="us-east-1",
    )
    given = sts.assume_role(
        RoleArn="arn:aws:iam::123456789012:role/x", RoleSessionName="test", Policy=json.dumps(policy)
    )["Credentials"]
    restricted = minio.options | {
        "key": given["AccessKeyId"],
        "secret": given["SecretAccessKey"],
        "token": given["SessionToken"],
    }
    for name in ("run/mine/a", "run/mine/b", "run/theirs/c"):
        minio.put(bucket, name, b"x")
    storage = locate(f"s3://{bucket}/run", restricted).storage
    with pytest.raises(AccessError) as caught:
        storage.delete_many([f"{bucket}/run/{name}" for name in ("mine/a", "theirs/c", "mine/b")])
    assert caught.value.url == f"s3://{bucket}/run/theirs/c"
    assert minio.keys(bucket) == ["run/theirs/c"]
    assert given["SecretAccessKey"] not in repr(caught.value)


def test_an_empty_range_is_never_sent(minio: S3Server, bucket: str, proxy: FaultProxy) -> None:
    minio.put(bucket, "run/x", b"0123456789")
    directory = _through(proxy, minio, bucket)
    with pytest.raises(UsageError):
        directory.storage.get(directory.child("x").key, ByteRange(3, 3))
    directory.storage.read_into(directory.child("x").key, [ByteRange(3, 3)], [memoryview(bytearray())])
    assert proxy.requests == []


def test_a_whole_object_in_answer_to_a_range_is_refused(
    minio: S3Server, bucket: str, proxy: FaultProxy
) -> None:
    minio.put(bucket, "run/x", bytes(1000))
    directory = _through(proxy, minio, bucket)
    proxy.when("GET", header="Range").rewrite(lambda request: request.without("Range"))
    memory = bytearray(b"." * 4)
    with pytest.raises(UnsupportedError, match="the server or a proxy ignores it"):
        directory.storage.read_into(directory.child("x").key, [ByteRange(4, 8)], [memoryview(memory)])
    assert memory == b"...."
    # Asked for all of it, the whole object is the right answer.
    assert directory.storage.get(directory.child("x").key, ByteRange(0, 1000)).data == bytes(1000)


@pytest.mark.parametrize("extent", [(8, 11), (10, 12), (100, 200)])
def test_a_range_behind_the_end_is_a_short_file(
    minio: S3Server, bucket: str, directory: Location, extent: tuple[int, int]
) -> None:
    minio.put(bucket, "run/x", b"0123456789")
    with pytest.raises(TruncatedFileError, match="10 bytes"):
        directory.storage.get(directory.child("x").key, ByteRange(*extent))


def test_one_failed_range_of_many_is_raised(minio: S3Server, bucket: str, proxy: FaultProxy) -> None:
    minio.put(bucket, "run/x", bytes(4 * MIB))
    directory = _through(proxy, minio, bucket)
    ranges = [ByteRange(start, start + 10) for start in range(0, 4 * MIB, MIB // 2)]
    proxy.when("GET", "x$").answer(403, "AccessDenied", times=1)
    with pytest.raises(AccessError):
        directory.storage.read_into(
            directory.child("x").key, ranges, [memoryview(bytearray(10)) for _ in ranges]
        )


def test_a_create_replaces_nothing_and_leaves_no_upload(
    minio: S3Server, bucket: str, directory: Location
) -> None:
    minio.put(bucket, "run/m.data", b"theirs")
    assert isinstance(directory.storage.put_new(directory.child("m.data").key, b""), Lost)
    for size_bytes in (0, 20 * MIB):
        with directory.storage.upload(directory.child("m.data").key, size_bytes) as upload:
            upload.write(bytes(size_bytes))
            assert isinstance(upload.commit(), Lost)
            assert minio.uploads(bucket, "run/m.data") == []
    assert minio.get(bucket, "run/m.data") == b"theirs"


def test_changes_by_others_are_seen_at_once(minio: S3Server, bucket: str, directory: Location) -> None:
    storage, key = directory.storage, directory.child("x").key
    assert list(storage.list(f"{directory.key}/")) == []
    minio.put(bucket, "run/x", b"12345")
    assert [info.size_bytes for info in storage.list(f"{directory.key}/")] == [5]
    assert storage.head(key).size_bytes == 5
    minio.put(bucket, "run/x", b"123456789")
    assert storage.head(key).size_bytes == storage.get(key).size_bytes == 9
    minio.raw.delete_object(Bucket=bucket, Key="run/x")
    assert list(storage.list(f"{directory.key}/")) == []
    with pytest.raises(NotFoundError):
        storage.get(key)


def test_each_primitive_makes_no_more_requests_than_it_needs(
    minio: S3Server, bucket: str, proxy: FaultProxy
) -> None:
    directory = _through(proxy, minio, bucket)
    storage, key = directory.storage, directory.child("x").key
    absent = directory.child("absent").key

    def cost(expected: str, call: Callable[[], Any]) -> Any:
        proxy.requests.clear()
        result = call()
        # The parts of an upload go in parallel, so their order is open.
        assert sorted(request.method for request in proxy.requests) == sorted(expected.split())
        return result

    def not_found(call: Callable[[], object]) -> None:
        with pytest.raises(NotFoundError):
            call()

    def upload(size_bytes: int) -> None:
        with storage.upload(directory.child(str(size_bytes)).key, size_bytes) as upload:
            upload.write(bytes(size_bytes))
            assert isinstance(upload.commit(), Committed)

    version = cost("PUT", lambda: storage.put_new(key, b"0123456789")).version
    cost("PUT HEAD", lambda: storage.put_new(key, b"again"))
    cost("HEAD", lambda: storage.head(key))
    cost("HEAD GET", lambda: not_found(lambda: storage.head(absent)))
    cost("GET", lambda: storage.get(key))
    cost("GET", lambda: storage.get(key, ByteRange(2, 4)))
    cost("GET", lambda: not_found(lambda: storage.get(absent)))
    pair = [ByteRange(0, 2), ByteRange(4, 8)]
    cost("GET", lambda: storage.read_into(key, pair, [memoryview(bytearray(n)) for n in (2, 4)]))
    newer = cost("PUT", lambda: storage.put_if(key, b"newer", version)).version
    cost("PUT HEAD", lambda: storage.put_if(key, b"newest", version))
    cost("GET", lambda: list(storage.list(f"{directory.key}/")))
    cost("GET HEAD", lambda: list(storage.list(f"{bucket}/nowhere/")))
    cost("HEAD", lambda: storage.delete_if(key, version))
    # Seen just now, so it is not looked at again.
    cost("DELETE", lambda: storage.delete_if(key, newer))
    cost("HEAD GET", lambda: storage.delete_if(absent, version))
    cost("PUT", lambda: upload(MIB))
    cost("POST PUT PUT POST", lambda: upload(20 * MIB))
    cost("POST", lambda: storage.delete_many([directory.child(str(n)).key for n in (MIB, 20 * MIB)]))
    cost("", lambda: storage.delete_many([]))
    cost("", lambda: storage.abort_stale_uploads(f"{directory.key}/", float("inf")))


def test_no_bucket_is_ever_created(minio: S3Server, proxy: FaultProxy) -> None:
    options = minio.through(proxy.url).options
    storage = locate("s3://bucket-nobody-made/run", options).storage
    key = "bucket-nobody-made/run/x"
    calls: list[Callable[[], object]] = [
        lambda: storage.get(key),
        lambda: storage.head(key),
        lambda: storage.put_new(key, b"x"),
        lambda: list(storage.list("bucket-nobody-made/run/")),
        lambda: storage.read_into(key, [ByteRange(0, 1)], [memoryview(bytearray(1))]),
        lambda: storage.delete_many([key, key + "2"]),
    ]
    for call in calls:
        with pytest.raises(AccessError, match="NoSuchBucket") as caught:
            call()
        assert "never creates one" in (caught.value.hint or "")
    assert proxy.count("PUT", r"^/bucket-nobody-made/?(\?|$)") == 0
    assert "bucket-nobody-made" not in [b["Name"] for b in minio.raw.list_buckets()["Buckets"]]


def test_a_question_mark_is_part_of_the_name(minio: S3Server, bucket: str, directory: Location) -> None:
    minio.put(bucket, "run/q", b"another")
    key = directory.child("q?versionId=3").key
    assert isinstance(directory.storage.put_new(key, b"exact"), Committed)
    assert directory.storage.get(key).data == b"exact"
    assert directory.storage.head(key).size_bytes == 5
    directory.storage.delete_many([key, directory.child("q#x").key])
    assert minio.keys(bucket) == ["run/q"]


@pytest.mark.parametrize("wrong", [{"secret": "not-the-secret"}, {"key": "nobody-knows"}])
@pytest.mark.parametrize("kind", ["minio", "versitygw"])
def test_a_refused_secret_is_in_no_message(
    request: pytest.FixtureRequest, kind: str, wrong: dict[str, str]
) -> None:
    server: S3Server = request.getfixturevalue(kind)
    options = server.options | wrong
    storage = locate(f"s3://{server.make_bucket()}/run", options).storage
    key = f"{server.make_bucket()}/run/x"
    calls: list[Callable[[], object]] = [
        lambda: storage.get(key),
        lambda: storage.head(key),
        lambda: storage.put_new(key, b"x"),
        lambda: list(storage.list(key)),
        lambda: storage.delete_many([key, key + "2"]),
    ]
    for call in calls:
        with pytest.raises(AccessError) as caught:
            call()
        error = caught.value
        texts = [
            str(error),
            repr(error),
            repr(error.__dict__),
            repr(error.__cause__),
            repr(error.__context__),
        ]
        texts.append(pickle.dumps(error).decode("latin-1"))
        for secret in (options["secret"], *wrong.values()):
            assert not any(secret in text for text in texts)
        assert "key" in (error.hint or "")


@pytest.mark.parametrize("kind", ["minio", "versitygw"])
def test_uploads_of_other_prefixes_are_left_alone(request: pytest.FixtureRequest, kind: str) -> None:
    server: S3Server = request.getfixturevalue(kind)
    bucket = server.make_bucket()
    names = ["run/model-1.data", "run/model-2.data", "run/other.data", "run2/model-1.data", "run/deep/x"]
    for name in names:
        server.raw.create_multipart_upload(Bucket=bucket, Key=name)
    directory = locate(f"s3://{bucket}/run", server.options)
    assert directory.storage.abort_stale_uploads(f"{bucket}/run/model", 3600.0) == 0
    assert directory.storage.abort_stale_uploads(f"{bucket}/run/model", -60.0) == 2
    left = [name for name in names if server.uploads(bucket, name)]
    assert left == names[2:]


def test_all_pages_of_uploads_are_read(versitygw: S3Server) -> None:
    bucket = versitygw.make_bucket()
    for number in range(1005):
        versitygw.raw.create_multipart_upload(Bucket=bucket, Key=f"run/{number:04}")
    directory = locate(f"s3://{bucket}/run", versitygw.options)
    assert directory.storage.abort_stale_uploads(f"{bucket}/run/", -60.0) == 1005


def test_a_delete_whose_answer_is_lost_is_done(minio: S3Server, bucket: str, proxy: FaultProxy) -> None:
    directory = _through(proxy, minio, bucket)
    minio.put(bucket, "run/x", b"x")
    version = directory.storage.head(directory.child("x").key).version
    proxy.when("DELETE").lose_answer(times=1)
    assert directory.storage.delete_if(directory.child("x").key, version)
    assert minio.keys(bucket) == []


@pytest.mark.parametrize("size_bytes", [10, MIB, 4 * MIB])
def test_a_stalled_put_ends_in_time(minio: S3Server, bucket: str, proxy: FaultProxy, size_bytes: int) -> None:
    directory = _through(proxy, minio, bucket, RetryPolicy(deadline_s=1.0, attempt_s=0.3))
    proxy.when("PUT", "x$").stall()
    outcome = directory.storage.put_new(directory.child("x").key, bytes(size_bytes))
    assert isinstance(outcome, Ambiguous)
    proxy.when("GET", "x$").stall()
    with pytest.raises(DeadlineError):
        directory.storage.get(directory.child("x").key)


def test_small_bodies_are_sent_without_expect(minio: S3Server, bucket: str, proxy: FaultProxy) -> None:
    directory = _through(proxy, minio, bucket)
    with directory.storage.upload(directory.child("x").key, 20 * MIB) as upload:
        upload.write(bytes(20 * MIB))
        upload.commit()
    directory.storage.put_new(directory.child("y").key, bytes(MIB))
    assert not [request for request in proxy.requests if "Expect" in request.headers]


def test_every_body_carries_its_checksum_and_is_not_hashed_again(
    minio: S3Server, bucket: str, proxy: FaultProxy
) -> None:
    directory = _through(proxy, minio, bucket)
    directory.storage.put_new(directory.child("small").key, b"123456789")
    with directory.storage.upload(directory.child("large").key, 20 * MIB) as upload:
        upload.write(bytes(20 * MIB))
        upload.commit()
    puts = [request for request in proxy.requests if request.method == "PUT"]
    assert len(puts) == 3
    for request in puts:
        headers = {name.lower(): value for name, value in request.headers.items()}
        assert headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
        assert headers["x-amz-checksum-crc32c"]
    small = {name.lower(): value for name, value in puts[0].headers.items()}
    assert small["x-amz-checksum-crc32c"] == "4waSgw=="
    for name in ("small", "large"):
        found = minio.raw.head_object(Bucket=bucket, Key=f"run/{name}", ChecksumMode="ENABLED")
        assert found["ChecksumType"] == "FULL_OBJECT"


@pytest.mark.parametrize("size_bytes", [100, 20 * MIB])
def test_bytes_that_change_on_the_way_are_refused(
    minio: S3Server, bucket: str, proxy: FaultProxy, size_bytes: int
) -> None:
    directory = _through(proxy, minio, bucket)
    proxy.when("PUT", "m.data").rewrite(
        lambda request: replace(request, body=b"!" + request.body[1:]), sign=False
    )

    def save() -> None:
        with directory.storage.upload(directory.child("m.data").key, size_bytes) as upload:
            upload.write(bytes(size_bytes))
            upload.commit()

    with pytest.raises(ChecksumError) as caught:
        save()
    assert caught.value.url == f"s3://{bucket}/run/m.data"
    assert minio.keys(bucket) == []
    assert minio.uploads(bucket, "run/m.data") == []


def test_a_body_that_breaks_off_is_read_to_its_end(minio: S3Server, bucket: str, proxy: FaultProxy) -> None:
    data = bytes(range(256)) * 4096
    minio.put(bucket, "run/x", data)
    directory = _through(proxy, minio, bucket)
    proxy.when("GET", "x$").cut_body(300_000, times=3)
    memory = bytearray(MIB)
    directory.storage.read_into(directory.child("x").key, [ByteRange(0, MIB)], [memoryview(memory)])
    assert memory == data
    ranges = [request.headers["Range"] for request in proxy.requests]
    assert ranges == [
        "bytes=0-1048575",
        "bytes=300000-1048575",
        "bytes=600000-1048575",
        "bytes=900000-1048575",
    ]
    proxy.when("GET", "x$").cut_body(10)
    with pytest.raises(CkptStoreError, match="after 8 attempts"):
        directory.storage.get(directory.child("x").key)
