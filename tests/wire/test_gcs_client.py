"""The client of a GCS server: data path, copies, threads, processes, credentials."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ckptstore.checksums import crc32c
from ckptstore.errors import (
    AccessError,
    NotFoundError,
)
from ckptstore.storage.gcs.transport import GcsTransport
from ckptstore.storage.object_store.attempts import RetryPolicy
from ckptstore.storage.object_store.storage import ObjectStorage
from ckptstore.storage.values import Committed, Lost
from tests.servers.gcs import GcsServer
from tests.wire.gcs_scene import (
    CHUNK,
    QUICK,
    Scene,
    first_only,
    is_post,
    lines,
    storage_of,
    upload_to,
)
from tests.wire.requests import Lose, Reply, Seen, Stall, WireProxy

pytestmark = pytest.mark.usefixtures("small_chunks")


def is_direct(seen: Seen) -> bool:
    """Whether the request came over a connection of ours: the client's library says what it accepts."""
    return "Accept" not in seen.headers


@pytest.mark.parametrize("direct", [True, False])
def test_large_bodies_go_the_way_that_was_asked_for(
    proxy: WireProxy, gcs_server: GcsServer, direct: bool
) -> None:
    scene = Scene(proxy, gcs_server, direct=direct)
    data = os.urandom(2 * CHUNK + 5)
    with proxy.noting() as seen:
        assert isinstance(upload_to(scene.storage, scene.key("shard"), data), Committed)
        assert isinstance(scene.storage.put_new(scene.key("middle"), data[:CHUNK]), Committed)
        assert scene.storage.get(scene.key("shard")).data == data
        scene.storage.head(scene.key("shard"))
    large = [one for one in seen if len(one.body) > 1000 or "alt" in one.query]
    assert len(large) == 4
    assert {is_direct(one) for one in large} == {direct}
    # Reads go the plain way then, the small ones, too.
    assert {is_direct(one) for one in seen if one not in large and one.method == "GET"} <= {direct}
    assert not any(is_direct(one) for one in seen if one not in large and one.method != "GET")
    data_path = scene.storage.transport.data_path(scene.bucket, scene.storage.service.new_attempts())
    assert (data_path.is_direct, data_path.is_wanted) == (direct, True)


def test_a_session_of_ones_own_is_left_to_the_client(proxy: WireProxy, gcs_server: GcsServer) -> None:
    options = gcs_server.options | {"endpoint_url": proxy.url, "session_kwargs": {"trust_env": True}}
    storage = storage_of(options)
    data_path = storage.transport.data_path("bucket", storage.service.new_attempts())
    assert (data_path.is_direct, data_path.is_wanted) == (False, False)
    assert "session_kwargs" in data_path.reason


def test_a_copy_is_made_only_where_nothing_is_and_of_the_version_asked_for(scene: Scene) -> None:
    data = os.urandom(1_000_000)
    source, copy = scene.put("source", data), scene.key("copy")
    version = scene.storage.head(source).version
    with scene.proxy.noting() as seen:
        done = scene.storage.copy_from(source, copy, version)
    assert lines(seen) == ["GET", "POST"]
    assert seen[1].query["ifGenerationMatch"] == "0"
    assert seen[1].query["ifSourceGenerationMatch"] == version
    assert isinstance(done, Committed)
    found = scene.storage.head(copy)
    assert (found.version, found.size_bytes, found.crc32c) == (done.version, len(data), crc32c(data))
    assert scene.raw("copy") == data
    assert scene.storage.copy_from(source, copy, version) == Lost(done.version)
    for missing, wanted in ((source, "1"), (scene.key("nothing"), version)):
        with pytest.raises(NotFoundError):
            scene.storage.copy_from(missing, scene.key("other"), wanted)
    assert scene.raw("other") is None


