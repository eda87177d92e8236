"""Objects composed of parts, on a store of the test's own making: names, levels, faults, what is left."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from functools import partial

import pytest

from ckptstore.checksums import crc32c
from ckptstore.errors import CkptStoreWarning
from ckptstore.storage.gcs import compose as compose_module
from ckptstore.storage.gcs.compose import (
    ComposeSession,
    is_nameable,
    parts_prefix,
    unfinished_uploads,
)
from ckptstore.storage.object_store.attempts import Attempts, RetryBudget, RetryPolicy
from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.object_store.probe import compose_verdict_for, give_up_composing, verdicts_known
from ckptstore.storage.object_store.transport import (
    ObjectName,
    Precondition,
    PutRequest,
    PutResult,
    StaleUpload,
)
from ckptstore.storage.values import ObjectInfo
from tests.own_warnings import own_warnings
from tests.unit.storage.object_store.scripted_transport import ScriptedTransport, after, before

PLACE = ObjectName("b", "run/shard")
WRITE_ID = "0123456789abcdef" * 2
HIDDEN = f"run/.ckptstore-parts/shard/{WRITE_ID}/"


class Composing(ScriptedTransport):
    """The dictionary, with compose."""

    honours_sources = True
    honours_target = True

    def compose(
        self, request: PutRequest, sources: Sequence[tuple[str, str]], attempts: Attempts
    ) -> ObjectInfo:
        def compose() -> ObjectInfo:
            for name, version in sources:
                source = self.objects.get(name)
                if self.honours_sources and (source is None or source.version != version):
                    raise Fault(Kind.PRECONDITION, "a source")
            if self.honours_target:
                self.check_condition(request)
            data = b"".join(self.objects[name].data for name, _ in sources)
            version = self.add_object(request.target.name, data, request.write_id)
            return ObjectInfo(request.target.key, len(data), version, 0.0, request.write_id, crc32c(data))

        assert len(sources) <= compose_module.MOST_SOURCES
        return self.run_step("compose", request.target.name, compose)


def new_attempts() -> Attempts:
    return Attempts(RetryPolicy(pause_scale=0.0), RetryBudget())


def session_of(transport: Composing, count: int) -> tuple[ComposeSession, list[bytes]]:
    parts = [b"part %d," % number for number in range(count)]
    request = PutRequest(PLACE, WRITE_ID, Precondition(None), sum(map(len, parts)))
    return ComposeSession(transport, request), parts


def send(session: ComposeSession, number: int, part: bytes) -> None:
    new_attempts().run(partial(session.send, number, number * len(part), [memoryview(part)], crc32c(part)))


def complete(session: ComposeSession, parts: list[bytes]) -> PutResult:
    whole = b"".join(parts)
    return new_attempts().run(lambda attempts: session.complete((), len(whole), crc32c(whole), attempts))


@pytest.mark.parametrize(
    ("start", "prefix"),
    [
        ("run/", "run/.ckptstore-parts/"),
        ("run/model", "run/.ckptstore-parts/model"),
        ("a/b/model-1.data", "a/b/.ckptstore-parts/model-1.data"),
        ("", ".ckptstore-parts/"),
        ("model", ".ckptstore-parts/model"),
    ],
)
def test_parts_lie_below_the_directory_of_their_object(start: str, prefix: str) -> None:
    assert parts_prefix(start) == prefix


def test_names_of_parts_have_to_fit() -> None:
    transport = Composing()
    session, parts = session_of(transport, 1)
    send(session, 0, parts[0])
    room = 1024 - len(next(iter(transport.objects)).encode()) + len(PLACE.name) - 2
    assert is_nameable(ObjectName("b", "x" * (room - 8) + "é" * 2 + "yyyy"))
    assert not is_nameable(ObjectName("b", "x" * (room - 8) + "é" * 5 + "yyyy"))


def test_an_upload_is_as_old_as_its_youngest_part_and_what_is_no_part_is_none() -> None:
    def info(name: str, mtime_s: float) -> ObjectInfo:
        return ObjectInfo(f"b/run/.ckptstore-parts/{name}", 1, "1", mtime_s)

    other = "f" * 32
    listed = [
        info(f"shard/{WRITE_ID}/000001", 50.0),
        info(f"shard/{WRITE_ID}/0-000000", 70.0),
        info(f"shard/{WRITE_ID}/000000", 60.0),
        info(f"shard/{other}/000000", 10.0),
        info("shard/readme.txt", 1.0),
        info(f"shard/{WRITE_ID}/readme.txt", 1.0),
        info(f"deeper/shard/{WRITE_ID}/000000", 1.0),
        info(f"shard/{WRITE_ID[:-1]}G/000000", 1.0),
    ]
    assert unfinished_uploads(listed, "b", "run/sh", 100.0) == [
        StaleUpload("run/shard", WRITE_ID, 30.0, 3),
        StaleUpload("run/shard", other, 90.0, 1),
    ]
    root = [ObjectInfo(f"b/.ckptstore-parts/shard/{WRITE_ID}/000000", 1, "1", 5.0)]
    assert unfinished_uploads(root, "b", "", 6.0) == [StaleUpload("shard", WRITE_ID, 1.0, 1)]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9, 10, 26, 27, 28, 29, 81, 82, 100])
@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_any_number_of_parts_becomes_one_object(
    monkeypatch: pytest.MonkeyPatch, count: int, order: str
) -> None:
    monkeypatch.setattr(compose_module, "MOST_SOURCES", 3)
    transport = Composing()
    session, parts = session_of(transport, count)
    for number in range(count) if order == "ascending" else reversed(range(count)):
        send(session, number, parts[number])
    result = complete(session, parts)
    stone = transport.objects["run/shard"]
    assert stone.data == b"".join(parts)
    assert (result.version, result.crc32c, stone.write_id) == (stone.version, stone.crc32c, WRITE_ID)
    assert len(transport.asked("put")) == count
    composed = transport.asked("compose")
    assert len(composed) == len(set(composed)), "something was composed twice"
    assert all(name == "run/shard" or re.fullmatch(HIDDEN + r"\d-\d{6}", name) for name in composed)
    new_attempts().run(session.abort)
    assert list(transport.objects) == ["run/shard"]


def test_nothing_is_composed_between_where_one_request_takes_all() -> None:
    transport = Composing()
    session, parts = session_of(transport, 10)
    for number, part in enumerate(parts):
        send(session, number, part)
    complete(session, parts)
    assert transport.asked("compose") == ["run/shard"]


@pytest.mark.parametrize("step", [before(Kind.CUT), after(Kind.CUT)], ids=["lost request", "lost answer"])
@pytest.mark.parametrize("call", ["put", "compose"])
def test_one_request_that_fails_is_looked_after_and_alone_repeated(
    monkeypatch: pytest.MonkeyPatch, call: str, step: object
) -> None:
    monkeypatch.setattr(compose_module, "MOST_SOURCES", 2)
    transport = Composing()
    session, parts = session_of(transport, 4)
    transport.script(call, step)  # type: ignore[arg-type]
    for number, part in enumerate(parts):
        send(session, number, part)
    complete(session, parts)
    assert transport.objects["run/shard"].data == b"".join(parts)
    assert len(transport.asked("head")) == 1
    repeated = int(step.is_after is False)  # type: ignore[attr-defined]
    assert len(transport.asked("put")) == 4 + (repeated if call == "put" else 0)
    assert len(transport.asked("compose")) == 3 + (repeated if call == "compose" else 0)


def test_a_part_that_arrives_with_other_bytes_is_no_part() -> None:
    transport = Composing()
    session, parts = session_of(transport, 2)
    transport.add_object(HIDDEN + "000000", b"other bytes")
    with pytest.raises(Fault) as caught:
        send(session, 0, parts[0])
    assert caught.value.kind is Kind.BAD_CHECKSUM


@pytest.mark.parametrize("call", ["put", "compose"])
def test_a_server_that_stores_other_bytes_is_found_out_by_its_answer(
    monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(compose_module, "MOST_SOURCES", 2)
    transport = Composing()
    session, parts = session_of(transport, 4)
    answer = PutResult("v9", 1) if call == "put" else ObjectInfo("b/x", 14, "v9", 0.0, WRITE_ID, 1)
    send(session, 0, parts[0])
    monkeypatch.setattr(transport, call, lambda *_, **__: answer)
    with pytest.raises(Fault) as caught:
        send(session, 1, parts[1])
    assert caught.value.kind is Kind.BAD_CHECKSUM


@pytest.mark.parametrize("level", ["between", "last"])
def test_a_source_that_is_gone_is_an_upload_that_is_gone(monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    monkeypatch.setattr(compose_module, "MOST_SOURCES", 2)
    transport = Composing()
    session, parts = session_of(transport, 3 if level == "last" else 4)
    for number, part in enumerate(parts[:3]):
        send(session, number, part)
    del transport.objects[HIDDEN + "000002"]
    if level == "between":
        with pytest.raises(Fault) as caught:
            send(session, 3, parts[3])
        assert caught.value.kind is Kind.UPLOAD_GONE
        return
    kinds = []
    for _ in range(2):
        with pytest.raises(Fault) as caught:
            complete(session, parts)
        kinds.append(caught.value.kind)
    # The first may as well mean that something stands there; who looked and saw nothing asks again.
    assert kinds == [Kind.PRECONDITION, Kind.UPLOAD_GONE]


def test_what_was_removed_is_not_removed_again() -> None:
    transport = Composing(deletes_many=True)
    session, parts = session_of(transport, 7)
    for number, part in enumerate(parts):
        send(session, number, part)
    # Three names in a request, and the second one fails.
    transport.script("delete_many", None, before(Kind.SERVER))
    new_attempts().run(session.abort)
    assert not transport.objects
    transport.calls.clear()
    new_attempts().run(session.abort)
    assert not transport.calls


def test_without_bulk_deletes_parts_go_one_by_one() -> None:
    transport = Composing(deletes_many=False)
    session, parts = session_of(transport, 3)
    for number, part in enumerate(parts):
        send(session, number, part)
    new_attempts().run(session.abort)
    assert not transport.objects


@pytest.mark.parametrize("deletes_many", [True, False])
def test_parts_that_may_not_be_deleted_end_composing_there_and_are_told_once(deletes_many: bool) -> None:
    transport = Composing(deletes_many=deletes_many)
    assert compose_verdict_for(transport, PLACE, new_attempts()) == "yes"
    call = "delete_many" if deletes_many else "delete"
    for expected in (1, 0):
        session, parts = session_of(transport, 1)
        send(session, 0, parts[0])
        transport.script(call, before(Kind.FORBIDDEN))
        with own_warnings() as caught:
            new_attempts().run(session.abort)
        assert len(caught) == expected
        transport.objects.clear()
    assert compose_verdict_for(transport, PLACE, new_attempts()) == "kept"
    assert not give_up_composing(transport, "b")
    assert issubclass(CkptStoreWarning, UserWarning)


def _of(**switches: bool) -> Callable[[], Composing]:
    def make() -> Composing:
        transport = Composing()
        for name, value in switches.items():
            setattr(transport, name, value)
        return transport

    return make


@pytest.mark.parametrize(
    ("make", "verdict"),
    [
        (_of(), "yes"),
        (_of(honours_sources=False), "ignored"),
        (_of(honours_target=False), "ignored"),
        (_of(honours_create=False), "ignored"),
        (ScriptedTransport, "refused"),
    ],
    ids=["all", "no sources", "no target", "no conditions at all", "no compose"],
)
@pytest.mark.filterwarnings("ignore::ckptstore.errors.CkptStoreWarning")
def test_six_requests_tell_whether_objects_are_composed(
    make: Callable[[], ScriptedTransport], verdict: str
) -> None:
    transport = make()
    assert verdicts_known(transport, "b") is None
    assert compose_verdict_for(transport, PLACE, new_attempts()) == verdict
    found = verdicts_known(transport, "b")
    assert found is not None
    assert found.compose == verdict
    assert not transport.objects
    kinds = [kind for kind, _ in transport.calls[6:]]
    assert len(kinds) <= 6
    if verdict == "yes":
        assert kinds == ["put", "put", "compose", "compose", "compose", "delete_many"]
    transport.calls.clear()
    assert compose_verdict_for(transport, PLACE, new_attempts()) == verdict
    assert not transport.calls


def test_a_lost_answer_does_not_spoil_the_verdict() -> None:
    for number, make in itertools.product(range(3), (before, after)):
        transport = Composing()
        transport.script("compose", *[None] * number, make(Kind.CUT))
        assert compose_verdict_for(transport, PLACE, new_attempts()) == "yes"


@pytest.mark.parametrize(
    ("kind", "verdict"),
    [(Kind.FORBIDDEN, "refused"), (Kind.SERVER, "refused"), (Kind.BAD_REQUEST, "refused")],
)
def test_a_server_that_breaks_on_compose_does_not_compose(kind: Kind, verdict: str) -> None:
    transport = Composing()
    transport.script("compose", *[before(kind)] * 8)
    assert compose_verdict_for(transport, PLACE, new_attempts()) == verdict
    assert not transport.objects


def test_a_server_that_cannot_be_asked_is_asked_again() -> None:
    transport = Composing()
    transport.script("compose", *[before(Kind.CUT)] * 8)
    with pytest.raises(Fault):
        compose_verdict_for(transport, PLACE, new_attempts())
    assert compose_verdict_for(transport, PLACE, new_attempts()) == "yes"


def test_a_bucket_that_keeps_what_the_probe_made_keeps_parts() -> None:
    transport = Composing()
    compose_verdict_for(Composing(), PLACE, new_attempts())
    transport.script("delete_many", None, before(Kind.FORBIDDEN))
    assert compose_verdict_for(transport, PLACE, new_attempts()) == "kept"
