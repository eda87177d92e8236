"""Credentials that a job renews: one storage goes on with its connections, and uses the newest ones."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from google.oauth2.credentials import Credentials

import ckptstore as ck
from ckptstore.storage.registry import locate
from tests.servers.fault_proxy import FaultProxy, Request
from tests.servers.gcs import GcsServer
from tests.servers.peer import Conversation, running
from tests.servers.s3 import S3Server
from tests.wire.test_endless_answers import PLANES

RENEWALS = 40

# One tensor whose bytes go the way of small bodies, one that is sent directly.
VALUES = {"small": np.arange(3.0), "large": np.arange(9_000.0)}


class Scene(NamedTuple):
    """A directory behind a proxy, and options with credentials that are new in each call of `renewed`."""

    url: str
    proxy: FaultProxy
    renewed: Callable[[], dict[str, Any]]
    seen_of: Callable[[dict[str, Any]], str]  # what the server gets to see of the credentials in options

    def seen(self, since: int = 0) -> set[str]:
        """Return the credentials in the requests that came, from number `since` on."""
        return {_credentials_in(request) for request in self.proxy.requests[since:]}


def _credentials_in(request: Request) -> str:
    headers = {name.lower(): value for name, value in request.headers.items()}
    token = headers.get("x-amz-security-token")
    if token is None:
        return headers.get("authorization", "")
    assert f"Credential={_key_of[token]}/" in headers["authorization"]
    return token


_key_of: dict[str, str] = {}


@pytest.fixture
def s3_scene(minio: S3Server) -> Iterator[Scene]:
    bucket = minio.make_bucket()

    def renewed() -> dict[str, Any]:
        given = minio.user_with(["*"], bucket)
        _key_of[given["token"]] = given["key"]
        return {"endpoint_url": proxy.url, "client_kwargs": {"region_name": "us-east-1"}, **given}

    with FaultProxy(minio.process.port) as proxy:
        yield Scene(f"s3://{bucket}/run", proxy, renewed, lambda options: str(options["token"]))


@pytest.fixture
def gs_scene(gcs_server: GcsServer) -> Iterator[Scene]:
    bucket = gcs_server.make_bucket()
    numbers = iter(range(1000))

    def renewed() -> dict[str, Any]:
        token = Credentials(f"t0ken-{next(numbers)}-of-{os.getpid()}")
        return {"endpoint_url": proxy.url, "project": "p", "token": token}

    with FaultProxy(gcs_server.processes[-1].port) as proxy:
        yield Scene(f"gs://{bucket}/run", proxy, renewed, lambda options: f"Bearer {options['token'].token}")


@pytest.fixture(params=["s3_scene", "gs_scene"])
def scene(request: pytest.FixtureRequest) -> Scene:
    found: Scene = request.getfixturevalue(request.param)
    return found


def costs() -> tuple[int, int]:
    """Return how many loops of clients and descriptors there are."""
    gc.collect()
    loops = [thread for thread in threading.enumerate() if thread.name == "ckptstore-requests"]
    return len(loops), len(os.listdir("/proc/self/fd"))


@PLANES
def test_a_job_that_renews_its_credentials_costs_nothing_and_uses_the_newest(
    scene: Scene, plane: dict[str, Any]
) -> None:
    saver = ck.Saver(max_to_keep=2)
    storages = set()
    for step in range(RENEWALS):
        options = scene.renewed() | plane
        since = len(scene.proxy.requests)
        saver.save(VALUES, f"{scene.url}/model", step, write_meta_graph=False, storage_options=options)
        latest = ck.latest_checkpoint(scene.url, storage_options=options)
        assert latest == f"{scene.url}/model-{step}"
        if step % 10 == 0:
            restored: dict[str, Any] = {}
            ck.Saver().restore(restored, latest, storage_options=options)
            assert restored["large"][-1] == 8_999.0
        assert scene.seen(since) == {scene.seen_of(options)}
        storages.add(locate(scene.url, options).storage)
        if step == 2:
            loops, descriptors = costs()
    # It goes on with its window, which another writer would have to find out about.
    assert [path.rpartition("-")[2] for path in saver.last_checkpoints] == ["38", "39"]
    assert len(storages) == 1
    now_loops, now_descriptors = costs()
    assert now_loops <= loops
    # Some more connections may be kept, and those to the proxy have two ends here.
    assert now_descriptors <= descriptors + 40


def test_what_is_open_goes_on_with_the_newest(scene: Scene) -> None:
    first = scene.renewed()
    ck.Saver().save(VALUES, f"{scene.url}/model", 1, storage_options=first)
    with ck.open_checkpoint(f"{scene.url}/model-1", storage_options=first) as opened:
        second = scene.renewed()
        locate(scene.url, second)
        since = len(scene.proxy.requests)
        assert opened.read("large")[-1] == 8_999.0
        assert scene.seen(since) == {scene.seen_of(second)}


def test_a_forked_child_has_the_newest(scene: Scene) -> None:
    first, second = scene.renewed(), scene.renewed()
    ck.Saver().save(VALUES, f"{scene.url}/model", 1, storage_options=first)
    location = locate(scene.url, second).child("model-1.index")
    since = len(scene.proxy.requests)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            location.storage.get(location.key)
            location.storage.head(location.key)
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert scene.seen(since) == {scene.seen_of(second)}


def test_a_request_that_is_repeated_has_the_newest(scene: Scene) -> None:
    first, second = scene.renewed(), scene.renewed()
    ck.Saver().save(VALUES, f"{scene.url}/model", 1, storage_options=first)
    location = locate(scene.url, first).child("model-1.index")

    def renew(_: object) -> tuple[int, list[tuple[str, str]], bytes]:
        locate(scene.url, second)
        return 503, [], b""

    scene.proxy.clear()
    scene.proxy.when("GET", "index").alter(renew, times=1)
    location.storage.get(location.key)
    assert [_credentials_in(request) for request in scene.proxy.requests] == [
        scene.seen_of(first),
        scene.seen_of(second),
    ]


@pytest.mark.parametrize("other", ["bucket", "setting", "account"])
def test_what_is_not_the_same_is_another_storage(scene: Scene, other: str) -> None:
    options = scene.renewed()
    storage = locate(scene.url, options).storage
    changed, url = scene.renewed(), scene.url
    if other == "bucket":
        url = url.replace("/run", "-2/run")
    elif other == "setting":
        changed["requester_pays"] = True
    elif scene.url.startswith("s3"):
        del changed["token"]
    else:
        changed["token"] = Credentials("t0ken", account="somebody@example.com")
    assert locate(url, changed).storage is not storage
    assert locate(scene.url, scene.renewed()).storage is storage


def test_a_server_that_repeats_the_newest_credentials_does_not_spread_them(s3_scene: Scene) -> None:
    first, second = s3_scene.renewed(), s3_scene.renewed()
    location = locate(s3_scene.url, first).child("x")
    with pytest.raises(ck.NotFoundError):
        location.storage.get(location.key)
    locate(s3_scene.url, second)
    for options in (first, second):
        message = f"no {options['token']} no {options['secret']} no {options['key']}"
        s3_scene.proxy.when("GET", "x").answer(403, "AccessDenied", message)
        with pytest.raises(ck.AccessError) as caught:
            location.storage.get(location.key)
        assert not any(options[name] in str(caught.value) for name in ("token", "secret", "key"))


def test_so_it_is_with_a_session_in_the_environment(s3_scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    saver = ck.Saver()
    storages = set()
    for step in range(3):
        options = s3_scene.renewed()
        for name, variable in (
            ("key", "AWS_ACCESS_KEY_ID"),
            ("secret", "AWS_SECRET_ACCESS_KEY"),
            ("token", "AWS_SESSION_TOKEN"),
        ):
            monkeypatch.setenv(variable, options.pop(name))
        token = os.environ["AWS_SESSION_TOKEN"]
        since = len(s3_scene.proxy.requests)
        saver.save(VALUES, f"{s3_scene.url}/model", step, storage_options=options)
        assert s3_scene.seen(since) == {token}
        storages.add(locate(s3_scene.url, options).storage)
    assert len(storages) == 1
    # Credentials of one's own have nothing to do with it.
    assert locate(s3_scene.url, options | {"anon": True}).storage not in storages


def test_a_token_as_text_is_renewed_and_one_that_cannot_be_loaded_is_no_access(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(token: str) -> Credentials:
        # gcsfs asks a server of Google's what it is worth.
        if token == "worthless":
            raise ValueError(f"{token} is no token")
        return Credentials(token)

    monkeypatch.setattr("gcsfs.credentials._get_creds_from_raw_token", load)
    asked: list[str] = []

    def serve(talk: Conversation) -> None:
        while True:
            head, _ = talk.take()
            asked.append(head["authorization"])
            talk.answer(b"x", fields="X-Goog-Generation: 1\n")

    with running(serve) as peer:
        options = {"endpoint_url": f"http://127.0.0.1:{peer.port}", "project": "p"}
        location = locate("gs://bucket/x", options | {"token": "t-1"})
        location.storage.get(location.key)
        locate("gs://bucket/x", options | {"token": "worthless"})
        with pytest.raises(ck.AccessError, match="cannot be loaded") as caught:
            location.storage.get(location.key)
        assert "worthless" not in str(caught.value)
        assert locate("gs://bucket/x", options | {"token": "t-2"}).storage is location.storage
        location.storage.get(location.key)
    assert asked == ["Bearer t-1", "Bearer t-2"]