def test_a_copy_in_several_requests_goes_on_where_it_stopped(scene: Scene) -> None:
    source = scene.put("source", b"0123456789")
    version = scene.storage.head(source).version
    part = Reply(200, b'{"done": false, "rewriteToken": "more&="}')
    with scene.proxy.doing(first_only(part, is_post)) as seen:
        assert isinstance(scene.storage.copy_from(source, scene.key("copy"), version), Committed)
    assert [one.query.get("rewriteToken") for one in seen if is_post(one)] == [None, "more&="]


@pytest.mark.parametrize("status", [400, 403, 501])
def test_a_copy_that_the_service_refuses_is_none(scene: Scene, status: int) -> None:
    source = scene.put("source", b"0123456789")
    version = scene.storage.head(source).version
    with scene.proxy.doing(lambda seen: Reply(status) if is_post(seen) else None):
        assert scene.storage.copy_from(source, scene.key("copy"), version) is None
    assert scene.raw("copy") is None


def test_a_copy_whose_answer_is_lost_is_read_back(scene: Scene) -> None:
    source = scene.put("source", b"0123456789")
    version = scene.storage.head(source).version
    with scene.proxy.doing(first_only(Lose(), is_post)):
        done = scene.storage.copy_from(source, scene.key("copy"), version)
    assert isinstance(done, Committed)
    assert done.version == scene.storage.head(scene.key("copy")).version


def test_it_works_inside_a_running_loop_and_from_many_threads(scene: Scene) -> None:
    key = scene.put("model.index", b"0123456789")

    async def inside() -> list[bytes]:
        here = scene.storage.get(key).data
        elsewhere = await asyncio.gather(*(asyncio.to_thread(scene.storage.get, key) for _ in range(16)))
        return [here, *(got.data for got in elsewhere)]

    assert asyncio.run(inside()) == [b"0123456789"] * 17


def test_a_forked_child_has_connections_of_its_own_and_leaves_the_parents_alone(scene: Scene) -> None:
    key = scene.put("model.index", b"0123456789")
    scene.storage.get(key)
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = 0 if scene.storage.get(key).data == b"0123456789" else 2
            finally:
                os._exit(code)
        assert scene.storage.get(key).data == b"0123456789"
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert scene.storage.get(key).data == b"0123456789"


def test_an_interrupt_ends_a_write_that_hangs(scene: Scene) -> None:
    patient = ObjectStorage(scene.storage.transport, RetryPolicy())

    def plan(seen: Seen) -> Stall | None:
        if not is_post(seen):
            return None
        os.kill(os.getpid(), signal.SIGINT)
        return Stall()

    with scene.proxy.doing(plan), pytest.raises(KeyboardInterrupt):
        patient.put_new(scene.key("checkpoint"), b"x")
    assert scene.storage.put_new(scene.key("checkpoint"), b"y")


