"""No secret in what people read, also where a server or a proxy repeats it; `test_fault_cases` looks, too."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import ckptstore as ck
from ckptstore.cli.main import main
from ckptstore.storage.registry import locate
from tests.backends.fault_cases import COUNTED, flags, impatient, texts_of
from tests.own_warnings import own_warnings
from tests.servers.certificates import make_service_account
from tests.servers.fault_proxy import FaultProxy
from tests.servers.gcs import GcsServer
from tests.servers.process import free_port
from tests.servers.s3 import S3Server

SECRET = "s3cret-4b1d"
LONG = SECRET + "x" * 600


def read_by_people(url: str, options: Mapping[str, object], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return all that the API and the command line say of a place that cannot be used."""
    read: list[Any] = []
    calls: list[Callable[[], object]] = [
        lambda: ck.latest_checkpoint(url, storage_options=options),
        lambda: ck.Saver().restore({}, f"{url}/model-1", storage_options=options),
        lambda: ck.Saver().save({"a": [1.0]}, f"{url}/model", 1, storage_options=options),
    ]
    with impatient(COUNTED), own_warnings() as warned:
        for call in calls:
            with pytest.raises(ck.CkptStoreError) as caught:
                call()
            read += texts_of(caught.value)
        for words in (["ls", url], ["doctor", url], ["verify", f"{url}/model-1", "--json"]):
            assert main([*words, *flags(options)]) in (2, 5, 6)
            read += capsys.readouterr()
    read += [str(warning.message) for warning in warned]
    return read


@pytest.fixture
def proxy(minio: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(minio.process.port) as proxy:
        yield proxy


@pytest.mark.parametrize("token", [SECRET, LONG], ids=["short", "long"])
@pytest.mark.parametrize("given", ["options", "environment"])
def test_a_server_that_repeats_what_s3_sent(
    given: str,
    token: str,
    proxy: FaultProxy,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proxy.when().echo(403, "AccessDenied")
    options: dict[str, object] = {"endpoint_url": proxy.url, "client_kwargs": {"region_name": "us-east-1"}}
    if given == "options":
        options |= {"key": "somebody", "secret": SECRET + "-key", "token": token}
    else:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET + "-key")
        monkeypatch.setenv("AWS_SESSION_TOKEN", token)
    read = read_by_people("s3://bucket/run", options, capsys)
    assert SECRET in str(proxy.requests[0].headers)
    assert any("AccessDenied" in text for text in read)
    assert not [text for text in read if SECRET in text]
    signatures = [request.headers["Authorization"].rpartition("=")[2] for request in proxy.requests]
    assert not [text for text in read for signature in signatures if signature in text]


def test_a_server_that_repeats_what_gcs_sent(
    gcs_server: GcsServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FETCH_RAW_TOKEN_EXPIRY", "false")
    with FaultProxy(gcs_server.processes[-1].port) as proxy:
        proxy.when().echo(403, "forbidden")
        options = {"endpoint_url": proxy.url, "token": "ya29." + SECRET}
        read = read_by_people("gs://bucket/run", options, capsys)
        assert SECRET in str(proxy.requests[0].headers)
    assert any("403" in text for text in read)
    assert not [text for text in read if SECRET in text]


def test_the_key_file_of_a_service_account(
    gcs_server: GcsServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with FaultProxy(gcs_server.processes[-1].port) as proxy:
        # It is asked for a token, and repeats what it was asked with.
        proxy.when("POST", "/token").echo(400, "invalid_grant")
        account = make_service_account(f"{proxy.url}/token")
        path = tmp_path / "key.json"
        path.write_text(json.dumps(account))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        read = read_by_people("gs://bucket/run", {}, capsys)
        assertions = [request.body.decode().rpartition("=")[2] for request in proxy.requests]
    assert assertions
    hidden = [*assertions, account["private_key_id"], *account["private_key"].splitlines()[1:-1]]
    assert not [text for text in read for secret in hidden if secret in text]


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_an_endpoint_with_a_password(
    scheme: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    endpoint = f"http://somebody:{SECRET}@127.0.0.1:{free_port()}"
    read = read_by_people(f"{scheme}://bucket/run", {"endpoint_url": endpoint}, capsys)
    assert not [text for text in read if SECRET in text]


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_proxy_with_a_password(
    scheme: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("HTTPS_PROXY", f"http://somebody:{SECRET}@127.0.0.1:{free_port()}")
    options = {"endpoint_url": "https://no-such-host.invalid"}
    if scheme == "gs":
        options["token"] = "anon"
    read = read_by_people(f"{scheme}://bucket/run", options, capsys)
    assert not [text for text in read if SECRET in text]


@pytest.mark.parametrize(
    "url",
    [
        f"s3://somebody:{SECRET}@bucket/run",
        f"gs://somebody:{SECRET}@bucket/run",
        f"sftp://somebody:{SECRET}@host/run",
        f"s3://bucket/run/model-1?X-Amz-Credential=k&X-Amz-Signature={SECRET}",
        f"gs://bucket/run/model-1?X-Goog-Signature={SECRET}",
        f"https://host/run/model-1?X-Amz-Signature={SECRET}",
        f"https://host/run/model-1?Expires=1&Signature={SECRET}",
        f"https://account.example/run/model-1?sv=1&sig={SECRET}",
    ],
)
def test_a_url_with_a_secret_is_refused_and_not_repeated(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    read = read_by_people(url, {}, capsys)
    assert not [text for text in read if SECRET in text]
    with pytest.raises(ck.UsageError) as caught:
        locate(url)
    assert caught.value.hint
