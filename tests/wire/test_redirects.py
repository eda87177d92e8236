"""Servers that send requests elsewhere: nothing goes there, and the error says where that is."""

from __future__ import annotations

import base64
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ckptstore.errors import UsageError
from ckptstore.storage.object_store.faults import Fault
from ckptstore.storage.object_store.transport import ObjectName, PutRequest
from ckptstore.storage.s3.client import S3Client
from ckptstore.storage.s3.s3fs_client import call_s3
from ckptstore.storage.s3.transport import S3Transport
from tests.servers.certificates import make_certificates
from tests.servers.peer import Conversation, running
from tests.wire.test_endless_answers import (
    CLIENT,
    DIRECT,
    OPENERS,
    PLANES,
    QUICK,
    Opener,
    gcs,
    read,
    s3,
    started,
)

SECRETS: dict[str, Any] = {
    "token": "s3ss10n-token",
    "s3_additional_kwargs": {
        "SSECustomerAlgorithm": "AES256",
        "SSECustomerKey": base64.b64encode(b"k" * 32).decode(),
    },
}


class Elsewhere:
    """Answers each request with a redirect to another server, and notes what that one gets."""

    def __init__(self, status: str, fields: str = "") -> None:
        self.status = status
        self.fields = fields
        self.got: list[str] = []
        self.port = 0

    def take(self, talk: Conversation) -> None:
        head, _ = talk.take()
        self.got.append(head[""])
        talk.answer(b"stolen", fields='ETag: "e"\nX-Goog-Generation: 1\n')

    def lead(self, talk: Conversation) -> None:
        while True:
            head, _ = talk.take()
            path = head[""].split()[1]
            talk.answer(b"", self.status, f"Location: http://localhost:{self.port}{path}\n{self.fields}")


@OPENERS
@PLANES
@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary", "308 For Ever"])
def test_a_read_is_not_sent_to_another_host(status: str, plane: dict[str, Any], opened: Opener) -> None:
    elsewhere = Elsewhere(status)
    options = plane if opened is gcs else plane | SECRETS
    with running(elsewhere.take) as other, running(elsewhere.lead) as first:
        elsewhere.port = other.port
        with pytest.raises(UsageError, match="localhost") as caught:
            read(opened(f"http://127.0.0.1:{first.port}", options, QUICK))
    assert elsewhere.got == []
    assert "s3ss10n" not in str(caught.value)


@OPENERS
@PLANES
def test_nor_is_it_when_the_answer_names_a_region(plane: dict[str, Any], opened: Opener) -> None:
    elsewhere = Elsewhere("301 Moved", "x-amz-bucket-region: eu-west-1\n")
    options = plane if opened is gcs else plane | SECRETS
    with running(elsewhere.take) as other, running(elsewhere.lead) as first:
        elsewhere.port = other.port
        with pytest.raises(UsageError) as caught:
            read(opened(f"http://127.0.0.1:{first.port}", options, QUICK))
    assert elsewhere.got == []
    assert "s3ss10n" not in str(caught.value)


