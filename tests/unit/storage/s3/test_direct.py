"""What is read off a request that the client prepared, and what makes it unfit to be a pattern."""

from __future__ import annotations

import ssl
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ckptstore.storage.s3.blueprint import Blueprint
from ckptstore.storage.s3.client import S3Client
from ckptstore.storage.s3.direct import S3Direct, Template
from ckptstore.storage.s3.plain_access import Refused
from tests.servers.certificates import make_certificates

_AUTHORIZATION = (
    "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20261123/eu-north-1/s3/aws4_request, "
    "SignedHeaders=host, Signature=0"
)
_HEADERS = {
    "User-Agent": "client",
    "X-Amz-Date": "20261123T000000Z",
    "X-Amz-Content-SHA256": "UNSIGNED-PAYLOAD",
    "Authorization": _AUTHORIZATION,
    "amz-sdk-request": "attempt=1",
    "x-amz-request-payer": "requester",
    "Content-Length": "0",
}


def blueprint(**changed: Any) -> Blueprint:
    whole = {
        "name": "the-name",
        "url": "https://bucket.s3.eu-north-1.amazonaws.com/the-name?partNumber=1&uploadId=x",
        "headers": _HEADERS,
        "credentials": SimpleNamespace(),
        "verify": True,
        "certificate": (),
        "has_proxy": False,
        "own_connections": "",
        "connect_timeout_s": 5.0,
        "read_timeout_s": 30.0,
        "most_connections": 64,
    }
    return Blueprint(**{**whole, **changed})


def read(**changed: Any) -> Template | Refused:
    return S3Direct(S3Client({})).template_of(blueprint(**changed))


def test_place_region_and_what_every_request_carries_are_read() -> None:
    plan = read()
    assert isinstance(plan, Template)
    assert plan.base == "https://bucket.s3.eu-north-1.amazonaws.com/"
    assert plan.region == "eu-north-1"
    assert plan.headers == {"User-Agent": "client", "x-amz-request-payer": "requester"}
    assert (plan.server.host, plan.server.port) == ("bucket.s3.eu-north-1.amazonaws.com", 443)


def test_a_path_and_a_port_are_kept() -> None:
    plan = read(url="http://127.0.0.1:9000/some/bucket/the-name")
    assert isinstance(plan, Template)
    assert plan.base == "http://127.0.0.1:9000/some/bucket/"
    assert (plan.server.host, plan.server.port, plan.server.is_encrypted) == ("127.0.0.1", 9000, False)


def test_requests_without_a_signature_stay_without() -> None:
    plan = read(headers={"User-Agent": "client"}, credentials=None)
    assert isinstance(plan, Template)
    assert plan.region == ""


def _signed(text: str) -> dict[str, str]:
    return _HEADERS | {"Authorization": text}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"headers": _signed(_AUTHORIZATION.replace("/s3/", "/s3express/"))}, "in an unknown way"),
        ({"headers": _signed(_AUTHORIZATION.replace("/s3/", "/s3-object-lambda/"))}, "in an unknown way"),
        ({"headers": _signed(_AUTHORIZATION.replace("/eu-north-1/", "/"))}, "in an unknown way"),
        (
            {"headers": _signed("AWS4-ECDSA-P256-SHA256 Credential=A/20261123/s3/aws4_request")},
            "in an unknown way",
        ),
        ({"headers": _signed("AWS AKID:signature=")}, "in an unknown way"),
        ({"headers": _signed("Bearer token")}, "in an unknown way"),
        ({"headers": {}, "url": "https://b.example/the-name?X-Amz-Signature=0"}, "in an unknown way"),
        ({"headers": _HEADERS | {"X-Amz-Content-SHA256": "e3b0c4"}}, "signed payloads"),
        ({"headers": _HEADERS | {"X-Amz-Content-SHA256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER"}}, "payloads"),
        ({"url": "https://b.example/?key=the-name"}, "unknown form"),
        ({"url": "https://b.example/prefix-the-name"}, "unknown form"),
        ({"url": "ftp://b.example/the-name"}, "unknown form"),
        ({"has_proxy": True}, "proxy"),
        ({"own_connections": "connector_args"}, "connector_args"),
        ({"verify": None}, "TLS"),
        ({"credentials": None}, "credentials"),
    ],
)
def test_what_is_not_understood_is_left_to_the_client(changed: dict[str, Any], reason: str) -> None:
    plan = read(**changed)
    assert isinstance(plan, Refused)
    assert reason in plan.reason
    assert "AKID" not in plan.reason


def test_trust_is_what_the_client_has(tmp_path: Path) -> None:
    authority, _ = make_certificates(tmp_path)

    def context(verify: Any) -> ssl.SSLContext:
        plan = read(verify=verify)
        assert isinstance(plan, Template)
        made = plan.server.context
        assert made is not None
        return made

    own = context(str(authority))
    assert (own.verify_mode, own.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert len(own.get_ca_certs()) == 1, "those of the system are not trusted beside it"
    assert len(context(True).get_ca_certs()) > 1
    assert (context(False).verify_mode, context(False).check_hostname) == (ssl.CERT_NONE, False)


def test_hosts_share_connections_and_nothing_shows_a_secret() -> None:
    direct = S3Direct(S3Client({}))
    first, second = (direct.template_of(blueprint()) for _ in range(2))
    other = direct.template_of(blueprint(url="https://other.example/the-name"))
    assert isinstance(first, Template)
    assert isinstance(second, Template)
    assert isinstance(other, Template)
    assert first.server is second.server is not other.server
    assert "AKID" not in repr(blueprint())
