"""Large objects that are sent to a GCS server as parts and composed: every request of it may go wrong."""

from __future__ import annotations

import json
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.checksums import crc32c
from ckptstore.cli.main import main
from ckptstore.errors import (
    AccessError,
    ChecksumError,
    CkptStoreError,
    CkptStoreWarning,
    DeadlineError,
    TransientError,
)
from ckptstore.storage.gcs import compose as compose_module
from ckptstore.storage.gcs.transport import GcsTransport
from ckptstore.storage.object_store.attempts import RetryPolicy
from ckptstore.storage.object_store.crc32c_text import crc32c_text
from ckptstore.storage.object_store.probe import verdicts_known
from ckptstore.storage.object_store.storage import ObjectStorage
from ckptstore.storage.registry import locate
from ckptstore.storage.values import Ambiguous, Committed, Lost, PutOutcome
from ckptstore.testing.contract.base import at_once
from tests.own_warnings import own_warnings
from tests.servers.gcs import GcsServer
from tests.wire.requests import Changed, Deed, Lose, Refuse, Reply, Seen, Stall, WireProxy

QUICK = RetryPolicy(deadline_s=60.0, attempt_s=20.0, pause_scale=0.0)
MIB = 1024 * 1024
PART = MIB
SIZE = 3 * PART + 1000  # four parts
HIDDEN = "run/.ckptstore-parts/"


