"""What direct requests to S3 take over from the client: credentials, places, settings; when they yield."""

from __future__ import annotations

import datetime
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckptstore.checksums import crc32c
from ckptstore.errors import AccessError, CkptStoreError, NotFoundError
from ckptstore.storage.object_store.attempts import RetryPolicy
from ckptstore.storage.object_store.storage import ObjectStorage
from ckptstore.storage.s3.client import S3Client
from ckptstore.storage.s3.transport import S3Transport
from ckptstore.storage.values import Committed
from ckptstore.types import ByteRange
from tests.servers.fault_proxy import FaultProxy, Request
from tests.servers.fixtures import need
from tests.servers.s3 import S3Server
from tests.servers.s3_tls import TlsS3Server, minio_tls

MIB = 1 << 20
_DATA = os.urandom(300_000)


@pytest.fixture
def proxy(minio: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(minio.process.port) as proxy:
        yield proxy


@pytest.fixture
def bucket(minio: S3Server) -> str:
    bucket = minio.make_bucket()
    minio.put(bucket, "run/x", _DATA)
    return bucket


def storage_for(options: dict[str, Any]) -> ObjectStorage:
    return ObjectStorage(S3Transport(S3Client(options)), RetryPolicy(pause_scale=0.0))


def lowered(request: Request) -> dict[str, str]:
    return {name.lower(): value for name, value in request.headers.items()}


def is_direct(request: Request) -> bool:
    """Whether the request came over a connection of ours: the client says which attempt it is."""
    return "amz-sdk-request" not in lowered(request)


def save(storage: ObjectStorage, key: str, size_bytes: int = 20 * MIB) -> object:
    with storage.upload(key, size_bytes) as upload:
        upload.write(bytes(size_bytes))
        return upload.commit()


def bulk(proxy: FaultProxy) -> list[Request]:
    """Return the requests with large bodies, or for them."""
    return [
        request
        for request in proxy.requests
        if request.method == "GET" or (request.method == "PUT" and len(request.body) > 100_000)
    ]


@pytest.mark.parametrize("direct", [True, False])
def test_requests_on_one_object_go_the_way_that_was_asked_for(
    minio: S3Server, proxy: FaultProxy, bucket: str, direct: bool
) -> None:
    storage = storage_for(minio.through(proxy.url).options | {"direct": direct})
    assert isinstance(save(storage, f"{bucket}/run/y"), Committed)
    assert isinstance(storage.put_new(f"{bucket}/run/z", _DATA), Committed)
    assert isinstance(small := storage.put_new(f"{bucket}/run/small", b"small"), Committed)
    assert storage.get(f"{bucket}/run/x").data == _DATA
    seen = storage.head(f"{bucket}/run/small")
    assert (seen.version, seen.size_bytes, seen.crc32c) == (small.version, 5, crc32c(b"small"))
    assert seen.write_id
    assert abs(seen.mtime_s - time.time()) < 3600
    assert storage.delete_if(f"{bucket}/run/small", small.version)
    methods = {request.method for request in proxy.requests}
    assert methods == {"GET", "HEAD", "PUT", "DELETE", "POST"}
    for request in proxy.requests:
        # A large object is begun and completed by the client.
        is_upload = request.method == "POST" and not request.path.endswith("?delete")
        assert is_direct(request) == (direct and not is_upload)
    requests = bulk(proxy)
    assert len(requests) >= 4
    for request in requests:
        headers = lowered(request)
        assert headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
        assert "expect" not in headers
        assert ("x-amz-checksum-crc32c" in headers) == (request.method == "PUT")


@pytest.mark.parametrize("direct", [True, False])
def test_many_objects_are_deleted_in_one_request_whatever_their_names(
    minio: S3Server, proxy: FaultProxy, bucket: str, direct: bool
) -> None:
    storage = storage_for(minio.through(proxy.url).options | {"direct": direct})
    names = ["run/a&amp;b", "run/<c>", "run/d'e\"", "run/\u00e9\U0001f600", "run/f %2F+g"]
    for name in (*names, "run/a&b"):
        storage.put_new(f"{bucket}/{name}", b"")
    storage.delete_many([f"{bucket}/{name}" for name in (*names, "run/absent")])
    assert {info.key for info in storage.list(f"{bucket}/run/")} == {f"{bucket}/run/a&b", f"{bucket}/run/x"}
    (request,) = [each for each in proxy.requests if b"run/absent<" in each.body]
    assert is_direct(request) == direct
    assert "content-md5" in lowered(request) or not direct


def test_anybody_reads_what_is_public_without_credentials(
    minio: S3Server, proxy: FaultProxy, bucket: str
) -> None:
    everybody = {"Effect": "Allow", "Principal": "*", "Action": ["s3:GetObject"]}
    statement = everybody | {"Resource": [f"arn:aws:s3:::{bucket}/*"]}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    minio.raw.put_bucket_policy(Bucket=bucket, Policy=policy)
    options = {"anon": True, "endpoint_url": proxy.url}
    storage = storage_for(options)
    assert storage.get(f"{bucket}/run/x").data == _DATA
    (request,) = proxy.requests
    assert is_direct(request)
    assert "authorization" not in lowered(request)


def _session_credentials(minio: S3Server) -> dict[str, Any]:
    import boto3

    sts = boto3.client(
        "sts",
        endpoint_url=minio.process.url,
        aws_access_key_id=minio.key,
        aws_secret_access_key=minio.secret,
        region_name="us-east-1",
    )
    answer = sts.assume_role(RoleArn="arn:aws:iam::123456789012:role/x", RoleSessionName="test")
    given: dict[str, Any] = answer["Credentials"]
    return given


def test_session_credentials_are_carried(minio: S3Server, proxy: FaultProxy, bucket: str) -> None:
    given = _session_credentials(minio)
    options = minio.through(proxy.url).options | {
        "key": given["AccessKeyId"],
        "secret": given["SecretAccessKey"],
        "token": given["SessionToken"],
    }
    storage = storage_for(options)
    assert isinstance(save(storage, f"{bucket}/run/y"), Committed)
    assert storage.get(f"{bucket}/run/x").data == _DATA
    for request in bulk(proxy):
        assert is_direct(request)
        assert lowered(request)["x-amz-security-token"] == given["SessionToken"]


def test_credentials_that_run_out_are_renewed(minio: S3Server, proxy: FaultProxy, bucket: str) -> None:
    from aiobotocore.credentials import AioRefreshableCredentials
    from aiobotocore.session import AioSession

    made: list[str] = []
    life_s = [3600.0]

    async def renew() -> dict[str, str]:
        given = _session_credentials(minio)
        made.append(given["AccessKeyId"])
        expiry = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=life_s[0])
        return {
            "access_key": given["AccessKeyId"],
            "secret_key": given["SecretAccessKey"],
            "token": given["SessionToken"],
            "expiry_time": expiry.isoformat(),
        }

    past = (datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)).isoformat()
    old = {"access_key": "old", "secret_key": "old", "token": "old", "expiry_time": past}
    session = AioSession()
    session._credentials = AioRefreshableCredentials.create_from_metadata(old, renew, "test")
    options = {"session": session, "endpoint_url": proxy.url, "client_kwargs": {"region_name": "us-east-1"}}
    storage = storage_for(options)
    key = f"{bucket}/run/x"
    for _ in range(3):
        storage.get(key)
    assert len(made) == 1
    # Within the quarter of an hour before the end they are renewed, every time.
    life_s[0] = 60.0
    session._credentials._expiry_time = datetime.datetime.now(datetime.UTC)
    for _ in range(3):
        assert storage.get(key).data == _DATA
    assert len(made) == 4
    used = [
        lowered(request)["authorization"].partition("Credential=")[2].partition("/")[0]
        for request in proxy.requests
    ]
    assert used == [made[0]] * 3 + made[1:]
    assert all(is_direct(request) for request in proxy.requests)


