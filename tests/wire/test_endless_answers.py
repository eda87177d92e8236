"""Servers that never come to an end: every call does, on both planes of both services."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import ckptstore as ck
from ckptstore.errors import CkptStoreError, DeadlineError, TransientError
from ckptstore.storage.gcs.transport import GcsTransport
from ckptstore.storage.object_store import bodies, listing
from ckptstore.storage.object_store.attempts import Attempts, RetryBudget, RetryPolicy
from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.object_store.storage import ObjectStorage
from ckptstore.storage.object_store.transport import ObjectName, Precondition, PutRequest
from ckptstore.storage.s3.client import S3Client
from ckptstore.storage.s3.transport import S3Transport
from ckptstore.storage.scope import Scope
from ckptstore.storage.values import ObjectInfo
from tests.servers.certificates import make_certificates
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


def started() -> Attempts:
    attempts = Attempts(QUICK, RetryBudget())
    attempts.begin()
    return attempts


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
    if (operation, opened, where) == (look, s3, "chunks"):
        where = "fields"  # an answer to it has no body
    with running(partial(drip, where)) as peer, pytest.raises(TransientError, match="no progress"):
        operation(opened(f"http://127.0.0.1:{peer.port}", CLIENT, HASTY))


def hasty(call: Callable[[Attempts], object]) -> Fault:
    """Return the fault of an operation that may wait half a second for progress."""
    with pytest.raises(Fault) as caught:
        Attempts(HASTY, RetryBudget()).run(call)
    return caught.value


LARGE = [memoryview(bytes(300_000))]


@OPENERS
@PLANES
@pytest.mark.parametrize("where", sorted(DRIPS))
def test_a_write_that_is_answered_in_drops_ends(where: str, plane: dict[str, Any], opened: Opener) -> None:
    with running(partial(drip, where)) as peer:
        transport = opened(f"http://127.0.0.1:{peer.port}", plane, HASTY).transport
        request = PutRequest(ObjectName("bucket", "run/x"), "id", None, 300_000, 0)
        fault = hasty(lambda attempts: transport.put(request, LARGE, attempts))
    assert fault.kind is Kind.STALLED


def begin_and_drip(where: str, talk: Conversation) -> None:
    """Begin every upload, and never come to an end with its parts."""
    head, _ = talk.take()
    if head[""].startswith("POST"):
        here = f"http://{head['host']}"
        body = b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"
        talk.answer(body, fields=f"Location: {here}/upload?upload_id=u\nConnection: close\n")
        return
    begin, again = DRIPS[where]
    talk.socket.sendall(begin)
    while True:
        talk.socket.sendall(again)
        threading.Event().wait(0.02)


@OPENERS
@PLANES
@pytest.mark.parametrize("where", ["head", "continue", "refusal"])
def test_a_part_that_is_answered_in_drops_ends(where: str, plane: dict[str, Any], opened: Opener) -> None:
    with running(partial(begin_and_drip, where)) as peer:
        transport = opened(f"http://127.0.0.1:{peer.port}", plane, HASTY).transport
        request = PutRequest(ObjectName("bucket", "run/x"), "id", None)
        session = Attempts(QUICK, RetryBudget()).run(lambda attempts: transport.begin(request, attempts))
        fault = hasty(lambda attempts: session.send(0, 0, LARGE, 0, attempts))
    assert fault.kind is Kind.STALLED


@PLANES
@pytest.mark.parametrize("where", sorted(DRIPS.keys() - {"chunks"}))
def test_so_it_is_behind_tls(where: str, plane: dict[str, Any], tmp_path: Path) -> None:
    authority, theirs = make_certificates(tmp_path)
    options = plane | {"client_kwargs": {"region_name": "us-east-1", "verify": str(authority)}}
    with running(partial(drip, where), theirs) as peer:
        storage = s3(f"https://127.0.0.1:{peer.port}", options, HASTY)
        with pytest.raises(DeadlineError):
            read(storage)


@OPENERS
@PLANES
def test_a_server_that_takes_a_body_in_drops_is_not_waited_for(plane: dict[str, Any], opened: Opener) -> None:
    done = threading.Event()

    def sip(talk: Conversation) -> None:
        talk.head()
        while not done.wait(0.02) and talk.socket.recv(1):
            pass

    # More than what lies in the buffers of both kernels, so that it has to be taken.
    body = [memoryview(bytes(64 << 20))]
    with running(sip) as peer:
        transport = opened(f"http://127.0.0.1:{peer.port}", plane, HASTY).transport
        request = PutRequest(ObjectName("bucket", "run/x"), "id", None, 64 << 20, 0)
        fault = hasty(lambda attempts: transport.put(request, body, attempts))
        done.set()
    assert fault.kind is Kind.STALLED


@OPENERS
@PLANES
def test_a_save_ends_by_its_deadline(plane: dict[str, Any], opened: Opener) -> None:
    secrets = {"key": "k", "secret": "s"} if opened is s3 else {"token": "anon", "project": "p"}
    with running(partial(drip, "continue")) as peer:
        options = {"endpoint_url": f"http://127.0.0.1:{peer.port}", **secrets, **plane}
        saver = ck.Saver(deadline_s=0.5, storage_options=options)
        with pytest.raises(DeadlineError) as caught:
            saver.save({"w": 1.0}, f"{'s3' if opened is s3 else 'gs'}://bucket/run/model", 1)
    assert caught.value.expected == "an end within 0.5 s"


@OPENERS
@PLANES
def test_a_deadline_of_the_caller_ends_it_too(plane: dict[str, Any], opened: Opener) -> None:
    with running(partial(drip, "body")) as peer, Scope(0.3), pytest.raises(DeadlineError) as caught:
        read(opened(f"http://127.0.0.1:{peer.port}", plane, RetryPolicy()))
    # Not after the 20 s that an attempt may wait otherwise.
    assert "in the time that was left" in str(caught.value)


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


def s3_uploads(token: object) -> bytes:
    return (
        f"<ListMultipartUploadsResult><IsTruncated>true</IsTruncated><NextKeyMarker>{token}</NextKeyMarker>"
        f"<NextUploadIdMarker>u</NextUploadIdMarker></ListMultipartUploadsResult>"
    ).encode()


def s3_parts(token: object) -> bytes:
    return (
        f"<ListPartsResult><IsTruncated>true</IsTruncated>"
        f"<NextPartNumberMarker>{token}</NextPartNumberMarker></ListPartsResult>"
    ).encode()


@pytest.mark.parametrize(
    ("opened", "page"), [(s3, s3_uploads), (s3, s3_parts), (gcs, gcs_page)], ids=["s3", "s3-parts", "gs"]
)
@pytest.mark.parametrize("kind", ["circle", "same", "empty"])
def test_so_is_a_list_of_uploads_or_of_their_parts(
    kind: str, opened: Opener, page: Callable[[object], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "_MOST_EMPTY_PAGES", 20)
    period = {"circle": 3, "same": 1, "empty": 1_000_000}[kind]
    with running(partial(pages, lambda number: page(7 + number % period))) as peer:
        transport = opened(f"http://127.0.0.1:{peer.port}", CLIENT, QUICK).transport
        ask: Callable[[Attempts], object] = partial(transport.list_uploads, "bucket", "run/")
        if page is s3_parts:
            ask = partial(transport.upload_size, ObjectName("bucket", "run/x"), "u")
        with pytest.raises(Fault, match="does not end") as caught:
            ask(started())
    assert caught.value.kind is Kind.GARBLED


@pytest.mark.parametrize("opened", [s3, gcs], ids=["s3", "gs"])
def test_a_page_that_comes_again_with_another_token_is_a_fault_too(opened: Opener) -> None:
    def page(number: int) -> bytes:
        if opened is gcs:
            item = {"name": "run/x", "size": "1", "generation": "1", "updated": "2026-01-01T00:00:00Z"}
            return json.dumps({"items": [item], "nextPageToken": str(number)}).encode()
        entry = (
            "<Contents><Key>run/x</Key><Size>1</Size><ETag>e</ETag>"
            "<LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
        )
        return s3_page(number).replace(b"<IsTruncated>", entry.encode() + b"<IsTruncated>")

    with running(partial(pages, page)) as peer:
        storage = opened(f"http://127.0.0.1:{peer.port}", CLIENT, QUICK)
        with pytest.raises(TransientError, match="a page again"):
            enumerate_all(storage)


def test_a_copy_that_gets_on_by_single_bytes_ends() -> None:
    def rewritten(number: int) -> bytes:
        threading.Event().wait(0.02)
        return json.dumps(
            {"done": False, "rewriteToken": str(number), "totalBytesRewritten": str(number)}
        ).encode()

    with running(partial(pages, rewritten)) as peer:
        transport = gcs(f"http://127.0.0.1:{peer.port}", CLIENT, HASTY).transport
        source = ObjectInfo("bucket/run/x", 1 << 40, "1", 0.0)
        request = PutRequest(ObjectName("bucket", "run/y"), "id", Precondition(None))
        fault = hasty(lambda attempts: transport.copy(request, source, attempts))
    assert fault.kind is Kind.STALLED


@PLANES
def test_a_token_server_of_drops_is_not_waited_for(plane: dict[str, Any]) -> None:
    from google.oauth2.credentials import Credentials

    with running(partial(drip, "body")) as peer:
        url = f"http://127.0.0.1:{peer.port}"
        secrets = {"refresh_token": "r", "client_id": "id", "client_secret": "s"}
        token = Credentials(None, token_uri=f"{url}/token", **secrets)
        with pytest.raises(DeadlineError):
            read(gcs(url, {"token": token, **plane}, HASTY))