class Scene:
    """A storage behind the proxy, in a bucket of its own that was probed, unless told otherwise."""

    def __init__(self, proxy: WireProxy, server: GcsServer, **options: Any) -> None:
        self.proxy = proxy
        self.server = server
        self.bucket = server.make_bucket()
        self.options = server.options | {"endpoint_url": proxy.url} | options
        self.storage = self.another()

    def another(self) -> ObjectStorage:
        return ObjectStorage(GcsTransport(self.options), QUICK)

    def probed(self) -> Scene:
        self.storage.probe(self.key("x"))
        self.storage.upload(self.key("x"), SIZE)
        return self

    def key(self, name: str) -> str:
        return f"{self.bucket}/run/{name}"

    def raw(self, name: str) -> bytes | None:
        return self.server.get(self.bucket, f"run/{name}")

    def keys(self) -> list[str]:
        return self.server.keys(self.bucket)

    @property
    def verdict(self) -> str | None:
        found = verdicts_known(self.storage.transport, self.bucket)
        return None if found is None else found.compose


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let objects be large that are not."""
    monkeypatch.setattr("ckptstore.storage.object_store.upload.SINGLE_SIZE_BYTES", 64 * 1024)
    monkeypatch.setattr(GcsTransport, "part_size_bytes", PART)


@pytest.fixture(scope="module")
def proxy(gcs_server: GcsServer) -> Iterator[WireProxy]:
    with WireProxy(gcs_server.processes[-1].port) as proxy:
        yield proxy


@pytest.fixture
def direct() -> bool:
    return True


@pytest.fixture
def scene(proxy: WireProxy, gcs_server: GcsServer, direct: bool) -> Scene:
    return Scene(proxy, gcs_server, direct=direct).probed()


def send_all(storage: ObjectStorage, key: str, data: bytes) -> PutOutcome:
    """Upload `data` part by part, in this thread."""
    with storage.upload(key, len(data)) as upload:
        assert upload.parallel == 8
        upload.write(data)
        return upload.commit()


def is_part(seen: Seen) -> bool:
    return seen.method == "POST" and seen.path.startswith("/upload/") and len(seen.body) > 1000


def is_compose(seen: Seen) -> bool:
    return seen.path.endswith("/compose")


def is_delete(seen: Seen) -> bool:
    return seen.path == "/batch/storage/v1"


def is_final(seen: Seen) -> bool:
    return is_compose(seen) and HIDDEN not in seen.path


def kinds(seen: list[Seen]) -> list[str]:
    names = {"part": is_part, "compose": is_compose, "batch": is_delete}
    return [next((name for name, fits in names.items() if fits(one)), one.method) for one in seen]


def nth(number: int, deed: Deed, of: Callable[[Seen], bool]) -> Callable[[Seen], Deed]:
    """Do it to request `number`, from 0, of those that fit."""
    counted = [0]

    def plan(seen: Seen) -> Deed:
        if not of(seen):
            return None
        counted[0] += 1
        return deed if counted[0] == number + 1 else None

    return plan


def test_nothing_is_asked_about_parts_before_the_first_object_that_is_large_enough(
    proxy: WireProxy, gcs_server: GcsServer
) -> None:
    scene = Scene(proxy, gcs_server)
    with proxy.noting() as seen:
        scene.storage.put_new(scene.key("small"), b"x")
        asked = len(seen)
        for size_bytes in (0, MIB, 2 * PART, None):
            assert scene.storage.upload(scene.key("shard"), size_bytes).parallel == 1
        assert len(seen) == asked
        assert scene.verdict is None
        assert scene.storage.upload(scene.key("shard"), 2 * PART + 1).parallel == 8
        assert kinds(seen[asked:]) == ["POST", "POST", "compose", "compose", "compose", "batch"]
        assert scene.verdict == "yes"
        assert scene.another().upload(scene.key("shard"), SIZE).parallel == 8
        assert len(seen) == asked + 6
    assert scene.keys() == ["run/small"]


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "gcsfs"])
def test_a_large_object_is_its_parts_and_two_requests(scene: Scene) -> None:
    data = os.urandom(SIZE)
    with scene.proxy.noting() as seen:
        outcome = send_all(scene.storage, scene.key("shard"), data)
    assert kinds(seen) == ["part"] * 4 + ["compose", "batch"]
    assert scene.raw("shard") == data
    assert scene.keys() == ["run/shard"]
    found = scene.storage.head(scene.key("shard"))
    assert outcome == Committed(found.version)
    assert found.crc32c == crc32c(data)
    names = []
    for number, one in enumerate(seen[:4]):
        assert one.query["ifGenerationMatch"] == "0"
        fields = json.loads(one.body.partition(b"\r\n\r\n")[2].partition(b"\r\n--")[0])
        assert fields["name"] == f"{HIDDEN}shard/{found.write_id}/{number:06d}"
        assert fields["crc32c"] == crc32c_text(crc32c(data[number * PART : (number + 1) * PART]))
        assert fields["metadata"]["ckptstore_write_id"] == found.write_id
        names.append(fields["name"])
    asked = json.loads(seen[4].body)
    assert seen[4].path.endswith("/o/run/shard/compose")
    assert seen[4].query["ifGenerationMatch"] == "0"
    assert [source["name"] for source in asked["sourceObjects"]] == names
    assert all(source["objectPreconditions"]["ifGenerationMatch"] for source in asked["sourceObjects"])
    # As a resumable upload describes it.
    assert asked["destination"] == {
        "name": "run/shard",
        "contentType": "application/octet-stream",
        "metadata": {"ckptstore_write_id": found.write_id},
    }


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "gcsfs"])
def test_parts_go_from_eight_threads_in_any_order(scene: Scene) -> None:
    data = os.urandom(15 * PART + 77)
    parts = [data[start : start + PART] for start in range(0, len(data), PART)]
    with scene.storage.upload(scene.key("shard"), len(data)) as upload:

        def send(number: int) -> None:
            part = memoryview(parts[number])
            upload.send(number, [part[:5], part[5:]], crc32c(part), is_last=number == 15)

        at_once([lambda number=number: send(number) for number in (15, 3, 9, 0, 1, 7, 2, 8)])  # type: ignore[misc]
        at_once([lambda number=number: send(number) for number in (4, 5, 6, 10, 11, 12, 13, 14)])  # type: ignore[misc]
        assert isinstance(upload.commit(), Committed)
    assert scene.raw("shard") == data
    assert scene.keys() == ["run/shard"]


def test_parts_are_in_no_listing_of_the_directory(scene: Scene) -> None:
    ck.Saver().save({"w": np.arange(4.0)}, f"gs://{scene.key('model')}", 1, storage_options=scene.options)
    before = scene.keys()
    with scene.storage.upload(scene.key("model-2.data-00000-of-00001"), SIZE) as upload:
        upload.write(bytes(2 * PART + 1))
        assert len(scene.keys()) == len(before) + 2
        listed = [info.key.partition("/")[2] for info in scene.storage.list(scene.key(""))]
        assert listed == before
        assert [info.key for info in scene.storage.list(scene.key("model-2"))] == []
        url = f"gs://{scene.bucket}/run"
        state = ck.get_checkpoint_state(url, storage_options=scene.options)
        assert state is not None
        assert state.all_model_checkpoint_paths == (f"{url}/model-1",)
    assert scene.keys() == before


def test_objects_of_a_bucket_without_directories_are_hidden_as_well(scene: Scene) -> None:
    key = f"{scene.bucket}/shard"
    with scene.storage.upload(key, SIZE) as upload:
        upload.write(bytes(2 * PART + 1))
        names = scene.keys()
        assert {name.partition("/")[0] for name in names} == {".ckptstore-parts"}
        assert list(scene.storage.list(f"{scene.bucket}/")) == []
        upload.write(bytes(SIZE - 2 * PART - 1))
        assert isinstance(upload.commit(), Committed)
    assert scene.keys() == ["shard"]


@pytest.mark.parametrize("count", [4, 9, 10, 19, 28])
def test_more_parts_than_one_request_takes_are_composed_in_levels(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(compose_module, "MOST_SOURCES", 3)
    data = os.urandom((count - 1) * MIB + 5)
    with scene.storage.upload(scene.key("shard"), 17 * MIB) as upload:
        # A size that is not true costs time and nothing else.
        for number, start in enumerate(range(0, len(data), MIB)):
            part = memoryview(data)[start : start + MIB]
            upload.send(number, [part], crc32c(part), is_last=number == count - 1)
        with scene.proxy.noting() as seen:
            assert isinstance(upload.commit(), Committed)
    sources = [len(json.loads(one.body)["sourceObjects"]) for one in seen if is_compose(one)]
    assert max(sources) <= 3
    assert scene.raw("shard") == data
    assert scene.keys() == ["run/shard"]


def test_forty_parts_are_two_levels_and_the_first_is_made_meanwhile(scene: Scene) -> None:
    data = os.urandom(39 * MIB + 2000)
    with scene.proxy.noting() as seen:
        assert isinstance(send_all(scene.storage, scene.key("shard"), data), Committed)
    assert kinds(seen) == ["part"] * 32 + ["compose"] + ["part"] * 8 + ["compose", "compose", "batch"]
    sources = [len(json.loads(one.body)["sourceObjects"]) for one in seen if is_compose(one)]
    assert sources == [32, 8, 2]
    assert scene.raw("shard") == data
    assert scene.keys() == ["run/shard"]


def test_a_name_without_room_for_those_of_parts_goes_in_one_stream(scene: Scene) -> None:
    name = "d/" * 485 + "shard"
    assert scene.storage.upload(scene.key(name), SIZE).parallel == 1


def test_a_server_that_ignores_conditions_of_compose_gets_one_stream(bare_gcs_server: GcsServer) -> None:
    with WireProxy(bare_gcs_server.processes[-1].port) as proxy:
        scene = Scene(proxy, bare_gcs_server)
        data = os.urandom(SIZE)
        with scene.storage.upload(scene.key("shard"), SIZE) as upload:
            assert upload.parallel == 1
            with proxy.noting() as seen:
                upload.write(data)
                assert isinstance(upload.commit(), Committed)
        assert kinds(seen) == ["POST", *["PUT"] * 4]
        assert scene.verdict == "ignored"
        assert scene.raw("shard") == data
        assert scene.keys() == ["run/shard"]


def test_a_server_that_forgets_the_condition_of_the_target_gets_one_stream(
    proxy: WireProxy, gcs_server: GcsServer
) -> None:
    scene = Scene(proxy, gcs_server)

    def forget(seen: Seen) -> Deed:
        # The proxy cannot change a query: it plays a server that composes whatever is there.
        if is_compose(seen) and len([one for one in proxy.seen if is_compose(one)]) == 3:
            fields = {"name": "x", "size": "1", "generation": "7", "updated": "2026-11-23T08:22:29Z"}
            return Reply(200, json.dumps(fields).encode())
        return None

    with proxy.doing(forget):
        assert scene.storage.upload(scene.key("shard"), SIZE).parallel == 1
    assert scene.verdict == "ignored"
    assert scene.keys() == []


@pytest.mark.parametrize("status", [400, 403, 404, 405, 500, 501])
def test_a_server_that_does_not_compose_gets_one_stream(
    proxy: WireProxy, gcs_server: GcsServer, status: int
) -> None:
    scene = Scene(proxy, gcs_server)
    with proxy.doing(lambda seen: Reply(status) if is_compose(seen) else None):
        assert scene.storage.upload(scene.key("shard"), SIZE).parallel == 1
    assert scene.verdict == "refused"
    assert scene.keys() == []
    data = os.urandom(SIZE)
    with scene.storage.upload(scene.key("shard"), SIZE) as upload:
        upload.write(data)
        assert isinstance(upload.commit(), Committed)
    assert scene.raw("shard") == data


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("deed", [Lose(), Refuse(), Reply(503)])
def test_a_fault_while_it_is_asked_does_not_spoil_the_verdict(
    proxy: WireProxy, gcs_server: GcsServer, number: int, deed: Deed
) -> None:
    scene = Scene(proxy, gcs_server)
    with proxy.doing(nth(number, deed, is_compose)):
        assert scene.storage.upload(scene.key("shard"), SIZE).parallel == 8
    assert scene.verdict == "yes"
    assert scene.keys() == []


def test_a_server_that_cannot_be_asked_is_an_error_and_no_verdict(
    proxy: WireProxy, gcs_server: GcsServer
) -> None:
    scene = Scene(proxy, gcs_server)
    with (
        proxy.doing(lambda seen: Refuse() if is_compose(seen) else None),
        pytest.raises(TransientError, match="how to send"),
    ):
        scene.storage.upload(scene.key("shard"), SIZE)
    assert scene.verdict is None


def test_the_option_leaves_everything_in_one_stream(proxy: WireProxy, gcs_server: GcsServer) -> None:
    scene = Scene(proxy, gcs_server, parallel_uploads=False)
    with proxy.noting() as seen:
        assert scene.storage.upload(scene.key("shard"), SIZE).parallel == 1
    assert seen == []


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "gcsfs"])
@pytest.mark.parametrize("number", [0, 2, 3])
@pytest.mark.parametrize("deed", [Lose(), Refuse(), Reply(503), Reply(500), Reply(200, b"not json")])
def test_one_part_is_sent_again_and_no_other(scene: Scene, number: int, deed: Deed) -> None:
    data = os.urandom(SIZE)
    with scene.proxy.doing(nth(number, deed, is_part)) as seen:
        assert isinstance(send_all(scene.storage, scene.key("shard"), data), Committed)
    assert scene.raw("shard") == data
    assert scene.keys() == ["run/shard"]
    parts = kinds(seen).count("part")
    # What arrived is recognised, and not sent twice.
    assert parts == (4 if isinstance(deed, Lose) else 5)
    assert kinds(seen).count("GET") == 1


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "gcsfs"])
def test_a_part_that_is_there_by_another_road_is_ours(scene: Scene) -> None:
    # A client below repeats the request; the second one is told 412.
    data = os.urandom(SIZE)
    twice = [False]

    def plan(seen: Seen) -> Deed:
        if is_part(seen) and not twice[0]:
            twice[0] = True
            name = json.loads(seen.body.partition(b"\r\n\r\n")[2].partition(b"\r\n--")[0])["name"]
            scene.server.put(scene.bucket, name, data[:PART])
        return None

    with scene.proxy.doing(plan) as seen:
        assert isinstance(send_all(scene.storage, scene.key("shard"), data), Committed)
    assert kinds(seen)[:2] == ["part", "GET"]
    assert kinds(seen).count("part") == 4
    assert scene.raw("shard") == data


@pytest.mark.parametrize("status", [401, 403, 507])
def test_a_part_that_is_refused_ends_it_and_leaves_nothing(scene: Scene, status: int) -> None:
    with scene.proxy.doing(nth(2, Reply(status), is_part)) as seen, pytest.raises(CkptStoreError):
        send_all(scene.storage, scene.key("shard"), bytes(SIZE))
    assert kinds(seen) == ["part"] * 3 + ["batch"]
    assert scene.keys() == []


def test_bytes_that_change_on_their_way_are_refused_and_leave_nothing(scene: Scene) -> None:
    def spoil(seen: Seen) -> Deed:
        if not is_part(seen):
            return None
        middle = len(seen.body) // 2
        return Changed(
            body=seen.body[:middle] + bytes([seen.body[middle] ^ 1]) + seen.body[middle + 1 :],
        )

    with scene.proxy.doing(spoil) as seen, pytest.raises(ChecksumError):
        send_all(scene.storage, scene.key("shard"), os.urandom(SIZE))
    assert kinds(seen) == ["part", "GET", "part", "batch"]
    assert scene.keys() == []


def test_a_composed_object_with_other_bytes_is_withdrawn(scene: Scene) -> None:
    def swap(seen: Seen) -> Deed:
        if not is_final(seen):
            return None
        asked = json.loads(seen.body)
        asked["sourceObjects"].reverse()
        return Changed(body=json.dumps(asked).encode())

    with scene.proxy.doing(swap), pytest.raises(ChecksumError):
        send_all(scene.storage, scene.key("shard"), os.urandom(SIZE))
    assert scene.keys() == []


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "gcsfs"])
@pytest.mark.parametrize("deed", [Lose(), Refuse(), Reply(500), Reply(503), Reply(200, b"not json")])
def test_the_last_request_is_read_back_when_its_answer_is_lost(scene: Scene, deed: Deed) -> None:
    data = os.urandom(SIZE)
    with scene.proxy.doing(nth(0, deed, is_final)) as seen:
        outcome = send_all(scene.storage, scene.key("shard"), data)
    assert outcome == Committed(scene.storage.head(scene.key("shard")).version)
    assert kinds(seen).count("compose") == (1 if isinstance(deed, Lose) else 2)
    assert kinds(seen).count("part") == 4
    assert scene.raw("shard") == data
    assert scene.keys() == ["run/shard"]


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("deed", [Lose(), Refuse(), Reply(500), Reply(503)])
def test_an_object_between_the_levels_is_made_once(scene: Scene, number: int, deed: Deed) -> None:
    data = os.urandom(39 * MIB + 2000)
    plan = nth(number, deed, lambda seen: is_compose(seen) and not is_final(seen))
    with scene.proxy.doing(plan) as seen:
        assert isinstance(send_all(scene.storage, scene.key("shard"), data), Committed)
    assert kinds(seen).count("part") == 40
    assert kinds(seen).count("compose") == (3 if isinstance(deed, Lose) else 4)
    assert scene.raw("shard") == data
    assert scene.keys() == ["run/shard"]


def test_a_last_request_in_doubt_leaves_its_parts_alone(scene: Scene) -> None:
    plan = lambda seen: Lose() if is_final(seen) else Refuse() if seen.method == "GET" else None  # noqa: E731
    with scene.proxy.doing(plan) as seen:
        outcome = send_all(scene.storage, scene.key("shard"), bytes(SIZE))
    assert isinstance(outcome, Ambiguous)
    assert "batch" not in kinds(seen)
    assert len(scene.keys()) == 5
    assert scene.storage.abort_stale_uploads(scene.key(""), -60.0) == 1
    assert scene.keys() == ["run/shard"]


def test_what_is_there_is_not_replaced(scene: Scene) -> None:
    with scene.proxy.noting() as seen, scene.storage.upload(scene.key("shard"), SIZE) as upload:
        upload.write(bytes(2 * PART))
        scene.server.put(scene.bucket, "run/shard", b"theirs")
        upload.write(bytes(SIZE - 2 * PART))
        assert upload.commit() == Lost(scene.storage.head(scene.key("shard")).version)
    assert kinds(seen) == ["part"] * 4 + ["compose", "GET", "batch", "GET"]
    assert scene.raw("shard") == b"theirs"
    assert scene.keys() == ["run/shard"]


@pytest.mark.parametrize("count", [1, 4])
def test_parts_that_somebody_removed_are_an_error_and_publish_nothing(scene: Scene, count: int) -> None:
    def remove(seen: Seen) -> Deed:
        names = scene.keys()
        if is_final(seen) and len(names) == 4:
            for name in names[:count]:
                scene.server.remove(scene.bucket, name)
        return None

    with scene.storage.upload(scene.key("shard"), SIZE) as upload:
        upload.write(bytes(SIZE))
        with scene.proxy.doing(remove) as seen, pytest.raises(TransientError, match="save again"):
            upload.commit()
    assert kinds(seen).count("compose") == 2
    assert scene.keys() == []


@pytest.mark.parametrize("deed", [Refuse(), Lose(), Reply(503), Reply(500), Reply(400)])
def test_parts_that_cannot_be_deleted_at_once_are_deleted_in_the_background(scene: Scene, deed: Deed) -> None:
    with scene.proxy.doing(nth(0, deed, is_delete)):
        assert isinstance(send_all(scene.storage, scene.key("shard"), bytes(SIZE)), Committed)
        scene.storage.service.background().shutdown(wait=True)
    assert scene.keys() == ["run/shard"]


@pytest.mark.parametrize("deed", [Refuse(), Reply(503), Reply(500), Reply(400)])
def test_parts_that_cannot_be_deleted_do_not_hurt_the_object(scene: Scene, deed: Deed) -> None:
    data = os.urandom(SIZE)
    with scene.proxy.doing(lambda seen: deed if is_delete(seen) else None):
        assert isinstance(send_all(scene.storage, scene.key("shard"), data), Committed)
        scene.storage.service.background().shutdown(wait=True)
    assert scene.raw("shard") == data
    assert len(scene.keys()) == 5
    assert scene.verdict == "yes"
    assert scene.another().abort_stale_uploads(scene.key(""), -60.0) == 1
    assert scene.keys() == ["run/shard"]


def test_where_batches_are_unknown_parts_are_deleted_one_by_one(scene: Scene) -> None:
    with scene.proxy.doing(lambda seen: Reply(404) if is_delete(seen) else None):
        assert isinstance(send_all(scene.storage, scene.key("shard"), bytes(SIZE)), Committed)
    assert scene.keys() == ["run/shard"]


def kept(seen: Seen) -> Deed:
    """Refuse every delete in a batch, as a bucket with a retention policy does."""
    if seen.method == "DELETE":
        return Reply(403, RETAINED)
    if not is_delete(seen):
        return None
    count = seen.body.count(b"Content-ID")
    answers = [
        f"--x\r\nContent-Type: application/http\r\nContent-ID: <response-b+{number}>\r\n\r\n"
        f"HTTP/1.1 403 X\r\n\r\n{RETAINED.decode()}\r\n"
        for number in range(count)
    ]
    return Reply(
        200, ("".join(answers) + "--x--\r\n").encode(), {"Content-Type": "multipart/mixed; boundary=x"}
    )


RETAINED = (
    b"""{"error": {"message": "is subject to the policy", "errors": [{"reason": "retentionPolicyNotMet"}]}}"""
)


def test_a_bucket_that_keeps_objects_is_noticed_before_the_first_part(
    proxy: WireProxy, gcs_server: GcsServer
) -> None:
    scene = Scene(proxy, gcs_server)
    with proxy.doing(kept):
        assert scene.storage.upload(scene.key("shard"), SIZE).parallel == 1
    assert scene.verdict == "kept"


@pytest.mark.parametrize("strict", [False, True])
def test_a_bucket_that_begins_to_keep_objects_gets_one_stream_from_then_on(
    scene: Scene, strict: bool
) -> None:
    data = os.urandom(SIZE)
    with scene.proxy.doing(kept), own_warnings("error" if strict else "always") as caught:
        first = scene.storage.upload(scene.key("first"), SIZE)
        second = scene.storage.upload(scene.key("second"), SIZE)
        for upload in (first, second):
            upload.write(data)
            assert isinstance(upload.commit(), Committed)
            upload.close()
    assert [warning.category for warning in caught] == ([] if strict else [CkptStoreWarning])
    if not strict:
        assert "retentionPolicyNotMet" in str(caught[0].message)
        assert f"{HIDDEN}first/" in str(caught[0].message)
    assert scene.raw("first") == scene.raw("second") == data
    assert scene.storage.upload(scene.key("third"), SIZE).parallel == 1
    with scene.proxy.doing(kept), pytest.raises(AccessError):
        scene.storage.abort_stale_uploads(scene.key(""), -60.0)
    assert scene.storage.abort_stale_uploads(scene.key(""), -60.0) == 2
    assert scene.keys() == ["run/first", "run/second"]


def left_over(scene: Scene, name: str, write_id: str = "0" * 32, count: int = 2) -> None:
    for number in range(count):
        scene.server.put(scene.bucket, f"{HIDDEN}{name}/{write_id}/{number:06d}", b"part")


def test_unfinished_uploads_are_found_with_one_request_and_go_by_age(scene: Scene) -> None:
    left_over(scene, "model-1.data-00000-of-00001")
    left_over(scene, "model-1.data-00000-of-00001", "f" * 32)
    left_over(scene, "other")
    left_over(scene, "other/deeper")
    scene.server.put(scene.bucket, f"{HIDDEN}other/notes.txt", b"mine")
    before = scene.keys()
    storage = scene.storage
    with scene.proxy.noting() as seen:
        assert storage.abort_stale_uploads(scene.key(""), float("inf")) == 0
        assert seen == []
        assert storage.abort_stale_uploads(scene.key(""), 3600.0) == 0
        assert kinds(seen) == ["GET"]
        assert storage.abort_stale_uploads(scene.key("nothing"), -60.0) == 0
        assert scene.keys() == before
        assert storage.abort_stale_uploads(scene.key("model-1"), -60.0) == 2
        assert kinds(seen) == ["GET", "GET", "GET", *["GET", "batch"] * 2]
    assert scene.keys() == [key for key in before if "model-1" not in key]
    assert storage.abort_stale_uploads(scene.key(""), -60.0) == 1
    assert scene.keys() == [f"{HIDDEN}other/deeper/{'0' * 32}/00000{n}" for n in (0, 1)] + [
        f"{HIDDEN}other/notes.txt"
    ]


def test_the_age_of_an_upload_is_that_of_its_youngest_part_by_the_servers_clock(scene: Scene) -> None:
    names = [f"{HIDDEN}shard/{'a' * 32}/{number:06d}" for number in range(2)]

    def listing(seen: Seen) -> Deed:
        if seen.method != "GET":
            return None
        ages = {names[0]: "2026-01-02T00:00:00Z", names[1]: "2026-01-02T10:00:00Z"}
        items = [
            {"name": name, "size": "4", "generation": "1", "updated": updated}
            for name, updated in ages.items()
        ]
        date = {"Date": "Fri, 02 Jan 2026 12:00:00 GMT"}
        return Reply(200, json.dumps({"items": items}).encode(), date)

    for min_age_s, dropped in ((7300.0, 0), (7100.0, 1)):
        with scene.proxy.doing(listing):
            assert scene.storage.abort_stale_uploads(scene.key(""), min_age_s) == dropped


def test_an_upload_of_more_pages_than_one_is_removed_whole(scene: Scene) -> None:
    left_over(scene, "shard", count=2)
    pages = {None: "000000", "next": "000001"}

    def paged(seen: Seen) -> Deed:
        if seen.method != "GET":
            return None
        token = seen.query.get("pageToken")
        name = f"{HIDDEN}shard/{'0' * 32}/{pages[token]}"
        item = {"name": name, "size": "4", "generation": "1", "updated": "2026-01-02T00:00:00Z"}
        page = {"items": [item]} | ({} if token else {"nextPageToken": "next"})
        return Reply(200, json.dumps(page).encode())

    with scene.proxy.doing(paged):
        assert scene.storage.abort_stale_uploads(scene.key(""), 0.0) == 1
    assert scene.keys() == []


def test_an_upload_of_ones_own_is_no_dead_writers(scene: Scene) -> None:
    with scene.storage.upload(scene.key("shard"), SIZE) as upload:
        upload.write(bytes(PART + 1))
        assert scene.storage.abort_stale_uploads(scene.key(""), 3600.0) == 0
        assert len(scene.keys()) == 1
        assert scene.storage.abort_stale_uploads(scene.key(""), -60.0) == 1
        assert scene.keys() == []
        with pytest.raises(TransientError, match="removed while it was written"):
            upload.write(bytes(PART + 1))


def test_gc_drops_parts_also_where_nothing_else_is(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    left_over(scene, "model-1.data-00000-of-00001")
    options = scene.server.options
    words = [f"--storage-option={name}={json.dumps(value)}" for name, value in options.items()]
    assert main(["gc", f"gs://{scene.bucket}/run", *words]) == 3
    assert len(scene.keys()) == 2
    assert main(["gc", f"gs://{scene.bucket}/run", "--min-age", "0s", *words]) == 0
    assert scene.keys() == []


def test_an_upload_that_is_dropped_is_removed_in_the_background(scene: Scene) -> None:
    upload = scene.storage.upload(scene.key("shard"), SIZE)
    upload.write(bytes(3 * PART))
    assert scene.keys()
    del upload
    scene.storage.service.background().shutdown(wait=True)
    assert scene.keys() == []


def test_a_block_that_raises_leaves_nothing(scene: Scene) -> None:
    def interrupted() -> None:
        with scene.storage.upload(scene.key("shard"), SIZE) as upload:
            upload.write(bytes(3 * PART))
            assert scene.keys()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert scene.keys() == []


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "gcsfs"])
def test_a_forked_child_leaves_the_upload_of_its_parent_alone(scene: Scene) -> None:
    data = os.urandom(SIZE)
    with scene.storage.upload(scene.key("shard"), SIZE) as upload:
        upload.write(data[: 2 * PART])
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                try:
                    upload.commit()
                except CkptStoreError:
                    upload.abort()
                    del upload
                    code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        upload.write(data[2 * PART :])
        assert isinstance(upload.commit(), Committed)
    assert scene.raw("shard") == data
    assert scene.keys() == ["run/shard"]


class TestSaves:
    """Checkpoints whose data file is large enough, through the front door."""

    @pytest.fixture(autouse=True)
    def levels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(compose_module, "MOST_SOURCES", 2)
        # Pauses cost nothing here.
        monkeypatch.setattr("ckptstore.storage.object_store.service.RetryPolicy", lambda: QUICK)
        monkeypatch.setattr("ckptstore.storage.object_store.upload._ABORT_POLICY", QUICK)

    @staticmethod
    def values(step: float) -> dict[str, np.ndarray]:
        return {"big": np.full((3, 1 << 18), step, np.float32), "small": np.array([step])}

    @staticmethod
    def stamp(url: str, options: dict[str, Any]) -> float:
        """Return which save the latest checkpoint is, after a look at every value of it."""
        found: dict[str, np.ndarray] = {}
        latest = ck.latest_checkpoint(url, storage_options=options)
        assert latest is not None
        ck.Saver().restore(found, latest, storage_options=options)
        (stamp,) = set(np.unique(found["big"]).tolist()) | set(found["small"].tolist())
        return float(stamp)

    def test_a_death_at_any_request_leaves_old_or_new_and_gc_the_rest(
        self, proxy: WireProxy, gcs_server: GcsServer
    ) -> None:
        for number in range(1, 60):
            for deed in (Refuse(), Lose()):
                if not self.dies(proxy, gcs_server, number, deed):
                    assert number > 14, "that was no save in parts"
                    return
        pytest.fail("no save comes to its end")

    def dies(self, proxy: WireProxy, gcs_server: GcsServer, number: int, deed: Deed) -> bool:
        """Let the writer die with its request `number`; tell whether there was such a request."""
        bucket = gcs_server.make_bucket()
        url = f"gs://{bucket}/run"
        saver = ck.Saver(max_to_keep=2)
        saver.save(self.values(1), f"{url}/model", 1, storage_options=gcs_server.options)
        before = gcs_server.keys(bucket)
        through = gcs_server.options | {"endpoint_url": proxy.url}
        count = [0]
        lock = threading.Lock()

        def die(seen: Seen) -> Deed:
            with lock:
                count[0] += 1
                return None if count[0] < number else deed if count[0] == number else Refuse()

        place = f"request {number}, {deed}"
        with proxy.doing(die), warnings.catch_warnings():
            warnings.simplefilter("ignore", CkptStoreWarning)
            with suppress(CkptStoreError):
                ck.Saver(max_to_keep=2).save(
                    self.values(2), f"{url}/model", 2, storage_options=through, write_meta_graph=False
                )
        if count[0] < number:
            return False
        stamp = self.stamp(url, gcs_server.options)
        assert stamp in (1.0, 2.0), place
        assert set(before) <= set(gcs_server.keys(bucket)), place
        words = [f"--storage-option={name}={json.dumps(value)}" for name, value in gcs_server.options.items()]
        assert main(["gc", url, "--min-age", "0s", "--yes", *words]) == 0, place
        left = gcs_server.keys(bucket)
        assert [key for key in left if ".ckptstore" in key] == [], place
        assert set(left) - set(before) <= {"run/model-2.data-00000-of-00001", "run/model-2.index"}, place
        assert self.stamp(url, gcs_server.options) == stamp, place
        return True

    def test_a_save_sends_its_parts_side_by_side(self, proxy: WireProxy, gcs_server: GcsServer) -> None:
        bucket = gcs_server.make_bucket()
        options = gcs_server.options | {"endpoint_url": proxy.url}
        met = threading.Barrier(3, timeout=30)

        def meet(seen: Seen) -> Deed:
            if is_part(seen) and len(seen.body) > MIB:
                # Three at a time, or nobody goes on.
                met.wait()
            return None

        with proxy.doing(meet):
            ck.Saver().save(self.values(7), f"gs://{bucket}/run/model", 1, storage_options=options)
        assert self.stamp(f"gs://{bucket}/run", options) == 7.0
        assert not [key for key in gcs_server.keys(bucket) if ".ckptstore" in key]

    def test_a_part_that_hangs_is_given_up_with_the_save_and_leaves_nothing(
        self, proxy: WireProxy, gcs_server: GcsServer
    ) -> None:
        bucket = gcs_server.make_bucket()
        options = gcs_server.options | {"endpoint_url": proxy.url}
        storage = locate(f"gs://{bucket}/run", options).storage
        assert storage.upload(f"{bucket}/run/x", 3 * MIB).parallel == 8
        hangs = nth(1, Stall(), lambda seen: is_part(seen) and len(seen.body) > MIB)
        with proxy.doing(hangs) as seen, pytest.raises(DeadlineError):
            ck.Saver(deadline_s=2.0).save(
                self.values(7), f"gs://{bucket}/run/model", 1, storage_options=options
            )
        assert kinds(seen).count("part") == 3
        assert gcs_server.keys(bucket) == []


@pytest.mark.parametrize(
    ("kind", "options", "state", "words"),
    [
        ("gcs_server", {}, "ok", "8 at a time"),
        ("gcs_server", {"parallel_uploads": False}, "ok", "parallel_uploads=False"),
        ("bare_gcs_server", {}, "degraded", "does not keep the conditions of compose"),
    ],
)
def test_doctor_says_how_parts_travel(
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    options: dict[str, Any],
    state: str,
    words: str,
) -> None:
    server = request.getfixturevalue(kind)
    bucket = server.make_bucket()
    flags = [f"--storage-option={name}={json.dumps(v)}" for name, v in (server.options | options).items()]
    assert main(["doctor", f"gs://{bucket}/run", "--json", *flags]) == 0
    (check,) = [
        check
        for check in json.loads(capsys.readouterr().out)["checks"]
        if check["check"] == "parts of uploads"
    ]
    assert check["state"] == state
    assert words in check["detail"]
    assert server.keys(bucket) == []