def test_no_token_goes_to_another_host_or_into_a_message(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FETCH_RAW_TOKEN_EXPIRY", "false")
    token = "ya29.tops3cret-token"
    options = scene.server.options | {"endpoint_url": scene.proxy.url, "token": token}
    storage = storage_of(options)
    with scene.proxy.noting() as seen:
        storage.put_new(scene.key("checkpoint"), b"x")
    assert {one.headers["Authorization"] for one in seen} == {f"Bearer {token}"}
    # A session on another host, as its Location says: its URL is all that it needs.
    with WireProxy(scene.server.processes[-1].port) as other:
        session = Reply(200, b"", {"Location": f"{other.url}/upload/x?upload_id=s3ss10n"})
        echo = Reply(403, f"no Bearer {token} upload_id=s3ss10n".encode())
        with (
            scene.proxy.doing(first_only(session, is_post)),
            other.doing(lambda seen: echo) as strange,
            pytest.raises(AccessError) as caught,
        ):
            upload_to(storage, scene.key("shard"), bytes(3 * CHUNK))
    assert strange
    assert all("Authorization" not in one.headers for one in strange)
    for text in (str(caught.value), repr(caught.value), repr(storage), repr(storage.transport)):
        assert "s3cret" not in text
        assert "s3ss10n" not in text


def test_a_token_that_ran_out_is_renewed_and_one_that_cannot_be_is_no_access(scene: Scene) -> None:
    from google.oauth2.credentials import Credentials

    secrets = {"refresh_token": "s3cret-r", "client_id": "id", "client_secret": "s3cret-c"}
    credentials = Credentials(None, token_uri=f"{scene.proxy.url}/token", **secrets)
    options = scene.server.options | {"endpoint_url": scene.proxy.url, "token": credentials}
    granted = Reply(
        200, b'{"access_token": "s3cret-a", "expires_in": 3600}', {"Content-Type": "application/json"}
    )
    key = scene.put("model.index", b"x")
    is_token = lambda seen: seen.path == "/token"  # noqa: E731
    storage = storage_of(options)
    with scene.proxy.doing(lambda seen: granted if is_token(seen) else None) as seen:
        assert storage.get(key).data == b"x"
        assert storage.get(key).data == b"x"
    assert [one.path for one in seen].count("/token") == 1
    assert seen[-1].headers["Authorization"] == "Bearer s3cret-a"
    assert credentials.expiry is not None
    credentials.expiry = credentials.expiry.replace(year=2001)
    refused = Reply(400, b'{"error": "invalid_grant", "error_description": "s3cret-r expired"}')
    with (
        scene.proxy.doing(lambda seen: refused if is_token(seen) else None) as seen,
        pytest.raises(AccessError) as caught,
    ):
        storage.get(key)
    # Where reads are plain, gcsfs asks again, and explains.
    assert len(seen) in (1, 2)
    assert {one.path for one in seen} == {"/token"}
    assert "s3cret" not in f"{caught.value!r} {caught.value} {storage!r}"


def test_credentials_that_cannot_be_loaded_are_no_access(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key.json").write_text("not json: s3cret")
    for token in (str(tmp_path / "key.json"), {"type": "service_account", "private_key": "s3cret"}):
        options = {"endpoint_url": scene.proxy.url, "token": token}
        with scene.proxy.noting() as seen, pytest.raises(AccessError) as caught:
            ObjectStorage(GcsTransport(options), QUICK).get(scene.key("checkpoint"))
        assert seen == []
        assert "s3cret" not in f"{caught.value!r} {caught.value}"


def test_who_comes_without_credentials_and_is_refused_is_told_so(scene: Scene) -> None:
    refusal = b'{"error": {"message": "Anonymous caller does not have access"}}'
    with (
        scene.proxy.doing(lambda seen: Reply(401, refusal)),
        pytest.raises(AccessError, match="carried no credentials"),
    ):
        scene.storage.get(scene.key("checkpoint"))


def test_the_file_system_below_is_the_plain_one() -> None:
    # The default one asks a gRPC service about the bucket first: 45 s for a ranged read from an emulator.
    from ckptstore.storage.gcs.client import _GcsFileSystem

    names = [kind.__name__ for kind in _GcsFileSystem.__mro__]
    assert "ExtendedGcsFileSystem" not in names
    assert "gs" not in _GcsFileSystem.protocol


_PROGRAM = """
import os, sys
import ckptstore
from ckptstore.storage.registry import locate
assert not {"gcsfs", "aiohttp", "google.auth"} & set(sys.modules), "loaded before the first URL"
here = locate(sys.argv[1])
storage = here.storage
assert storage.get(here.key).data == b"x"
if os.fork() == 0:
    assert storage.get(here.key).data == b"x"
    sys.exit(0)
assert os.wait()[1] == 0
assert storage.get(here.key).data == b"x"
dropped = type(storage)(type(storage.transport)({"endpoint_url": storage.transport.endpoint}))
dropped.get(here.key)
del dropped
"""


def test_a_program_ends_without_a_word_also_after_a_fork(scene: Scene) -> None:
    scene.put("model.index", b"x")
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, f"gs://{scene.key('model.index')}"],
        check=False,
        env=os.environ | {"STORAGE_EMULATOR_HOST": scene.server.url},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
