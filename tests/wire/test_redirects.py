"""Servers that send requests elsewhere: nothing goes there, and the error says where that is."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from ckptstore.errors import UsageError
from ckptstore.storage.object_store.attempts import Attempts, RetryBudget, RetryPolicy
from ckptstore.storage.object_store.faults import Fault
from ckptstore.storage.object_store.transport import ObjectName, PutRequest
from ckptstore.storage.s3.client import S3Client, call_s3
from ckptstore.storage.s3.transport import S3Transport
from tests.servers.peer import Conversation, running
from tests.wire.test_endless_answers import CLIENT, OPENERS, PLANES, QUICK, Opener, gcs, read

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


def started() -> Attempts:
    attempts = Attempts(RetryPolicy(), RetryBudget())
    attempts.begin()
    return attempts


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
