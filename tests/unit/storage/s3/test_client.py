"""How s3fs is configured, where an endpoint may be, and what is not loaded too early."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from ckptstore.errors import UnsupportedError, UsageError
from ckptstore.storage import registry
from ckptstore.storage.object_store.attempts import Attempts, RetryBudget, RetryPolicy
from ckptstore.storage.object_store.storage import ObjectStorage
from ckptstore.storage.registry import locate
from ckptstore.storage.s3.client import S3Client
from ckptstore.storage.s3.client_settings import client_settings
from ckptstore.storage.s3.s3fs_client import _drop_expect
from ckptstore.storage.s3.sent_body import SentBody
from ckptstore.storage.s3.transport import S3Transport
from tests.meta.source import ROOT


def _settings(**options: Any) -> dict[str, Any]:
    return client_settings(options)


def _attempts() -> Attempts:
    return Attempts(RetryPolicy(), RetryBudget())


def test_no_listing_and_no_instance_is_cached() -> None:
    settings = _settings(use_ssl=True)
    assert settings["use_listings_cache"] is False
    assert settings["skip_instance_cache"] is True


def test_requests_are_sent_once_whatever_the_options_say() -> None:
    for options in ({}, {"config_kwargs": {"read_timeout": 7}}):
        config = _settings(**options)["config_kwargs"]
        assert config["retries"]["total_max_attempts"] == 1
    assert config["read_timeout"] == 7
    assert config["max_pool_connections"] == 64


def test_the_payload_is_not_hashed_a_second_time() -> None:
    config = _settings(config_kwargs={"s3": {"addressing_style": "path"}})["config_kwargs"]
    assert config["s3"] == {"payload_signing_enabled": False, "addressing_style": "path"}


def test_options_go_through_unchanged() -> None:
    given = {
        "key": "k",
        "secret": "s",
        "endpoint_url": "http://127.0.0.1:1",
        "client_kwargs": {"verify": "ca"},
    }
    settings = _settings(**given)
    assert given.items() <= settings.items()
    assert "allow_http" not in _settings(allow_http=True)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9000", "http://localhost:9000", "http://[::1]:9000"])
def test_plain_http_is_for_this_machine(url: str) -> None:
    assert S3Client({"endpoint_url": url, "key": "k", "secret": "s"}).endpoint(_attempts()) == url


def test_plain_http_elsewhere_has_to_be_asked_for() -> None:
    options = {"endpoint_url": "http://storage.example:9000", "key": "k", "secret": "s"}
    with pytest.raises(UsageError, match="plain http") as caught:
        S3Client(options).endpoint(_attempts())
    assert "allow_http" in (caught.value.hint or "")
    assert S3Client(options | {"allow_http": True}).endpoint(_attempts()) == options["endpoint_url"]


def test_plain_http_is_for_who_has_no_credentials() -> None:
    options = {"endpoint_url": "http://storage.example:9000", "anon": True}
    assert S3Client(options).endpoint(_attempts()) == options["endpoint_url"]


def test_an_endpoint_never_shows_a_password() -> None:
    options = {"endpoint_url": "http://me:hidden@127.0.0.1:9000", "key": "k", "secret": "s"}
    client = S3Client(options)
    assert "hidden" not in client.endpoint(_attempts())


def test_the_standard_variables_are_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1234")
    assert S3Client({}).endpoint(_attempts()) == "http://127.0.0.1:1234"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:5678")
    assert S3Client({}).endpoint(_attempts()) == "http://127.0.0.1:5678"


def test_another_environment_is_another_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    first = locate("s3://b/x").storage
    assert locate("s3://b/y", {}).storage is first
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:2")
    assert locate("s3://b/x").storage is not first


def test_options_of_fsspecs_own_configuration_do_not_reach_us(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.config import conf

    monkeypatch.setitem(conf, "s3", {"endpoint_url": "http://attacker.example"})
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert S3Client({}).endpoint(_attempts()) == "http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("body", "name", "stays"),
    [
        (b"x" * (1 << 20), "PutObject", False),
        (b"x" * ((1 << 20) + 1), "PutObject", True),
        (b"x" * (8 << 20), "UploadPart", False),
        (None, "DeleteObject", False),
    ],
)
def test_only_large_conditional_bodies_wait_for_the_server(
    body: bytes | None, name: str, stays: bool
) -> None:
    class Model:
        pass

    model = Model()
    model.name = name  # type: ignore[attr-defined]
    params = {"headers": {"Expect": "100-continue"}, "body": body}
    _drop_expect(params, model=model, context={})
    assert ("Expect" in params["headers"]) is stays  # type: ignore[operator]


def test_a_body_can_be_sent_twice() -> None:
    import asyncio

    data = bytes(range(256)) * 1000
    body = SentBody((memoryview(data[:1000]), memoryview(data[1000:])), _attempts())

    async def send() -> bytes:
        return b"".join([bytes(piece) async for piece in body])

    assert len(body) == len(data)
    assert asyncio.run(send()) == asyncio.run(send()) == data
    assert (body.read(3), body.tell(), body.seek(-1, 2), body.read()) == (
        data[:3],
        3,
        len(data) - 1,
        data[-1:],
    )


def test_no_text_about_a_storage_contains_a_secret() -> None:
    options = {"key": "AKIAEXAMPLE", "secret": "very-secret", "token": "session-token"}
    location = locate("s3://bucket/run", options | {"endpoint_url": "http://127.0.0.1:1"})
    storage = location.storage
    assert isinstance(storage, ObjectStorage)
    assert isinstance(storage.transport, S3Transport)
    things = (location, storage, storage.transport, storage.transport._client, storage.capabilities)
    for thing in things:
        for text in (str(thing), repr(thing)):
            assert not any(secret in text for secret in options.values())


def test_unknown_options_are_refused_with_a_guess() -> None:
    with pytest.raises(UsageError, match="endpoint_ulr") as caught:
        locate("s3://b/x", {"endpoint_ulr": "http://127.0.0.1:1"})
    assert caught.value.hint == "Did you mean 'endpoint_url'?"


@pytest.mark.parametrize(
    "options",
    [
        {"key": "k", "username": "u"},
        {"config_kwargs": {"s3": {"addressing_style": "p"}}},
        {"endpoint_url": "x"},
    ],
)
def test_options_that_the_client_does_not_take_are_a_mistake_of_the_caller(options: dict[str, Any]) -> None:
    storage = locate("s3://b/x", options).storage
    with pytest.raises(UsageError):
        storage.get("b/x")


def test_without_the_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(**options: Any) -> Any:
        raise ModuleNotFoundError("No module named 's3fs'", name="s3fs")

    monkeypatch.setitem(registry._BACKENDS, "s3", registry._Backend(missing, frozenset(), "s3"))
    monkeypatch.setattr(registry, "_instances", {})
    with pytest.raises(UnsupportedError, match="s3fs") as caught:
        locate("s3://b/x")
    assert "ckptstore[s3]" in (caught.value.hint or "")


def test_the_client_is_loaded_by_the_first_request_that_needs_it() -> None:
    code = (
        "import sys, json\n"
        "from ckptstore.storage.registry import locate\n"
        "import ckptstore; ckptstore.Saver; ckptstore.latest_checkpoint\n"
        "locate('/tmp/x'); locate('memory://x')\n"
        "before = sorted({'s3fs', 'botocore', 'aiobotocore', 'aiohttp'} & set(sys.modules))\n"
        "storage = locate('s3://bucket/x', {'endpoint_url': 'ftp://127.0.0.1:1'}).storage\n"
        "between = 's3fs' in sys.modules\n"
        "try:\n    storage.get('bucket/x')\nexcept ckptstore.CkptStoreError:\n    pass\n"
        "print(json.dumps([before, between, 's3fs' in sys.modules, 'gcsfs' in sys.modules]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[], False, True, False]


@pytest.mark.parametrize(
    ("options", "name", "meant"),
    [
        ({"s3_additional_kwargs": {"ServerSideEncrypton": "aws:kms"}}, "ServerSideEncrypton", "Encryption"),
        ({"s3_additional_kwargs": {"SSEKMSKeyID": "k"}}, "SSEKMSKeyID", "SSEKMSKeyId"),
        ({"s3_additional_kwargs": {"Bucket": "other"}}, "Bucket", ""),
        ({"s3_additional_kwargs": {"ContentEncoding": "gzip"}}, "ContentEncoding", ""),
        ({"config_kwargs": {"conect_timeout": 3}}, "conect_timeout", "connect_timeout"),
        ({"config_kwargs": {"retries": {"max_attempts": 9}}}, "retries", ""),
        ({"config_kwargs": {"http_session_cls": object}}, "http_session_cls", ""),
        ({"config_kwargs": {"s3": {"adressing_style": "path"}}}, "adressing_style", "addressing_style"),
        ({"config_kwargs": {"proxies_config": {"proxy_ca": "x"}}}, "proxy_ca", "proxy_ca_bundle"),
        ({"client_kwargs": {"region": "eu-west-1"}}, "region", "region_name"),
        ({"client_kwargs": {"verifyy": False}}, "verifyy", "verify"),
        ({"client_kwargs": "eu-west-1"}, "client_kwargs", ""),
        ({"s3_additional_kwargs": {"ChecksumAlgorithm": "SHA256"}}, "ChecksumAlgorithm", ""),
    ],
)
def test_a_name_that_would_be_dropped_without_a_word_is_refused_at_once(
    options: dict[str, Any], name: str, meant: str
) -> None:
    with pytest.raises(UsageError, match=name) as caught:
        locate("s3://bucket/run", options)
    assert meant in f"{caught.value.hint} {caught.value.expected}"


def test_who_pays_is_said_with_every_request_whatever_the_release_of_s3fs() -> None:
    settings = _settings(requester_pays=True, s3_additional_kwargs={"ACL": "private"})
    assert settings["s3_additional_kwargs"] == {"ACL": "private", "RequestPayer": "requester"}


def test_the_checksum_that_is_sent_anyway_is_not_asked_for_again() -> None:
    assert _settings(s3_additional_kwargs={"ChecksumAlgorithm": "CRC32C"})["s3_additional_kwargs"] == {}
