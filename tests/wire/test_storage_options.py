"""Settings of s3fs and gcsfs on the wire: what reaches the requests of one plane reaches the other's, too."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

import ckptstore as ck
from ckptstore.errors import AccessError, UsageError
from ckptstore.storage.gcs.transport import GcsTransport
from ckptstore.storage.object_store.attempts import Attempts, RetryBudget, RetryPolicy
from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.object_store.storage import ObjectStorage
from ckptstore.storage.object_store.transport import ObjectName, PutRequest
from ckptstore.storage.registry import locate
from ckptstore.storage.s3.client import S3Client
from ckptstore.storage.s3.transport import S3Transport
from ckptstore.storage.values import Committed
from tests.servers.fault_proxy import FaultProxy
from tests.servers.fixtures import need
from tests.servers.gcs import GcsServer
from tests.servers.peer import PATIENCE_S, Conversation, running
from tests.servers.s3 import S3Server
from tests.servers.s3_tls import TlsS3Server, minio_tls
from tests.wire.test_endless_answers import PLANES

MIB = 1 << 20


@pytest.fixture
def proxy(minio: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(minio.process.port) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def tls_minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsS3Server]:
    server: TlsS3Server = need(minio_tls(tmp_path_factory.mktemp("minio-tls")), "minio")
    with server.process:
        yield server


def s3_storage(options: dict[str, Any]) -> ObjectStorage:
    return ObjectStorage(S3Transport(S3Client(options)), RetryPolicy(pause_scale=0.0))


def write_all_ways(storage: ObjectStorage, directory: str) -> list[str]:
    """Write a small object, one whose body goes directly, one in parts, and a copy; return their keys."""
    keys = [f"{directory}/{name}" for name in ("small", "large", "parts", "copy")]
    assert isinstance(storage.put_new(keys[0], b"x"), Committed)
    first = storage.put_new(keys[1], bytes(300_000))
    assert isinstance(first, Committed)
    with storage.upload(keys[2], 20 * MIB) as upload:
        upload.write(bytes(20 * MIB))
        assert isinstance(upload.commit(), Committed)
    assert isinstance(storage.copy_from(keys[1], keys[3], first.version), Committed)
    return keys


@PLANES
def test_metadata_stands_beside_ours(minio: S3Server, plane: dict[str, Any]) -> None:
    bucket = minio.make_bucket()
    given = {"s3_additional_kwargs": {"Metadata": {"team": "blue"}, "ChecksumAlgorithm": "CRC32C"}}
    storage = s3_storage(minio.options | plane | given)
    for key in write_all_ways(storage, f"{bucket}/run"):
        metadata = minio.raw.head_object(Bucket=bucket, Key=key.partition("/")[2])["Metadata"]
        assert metadata["team"] == "blue"
        assert metadata["ckptstore_write_id"] == storage.head(key).write_id != ""


@PLANES
def test_who_pays_is_said_in_every_request(minio: S3Server, proxy: FaultProxy, plane: dict[str, Any]) -> None:
    bucket = minio.make_bucket()
    storage = s3_storage(minio.through(proxy.url).options | plane | {"requester_pays": True})
    for key in write_all_ways(storage, f"{bucket}/run"):
        storage.get(key)
    list(storage.list(f"{bucket}/run/"))
    for request in proxy.requests:
        headers = {name.lower(): value for name, value in request.headers.items()}
        assert headers.get("x-amz-request-payer") == "requester", (request.method, request.path)


ADDITIONAL: dict[str, tuple[Any, str]] = {
    "ACL": ("bucket-owner-full-control", "x-amz-acl"),
    "GrantFullControl": ("id=1", "x-amz-grant-full-control"),
    "GrantRead": ("id=2", "x-amz-grant-read"),
    "GrantReadACP": ("id=3", "x-amz-grant-read-acp"),
    "GrantWriteACP": ("id=4", "x-amz-grant-write-acp"),
    "ServerSideEncryption": ("aws:kms", "x-amz-server-side-encryption"),
    "SSEKMSKeyId": ("k3y", "x-amz-server-side-encryption-aws-kms-key-id"),
    "SSEKMSEncryptionContext": ("e30=", "x-amz-server-side-encryption-context"),
    "BucketKeyEnabled": (True, "x-amz-server-side-encryption-bucket-key-enabled"),
    "StorageClass": ("STANDARD_IA", "x-amz-storage-class"),
    "Tagging": ("team=blue", "x-amz-tagging"),
    "CacheControl": ("no-store", "cache-control"),
    "ContentDisposition": ("inline", "content-disposition"),
    "ContentLanguage": ("en", "content-language"),
    "ContentType": ("application/x-index", "content-type"),
    "Expires": ("Wed, 21 Oct 2026 07:28:00 GMT", "expires"),
    "WebsiteRedirectLocation": ("/elsewhere", "x-amz-website-redirect-location"),
    "ObjectLockMode": ("GOVERNANCE", "x-amz-object-lock-mode"),
    "ObjectLockRetainUntilDate": ("2026-10-21T07:28:00Z", "x-amz-object-lock-retain-until-date"),
    "ObjectLockLegalHoldStatus": ("ON", "x-amz-object-lock-legal-hold"),
    "ExpectedBucketOwner": ("123456789012", "x-amz-expected-bucket-owner"),
}


def test_what_is_said_of_an_object_is_said_on_both_planes() -> None:
    seen: list[dict[str, str]] = []

    def serve(talk: Conversation) -> None:
        while True:
            head, _ = talk.take()
            seen.append(head)
            upload = b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"
            talk.answer(upload if head[""].startswith("POST") else b"", fields='ETag: "e"\n')

    given = {name: value for name, (value, _) in ADDITIONAL.items()}
    names = {header for _, header in ADDITIONAL.values()}
    with running(serve) as peer:
        options = {"endpoint_url": f"http://127.0.0.1:{peer.port}", "key": "k", "secret": "s"}
        attempts = Attempts(RetryPolicy(), RetryBudget())
        attempts.begin()
        request = PutRequest(ObjectName("bucket", "x"), "id", None, 1, 0)
        for direct in (False, True):
            transport = S3Transport(S3Client(options | {"s3_additional_kwargs": given, "direct": direct}))
            transport.put(request, [memoryview(bytes(1))], attempts)
        transport.begin(request, attempts)
    by_client, directly, begun = seen
    assert "aiobotocore" in by_client["user-agent"].lower()
    assert "amz-sdk-invocation-id" in by_client
    # So it is the other plane.
    assert "amz-sdk-invocation-id" not in directly
    for head in (by_client, directly, begun):
        assert names - head.keys() == set()
    of = {name: value for name, value in by_client.items() if name in names}
    assert {name: value for name, value in directly.items() if name in names} == of
    assert {name: value for name, value in begun.items() if name in names} == of


@pytest.mark.parametrize("direct", [True, False])
def test_what_is_said_of_deletes_is_said_in_them(direct: bool) -> None:
    seen: list[dict[str, str]] = []

    def serve(talk: Conversation) -> None:
        for answer in (b"", b"<DeleteResult/>"):
            head, _ = talk.take()
            seen.append(head)
            talk.answer(answer)

    with running(serve) as peer:
        options = {"endpoint_url": f"http://127.0.0.1:{peer.port}", "key": "k", "secret": "s"}
        said = {"BypassGovernanceRetention": True, "MFA": "serial 123456"}
        transport = S3Transport(S3Client(options | {"s3_additional_kwargs": said, "direct": direct}))
        attempts = Attempts(RetryPolicy(), RetryBudget())
        attempts.begin()
        transport.delete(ObjectName("bucket", "x"), attempts, version='"e"')
        assert transport.delete_many("bucket", ["x", "y"], attempts) == {}
    one, many = seen
    assert one[""] == "DELETE /bucket/x HTTP/1.1"
    assert one["if-match"] == '"e"'
    assert many[""] == "POST /bucket?delete HTTP/1.1"
    for head in seen:
        assert ("amz-sdk-invocation-id" in head) == (not direct)
        assert head["x-amz-bypass-governance-retention"].lower() == "true"
        assert head["x-amz-mfa"] == "serial 123456"


@PLANES
def test_who_pays_is_said_in_every_request_to_google(gcs_server: GcsServer, plane: dict[str, Any]) -> None:
    bucket = gcs_server.make_bucket()
    with FaultProxy(gcs_server.processes[-1].port) as proxy:
        options = gcs_server.options | {"endpoint_url": proxy.url, "requester_pays": True} | plane
        storage = ObjectStorage(GcsTransport(options), RetryPolicy(pause_scale=0.0))
        for key in write_all_ways(storage, f"{bucket}/run"):
            storage.get(key)
        list(storage.list(f"{bucket}/run/"))
        storage.delete_many([f"{bucket}/run/small"])
        assert len(proxy.requests) > 8
        for request in proxy.requests:
            whole = request.path + request.body.decode("latin-1") if "batch" in request.path else request.path
            assert "userProject=p" in whole, (request.method, request.path)


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_nothing_is_asked_of_a_server_before_a_wrong_name_is_refused(scheme: str) -> None:
    asked: list[str] = []

    def serve(talk: Conversation) -> None:
        asked.append(talk.head()[""])

    all_wrong: dict[str, list[dict[str, Any]]] = {
        "s3": [
            {"s3_additional_kwargs": {"ServerSideEncryptin": "aws:kms"}},
            {"s3_additional_kwarg": {"ServerSideEncryption": "aws:kms"}},
            {"config_kwargs": {"read_timeot": 1}},
            {"client_kwargs": {"verifyy": True}},
        ],
        "gs": [{"sesion_kwargs": {}}, {"session_kwargs": {"trust_enw": True}}, {"timeout": 3}],
    }
    secrets = {"key": "k", "secret": "s"} if scheme == "s3" else {"token": "anon", "project": "p"}
    with running(serve) as peer:
        for one in all_wrong[scheme]:
            options = {"endpoint_url": f"http://127.0.0.1:{peer.port}", **secrets, **one}
            for call in (
                partial(ck.Saver().save, {"w": 1.0}, f"{scheme}://bucket/run/model"),
                partial(ck.latest_checkpoint, f"{scheme}://bucket/run"),
            ):
                with pytest.raises(UsageError):
                    call(storage_options=options)
    assert asked == []


@PLANES
def test_what_a_customer_encrypts_is_copied_with_the_key_of_the_source(
    tls_minio: TlsS3Server, plane: dict[str, Any]
) -> None:
    bucket = tls_minio.make_bucket()
    secret = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": "k" * 32}
    storage = s3_storage(tls_minio.options | plane | {"s3_additional_kwargs": secret})
    keys = write_all_ways(storage, f"{bucket}/run")
    assert storage.get(keys[3]).data == storage.get(keys[1]).data == bytes(300_000)
    with pytest.raises(tls_minio.raw.exceptions.ClientError):
        tls_minio.raw.get_object(Bucket=bucket, Key="run/copy")


@PLANES
def test_the_region_of_each_bucket_is_found(
    minio: S3Server, proxy: FaultProxy, plane: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # With an endpoint or a region in the options s3fs looks for none.
    for name, value in minio.through(proxy.url).environment.items():
        if "REGION" not in name:
            monkeypatch.setenv(name, value)
    storage = s3_storage({"cache_regions": True, **plane})
    bucket = minio.make_bucket()
    for key in write_all_ways(storage, f"{bucket}/run"):
        storage.get(key)
    # How s3fs asks; MinIO names no region, so it asks again.
    assert proxy.count("HEAD", rf"^/{bucket}/?$") >= 1


def test_the_time_to_connect_is_that_of_the_options_on_both_planes() -> None:
    given = {"config_kwargs": {"connect_timeout": 0.7, "max_pool_connections": 3}}
    options = {"endpoint_url": "http://127.0.0.1:1", "key": "k", "secret": "s", **given}
    client = S3Client(options)
    attempts = Attempts(RetryPolicy(), RetryBudget())

    async def config(fs: Any) -> Any:
        return (await fs.get_s3("bucket")).meta.config

    of_client = client.call(config, attempts, "bucket")
    blueprint = client.blueprint("get_object", "bucket", attempts)
    assert blueprint.connect_timeout_s == of_client.connect_timeout == 0.7
    assert blueprint.most_connections == of_client.max_pool_connections == 3


@PLANES
def test_the_read_timeout_holds_on_both_planes(plane: dict[str, Any]) -> None:
    ended: list[bool] = []

    def mute(talk: Conversation) -> None:
        talk.take()
        # The end of the connection, or nothing for a long time.
        talk.socket.settimeout(PATIENCE_S)
        ended.append(talk.socket.recv(1) == b"")

    with running(mute) as peer:
        options = {"endpoint_url": f"http://127.0.0.1:{peer.port}", "key": "k", "secret": "s", **plane}
        transport = S3Transport(S3Client(options | {"config_kwargs": {"read_timeout": 0.3}}))
        attempts = Attempts(RetryPolicy(10 * PATIENCE_S, 10 * PATIENCE_S), RetryBudget())
        attempts.begin()
        with pytest.raises(Fault) as caught:
            transport.get(
                ObjectName("bucket", "x"),
                attempts,
                byte_range=None,
                version=None,
                accept=lambda head: pytest.fail("answered"),
            )
    assert caught.value.kind is Kind.STALLED
    assert ended == [True]


@pytest.mark.parametrize("name", ["connector_args", "tcp_keepalive"])
def test_what_shapes_the_connections_of_the_client_keeps_everything_on_them(name: str) -> None:
    given = {"connector_args": {"use_dns_cache": False}, "tcp_keepalive": True}
    options = {"endpoint_url": "http://127.0.0.1:1", "key": "k", "secret": "s"}
    transport = S3Transport(S3Client(options | {"config_kwargs": {name: given[name]}}))
    attempts = Attempts(RetryPolicy(), RetryBudget())
    data_path = transport.data_path("bucket", attempts)
    assert not data_path.is_direct
    assert name in data_path.reason


@pytest.mark.parametrize("name", ["session_kwargs", "requests_timeout"])
def test_what_shapes_the_session_of_gcsfs_keeps_everything_on_it(name: str) -> None:
    given: dict[str, Any] = {"session_kwargs": {"trust_env": True}, "requests_timeout": 30.0}
    transport = GcsTransport({"endpoint_url": "http://127.0.0.1:1", "token": "anon", name: given[name]})
    data_path = transport.data_path("bucket", Attempts(RetryPolicy(), RetryBudget()))
    assert not data_path.is_direct
    assert name in data_path.reason


def test_a_misspelt_name_for_the_session_of_gcsfs_is_refused() -> None:
    with pytest.raises(UsageError, match="trust_enw") as caught:
        locate("gs://bucket/run", {"token": "anon", "session_kwargs": {"trust_enw": True}})
    assert "trust_env" in (caught.value.hint or "")


ENDPOINTS = {
    "s3": lambda url: s3_storage({"endpoint_url": url, "anon": True, "client_kwargs": {"region_name": "r"}}),
    "gs": lambda url: ObjectStorage(
        GcsTransport({"endpoint_url": url, "token": "anon"}), RetryPolicy(pause_scale=0.0)
    ),
}


@pytest.mark.parametrize("scheme", ENDPOINTS)
@pytest.mark.parametrize("protocol", ["http", "https"])
def test_the_usual_variables_name_the_proxy_and_its_407_is_explained(
    protocol: str, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def refuse(talk: Conversation) -> None:
        head, _ = talk.take()
        asked.append(head[""])
        talk.answer(b"", "407 Who Are You", "Proxy-Authenticate: Basic\nConnection: close\n")

    with running(refuse) as peer:
        for name in ("HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://me:h1dden@127.0.0.1:{peer.port}")
        with pytest.raises(AccessError, match="407") as caught:
            ENDPOINTS[scheme](f"{protocol}://storage.example").get("bucket/x")
    assert asked
    assert all("storage.example" in line for line in asked)
    assert "USER:PASSWORD" in (caught.value.hint or "")
    assert "h1dden" not in str(caught.value)


@pytest.mark.parametrize("scheme", ENDPOINTS)
def test_no_proxy_is_used_for_a_host_that_is_exempt(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def serve(talk: Conversation) -> None:
        head, _ = talk.take()
        asked.append(head[""])
        talk.answer(b"", "403 Forbidden", "Connection: close\n")

    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with running(serve) as peer, pytest.raises(AccessError):
        ENDPOINTS[scheme](f"http://127.0.0.1:{peer.port}").get("bucket/x")
    assert asked
    assert all(line.split()[1].startswith("/") for line in asked)
