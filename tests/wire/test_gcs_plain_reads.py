"""Reads of Google Cloud Storage without gcsfs: with which settings, and when they are left to it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ckptstore.errors import AccessError
from ckptstore.storage.gcs.transport import GcsTransport
from tests.meta.source import ROOT
from tests.servers.gcs import GcsServer
from tests.wire.gcs_scene import Scene, storage_of
from tests.wire.requests import Reply, Seen, WireProxy

_PLACE = {"endpoint_url": "http://127.0.0.1:1", "allow_http": True}


def by_gcsfs(seen: Seen) -> bool:
    return "gcsfs" in seen.headers.get("User-Agent", "")


@pytest.fixture
def plain(proxy: WireProxy, gcs_server: GcsServer) -> Scene:
    return Scene(proxy, gcs_server)


def _reads(storage: Any, key: str) -> None:
    version = storage.head(key).version
    assert storage.get(key).data == b"there"
    assert storage.get_unless(key, version) is None
    assert [info.key for info in storage.list(f"{key.rpartition('/')[0]}/")] == [key]


def test_all_reads_go_without_gcsfs(plain: Scene) -> None:
    key = plain.put("x", b"there")
    with plain.proxy.doing(lambda seen: None) as seen:
        _reads(plain.storage, key)
    assert len(seen) == 4
    assert not any(map(by_gcsfs, seen))
    path = plain.storage.transport.read_path(plain.bucket)
    assert path is not None
    assert (path.is_direct, path.reason) == (True, "over HTTP")


def test_a_reader_does_not_load_gcsfs(plain: Scene) -> None:
    key = plain.put("x", b"there")
    options = plain.server.options
    code = (
        "import json, sys\n"
        "from ckptstore.storage.registry import locate\n"
        f"storage = locate('gs://{key}', {options}).storage\n"
        f"assert storage.get({key!r}).data == b'there'\n"
        f"assert storage.head({key!r}).size_bytes == 5\n"
        "print(json.dumps(sorted({'gcsfs', 'aiohttp', 'asyncio', 'requests', 's3fs'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


def test_a_token_that_the_server_does_not_take_lets_gcsfs_ask(plain: Scene) -> None:
    key = plain.put("x", b"there")
    replies = [Reply(401, b"{}")]
    storage = storage_of(plain.server.options | {"endpoint_url": plain.proxy.url})
    with plain.proxy.doing(lambda seen: replies.pop() if replies else None) as seen:
        assert storage.get(key).data == b"there"
        _reads(storage, key)
    assert len(seen) == 6
    path = storage.transport.read_path(plain.bucket)
    assert path is not None
    assert not path.is_direct
    assert "token" in path.reason


def test_a_service_account_that_is_none_is_named_by_gcsfs(
    plain: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "key.json"
    file.write_text('{"type": "service_account", "private_key": "s3cret"}', encoding="utf-8")
    storage = storage_of({"endpoint_url": plain.proxy.url, "token": str(file)})
    with pytest.raises(AccessError, match="credentials cannot be loaded") as caught:
        storage.get(plain.put("x", b"there"))
    assert "s3cret" not in f"{caught.value!r}"


UNUSUAL: dict[str, tuple[dict[str, Any], dict[str, str], str]] = {
    "not wanted": ({"direct": False}, {}, "direct=False"),
    "a session": ({"session_kwargs": {"trust_env": True}}, {}, "session_kwargs"),
    "a bound": ({"requests_timeout": 3.0}, {}, "requests_timeout"),
    "who pays": ({"requester_pays": "p"}, {}, "requester_pays"),
    "a proxy": ({}, {"HTTP_PROXY": "http://proxy.example", "NO_PROXY": ""}, "proxy"),
    "a certificate": ({}, {"GOOGLE_API_USE_CLIENT_CERTIFICATE": "true"}, "CLIENT_CERTIFICATE"),
    "another universe": ({}, {"GOOGLE_CLOUD_UNIVERSE_DOMAIN": "u.example"}, "universe"),
    "a raw token": ({"token": "ya29.s3cret"}, {}, "kind"),
    "a dictionary": ({"token": {"refresh_token": "s3cret"}}, {}, "kind"),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_is_not_plain_is_left_to_gcsfs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options, variables, reason = UNUSUAL[name]
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    path = GcsTransport({**_PLACE, "token": "anon", **options}).read_path("bucket")
    assert not path.is_direct
    assert reason in path.reason
    assert "s3cret" not in path.reason
