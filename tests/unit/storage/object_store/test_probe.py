"""What the probe concludes, in how many requests, and what it leaves behind."""

from __future__ import annotations

import threading

import pytest

from ckptstore.errors import AccessError
from ckptstore.storage.object_store.attempts import Attempts, RetryBudget, RetryPolicy
from ckptstore.storage.object_store.faults import Fault, Kind
from ckptstore.storage.object_store.probe import Verdicts, verdicts_for, verdicts_known
from ckptstore.storage.object_store.storage import ObjectStorage
from ckptstore.storage.object_store.transport import ObjectName, Precondition, PutRequest
from tests.own_warnings import own_warnings
from tests.unit.storage.object_store.scripted_transport import ScriptedTransport, after, before

BESIDE = ObjectName("b", "run/model.index")

pytestmark = pytest.mark.filterwarnings("ignore::ckptstore.errors.CkptStoreWarning")


def _ask(transport: ScriptedTransport) -> Verdicts:
    return verdicts_for(transport, BESIDE, Attempts(RetryPolicy(pause_scale=0.0), RetryBudget()))


@pytest.mark.parametrize(
    ("transport", "verdicts"),
    [
        (ScriptedTransport(), Verdicts("yes", "yes", "404", True, True)),
        (ScriptedTransport(honours_delete=False), Verdicts("yes", "yes", "404", False, True)),
        (ScriptedTransport(honours_create=False), Verdicts("ignored", "yes", "404", True, True)),
        (ScriptedTransport(honours_swap=False), Verdicts("yes", "ignored", "created", True, True)),
        (ScriptedTransport(creates_missing=True), Verdicts("yes", "yes", "created", True, True)),
        (ScriptedTransport(returns_checksum=False), Verdicts("yes", "yes", "404", True, False)),
        (
            ScriptedTransport(honours_create=False, honours_swap=False, honours_delete=False),
            Verdicts("ignored", "ignored", "created", False, True),
        ),
    ],
    ids=["all", "no delete", "no create", "no swap", "swap creates", "no checksum", "nothing"],
)
def test_six_requests_tell_what_the_server_does(transport: ScriptedTransport, verdicts: Verdicts) -> None:
    assert _ask(transport) == verdicts
    assert [kind for kind, _ in transport.calls] == ["put", "put", "put", "put", "delete", "delete_many"]
    assert not transport.objects
    assert all(name.startswith("run/.ckptstore-probe-") for _, name in transport.calls)


def test_what_was_found_out_is_remembered_for_the_bucket() -> None:
    transport = ScriptedTransport()
    assert verdicts_known(transport, "b") is None
    found = _ask(transport)
    transport.calls.clear()
    assert _ask(transport) is found
    assert verdicts_known(transport, "b") is found
    assert not transport.calls
    assert verdicts_known(transport, "other") is None


def test_a_server_that_fails_on_every_create_is_written_without_the_condition(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # MinIO RELEASE.2025-09-06: 404 NoSuchKey for If-None-Match:* where nothing is there.
    transport = ScriptedTransport()
    check = transport.check_condition

    def broken(request: PutRequest) -> None:
        if request.precondition == Precondition(None):
            raise Fault(Kind.ABSENT, "NoSuchKey")
        check(request)

    monkeypatch.setattr(transport, "check_condition", broken)
    assert _ask(transport).create == "refused"
    storage = ObjectStorage(transport, RetryPolicy(pause_scale=0.0))
    storage.put_new("b/run/x", b"data")
    assert transport.objects["run/x"].data == b"data"


def test_a_lost_answer_does_not_spoil_the_verdict() -> None:
    # The first create arrived and its repetition is told 412: that says nothing about conditions.
    transport = ScriptedTransport()
    transport.script("put", after(Kind.CUT))
    assert _ask(transport) == Verdicts("yes", "yes", "404", True, True)
    assert not transport.objects


@pytest.mark.parametrize("kind", [Kind.FORBIDDEN, Kind.NO_BUCKET, Kind.UNTRUSTED])
def test_a_server_that_cannot_be_asked_is_no_weak_server(kind: Kind) -> None:
    transport = ScriptedTransport()
    transport.script("put", before(kind))
    storage = ObjectStorage(transport)
    with own_warnings("error"), pytest.raises(AccessError, match="what the server does with conditions"):
        storage.put_new("b/run/x", b"data")
    assert verdicts_known(transport, "b") is None


def test_where_deleting_is_denied_nothing_is_concluded_from_it() -> None:
    transport = ScriptedTransport()
    transport.script("delete", before(Kind.FORBIDDEN))
    transport.script("delete_many", before(Kind.FORBIDDEN))
    assert _ask(transport) == Verdicts("yes", "yes", "404", False, True)


def test_without_bulk_deletes_the_probe_cleans_up_one_by_one() -> None:
    transport = ScriptedTransport(deletes_many=False, honours_swap=False)
    _ask(transport)
    assert not transport.objects


def test_threads_that_come_at_once_ask_once() -> None:
    transport = ScriptedTransport()
    storage = ObjectStorage(transport)
    threads = [threading.Thread(target=storage.probe, args=(f"b/run/{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(transport.asked("put")) == 4


def test_the_claims_of_a_storage_are_those_of_its_weakest_bucket() -> None:
    transport = ScriptedTransport()
    storage = ObjectStorage(transport)
    assert storage.capabilities == transport.nominal
    assert storage.probe("strong/x").conditional_delete
    transport.honours_delete = False
    assert not storage.probe("weak/x").conditional_delete
    assert storage.probe("strong/x").conditional_delete
    assert not storage.capabilities.conditional_delete
