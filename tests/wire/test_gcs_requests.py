"""What is sent to a GCS server and how often, and what each refusal becomes."""

from __future__ import annotations

import functools
import json
import os
import time

import pytest

from ckptstore.checksums import crc32c
from ckptstore.errors import (
    AccessError,
    ChecksumError,
    CkptStoreError,
    NotFoundError,
    StorageFullError,
    TransientError,
    UnsupportedError,
    UsageError,
)
from ckptstore.storage.gcs.transport import GcsTransport
from ckptstore.storage.object_store.attempts import RetryPolicy
from ckptstore.storage.object_store.crc32c_text import crc32c_text
from ckptstore.storage.object_store.storage import ObjectStorage
from ckptstore.storage.values import Committed, SuffixRange
from ckptstore.types import ByteRange
from tests.servers.gcs import GcsServer
from tests.wire.gcs_scene import (
    CHUNK,
    QUICK,
    Scene,
    first_only,
    is_post,
    lines,
)
from tests.wire.requests import Deed, Lose, Refuse, Reply, Seen, WireProxy

pytestmark = pytest.mark.usefixtures("small_chunks")


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
    # A token that is not taken: gcsfs asks once more, and after the first such answer alone.
    assert len(seen) in ((1, 2) if status == 401 else (attempts,))
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


@pytest.mark.parametrize("count", [1, 2])
def test_a_delete_that_is_sent_once_is_one_request_whatever_happens(scene: Scene, count: int) -> None:
    names = ["a", "b"][:count]
    for name in names:
        scene.put(name, b"x")
    failures: list[Deed] = [Reply(503), Refuse(), Lose()]
    for failure in failures:
        plan = functools.partial(lambda deed, _: deed, failure)
        with scene.proxy.doing(plan) as seen, pytest.raises(TransientError):
            scene.storage.delete_once([scene.key(name) for name in names])
        assert lines(seen) == ["DELETE" if count == 1 else "POST"]


def test_where_batches_are_unknown_names_are_deleted_one_by_one(scene: Scene) -> None:
    names = ["a", "b"]
    for name in names:
        scene.put(name, b"x")
    plan = lambda seen: Reply(404) if seen.path == "/batch/storage/v1" else None  # noqa: E731
    with scene.proxy.doing(plan):
        scene.storage.delete_many([scene.key(name) for name in names])
    assert scene.server.keys(scene.bucket) == []
