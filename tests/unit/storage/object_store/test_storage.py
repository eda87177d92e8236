"""What an object store's answers mean: read-back of writes, proofs of absence, deletes, listings."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest

from ckptstore.errors import (
    AccessError,
    ChecksumError,
    CkptStoreError,
    NotFoundError,
    StorageFullError,
    TransientError,
    UsageError,
)
from ckptstore.storage.object_store.faults import RULES, Fault, Kind
from ckptstore.storage.values import Ambiguous, Committed, Lost
from tests.own_warnings import own_warnings
from tests.unit.storage.object_store.scripted_transport import (
    FINE,
    ScriptedTransport,
    after,
    before,
    storage_of,
)

KEY, NAME = "b/run/model.index", "run/model.index"

_DOUBTFUL = [Kind.CUT, Kind.STALLED, Kind.SERVER, Kind.GARBLED]


@pytest.fixture
def transport() -> ScriptedTransport:
    return ScriptedTransport()


def test_a_create_is_one_request(transport: ScriptedTransport) -> None:
    storage = storage_of(transport)
    assert storage.put_new(KEY, b"data") == Committed(transport.objects[NAME].version)
    assert transport.calls == [("put", NAME)]


def test_a_create_that_finds_an_object_is_lost_to_its_version(transport: ScriptedTransport) -> None:
    storage = storage_of(transport)
    theirs = transport.add_object(NAME, b"theirs")
    assert storage.put_new(KEY, b"ours") == Lost(theirs)
    assert transport.calls == [("put", NAME), ("head", NAME)]


@pytest.mark.parametrize("kind", [*_DOUBTFUL, Kind.CONFLICT, Kind.PRECONDITION])
def test_a_create_whose_answer_was_lost_is_recognised_as_ours(
    transport: ScriptedTransport, kind: Kind
) -> None:
    storage = storage_of(transport)
    transport.script("put", after(kind))
    outcome = storage.put_new(KEY, b"data")
    assert outcome == Committed(transport.objects[NAME].version)
    assert transport.calls == [("put", NAME), ("head", NAME)]


@pytest.mark.parametrize("kind", [*_DOUBTFUL, Kind.CONFLICT])
def test_a_create_that_did_not_arrive_is_sent_again(transport: ScriptedTransport, kind: Kind) -> None:
    storage = storage_of(transport)
    transport.script("put", before(kind))
    assert isinstance(storage.put_new(KEY, b"data"), Committed)
    assert transport.calls == [("put", NAME), ("head", NAME), ("put", NAME)]


@pytest.mark.parametrize("kind", _DOUBTFUL)
def test_a_create_that_somebody_else_won_meanwhile_is_lost(transport: ScriptedTransport, kind: Kind) -> None:
    storage = storage_of(transport)
    transport.script("put", before(kind, lambda: transport.add_object(NAME, b"theirs")))
    assert storage.put_new(KEY, b"ours") == Lost(transport.objects[NAME].version)
    assert transport.objects[NAME].data == b"theirs"


def test_a_hidden_repetition_is_no_conflict(transport: ScriptedTransport) -> None:
    # The client below sends a PUT twice without a word: the first won, the second is told "412".
    storage = storage_of(transport)
    transport.script("put", after(Kind.PRECONDITION))
    assert isinstance(storage.put_new(KEY, b"data"), Committed)


@pytest.mark.parametrize("kind", [*_DOUBTFUL, Kind.PRECONDITION, Kind.CONFLICT])
def test_what_cannot_be_read_back_is_ambiguous(transport: ScriptedTransport, kind: Kind) -> None:
    storage = storage_of(transport)
    transport.script("put", after(kind))
    transport.script("head", *[before(Kind.CUT)] * RULES[Kind.CUT].tries)
    outcome = storage.put_new(KEY, b"data")
    assert isinstance(outcome, Ambiguous)
    assert "could not be read back" in outcome.reason


@pytest.mark.parametrize("kind", _DOUBTFUL)
def test_a_write_that_may_still_land_is_ambiguous(transport: ScriptedTransport, kind: Kind) -> None:
    storage = storage_of(transport)
    transport.script("put", *[before(kind)] * RULES[kind].tries)
    assert isinstance(storage.put_new(KEY, b"data"), Ambiguous)
    assert len(transport.asked("put")) == len(transport.asked("head")) == RULES[kind].tries


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (Kind.FORBIDDEN, AccessError),
        (Kind.NO_BUCKET, AccessError),
        (Kind.UNTRUSTED, AccessError),
        (Kind.FULL, StorageFullError),
        (Kind.MISPLACED, UsageError),
        (Kind.BAD_REQUEST, UsageError),
    ],
)
def test_a_refusal_is_certain_and_final(
    transport: ScriptedTransport, kind: Kind, error: type[CkptStoreError]
) -> None:
    storage = storage_of(transport)
    transport.script("put", before(kind))
    with pytest.raises(error) as caught:
        storage.put_new(KEY, b"data")
    assert caught.value.url == "fake://b/run/model.index"
    assert transport.calls == [("put", NAME)]


@pytest.mark.parametrize("kind", [Kind.FORBIDDEN, Kind.NO_BUCKET, Kind.FULL])
def test_a_refusal_after_a_lost_answer_proves_nothing(transport: ScriptedTransport, kind: Kind) -> None:
    # The first attempt may land at any time, whatever the second is told.
    storage = storage_of(transport)
    transport.script("put", before(Kind.CUT), before(kind))
    assert isinstance(storage.put_new(KEY, b"data"), Ambiguous)


@pytest.mark.parametrize("kind", [Kind.NOT_SENT, Kind.THROTTLED])
def test_what_never_reached_the_server_is_an_error_and_not_ambiguous(
    transport: ScriptedTransport, kind: Kind
) -> None:
    storage = storage_of(transport)
    transport.script("put", *[before(kind)] * RULES[kind].tries)
    with pytest.raises(TransientError, match=f"after {RULES[kind].tries} attempts"):
        storage.put_new(KEY, b"data")


def test_a_throttled_create_that_landed_all_the_same_is_found(transport: ScriptedTransport) -> None:
    storage = storage_of(transport)
    tries = RULES[Kind.THROTTLED].tries
    transport.script("put", *[before(Kind.THROTTLED)] * (tries - 1), after(Kind.THROTTLED))
    assert isinstance(storage.put_new(KEY, b"data"), Committed)


def test_another_checksum_of_what_was_stored_is_an_error(transport: ScriptedTransport) -> None:
    storage = storage_of(transport)

    def damage() -> None:
        transport.objects[NAME].crc32c = 1

    transport.script("put", after(Kind.CUT, damage))
    with pytest.raises(ChecksumError, match="not the one that was sent"):
        storage.put_new(KEY, b"data")


def test_a_swap_is_one_request(transport: ScriptedTransport) -> None:
    storage = storage_of(transport)
    old = transport.add_object(NAME, b"old")
    assert storage.put_if(KEY, b"new", old) == Committed(transport.objects[NAME].version)
    assert transport.calls == [("put", NAME)]


def test_a_swap_of_another_version_is_lost(transport: ScriptedTransport) -> None:
    storage = storage_of(transport)
    old = transport.add_object(NAME, b"old")
    theirs = transport.add_object(NAME, b"theirs")
    assert storage.put_if(KEY, b"ours", old) == Lost(theirs)


def test_a_swap_of_nothing_is_lost_to_nothing(transport: ScriptedTransport) -> None:
    storage = storage_of(transport)
    assert storage.put_if(KEY, b"ours", "v9") == Lost(None)


@pytest.mark.parametrize("kind", [*_DOUBTFUL, Kind.CONFLICT, Kind.PRECONDITION, Kind.ABSENT])
def test_a_swap_whose_answer_was_lost_is_recognised_as_ours(transport: ScriptedTransport, kind: Kind) -> None:
    storage = storage_of(transport)
    old = transport.add_object(NAME, b"old")
    transport.script("put", after(kind))
    assert storage.put_if(KEY, b"new", old) == Committed(transport.objects[NAME].version)
    assert len(transport.asked("put")) == 1


@pytest.mark.parametrize("kind", [*_DOUBTFUL, Kind.CONFLICT])
def test_a_swap_that_did_not_arrive_is_sent_again(transport: ScriptedTransport, kind: Kind) -> None:
    storage = storage_of(transport)
    old = transport.add_object(NAME, b"old")
    transport.script("put", before(kind))
    assert isinstance(storage.put_if(KEY, b"new", old), Committed)
    assert transport.objects[NAME].data == b"new"


@pytest.mark.parametrize("kind", _DOUBTFUL)
def test_a_swap_of_what_was_deleted_meanwhile_is_lost_to_nothing(
    transport: ScriptedTransport, kind: Kind
) -> None:
    storage = storage_of(transport)
    old = transport.add_object(NAME, b"old")
    transport.script("put", before(kind, transport.objects.clear))
    assert storage.put_if(KEY, b"new", old) == Lost(None)


def test_a_condition_that_fails_although_it_holds_is_tried_a_few_times(
    transport: ScriptedTransport,
) -> None:
    storage = storage_of(transport)
    old = transport.add_object(NAME, b"old")
    transport.script("put", *[before(Kind.PRECONDITION)] * 50)
    with pytest.raises(CkptStoreError):
        storage.put_if(KEY, b"new", old)
    assert len(transport.asked("put")) == RULES[Kind.PRECONDITION].tries


def test_absence_is_believed_from_a_get_only(transport: ScriptedTransport) -> None:
    storage = storage_of(transport)
    with pytest.raises(NotFoundError):
        storage.head(KEY)
    assert transport.calls == [("head", NAME), ("get", f"{NAME} bytes=0-0")]


@pytest.mark.parametrize("kind", [Kind.NO_BUCKET, Kind.FORBIDDEN, Kind.UNPROVED])
def test_a_404_that_proves_nothing_is_never_not_found(transport: ScriptedTransport, kind: Kind) -> None:
    storage = storage_of(transport)
    transport.script("get", before(kind), before(kind))
    with pytest.raises(AccessError):
        storage.head(KEY)
    with pytest.raises(AccessError):
        storage.get(KEY)


@pytest.mark.parametrize("data", [b"", b"data"])
def test_what_appears_between_head_and_get_is_there(transport: ScriptedTransport, data: bytes) -> None:
    storage = storage_of(transport)

    def appear() -> None:
        transport.add_object(NAME, data)

    transport.script("head", before(Kind.UNPROVED, appear))
    assert storage.head(KEY).size_bytes == len(data)


def test_what_comes_and_goes_while_it_is_looked_at_is_not_there(transport: ScriptedTransport) -> None:
    def appear() -> None:
        transport.add_object(NAME, b"x")

    def vanish() -> None:
        del transport.objects[NAME]

    storage = storage_of(transport)
    # Each HEAD misses it, and the GET that is to prove that finds it.
    transport.script("head", before(Kind.UNPROVED, appear), before(Kind.UNPROVED, vanish))
    with pytest.raises(NotFoundError):
        storage.head(KEY)


@pytest.mark.parametrize(
    "key", ["b", "b/", "", "/x", "b//x", "b/./x", "b/x/..", "b/x\n", "b/x/", "b/" + "x" * 1025, "b/\ud800"]
)
def test_a_key_that_servers_take_differently_is_refused(transport: ScriptedTransport, key: str) -> None:
    storage = storage_of(transport)
    calls: list[Callable[[], object]] = [
        lambda: storage.get(key),
        lambda: storage.head(key),
        lambda: storage.put_new(key, b""),
        lambda: storage.put_if(key, b"", "v1"),
        lambda: storage.upload(key),
        lambda: storage.delete_if(key, "v1"),
        lambda: storage.delete_many([key]),
    ]
    for call in calls:
        with pytest.raises(UsageError):
            call()
    assert not transport.calls


def test_a_conditional_delete_is_one_request(transport: ScriptedTransport) -> None:
    storage = storage_of(transport)
    version = transport.add_object(NAME, b"x")
    assert storage.delete_if(KEY, version)
    assert transport.calls == [("delete", f"{NAME} {version}")]


def test_a_delete_whose_answer_was_lost_is_done(transport: ScriptedTransport) -> None:
    storage = storage_of(transport)
    version = transport.add_object(NAME, b"x")
    transport.script("delete", after(Kind.CUT))
    assert storage.delete_if(KEY, version)
    assert len(transport.asked("delete")) == 2


def test_a_delete_of_another_version_leaves_it(transport: ScriptedTransport) -> None:
    storage = storage_of(transport)
    version = transport.add_object(NAME, b"x")
    transport.add_object(NAME, b"y")
    assert not storage.delete_if(KEY, version)
    assert transport.objects[NAME].data == b"y"


def test_without_conditional_deletes_the_version_is_looked_at_first() -> None:
    transport = ScriptedTransport(honours_delete=False)
    storage = storage_of(transport)
    assert not storage.capabilities.conditional_delete
    version = transport.add_object(NAME, b"x")
    newer = transport.add_object(NAME, b"y")
    assert not storage.delete_if(KEY, version)
    assert transport.calls == [("head", NAME)]
    assert storage.delete_if(KEY, newer)
    assert storage.delete_if(KEY, newer), "nothing there counts as done"


def test_a_version_seen_a_moment_ago_is_not_looked_at_again() -> None:
    # What retention does: look at the victim, write the record, delete. The request budget counts on it.
    transport = ScriptedTransport(honours_delete=False)
    storage = storage_of(transport)
    version = transport.add_object(NAME, b"x")
    storage.head(KEY)
    transport.calls.clear()
    assert storage.delete_if(KEY, version)
    assert transport.calls == [("delete", NAME)]


def test_a_version_that_we_replaced_ourselves_is_looked_at_again() -> None:
    transport = ScriptedTransport(honours_delete=False)
    storage = storage_of(transport)
    version = transport.add_object(NAME, b"x")
    storage.head(KEY)
    assert isinstance(storage.put_if(KEY, b"y", version), Committed)
    assert not storage.delete_if(KEY, version)
    assert transport.objects[NAME].data == b"y"


def test_who_may_not_write_may_still_delete(transport: ScriptedTransport) -> None:
    from ckptstore.storage.object_store.storage import ObjectStorage

    storage = ObjectStorage(transport)
    version = transport.add_object(NAME, b"x")
    transport.script("put", before(Kind.FORBIDDEN))
    assert storage.delete_if(KEY, version)
    assert not transport.objects


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("kind", _DOUBTFUL)
def test_a_delete_that_is_sent_once_is_not_sent_again(
    transport: ScriptedTransport, kind: Kind, count: int
) -> None:
    # The first of two may arrive when another job has made objects of these names: simulation, "refused".
    storage = storage_of(transport)
    names = [f"run/{number}" for number in range(count)]
    for name in names:
        transport.add_object(name, b"x")
    transport.script("delete" if count == 1 else "delete_many", before(kind))
    with pytest.raises(TransientError):
        storage.delete_once([f"b/{name}" for name in names])
    assert len(transport.calls) == 1
    assert sorted(transport.objects) == names


def test_what_a_batch_could_not_delete_is_not_sent_again_by_itself(transport: ScriptedTransport) -> None:
    storage = storage_of(transport)
    for name in ("run/0", "run/1"):
        transport.add_object(name, b"x")
    refuse = {"run/1": Fault(Kind.SERVER, "scripted by the test")}
    real = transport.delete_many
    transport.delete_many = lambda *args, **options: {**real(*args, **options), **refuse}  # type: ignore[method-assign]
    with pytest.raises(TransientError, match="run/1"):
        storage.delete_once(["b/run/0", "b/run/1"])
    assert not transport.asked("delete")


def test_one_by_one_where_batches_are_unknown_also_once() -> None:
    transport = ScriptedTransport(deletes_many=False)
    storage = storage_of(transport)
    for name in ("run/0", "run/1"):
        transport.add_object(name, b"x")
    storage.delete_once(["b/run/0", "b/run/1"])
    assert not transport.objects
    assert transport.asked("delete") == ["run/0", "run/1"]


def test_many_are_deleted_in_batches_and_each_once(transport: ScriptedTransport) -> None:
    storage = storage_of(transport)
    names = [f"run/{number}" for number in range(7)]
    for name in names:
        transport.add_object(name, b"x")
    storage.delete_many([f"b/{name}" for name in [*names, names[0]]])
    assert not transport.objects
    assert [len(batch.split()) for batch in transport.asked("delete_many")] == [3, 3]
    assert transport.asked("delete") == ["run/6"]


def test_a_server_without_bulk_deletes_gets_single_ones() -> None:
    transport = ScriptedTransport(deletes_many=False)
    storage = storage_of(transport)
    for name in ("run/a", "run/b"):
        transport.add_object(name, b"x")
    storage.delete_many(["b/run/a", "b/run/b", "b/run/c"])
    assert not transport.objects
    assert transport.asked("delete") == ["run/a", "run/b", "run/c"]


def test_a_refusal_inside_a_bulk_answer_is_raised_after_all_were_tried(
    transport: ScriptedTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = storage_of(transport)
    for number in range(6):
        transport.add_object(f"run/{number}", b"x")
    whole = transport.delete_many

    def refuse(bucket: str, names: list[str], attempts: object) -> dict[str, Fault]:
        kept = [name for name in names if name == "run/1"]
        whole(bucket, [name for name in names if name not in kept], attempts)  # type: ignore[arg-type]
        return {name: Fault(Kind.FORBIDDEN, "no", code="AccessDenied") for name in kept}

    monkeypatch.setattr(transport, "delete_many", refuse)
    with pytest.raises(AccessError) as caught:
        storage.delete_many([f"b/run/{number}" for number in range(6)])
    assert caught.value.url == "fake://b/run/1"
    assert list(transport.objects) == ["run/1"]


def test_what_may_pass_inside_a_bulk_answer_is_tried_again(
    transport: ScriptedTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = storage_of(transport)
    for name in ("run/a", "run/b"):
        transport.add_object(name, b"x")
    monkeypatch.setattr(
        transport,
        "delete_many",
        lambda *_: {"run/a": Fault(Kind.SERVER, "later"), "run/b": Fault(Kind.ABSENT, "")},
    )
    storage.delete_many(["b/run/a", "b/run/b"])
    assert transport.asked("delete") == ["run/a"]


def test_a_listing_follows_all_pages_in_order(transport: ScriptedTransport) -> None:
    storage = storage_of(transport)
    for name in ("run/c", "run/a", "run/e", "run/b", "run/d", "run/d/x", "run2/a"):
        transport.add_object(name, b"x")
    assert [info.key for info in storage.list("b/run/")] == [f"b/run/{letter}" for letter in "abcde"]
    assert len(transport.asked("list_page")) == 3


def test_a_page_that_fails_fails_the_listing(transport: ScriptedTransport) -> None:
    # A listing that ends early would look like a shorter one.
    storage = storage_of(transport)
    for number in range(5):
        transport.add_object(f"run/{number}", b"x")
    transport.script("list_page", FINE, before(Kind.FORBIDDEN))
    with pytest.raises(AccessError):
        list(storage.list("b/run/"))


def test_the_marker_of_an_empty_directory_is_no_object(transport: ScriptedTransport) -> None:
    storage = storage_of(transport)
    transport.add_object("run/", b"")
    assert list(storage.list("b/run/")) == []


def test_an_object_with_the_name_of_the_directory_is_named_where_it_may_hide_it(
    transport: ScriptedTransport,
) -> None:
    transport.object_hides_directory = True
    storage = storage_of(transport)
    assert list(storage.list("b/run/")) == []
    transport.add_object("run", b"x")
    with pytest.raises(UsageError, match="the directory's own name") as caught:
        storage.list("b/run/")
    assert caught.value.url == "fake://b/run"


@pytest.mark.parametrize(
    ("weak", "claims"),
    [
        (ScriptedTransport(honours_create=False), (False, True)),
        (ScriptedTransport(honours_swap=False), (True, False)),
        (ScriptedTransport(creates_missing=True), (True, False)),
        (ScriptedTransport(honours_create=False, honours_swap=False), (False, False)),
    ],
    ids=["create", "swap", "swap of nothing", "both"],
)
def test_a_server_that_ignores_conditions_is_found_out_and_said_once(
    weak: ScriptedTransport, claims: tuple[bool, bool]
) -> None:
    with own_warnings() as said:
        storage = storage_of(weak)
    assert len(said) == 1
    assert "single-writer" in str(said[0].message)
    found = storage.capabilities
    assert (found.create_if_absent, found.compare_and_swap) == claims
    assert found.single_writer
    with own_warnings("error"):
        storage.probe("b/other/x")


@pytest.mark.filterwarnings("ignore::ckptstore.errors.CkptStoreWarning")
def test_one_writer_on_a_weak_server_still_overwrites_nothing() -> None:
    storage = storage_of(weak := ScriptedTransport(honours_create=False, honours_swap=False))
    theirs = weak.add_object(NAME, b"theirs")
    assert storage.put_new(KEY, b"ours") == Lost(theirs)
    assert storage.put_if(KEY, b"ours", "v0") == Lost(theirs)
    assert isinstance(storage.put_if(KEY, b"ours", theirs), Committed)
    assert storage.put_if("b/run/absent", b"x", theirs) == Lost(None)
    with storage.upload("b/run/small") as upload:
        upload.write(b"x")
        assert isinstance(upload.commit(), Committed)


def test_reading_asks_no_server_what_it_does(transport: ScriptedTransport) -> None:
    from ckptstore.storage.object_store.storage import ObjectStorage

    storage = ObjectStorage(transport)
    transport.add_object(NAME, b"x")
    storage.get(KEY)
    storage.head(KEY)
    list(storage.list("b/run/"))
    assert storage.capabilities == transport.nominal
    assert not transport.asked("put")


def test_a_storage_is_not_pickled(transport: ScriptedTransport) -> None:
    storage = storage_of(transport)
    for dump in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="pass the URL"):
            dump(storage)