def test_what_the_request_carried_is_in_no_message(minio: S3Server, proxy: FaultProxy, bucket: str) -> None:
    given = _session_credentials(minio)
    secrets = {
        "key": given["AccessKeyId"],
        "secret": given["SecretAccessKey"],
        "token": given["SessionToken"],
    }
    storage = storage_for(minio.through(proxy.url).options | secrets)
    storage.probe(f"{bucket}/run/x")
    proxy.when("GET").echo(403, "AccessDenied")
    proxy.when("PUT").echo(403, "AccessDenied")
    for call in (
        lambda: storage.get(f"{bucket}/run/x"),
        lambda: save(storage, f"{bucket}/run/y"),
        lambda: storage.put_new(f"{bucket}/run/z", _DATA),
    ):
        with pytest.raises(AccessError) as caught:
            call()
        signature = lowered(proxy.requests[-1]).get("authorization", "").rpartition("Signature=")[2]
        texts = f"{caught.value} {caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r}"
        for secret in (*secrets.values(), signature or "no signature"):
            assert secret not in texts
    proxy.clear()
    for name in ("run/y", "run/z"):
        for request in minio.raw.list_multipart_uploads(Bucket=bucket, Prefix=name).get("Uploads", ()):
            pytest.fail(f"left: {request['Key']}")


