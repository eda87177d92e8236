"""Uploads to an object store: small ones in one request, large ones in parts, visible only when proved."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Callable
from typing import Any

import pytest

from ckptstore.checksums import crc32c
from ckptstore.errors import (
    AccessError,
    ChecksumError,
    CkptStoreError,
    StorageFullError,
    TransientError,
    UsageError,
)
from ckptstore.storage.object_store.faults import RULES, Kind
from ckptstore.storage.object_store.storage import ObjectStorage
from ckptstore.storage.values import Ambiguous, Committed, Lost, PutOutcome
from tests.unit.storage.object_store.scripted_transport import ScriptedTransport, after, before, storage_of

KEY, NAME = "b/run/model.data-00000-of-00001", "run/model.data-00000-of-00001"
MIB = 1 << 20
LARGE = random.Random(5).randbytes(MIB) * 20


@pytest.fixture
def transport() -> ScriptedTransport:
    return ScriptedTransport()


def _upload(storage: ObjectStorage, data: bytes, hint: int | None = len(LARGE)) -> PutOutcome:
    with storage.upload(KEY, hint) as upload:
        for start in range(0, len(data), MIB):
            upload.write(data[start : start + MIB])
        return upload.commit()


@pytest.mark.parametrize("size_bytes", [0, 1, 8 * MIB, 8 * MIB + 1, 16 * MIB])
def test_up_to_16_mib_travel_in_one_request(transport: ScriptedTransport, size_bytes: int) -> None:
    storage = storage_of(transport)
    assert isinstance(_upload(storage, LARGE[:size_bytes], size_bytes), Committed)
    assert transport.objects[NAME].data == LARGE[:size_bytes]
    assert transport.calls == [("put", NAME)]


@pytest.mark.parametrize(
    ("hint", "times", "part"), [(None, 4, 32), (0, 1, 16), (20 * MIB, 1, 8), (10**12, 10, 96)]
)
def test_more_travels_in_parts_whatever_was_announced(
    transport: ScriptedTransport, hint: int | None, times: int, part: int
) -> None:
    storage = storage_of(transport)
    data = LARGE * times
    assert isinstance(_upload(storage, data, hint), Committed)
    assert transport.objects[NAME].data == data
    parts = -(-len(data) // (part * MIB))
    assert [kind for kind, _ in transport.calls] == ["begin", *["send"] * parts, "complete"]


def test_an_upload_whose_size_nobody_told_has_room_for_a_large_shard(transport: ScriptedTransport) -> None:
    with storage_of(transport).upload(KEY) as upload:
        assert upload.part_size_bytes * transport.most_parts > 200 * 1024 * MIB


def test_a_part_that_fails_is_sent_again_alone(transport: ScriptedTransport) -> None:
    storage = storage_of(transport)
    transport.script("send", before(Kind.CUT), after(Kind.CUT))
    assert isinstance(_upload(storage, LARGE), Committed)
    assert transport.objects[NAME].data == LARGE
    assert len(transport.asked("send")) == 5


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (Kind.FULL, StorageFullError),
        (Kind.FORBIDDEN, AccessError),
        (Kind.UPLOAD_GONE, TransientError),
        (Kind.BAD_CHECKSUM, ChecksumError),
    ],
)
def test_a_part_that_is_refused_ends_the_upload_and_leaves_nothing(
    transport: ScriptedTransport, kind: Kind, error: type[CkptStoreError]
) -> None:
    storage = storage_of(transport)
    transport.script("send", *[before(kind)] * 10)
    with pytest.raises(error):
        _upload(storage, LARGE)
    assert not transport.objects
    assert not any(session.is_open for session in transport.sessions)


def test_parts_after_one_that_failed_tell_what_it_failed_with(transport: ScriptedTransport) -> None:
    transport.script("send", *[before(Kind.FULL)] * 10)
    part = memoryview(LARGE)[: 8 * MIB]
    with storage_of(transport).upload(KEY, len(LARGE)) as upload:
        with pytest.raises(StorageFullError):
            upload.send(0, (part,), 0)
        # In another thread this may come first to whoever waits for both.
        with pytest.raises(StorageFullError):
            upload.send(1, (part,), 0)


def test_a_first_completion_with_the_right_checksum_needs_no_look(transport: ScriptedTransport) -> None:
    storage = storage_of(transport)
    assert isinstance(_upload(storage, LARGE), Committed)
    assert not transport.asked("head")


def test_a_completion_that_tells_no_checksum_is_looked_at() -> None:
    transport = ScriptedTransport(returns_checksum=False)
    assert isinstance(_upload(storage_of(transport), LARGE), Committed)
    assert len(transport.asked("head")) == 1


@pytest.mark.parametrize("kind", [Kind.CUT, Kind.STALLED, Kind.SERVER, Kind.UPLOAD_GONE, Kind.PRECONDITION])
def test_a_completion_whose_answer_was_lost_is_recognised_as_ours(
    transport: ScriptedTransport, kind: Kind
) -> None:
    storage = storage_of(transport)
    transport.script("complete", after(kind))
    assert _upload(storage, LARGE) == Committed(transport.objects[NAME].version)
    assert len(transport.asked("complete")) == len(transport.asked("head")) == 1


@pytest.mark.parametrize("kind", [Kind.CUT, Kind.STALLED, Kind.SERVER, Kind.CONFLICT])
def test_a_completion_that_did_not_arrive_is_repeated_and_then_looked_at(
    transport: ScriptedTransport, kind: Kind
) -> None:
    storage = storage_of(transport)
    transport.script("complete", before(kind))
    assert isinstance(_upload(storage, LARGE), Committed)
    assert [call for call, _ in transport.calls if call in ("complete", "head")] == [
        *("complete", "head", "complete", "head")
    ]


def test_success_of_a_repeated_completion_proves_nothing(transport: ScriptedTransport) -> None:
    # A server that lost the upload in a crash said 200 and an ETag all the same.
    storage = storage_of(transport)
    transport.script("complete", before(Kind.CUT))
    whole = ScriptedTransport.add_object

    vanishing: Any = _Vanishing

    def forget(name: str, data: bytes, write_id: str | None = "theirs") -> str:
        version = whole(transport, name, data, write_id)
        stone = transport.objects[name]
        transport.objects = vanishing({name: stone})
        return version

    transport.add_object = forget  # type: ignore[method-assign]
    with pytest.raises(TransientError, match="does not have it"):
        _upload(storage, LARGE)


class _Vanishing(dict[str, object]):
    """Has its objects for the one who just put them, and for nobody else."""

    def get(self, name: str, default: object = None) -> object:
        return default


def test_an_upload_that_the_server_forgot_is_an_error(transport: ScriptedTransport) -> None:
    storage = storage_of(transport)
    transport.script("complete", before(Kind.UPLOAD_GONE))
    with pytest.raises(TransientError, match="save again"):
        _upload(storage, LARGE)
    assert len(transport.asked("complete")) == 1


@pytest.mark.parametrize("kind", [Kind.CUT, Kind.SERVER])
def test_a_completion_that_nobody_can_judge_is_ambiguous_and_left_alone(
    transport: ScriptedTransport, kind: Kind
) -> None:
    storage = storage_of(transport)
    transport.script("complete", before(kind))
    transport.script("head", *[before(Kind.FORBIDDEN)] * 9)
    transport.add_object(NAME, b"theirs")
    assert isinstance(_upload(storage, LARGE), Ambiguous)
    assert transport.sessions[0].is_open
    assert not transport.asked("abort")


def test_a_completion_that_is_lost_aborts_the_upload(transport: ScriptedTransport) -> None:
    storage = storage_of(transport)
    theirs = transport.add_object(NAME, b"theirs")
    assert _upload(storage, LARGE) == Lost(theirs)
    assert not transport.sessions[0].is_open
    assert transport.objects[NAME].data == b"theirs"


def test_another_checksum_of_the_whole_is_an_error(transport: ScriptedTransport) -> None:
    storage = storage_of(transport)
    whole = transport.add_object

    def damage(name: str, data: bytes, write_id: str | None = "theirs") -> str:
        version = whole(name, data, write_id)
        transport.objects[name].crc32c = 7
        return version

    transport.add_object = damage  # type: ignore[method-assign]
    with pytest.raises(ChecksumError, match="not the one that was sent"):
        _upload(storage, LARGE)


def _leave(how: str, storage: ObjectStorage) -> None:
    upload = storage.upload(KEY, len(LARGE))
    upload.write(LARGE)
    if how == "abort":
        upload.abort()
    elif how == "exit":
        with upload:
            pass
    elif how == "drop":
        del upload
        gc.collect()
        storage.service.background().shutdown(wait=True)
    else:
        with pytest.raises(KeyboardInterrupt), upload:
            raise KeyboardInterrupt


@pytest.mark.parametrize("how", ["abort", "exit", "drop", "interrupt"])
def test_leaving_without_a_commit_aborts_once_and_publishes_nothing(
    transport: ScriptedTransport, how: str
) -> None:
    _leave(how, storage_of(transport))
    assert transport.asked("abort") == [NAME]
    assert not transport.objects


def test_closing_without_an_abort_leaves_what_a_dead_process_would(transport: ScriptedTransport) -> None:
    upload = storage_of(transport).upload(KEY, len(LARGE))
    upload.write(LARGE)
    upload.close()
    del upload
    gc.collect()
    assert not transport.asked("abort")
    assert transport.sessions[0].is_open


def test_an_abort_that_fails_does_not_hide_the_first_error(transport: ScriptedTransport) -> None:
    storage = storage_of(transport)
    transport.script("abort", *[before(Kind.FORBIDDEN)] * 9)

    def fail() -> None:
        with storage.upload(KEY, len(LARGE)) as upload:
            upload.write(LARGE)
            raise ValueError("first")

    with pytest.raises(ValueError, match="first") as caught:
        fail()
    assert "cannot remove the unfinished upload" in caught.value.__notes__[0]


def test_after_a_commit_nothing_is_aborted(transport: ScriptedTransport) -> None:
    storage = storage_of(transport)
    with storage.upload(KEY, len(LARGE)) as upload:
        upload.write(LARGE)
        assert isinstance(upload.commit(), Committed)
        upload.abort()
        calls: list[Callable[[], object]] = [lambda: upload.write(b"x"), upload.commit]
        for call in calls:
            with pytest.raises(UsageError):
                call()
    assert not transport.asked("abort")


def test_a_stale_upload_is_dropped_and_says_so(transport: ScriptedTransport) -> None:
    storage = storage_of(transport)
    upload = storage.upload(KEY, len(LARGE))
    upload.write(LARGE)
    assert storage.abort_stale_uploads("b/run/model", 3600.0) == 0
    assert storage.abort_stale_uploads("b/run/model", 0.0) == 1
    assert not transport.sessions[0].is_open
    for call in (lambda: upload.write(b"x"), upload.commit):
        with pytest.raises(TransientError, match="removed while it was written"):
            call()
    upload.close()


def test_stale_uploads_of_others_are_dropped_by_age_and_place(transport: ScriptedTransport) -> None:
    storage = storage_of(transport)
    other = storage_of(transport)
    uploads = [
        other.upload(f"b/{name}", len(LARGE)) for name in ("run/model-1", "run/deep/model-1", "running")
    ]
    for upload in uploads:
        upload.write(LARGE)
    assert storage.abort_stale_uploads("b/run/", 101.0) == 0
    assert storage.abort_stale_uploads("b/run/", 99.0) == 1
    assert transport.asked("abort_upload") == ["run/model-1"]


def test_nobody_is_provably_dead_so_nothing_is_asked(transport: ScriptedTransport) -> None:
    storage = storage_of(transport)
    assert storage.abort_stale_uploads("b/run/", float("inf")) == 0
    assert not transport.calls


def test_an_upload_does_not_survive_a_fork(transport: ScriptedTransport) -> None:
    storage = storage_of(transport)
    upload = storage.upload(KEY, len(LARGE))
    upload.write(LARGE)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            upload.write(b"x")
        except UsageError:
            upload.abort()
            upload.close()
            code = 0 if not transport.asked("abort") else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    upload.write(b"x")
    assert isinstance(upload.commit(), Committed)
    assert transport.objects[NAME].data == LARGE + b"x"


def test_a_conflict_at_the_end_is_tried_as_often_as_the_rule_says(transport: ScriptedTransport) -> None:
    storage = storage_of(transport)
    transport.script("complete", *[before(Kind.CONFLICT)] * 50)
    with pytest.raises(TransientError):
        _upload(storage, LARGE)
    assert len(transport.asked("complete")) == RULES[Kind.CONFLICT].tries
    assert not transport.sessions[0].is_open


@pytest.mark.parametrize(("size_bytes", "call"), [(20 * MIB, "send"), (3 * MIB, "put")])
def test_memory_that_changed_is_what_the_error_names(size_bytes: int, call: str) -> None:
    memory = bytearray(size_bytes)

    def change() -> None:
        memory[7] += 1

    # The server counts each time, and refuses. Without a change it is its own fault, or the network's.
    for effect, error in [(change, UsageError), (None, ChecksumError)]:
        transport = ScriptedTransport()
        storage = storage_of(transport)
        transport.script(call, *[before(Kind.BAD_CHECKSUM, effect)] * 10)
        with pytest.raises(error, match="the arrays changed" if effect else "bytes changed on their way"):
            _send_shared(storage, memory)
        assert not transport.objects


def _send_shared(storage: ObjectStorage, memory: bytearray) -> None:
    with storage.upload(KEY, len(memory)) as upload:
        part = memoryview(memory)[: upload.part_size_bytes]
        upload.send_shared(0, (part,), is_last=len(part) == len(memory))
        upload.commit()


def test_a_server_that_proves_no_checksum_gets_a_copy() -> None:
    transport = ScriptedTransport(returns_checksum=False)
    memory = bytearray(3 * MIB)

    def change() -> None:
        memory[7] += 1

    transport.script("put", before(Kind.CUT, change), after(Kind.CUT, change))
    with storage_of(transport).upload(KEY, len(memory)) as upload:
        (sent,) = upload.send_shared(0, (memoryview(memory),), is_last=True)
        assert isinstance(upload.commit(), Committed)
    assert memory[7]
    assert crc32c(transport.objects[NAME].data) == sent
