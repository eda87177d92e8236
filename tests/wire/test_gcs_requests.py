"""What travels to a GCS server, how often, and what becomes of every answer that is not the wanted one."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ckptstore.checksums import crc32c
from ckptstore.errors import (
    AccessError,
    ChecksumError,
    CkptStoreError,
    DeadlineError,
    NotFoundError,
    StorageFullError,
    TransientError,
    TruncatedFileError,
    UnsupportedError,
    UsageError,
)
from ckptstore.storage.base import Location
from ckptstore.storage.gcs.transport import GcsTransport
from ckptstore.storage.object_store.attempts import RetryPolicy
from ckptstore.storage.object_store.crc32c_text import crc32c_text
from ckptstore.storage.object_store.storage import ObjectStorage
from ckptstore.storage.values import Ambiguous, Committed, Lost, PutOutcome, SuffixRange
from ckptstore.types import ByteRange
from tests.servers.gcs import GcsServer
from tests.wire.requests import Changed, Cut, Deed, Lose, Refuse, Reply, Seen, Stall, WireProxy

# Pauses cost nothing here.
QUICK = RetryPolicy(deadline_s=60.0, attempt_s=20.0, pause_scale=0.0)
CHUNK = 8 * 1024 * 1024


def storage_of(options: dict[str, Any]) -> ObjectStorage:
    """Return a storage that does not pause, and sends large objects in one stream, in chunks of `CHUNK`."""
    transport = GcsTransport(options | {"parallel_uploads": False})
    transport.part_size_bytes = CHUNK
    return ObjectStorage(transport, QUICK)


class Scene:
    """A storage behind the proxy, in a bucket of its own whose probe is over."""

    def __init__(self, proxy: WireProxy, server: GcsServer, *, direct: bool = True) -> None:
        self.proxy = proxy
        self.server = server
        self.bucket = server.make_bucket()
        options = server.options | {"endpoint_url": proxy.url, "direct": direct}
        self.storage = storage_of(options)
        self.directory = Location(self.storage, f"{self.bucket}/run", f"gs://{self.bucket}/run")
        self.storage.probe(self.directory.child("x").key)

    def put(self, name: str, data: bytes) -> str:
        """Put an object past the proxy; return its key."""
        self.server.put(self.bucket, f"run/{name}", data)
        return f"{self.bucket}/run/{name}"

    def raw(self, name: str) -> bytes | None:
        return self.server.get(self.bucket, f"run/{name}")

    def key(self, name: str) -> str:
        return self.directory.child(name).key


@pytest.fixture(scope="module")
def proxy(gcs_server: GcsServer) -> Iterator[WireProxy]:
    with WireProxy(gcs_server.processes[-1].port) as proxy:
        yield proxy


@pytest.fixture(params=[True, False], ids=["direct", "gcsfs"])
def scene(proxy: WireProxy, gcs_server: GcsServer, request: pytest.FixtureRequest) -> Scene:
    return Scene(proxy, gcs_server, direct=request.param)


def first_only(deed: Deed, of: Callable[[Seen], bool] = lambda seen: True) -> Callable[[Seen], Deed]:
    """Do it to the first request that fits, and to no other."""
    waiting = [deed]
    return lambda seen: waiting.pop() if waiting and of(seen) else None


def upload_to(storage: ObjectStorage, key: str, data: bytes) -> PutOutcome:
    with storage.upload(key, len(data)) as upload:
        upload.write(data)
        return upload.commit()


def lines(seen: list[Seen]) -> list[str]:
    return [one.method for one in seen]


def is_post(seen: Seen) -> bool:
    return seen.method == "POST"


def is_chunk(seen: Seen) -> bool:
    return seen.method == "PUT" and bool(seen.body)


# ----------------------------------------------------------------------------------- how many requests


def test_the_probe_is_six_requests_once(proxy: WireProxy, gcs_server: GcsServer) -> None:
    with proxy.noting() as seen:
        scene = Scene(proxy, gcs_server)
        assert lines(seen) == ["POST", "POST", "POST", "POST", "DELETE", "POST"]
        scene.storage.probe(scene.key("other"))
        assert len(seen) == 6


def test_every_primitive_is_one_request(scene: Scene) -> None:
    storage = scene.storage
    key = scene.key("model.index")
    with scene.proxy.noting() as seen:
        outcome = storage.put_new(key, b"0123456789")
        assert isinstance(outcome, Committed)
        assert lines(seen) == ["POST"]
        storage.get(key)
        storage.get(key, ByteRange(2, 5))
        storage.get(key, SuffixRange(48))
        storage.head(key)
        assert lines(seen[1:]) == ["GET"] * 4
        outcome = storage.put_if(key, b"abcdefghij", outcome.version)
        assert isinstance(outcome, Committed)
        list(storage.list(scene.key("")))
        assert lines(seen[5:]) == ["POST", "GET"]
        assert storage.delete_if(key, outcome.version)
        storage.delete_many([scene.key("a"), scene.key("b")])
        assert lines(seen[7:]) == ["DELETE", "POST"]


def test_a_delete_of_another_version_is_asked_once_and_looked_after(scene: Scene) -> None:
    key = scene.put("model.index", b"x")
    with scene.proxy.noting() as seen:
        assert not scene.storage.delete_if(key, "1")
    assert lines(seen) == ["DELETE", "GET"]
    assert scene.raw("model.index") == b"x"


def test_a_delete_of_many_is_one_batch_a_hundred(scene: Scene) -> None:
    names = [f"m-{number:03}" for number in range(120)]
    for name in names:
        scene.put(name, b"x")
    with scene.proxy.noting() as seen:
        scene.storage.delete_many([scene.key(name) for name in names])
    assert [(one.method, one.path) for one in seen] == [("POST", "/batch/storage/v1")] * 2
    assert scene.server.keys(scene.bucket) == []


def test_a_large_object_is_two_requests_and_its_chunks(scene: Scene) -> None:
    data = os.urandom(3 * CHUNK + 5)
    with scene.proxy.noting() as seen, scene.storage.upload(scene.key("shard"), len(data)) as upload:
        upload.write(data)
        assert isinstance(upload.commit(), Committed)
    # Start, three whole chunks, and the last one ends the session.
    assert lines(seen) == ["POST", "PUT", "PUT", "PUT", "PUT"]
    assert [one.headers["Content-Range"] for one in seen[1:]] == [
        f"bytes 0-{CHUNK - 1}/*",
        f"bytes {CHUNK}-{2 * CHUNK - 1}/*",
        f"bytes {2 * CHUNK}-{3 * CHUNK - 1}/*",
        f"bytes {3 * CHUNK}-{len(data) - 1}/{len(data)}",
    ]
    assert scene.raw("shard") == data


def test_listing_a_long_directory_takes_a_page_for_each_thousand(scene: Scene) -> None:
    pages = [
        {"items": [_item(f"run/m-{number:04}") for number in range(1000)], "nextPageToken": "more&=?"},
        {"items": [_item("run/m-1000")]},
    ]

    def plan(seen: Seen) -> Deed:
        return Reply(200, json.dumps(pages["pageToken" in seen.query]).encode())

    with scene.proxy.doing(plan) as seen:
        found = list(scene.storage.list(scene.key("")))
    assert len(found) == 1001
    assert [one.query.get("pageToken") for one in seen] == [None, "more&=?"]
    assert {(one.query["prefix"], one.query["delimiter"]) for one in seen} == {("run/", "/")}


def _item(name: str) -> dict[str, str]:
    return {"name": name, "size": "1", "generation": "7", "updated": "2026-11-23T08:22:29.09543Z"}


# ---------------------------------------------------------------------------------------- what is sent


def test_a_write_carries_condition_checksum_write_id_and_no_store(scene: Scene) -> None:
    data = b"--\r\n\x00bytes with \r\n--boundary-like lines\n"
    with scene.proxy.noting() as seen:
        scene.storage.put_new(scene.key("checkpoint"), data)
    (one,) = seen
    assert one.query["uploadType"] == "multipart"
    assert one.query["ifGenerationMatch"] == "0"
    head, _, rest = one.body.partition(b"\r\n\r\n")
    description, _, rest = rest.partition(b"\r\n--")
    assert b"\n" not in head.replace(b"\r\n", b"")
    fields = json.loads(description)
    assert fields["name"] == "run/checkpoint"
    assert fields["crc32c"] == crc32c_text(crc32c(data))
    assert fields["cacheControl"] == "no-store"
    assert fields["metadata"]["ckptstore_write_id"] == scene.storage.head(scene.key("checkpoint")).write_id
    assert scene.raw("checkpoint") == data


def test_the_write_id_of_a_large_object_is_there_from_the_start(scene: Scene) -> None:
    with scene.proxy.noting() as seen, scene.storage.upload(scene.key("shard"), 2 * CHUNK + 1) as upload:
        upload.write(bytes(2 * CHUNK + 1))
        assert isinstance(upload.commit(), Committed)
    assert json.loads(seen[0].body)["metadata"]["ckptstore_write_id"]
    assert seen[0].query["ifGenerationMatch"] == "0"
    info = scene.storage.head(scene.key("shard"))
    assert info.write_id == json.loads(seen[0].body)["metadata"]["ckptstore_write_id"]
    assert info.crc32c == crc32c(bytes(2 * CHUNK + 1))


def test_a_pin_travels_as_a_generation(scene: Scene) -> None:
    key = scene.put("model.index", b"0123456789")
    version = scene.storage.head(key).version
    with scene.proxy.noting() as seen:
        scene.storage.get(key, ByteRange(0, 4), version=version)
    assert seen[0].query["generation"] == version
    assert seen[0].headers["Range"] == "bytes=0-3"
    assert seen[0].headers["Accept-Encoding"] == "identity"


def test_all_reads_after_the_first_are_pinned_to_its_generation(scene: Scene) -> None:
    data = os.urandom(1 << 20)
    key = scene.put("shard", data)
    ranges = [ByteRange(start, start + 1000) for start in (0, 300_000, 600_000)]
    buffers = [bytearray(1000) for _ in ranges]
    with scene.proxy.noting() as seen:
        scene.storage.read_into(key, ranges, [memoryview(buffer) for buffer in buffers])
    assert [bytes(buffer) for buffer in buffers] == [data[extent.start : extent.stop] for extent in ranges]
    assert len(seen) == 3
    assert "generation" not in seen[0].query
    assert len({one.query["generation"] for one in seen[1:]}) == 1


# ------------------------------------------------------------------------ refusals: class and attempts

GET_FAILURES = [
    # status, body, exception, attempts
    (400, b"", UsageError, 1),
    (401, b"", AccessError, 1),
    (403, b'{"error": {"message": "no", "errors": [{"reason": "forbidden"}]}}', AccessError, 1),
    (403, b'{"error": {"errors": [{"reason": "rateLimitExceeded"}]}}', TransientError, 10),
    (405, b"", UnsupportedError, 1),
    (409, b"", TransientError, 10),
    (429, b"", TransientError, 10),
    (500, b"", TransientError, 6),
    (500, b'{"error": {"message": "write: no space left on device"}}', StorageFullError, 1),
    (502, b"<html>bad gateway: invalid answer</html>", TransientError, 6),
    (503, b"", TransientError, 10),
    (504, b"", TransientError, 6),
    (507, b"", StorageFullError, 1),
    (301, b"", UsageError, 1),
    # Through gcsfs's `call` this would be an empty object.
    (304, b"", UsageError, 1),
    (499, b"", TransientError, 1),
    (200, b"<html>a portal</html>", TransientError, 3),
]


@pytest.mark.parametrize(("status", "body", "expected", "attempts"), GET_FAILURES)
def test_a_read_that_is_refused(
    scene: Scene, status: int, body: bytes, expected: type[CkptStoreError], attempts: int
) -> None:
    key = scene.put("model.index", b"0123456789")
    with scene.proxy.doing(lambda seen: Reply(status, body)) as seen, pytest.raises(expected) as caught:
        scene.storage.get(key)
    assert type(caught.value) is expected
    assert len(seen) == attempts
    assert caught.value.url == f"gs://{key}"
    assert caught.value.hint


PUT_FAILURES = [
    (400, b"", UsageError, 1),
    (400, b'Provided CRC32C "x" doesn\'t match calculated CRC32C "y".', ChecksumError, 2),
    (401, b"", AccessError, 1),
    (403, b"", AccessError, 1),
    (429, b"", TransientError, 10),
    (507, b"", StorageFullError, 1),
]


@pytest.mark.parametrize(("status", "body", "expected", "attempts"), PUT_FAILURES)
@pytest.mark.parametrize("primitive", ["put_new", "put_if"])
def test_a_write_that_is_refused(
    scene: Scene, primitive: str, status: int, body: bytes, expected: type[CkptStoreError], attempts: int
) -> None:
    key = scene.key("checkpoint") if primitive == "put_new" else scene.put("checkpoint", b"old")

    def write() -> object:
        if primitive == "put_new":
            return scene.storage.put_new(key, b"new")
        return scene.storage.put_if(key, b"new", version)

    version = "" if primitive == "put_new" else scene.storage.head(key).version
    plan = lambda seen: Reply(status, body) if is_post(seen) else None  # noqa: E731
    with scene.proxy.doing(plan) as seen, pytest.raises(expected) as caught:
        write()
    assert type(caught.value) is expected
    assert len([one for one in seen if is_post(one)]) == attempts
    assert scene.raw("checkpoint") == (None if primitive == "put_new" else b"old")


def test_a_throttled_object_is_left_alone_for_a_second(proxy: WireProxy, gcs_server: GcsServer) -> None:
    # One object takes one write a second.
    scene = Scene(proxy, gcs_server)
    patient = ObjectStorage(scene.storage.transport, RetryPolicy(pause_scale=1.0))
    began_s = time.monotonic()
    with proxy.doing(first_only(Reply(429), is_post)) as seen:
        assert isinstance(patient.put_new(scene.key("checkpoint"), b"x"), Committed)
    assert lines(seen) == ["POST", "POST"]
    assert time.monotonic() - began_s >= 1.0


def test_a_missing_bucket_is_never_an_absent_object(proxy: WireProxy, gcs_server: GcsServer) -> None:
    storage = ObjectStorage(GcsTransport(gcs_server.options | {"endpoint_url": proxy.url}), QUICK)
    for call in (
        lambda: storage.get("no-such-bucket/run/checkpoint"),
        lambda: storage.head("no-such-bucket/run/checkpoint"),
        lambda: list(storage.list("no-such-bucket/run/")),
        lambda: storage.put_new("no-such-bucket/run/checkpoint", b"x"),
    ):
        with pytest.raises(AccessError, match="no bucket 'no-such-bucket'"):
            call()


def test_absence_costs_one_look_at_the_bucket_and_then_none(scene: Scene) -> None:
    storage = ObjectStorage(GcsTransport(scene.server.options | {"endpoint_url": scene.proxy.url}), QUICK)
    with scene.proxy.noting() as seen:
        for read in (storage.get, storage.get, storage.head):
            with pytest.raises(NotFoundError):
                read(scene.key("checkpoint"))
    assert [one.path.rpartition("/")[2] for one in seen] == ["checkpoint", "o", "checkpoint", "checkpoint"]


def test_absence_is_believed_where_listing_is_denied(scene: Scene) -> None:
    storage = ObjectStorage(GcsTransport(scene.server.options | {"endpoint_url": scene.proxy.url}), QUICK)
    is_list = lambda seen: seen.path.endswith("/o") and seen.method == "GET"  # noqa: E731
    with (
        scene.proxy.doing(lambda seen: Reply(403) if is_list(seen) else None) as seen,
        pytest.raises(NotFoundError),
    ):
        storage.get(scene.key("checkpoint"))
    assert [one.path for one in seen][1:] == [
        f"/storage/v1/b/{scene.bucket}/o",
        f"/storage/v1/b/{scene.bucket}",
    ]


@pytest.mark.parametrize("status", [401, 403, 500, 503])
def test_absence_is_not_believed_where_the_bucket_cannot_be_asked(scene: Scene, status: int) -> None:
    storage = ObjectStorage(GcsTransport(scene.server.options | {"endpoint_url": scene.proxy.url}), QUICK)
    with (
        scene.proxy.doing(lambda seen: Reply(status)),
        pytest.raises(AccessError if status < 500 else TransientError),
    ):
        storage.get(scene.key("checkpoint"))


def test_each_refused_name_of_a_batch_is_reported_and_the_others_are_gone(scene: Scene) -> None:
    for name in ("a", "b", "c"):
        scene.put(name, b"x")

    def plan(seen: Seen) -> Deed:
        if seen.path != "/batch/storage/v1":
            return None
        boundary = seen.headers["Content-Type"].partition('boundary="')[2].rstrip('"')
        parts = seen.body.decode().split(f"--{boundary}")[1:-1]
        statuses = {"a": 204, "b": 403, "c": 404}
        answers = []
        # In another order than they were asked: the ids count.
        for part in reversed(parts):
            identity = part.partition("Content-ID: <")[2].partition(">")[0]
            name = part.partition("run%2F")[2].partition(" ")[0]
            answers.append(
                f"--x\r\nContent-Type: application/http\r\nContent-ID: <response-{identity}>\r\n\r\n"
                f"HTTP/1.1 {statuses[name]} X\r\nContent-Length: 0\r\n\r\n\r\n"
            )
        body = "".join(answers) + "--x--\r\n"
        return Reply(200, body.encode(), {"Content-Type": "multipart/mixed; boundary=x"})

    with scene.proxy.doing(plan), pytest.raises(AccessError) as caught:
        scene.storage.delete_many([scene.key(name) for name in ("a", "b", "c")])
    assert caught.value.url is not None
    assert caught.value.url.endswith("/run/b")


def test_where_batches_are_unknown_names_are_deleted_one_by_one(scene: Scene) -> None:
    names = ["a", "b"]
    for name in names:
        scene.put(name, b"x")
    plan = lambda seen: Reply(404) if seen.path == "/batch/storage/v1" else None  # noqa: E731
    with scene.proxy.doing(plan):
        scene.storage.delete_many([scene.key(name) for name in names])
    assert scene.server.keys(scene.bucket) == []


# ------------------------------------------------------------------------------ answers that were lost


@pytest.mark.parametrize("deed", [Lose(), Reply(500), Reply(502), Reply(200, b"not json")])
@pytest.mark.parametrize("primitive", ["put_new", "put_if"])
def test_a_write_whose_answer_is_lost_is_read_back(scene: Scene, primitive: str, deed: Deed) -> None:
    key = scene.key("checkpoint") if primitive == "put_new" else scene.put("checkpoint", b"old")
    version = "" if primitive == "put_new" else scene.storage.head(key).version
    with scene.proxy.doing(first_only(deed, is_post)) as seen:
        outcome = (
            scene.storage.put_new(key, b"new")
            if primitive == "put_new"
            else scene.storage.put_if(key, b"new", version)
        )
    assert isinstance(outcome, Committed)
    assert outcome.version == scene.storage.head(key).version
    assert scene.raw("checkpoint") == b"new"
    # Applied: one look tells. Not applied: the look tells too, and it is sent again.
    was_applied = isinstance(deed, Lose)
    assert lines(seen)[:2] == ["POST", "GET"]
    assert lines(seen).count("POST") == (1 if was_applied else 2)


def test_a_client_below_that_sends_twice_does_not_make_us_lose(scene: Scene) -> None:
    # The first request was applied and its answer lost; the second is answered 412. Both are ours.
    key = scene.key("model.index")

    def plan(seen: Seen) -> Deed:
        if not is_post(seen):
            return None
        if len([one for one in scene.proxy.seen if is_post(one)]) == 1:
            return Lose()
        return None

    with scene.proxy.doing(plan):
        assert isinstance(scene.storage.put_new(key, b"mine"), Committed)
    assert scene.raw("model.index") == b"mine"


def test_a_412_for_somebody_elses_object_is_lost(scene: Scene) -> None:
    key = scene.put("model.index", b"theirs")
    with scene.proxy.noting() as seen:
        assert scene.storage.put_new(key, b"mine") == Lost(scene.storage.head(key).version)
    assert lines(seen)[:2] == ["POST", "GET"]
    assert scene.raw("model.index") == b"theirs"


def test_a_write_that_cannot_be_read_back_is_ambiguous(scene: Scene) -> None:
    plan = lambda seen: Lose() if is_post(seen) else Refuse()  # noqa: E731
    with scene.proxy.doing(plan):
        assert isinstance(scene.storage.put_new(scene.key("checkpoint"), b"x"), Ambiguous)


def test_a_delete_whose_answer_is_lost_is_done(scene: Scene) -> None:
    key = scene.put("model.index", b"x")
    version = scene.storage.head(key).version
    with scene.proxy.doing(first_only(Lose(), lambda seen: seen.method == "DELETE")) as seen:
        assert scene.storage.delete_if(key, version)
    assert lines(seen) == ["DELETE", "DELETE"]
    assert scene.raw("model.index") is None


def test_a_reset_is_tried_a_known_number_of_times(scene: Scene) -> None:
    # aiohttp repeats GET, PUT and DELETE by itself on a kept connection: one more than asked for each.
    key = scene.put("model.index", b"x")
    scene.storage.get(key)
    with scene.proxy.doing(lambda seen: Refuse()) as seen, pytest.raises(TransientError):
        scene.storage.get(key)
    assert len(seen) == 8


def test_a_server_that_says_nothing_ends_in_bounded_time(scene: Scene) -> None:
    key = scene.put("model.index", b"x")
    hasty = ObjectStorage(scene.storage.transport, RetryPolicy(attempt_s=0.3, pause_scale=0.0))
    began_s = time.monotonic()
    with scene.proxy.doing(lambda seen: Stall()) as seen, pytest.raises(DeadlineError):
        hasty.get(key)
    assert len(seen) == 4
    assert time.monotonic() - began_s < 10


def test_a_server_that_is_down_ends_in_bounded_time(scene: Scene) -> None:
    storage = ObjectStorage(GcsTransport({"endpoint_url": "http://127.0.0.1:9"}), QUICK)
    with pytest.raises(TransientError, match="attempts"):
        storage.get("bucket/run/checkpoint")


# ------------------------------------------------------------------------------------- bodies of reads


def test_a_body_that_is_cut_is_continued_where_it_broke(scene: Scene) -> None:
    data = os.urandom(1_000_000)
    key = scene.put("shard", data)
    with scene.proxy.doing(first_only(Cut(300_000))) as seen:
        assert scene.storage.get(key).data == data
    assert len(seen) == 2
    assert seen[1].headers["Range"].startswith("bytes=")
    assert "generation" in seen[1].query


def test_a_proxy_that_ignores_ranges_is_told_apart(scene: Scene) -> None:
    key = scene.put("shard", os.urandom(100_000))
    plan = lambda seen: Changed(without=("Range",))  # noqa: E731
    with scene.proxy.doing(plan), pytest.raises(UnsupportedError, match="range"):
        scene.storage.get(key, ByteRange(10, 14))


def test_a_range_beyond_the_end_is_truncated_whatever_the_server_says(scene: Scene) -> None:
    key = scene.put("shard", b"0123456789")
    for headers in ({}, {"Content-Range": "bytes */10"}):
        plan = lambda seen, headers=headers: (  # noqa: E731
            Reply(416, b"<Error><Code>InvalidRange</Code></Error>", headers)
            if "Range" in seen.headers
            else None
        )
        with scene.proxy.doing(plan), pytest.raises(TruncatedFileError) as caught:
            scene.storage.get(key, ByteRange(12, 20))
        assert "10" in (caught.value.actual or "")


def test_the_end_of_an_empty_object_is_empty_also_by_416(scene: Scene) -> None:
    key = scene.put("empty", b"")
    plan = lambda seen: Reply(416) if "Range" in seen.headers else None  # noqa: E731
    with scene.proxy.doing(plan):
        got = scene.storage.get(key, SuffixRange(48))
    assert (got.data, got.size_bytes) == (b"", 0)
    assert got.version == scene.storage.head(key).version


# --------------------------------------------------------------------------------------- large objects


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("deed", [Lose(), Refuse(), Reply(503), Reply(500)])
def test_a_chunk_is_never_sent_again_without_asking_first(scene: Scene, number: int, deed: Deed) -> None:
    data = os.urandom(2 * CHUNK + 1000)

    def plan(seen: Seen) -> Deed:
        chunks = [one for one in scene.proxy.seen if is_chunk(one)]
        return deed if is_chunk(seen) and len(chunks) == number and chunks[-1] is seen else None

    with scene.proxy.doing(plan) as seen, scene.storage.upload(scene.key("shard"), len(data)) as upload:
        upload.write(data)
        assert isinstance(upload.commit(), Committed)
    assert scene.raw("shard") == data
    sessions = [one for one in seen if one.method == "PUT"]
    failed = [position for position, one in enumerate(sessions) if is_chunk(one)][number - 1]
    following = sessions[failed + 1 :]
    if following:
        assert following[0].headers["Content-Range"].startswith("bytes */")
        assert not following[0].body
    sent = sum(len(one.body) for one in sessions)
    assert sent == len(data) + (0 if isinstance(deed, Lose) else len(sessions[failed].body))


def test_a_server_that_keeps_nothing_of_a_chunk_is_asked_and_gets_it_again(scene: Scene) -> None:
    data = os.urandom(3 * CHUNK)
    plan = first_only(Reply(308), is_chunk)
    with scene.proxy.doing(plan) as seen, scene.storage.upload(scene.key("shard"), len(data)) as upload:
        upload.write(data)
        assert isinstance(upload.commit(), Committed)
    assert scene.raw("shard") == data
    assert any(one.headers["Content-Range"] == "bytes */*" for one in seen if one.method == "PUT")


def test_a_session_that_the_server_forgot_is_a_typed_error_and_leaves_nothing(scene: Scene) -> None:
    plan = lambda seen: Reply(410) if is_chunk(seen) else None  # noqa: E731
    with scene.proxy.doing(plan) as seen, pytest.raises(TransientError):
        upload_to(scene.storage, scene.key("shard"), bytes(3 * CHUNK))
    assert scene.raw("shard") is None
    assert lines(seen)[-1] == "DELETE"


def test_the_end_of_a_session_whose_answer_is_lost_is_read_back(scene: Scene) -> None:
    data = os.urandom(2 * CHUNK + 1)
    plan = first_only(Lose(), lambda seen: seen.headers.get("Content-Range", "").endswith(f"/{len(data)}"))
    with scene.proxy.doing(plan) as seen, scene.storage.upload(scene.key("shard"), len(data)) as upload:
        upload.write(data)
        outcome = upload.commit()
    assert isinstance(outcome, Committed)
    assert outcome.version == scene.storage.head(scene.key("shard")).version
    assert scene.raw("shard") == data
    assert lines(seen)[-1] == "GET"


def test_a_large_object_that_somebody_else_made_meanwhile_is_lost_and_the_session_ended(scene: Scene) -> None:
    with scene.proxy.noting() as seen, scene.storage.upload(scene.key("shard"), 3 * CHUNK) as upload:
        upload.write(bytes(2 * CHUNK))
        scene.put("shard", b"theirs")
        upload.write(bytes(CHUNK))
        assert isinstance(upload.commit(), Lost)
    assert scene.raw("shard") == b"theirs"
    assert lines(seen)[-1] == "DELETE"


def test_bytes_that_change_on_their_way_are_noticed(scene: Scene) -> None:
    data = os.urandom(2 * CHUNK + 1000)

    def spoil(seen: Seen) -> Deed:
        if not is_chunk(seen):
            return None
        return Changed(body=bytes([seen.body[0] ^ 1]) + seen.body[1:])

    with scene.proxy.doing(spoil), pytest.raises(ChecksumError):
        upload_to(scene.storage, scene.key("shard"), data)
    # This server notices it only when asked; what it has stored by then goes again.
    assert scene.raw("shard") is None

    def spoil_end(seen: Seen) -> Deed:
        if not is_post(seen):
            return None
        return Changed(body=seen.body.replace(b"small", b"smalk"))

    with scene.proxy.doing(spoil_end), pytest.raises(ChecksumError):
        scene.storage.put_new(scene.key("small"), b"small")
    assert scene.raw("small") is None


def test_an_upload_that_is_dropped_or_left_by_an_exception_publishes_nothing(scene: Scene) -> None:
    upload = scene.storage.upload(scene.key("shard"), 3 * CHUNK)
    upload.write(bytes(3 * CHUNK))
    del upload
    try:
        with scene.storage.upload(scene.key("other"), 3 * CHUNK) as other:
            other.write(bytes(3 * CHUNK))
            raise ValueError("mine")
    except ValueError:
        pass
    assert scene.server.keys(scene.bucket) == []


# ------------------------------------------------------------------------------------ the way of the bytes


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
    assert not any(is_direct(one) for one in seen if one not in large)
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


# --------------------------------------------------------------------------- threads, loops, processes


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
    began_s = time.monotonic()
    timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    plan = lambda seen: Stall() if is_post(seen) else None  # noqa: E731
    timer.start()
    with scene.proxy.doing(plan), pytest.raises(KeyboardInterrupt):
        patient.put_new(scene.key("checkpoint"), b"x")
    assert time.monotonic() - began_s < 5
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


# ---------------------------------------------------------------------------- credentials and the client


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
    assert len(seen) == 1
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
