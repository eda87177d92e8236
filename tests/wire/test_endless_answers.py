"""Servers that never come to an end: every call does, on both planes of both services."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from ckptstore.errors import CkptStoreError, DeadlineError, TransientError
from ckptstore.storage.gcs.transport import GcsTransport
from ckptstore.storage.object_store import bodies, listing
from ckptstore.storage.object_store.attempts import RetryPolicy
from ckptstore.storage.object_store.storage import ObjectStorage
from ckptstore.storage.s3.client import S3Client
from ckptstore.storage.s3.transport import S3Transport
from ckptstore.storage.scope import Scope
from tests.servers.peer import DRIPS, Conversation, drip, running

HASTY = RetryPolicy(deadline_s=0.5, attempt_s=0.5)
QUICK = RetryPolicy(pause_scale=0.0)
DIRECT = {"direct": True}
CLIENT = {"direct": False}


def s3(url: str, options: dict[str, Any], policy: RetryPolicy) -> ObjectStorage:
    options = {"endpoint_url": url, "key": "k", "secret": "s", **options}
    return ObjectStorage(S3Transport(S3Client(options)), policy)


def gcs(url: str, options: dict[str, Any], policy: RetryPolicy) -> ObjectStorage:
    return ObjectStorage(GcsTransport({"endpoint_url": url, "token": "anon", **options}), policy)


OPENERS = pytest.mark.parametrize("opened", [s3, gcs], ids=["s3", "gs"])
PLANES = pytest.mark.parametrize("plane", [DIRECT, CLIENT], ids=["direct", "client"])
Opener = Callable[[str, dict[str, Any], RetryPolicy], ObjectStorage]


def read(storage: ObjectStorage) -> None:
    storage.get("bucket/run/x")


def look(storage: ObjectStorage) -> None:
    storage.head("bucket/run/x")


def enumerate_all(storage: ObjectStorage) -> None:
    list(storage.list("bucket/run/"))


def write(storage: ObjectStorage) -> None:
    storage.put_new("bucket/run/x", b"x")


@OPENERS
@PLANES
@pytest.mark.parametrize("where", sorted(DRIPS.keys() - {"chunks"}))
def test_a_read_of_drops_ends(where: str, plane: dict[str, Any], opened: Opener) -> None:
    with running(partial(drip, where)) as peer:
        storage = opened(f"http://127.0.0.1:{peer.port}", plane, HASTY)
        with pytest.raises(DeadlineError):
            read(storage)


@OPENERS
@pytest.mark.parametrize("operation", [look, enumerate_all, write])
@pytest.mark.parametrize("where", ["head", "continue", "chunks"])
def test_so_do_small_requests(where: str, operation: Callable[[ObjectStorage], None], opened: Opener) -> None:
    if operation is look and opened is s3:
        where = "head"  # the answer has no body
    with running(partial(drip, where)) as peer, pytest.raises(TransientError, match="no progress"):
        operation(opened(f"http://127.0.0.1:{peer.port}", CLIENT, HASTY))


@OPENERS
@PLANES
def test_a_deadline_of_the_caller_ends_it_too(plane: dict[str, Any], opened: Opener) -> None:
    with running(partial(drip, "body")) as peer, Scope(0.3), pytest.raises(DeadlineError):
        read(opened(f"http://127.0.0.1:{peer.port}", plane, RetryPolicy()))


def long_answer(status: str, talk: Conversation) -> None:
    while True:
        talk.take()
        talk.answer(b"<Error><Code>SlowDown</Code>" + b" " * (1 << 20), status)


@OPENERS
def test_of_a_page_no_more_is_read_than_a_page_has(opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "LONGEST_BODY_BYTES", 1 << 20)
    with running(partial(long_answer, "200 OK")) as peer:
        storage = opened(f"http://127.0.0.1:{peer.port}", CLIENT, QUICK)
        with pytest.raises(TransientError, match="longer than 1 MiB"):
            enumerate_all(storage)


@OPENERS
@PLANES
def test_of_a_refusal_the_beginning_is_read(
    plane: dict[str, Any], opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []

    def serve(talk: Conversation) -> None:
        talk.take()
        talk.say("HTTP/1.1 403 Forbidden\nTransfer-Encoding: chunked\n\n")
        for _ in range(4096):
            talk.socket.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
            taken.append(65536)

    with running(serve) as peer, pytest.raises(CkptStoreError):
        read(opened(f"http://127.0.0.1:{peer.port}", plane, QUICK))
    # What the kernel and the client had in their buffers, and not 256 MiB for each attempt.
    assert sum(taken) < 128 << 20


def pages(answers: Callable[[int], bytes], talk: Conversation) -> None:
    for number in itertools.count():
        talk.take()
        talk.answer(answers(number), fields="Content-Type: application/xml\n")


def s3_page(token: object) -> bytes:
    return (
        f"<ListBucketResult><IsTruncated>true</IsTruncated>"
        f"<NextContinuationToken>{token}</NextContinuationToken></ListBucketResult>"
    ).encode()


def gcs_page(token: object) -> bytes:
    return json.dumps({"nextPageToken": str(token)}).encode()


@pytest.mark.parametrize(("opened", "page"), [(s3, s3_page), (gcs, gcs_page)], ids=["s3", "gs"])
@pytest.mark.parametrize("kind", ["circle", "empty"])
def test_a_listing_that_goes_on_for_ever_is_a_fault(
    kind: str, opened: Opener, page: Callable[[object], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "_MOST_EMPTY_PAGES", 20)
    answers = (lambda number: page(number % 3)) if kind == "circle" else page
    with running(partial(pages, answers)) as peer:
        storage = opened(f"http://127.0.0.1:{peer.port}", CLIENT, QUICK)
        with pytest.raises(TransientError, match="does not end"):
            enumerate_all(storage)


@PLANES
def test_a_token_server_of_drops_is_not_waited_for(plane: dict[str, Any]) -> None:
    from google.oauth2.credentials import Credentials

    with running(partial(drip, "body")) as peer:
        url = f"http://127.0.0.1:{peer.port}"
        secrets = {"refresh_token": "r", "client_id": "id", "client_secret": "s"}
        token = Credentials(None, token_uri=f"{url}/token", **secrets)
        with pytest.raises(DeadlineError):
            read(gcs(url, {"token": token, **plane}, HASTY))