@pytest.fixture
def local_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every name below ``localhost`` lead to this machine."""
    ask = socket.getaddrinfo

    def answer(host: Any, *rest: Any, **more: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        return ask("127.0.0.1" if str(name).endswith(".localhost") else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", answer)


@pytest.mark.usefixtures("local_names")
@pytest.mark.parametrize("style", ["virtual", "path"])
def test_both_styles_of_addresses_are_known(minio: S3Server, proxy: FaultProxy, style: str) -> None:
    port = proxy.url.rpartition(":")[2]
    options = minio.options | {
        "endpoint_url": f"http://localhost:{port}",
        "config_kwargs": {"s3": {"addressing_style": style}},
    }
    storage = storage_for(options)
    proxy.when("GET").answer(200, headers={"ETag": '"1"'}, body=b"there")
    name = "run/a b+c%2F?#ü~(1)"
    assert storage.get(f"my-bucket/{name}").data == b"there"
    (request,) = proxy.requests
    assert is_direct(request)
    quoted = "run/a%20b%2Bc%252F%3F%23%C3%BC~%281%29"
    if style == "virtual":
        assert (request.path, lowered(request)["host"]) == (f"/{quoted}", f"my-bucket.localhost:{port}")
    else:
        assert (request.path, lowered(request)["host"]) == (f"/my-bucket/{quoted}", f"localhost:{port}")


@pytest.mark.parametrize(
    "name", ["a b", "plus+and&", "per%2Fcent", "q?versionId=3#x", "ü/ä~(1)'!*", "x=y;z:@,"]
)
def test_every_name_is_signed_as_the_server_reads_it(minio: S3Server, bucket: str, name: str) -> None:
    storage = storage_for(minio.options)
    key = f"{bucket}/run/{name}"
    assert isinstance(storage.put_new(key, _DATA), Committed)
    assert storage.get(key, ByteRange(5, 10)).data == _DATA[5:10]
    assert isinstance(save(storage, key + "-large"), Committed)
    assert minio.get(bucket, f"run/{name}") == _DATA


@pytest.mark.parametrize(
    ("status", "code"), [(301, "PermanentRedirect"), (400, "AuthorizationHeaderMalformed")]
)
def test_a_bucket_in_another_region_is_found_by_the_client_and_remembered(
    minio: S3Server, proxy: FaultProxy, bucket: str, status: int, code: str
) -> None:
    storage = storage_for(minio.through(proxy.url).options)
    region = {"x-amz-bucket-region": "eu-north-1"}
    text = (
        f"<Error><Code>{code}</Code><Message>elsewhere</Message><Region>eu-north-1</Region></Error>".encode()
    )
    # MinIO itself has one region only, so what it gets is signed anew.
    proxy.when("GET").rewrite(lambda request: request)
    # Ours, and the client's first.
    proxy.when("GET").answer(status, headers=region, body=text, times=2)
    for _ in range(3):
        assert storage.get(f"{bucket}/run/x").data == _DATA
    assert [is_direct(request) for request in proxy.requests] == [True, False, False, True, True]
    for request in proxy.requests[2:]:
        assert "/eu-north-1/s3/" in lowered(request)["authorization"]
    assert storage.transport.data_path(bucket, storage.service.new_attempts()).is_direct


def test_a_bucket_that_never_stops_sending_us_on_is_left_to_the_client(
    minio: S3Server, proxy: FaultProxy, bucket: str
) -> None:
    storage = storage_for(minio.through(proxy.url).options)
    proxy.when("GET").answer(307, "TemporaryRedirect")
    for _ in range(5):
        with pytest.raises(CkptStoreError):
            storage.get(f"{bucket}/run/x")
    assert sum(is_direct(request) for request in proxy.requests) == 3
    data_path = storage.transport.data_path(bucket, storage.service.new_attempts())
    assert (data_path.is_direct, data_path.is_wanted) == (False, False)
    assert "elsewhere" in data_path.reason


def _reason(storage: ObjectStorage, bucket: str) -> str:
    """Return why bytes do not travel directly, as `doctor` says it."""
    (finding,) = [one for one in storage.diagnose(f"{bucket}/run") if one.check == "large objects"]
    assert finding.state == "degraded"
    assert finding.hint
    return finding.detail


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"config_kwargs": {"signature_version": "s3"}}, "signed in an unknown way"),
        ({"config_kwargs": {"s3": {"payload_signing_enabled": True}}}, "signed payloads"),
    ],
)
def test_a_signature_that_is_not_known_is_left_to_the_client(
    minio: S3Server, proxy: FaultProxy, bucket: str, options: dict[str, Any], reason: str
) -> None:
    storage = storage_for(minio.through(proxy.url).options | options)
    assert reason in storage.transport.data_path(bucket, storage.service.new_attempts()).reason
    if "signature_version" not in options["config_kwargs"]:
        # With signatures of version 2 this server lists nothing; `doctor` says that first, and no more.
        assert reason in _reason(storage, bucket)
    assert isinstance(save(storage, f"{bucket}/run/y"), Committed)
    assert storage.get(f"{bucket}/run/x").data == _DATA
    assert not any(is_direct(request) for request in proxy.requests)


def test_a_proxy_is_left_to_the_client(
    minio: S3Server, proxy: FaultProxy, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = minio.options | {"config_kwargs": {"proxies": {"http": proxy.url}}}
    storage = storage_for(options)
    assert "proxy" in storage.transport.data_path(bucket, storage.service.new_attempts()).reason
    # It gets whole URLs, as a proxy does, and knows no such path.
    proxy.when().answer(403, "AccessDenied")
    with pytest.raises(AccessError):
        storage.get(f"{bucket}/run/x")
    assert proxy.requests[0].path.startswith("http://")
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    monkeypatch.setenv("NO_PROXY", "")
    storage = storage_for(minio.options)
    assert "proxy" in storage.transport.data_path(bucket, storage.service.new_attempts()).reason
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert storage_for(minio.options).transport.data_path(bucket, storage.service.new_attempts()).is_direct


def test_who_switched_it_off_is_not_warned(minio: S3Server, bucket: str) -> None:
    for direct, words in ((True, "directly over HTTP"), (False, "through s3fs")):
        storage = storage_for(minio.options | {"direct": direct})
        (finding,) = [one for one in storage.diagnose(f"{bucket}/run") if one.check == "large objects"]
        assert finding.state == "ok"
        assert words in finding.detail


def test_options_for_every_request_are_carried(minio: S3Server, proxy: FaultProxy, bucket: str) -> None:
    options = minio.through(proxy.url).options | {
        "requester_pays": True,
        "s3_additional_kwargs": {"StorageClass": "REDUCED_REDUNDANCY"},
    }
    storage = storage_for(options)
    assert storage.get(f"{bucket}/run/x").data == _DATA
    assert isinstance(storage.put_new(f"{bucket}/run/z", _DATA), Committed)
    read, write = bulk(proxy)
    assert lowered(read)["x-amz-request-payer"] == lowered(write)["x-amz-request-payer"] == "requester"
    assert lowered(write)["x-amz-storage-class"] == "REDUCED_REDUNDANCY"
    assert is_direct(read)
    assert is_direct(write)


@pytest.fixture(scope="module")
def tls_minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsS3Server]:
    server: TlsS3Server = need(minio_tls(tmp_path_factory.mktemp("minio-tls")), "minio")
    with server.process:
        yield server


def test_the_authority_of_the_options_is_the_one_that_counts(
    tls_minio: TlsS3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = tls_minio.make_bucket()
    storage = storage_for(tls_minio.options)
    assert isinstance(save(storage, f"{bucket}/run/y"), Committed)
    assert storage.transport.data_path(bucket, storage.service.new_attempts()).reason == "over HTTPS"
    region = {"region_name": "us-east-1"}
    for client in (region, region | {"verify": True}):
        with pytest.raises(AccessError, match="certificate") as caught:
            storage_for(tls_minio.options | {"client_kwargs": client}).get(f"{bucket}/run/y")
        assert "authority" in (caught.value.hint or "")
    assert storage_for(tls_minio.options | {"client_kwargs": region | {"verify": False}}).get(
        f"{bucket}/run/y"
    )
    monkeypatch.setenv("AWS_CA_BUNDLE", tls_minio.authority)
    assert storage_for(tls_minio.options | {"client_kwargs": region}).get(f"{bucket}/run/y")


@pytest.mark.parametrize("kind", ["minio", "versitygw", "moto"])
def test_a_copy_is_made_only_where_nothing_is_and_of_the_version_asked_for(
    request: pytest.FixtureRequest, kind: str
) -> None:
    server: S3Server = request.getfixturevalue(kind)
    bucket = server.make_bucket()
    storage = storage_for(server.options)
    source = f"{bucket}/run/source"
    first = storage.put_new(source, os.urandom(6 * MIB))
    assert isinstance(first, Committed)
    done = storage.copy_from(source, f"{bucket}/run/copy", first.version)
    assert isinstance(done, Committed)
    assert storage.head(f"{bucket}/run/copy").version == done.version
    assert server.get(bucket, "run/copy") == server.get(bucket, "run/source")
    lost = storage.copy_from(source, f"{bucket}/run/copy", first.version)
    assert type(lost).__name__ == "Lost"
    for missing, version in ((source, '"00"'), (f"{bucket}/run/nothing", first.version)):
        with pytest.raises(NotFoundError):
            storage.copy_from(missing, f"{bucket}/run/other", version)
    server.put(bucket, "run/empty", b"")
    empty = storage.head(f"{bucket}/run/empty").version
    assert storage.copy_from(f"{bucket}/run/empty", f"{bucket}/run/other", empty) is None
    assert server.keys(bucket) == ["run/copy", "run/empty", "run/source"]
    for name in ("run/copy", "run/other"):
        assert server.uploads(bucket, name) == []


def test_a_copy_that_the_server_refuses_is_none_and_leaves_nothing(
    minio: S3Server, proxy: FaultProxy, bucket: str
) -> None:
    storage = storage_for(minio.through(proxy.url).options)
    version = storage.head(f"{bucket}/run/x").version
    for status, code in ((501, "NotImplemented"), (403, "AccessDenied"), (412, "PreconditionFailed")):
        proxy.when("PUT", "copy").answer(status, code)
        assert storage.copy_from(f"{bucket}/run/x", f"{bucket}/run/copy", version) is None
    assert minio.uploads(bucket, "run/copy") == []


@pytest.mark.parametrize("where", ["uploads", "partNumber", r"\?uploadId"])
def test_a_copy_whose_answers_are_lost_is_made_all_the_same(
    minio: S3Server, proxy: FaultProxy, bucket: str, where: str
) -> None:
    storage = storage_for(minio.through(proxy.url).options)
    version = storage.head(f"{bucket}/run/x").version
    storage.probe(f"{bucket}/run/copy")
    proxy.when("", f"copy.*{where}" if where != "uploads" else "copy.*uploads").lose_answer(times=1)
    assert isinstance(storage.copy_from(f"{bucket}/run/x", f"{bucket}/run/copy", version), Committed)
    assert minio.get(bucket, "run/copy") == _DATA
    if where == "uploads":
        storage.abort_stale_uploads(f"{bucket}/run/copy", -60.0)
    assert minio.uploads(bucket, "run/copy") == []
