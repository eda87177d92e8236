"""Answers of a GCS server that are lost or cut, and large objects sent in one stream."""

from __future__ import annotations

import os

import pytest

from ckptstore.errors import (
    ChecksumError,
    DeadlineError,
    TransientError,
    TruncatedFileError,
    UnsupportedError,
)
from ckptstore.storage.gcs.transport import GcsTransport
from ckptstore.storage.object_store.attempts import RetryPolicy
from ckptstore.storage.object_store.storage import ObjectStorage
from ckptstore.storage.values import Ambiguous, Committed, Lost, SuffixRange
from ckptstore.types import ByteRange
from tests.wire.gcs_scene import (
    CHUNK,
    QUICK,
    Scene,
    first_only,
    is_chunk,
    is_post,
    lines,
    upload_to,
)
from tests.wire.requests import Changed, Cut, Deed, Lose, Refuse, Reply, Seen, Stall

pytestmark = pytest.mark.usefixtures("small_chunks")


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
    with scene.proxy.doing(lambda seen: Stall()) as seen, pytest.raises(DeadlineError):
        hasty.get(key)
    assert len(seen) == 4


def test_a_server_that_is_down_ends_in_bounded_time(scene: Scene) -> None:
    storage = ObjectStorage(GcsTransport({"endpoint_url": "http://127.0.0.1:9"}), QUICK)
    with pytest.raises(TransientError, match="attempts"):
        storage.get("bucket/run/checkpoint")


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