# Not through the client of gs://: aiohttp reads the authorities when it is imported.
@pytest.mark.parametrize(("opened", "plane"), [(s3, DIRECT), (s3, CLIENT), (gcs, DIRECT)])
def test_nor_from_https_to_http(
    plane: dict[str, Any], opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = Elsewhere("307 Temporary")
    authority, theirs = make_certificates(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    trust = {"client_kwargs": {"region_name": "us-east-1", "verify": str(authority)}, **SECRETS}
    options = plane if opened is gcs else plane | trust
    with running(elsewhere.take) as other, running(elsewhere.lead, theirs) as first:
        elsewhere.port = other.port
        # Of the same name.
        with pytest.raises(UsageError, match="localhost"):
            read(opened(f"https://localhost:{first.port}", options, QUICK))
    assert elsewhere.got == []


@OPENERS
@PLANES
@pytest.mark.parametrize("size_bytes", [1, 300_000])
def test_no_write_is_sent_to_another_host(size_bytes: int, plane: dict[str, Any], opened: Opener) -> None:
    elsewhere = Elsewhere("308 For Ever")
    options = plane if opened is gcs else plane | SECRETS
    with running(elsewhere.take) as other, running(elsewhere.lead) as first:
        elsewhere.port = other.port
        transport = opened(f"http://127.0.0.1:{first.port}", options, QUICK).transport
        request = PutRequest(ObjectName("bucket", "run/x"), "id", None, size_bytes, 0)
        with pytest.raises(Fault, match="localhost"):
            transport.put(request, [memoryview(bytes(size_bytes))], started())
        for call in (transport.head, partial(transport.delete, version=None)):
            with pytest.raises(Fault, match="localhost"):
                call(ObjectName("bucket", "run/x"), started())
        with pytest.raises(Fault, match="localhost"):
            transport.list_page("bucket", "run/", None, started())
    assert elsewhere.got == []


@PLANES
def test_a_chunk_of_an_upload_is_not_sent_to_another_host(plane: dict[str, Any]) -> None:
    elsewhere = Elsewhere("307 Temporary")

    def begin(talk: Conversation) -> None:
        head, _ = talk.take()
        if head[""].startswith("POST"):
            here = f"http://{head['host']}/upload"
            talk.answer(fields=f"Location: {here}?upload_id=u\nConnection: close\n")
        else:
            place = f"Location: http://localhost:{elsewhere.port}/x\nConnection: close\n"
            talk.answer(b"", elsewhere.status, place)

    with running(elsewhere.take) as other, running(begin) as first:
        elsewhere.port = other.port
        transport = gcs(f"http://127.0.0.1:{first.port}", plane, QUICK).transport
        request = PutRequest(ObjectName("bucket", "run/x"), "id", None)
        session = transport.begin(request, started())
        with pytest.raises(Fault, match="localhost"):
            session.send(0, 0, [memoryview(bytes(300_000))], 0, started())
    assert elsewhere.got == []


@PLANES
@pytest.mark.parametrize("region", ["", "eu-west-1", "a.example/#"])
def test_a_write_is_not_sent_to_another_host(region: str, plane: dict[str, Any]) -> None:
    elsewhere = Elsewhere("307 Temporary", region and f"x-amz-bucket-region: {region}\n")
    with running(elsewhere.take) as other, running(elsewhere.lead) as first:
        elsewhere.port = other.port
        options = {"endpoint_url": f"http://127.0.0.1:{first.port}", "key": "k", "secret": "s"}
        transport = S3Transport(S3Client(options | plane | SECRETS))
        request = PutRequest(ObjectName("bucket", "run/x"), "id", None, 1 << 20, 0)
        with pytest.raises(Fault, match=r"localhost|region_name"):
            transport.put(request, [memoryview(bytes(1 << 20))], started())
    assert elsewhere.got == []


def test_the_client_itself_goes_no_further_than_the_domain_of_the_endpoint() -> None:
    client = S3Client({"endpoint_url": "http://127.0.0.1:1", "key": "k", "secret": "s"})

    async def use(fs: Any) -> None:
        s3 = await fs.get_s3("bucket")

        def lead_away(request: Any, **_: Any) -> None:
            request.url = "http://elsewhere.example/bucket/x"

        s3.meta.events.register_first("before-sign.s3", lead_away)
        await call_s3(fs, "head_object", Bucket="bucket", Key="x")

    with pytest.raises(Fault, match=r"elsewhere\.example"):
        client.call(use, started(), "bucket")


def test_an_upload_session_on_another_host_is_not_used() -> None:
    elsewhere = Elsewhere("200 OK")
    with running(elsewhere.take) as other, running(elsewhere.lead) as first:
        elsewhere.port = other.port
        storage = gcs(f"http://127.0.0.1:{first.port}", CLIENT, QUICK)
        request = PutRequest(ObjectName("bucket", "run/x"), "id", None)
        with pytest.raises(Fault, match="localhost"):
            storage.transport.begin(request, started())
    assert elsewhere.got == []
