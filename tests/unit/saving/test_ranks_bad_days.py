"""Many ranks on a bad day, played by threads: interrupts, cancelled saves, lost and damaged messages."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.distributed.messages import pack, unpack
from ckptstore.errors import (
    CkptStoreError,
    CoordinatorLostError,
    CorruptError,
    RanksMissingError,
    SaveCancelledError,
    TransientError,
    UsageError,
)
from ckptstore.storage.base import Storage
from ckptstore.storage.registry import use_wrapper
from ckptstore.storage.wrappers import StorageWrapper
from tests.unit.directory.helpers import names_in
from tests.unit.saving.ranks import Job, shorten_grace

SIZE = 4
SAFETY_S = 60.0
_fresh = itertools.count()


@pytest.fixture
def directory() -> str:
    return f"memory://bad-days-{next(_fresh)}/run"


def values(rank: int, stamp: float = 0.0) -> dict[str, Any]:
    return {f"own/{rank}": np.full(1000, stamp), "all": np.full(3, stamp)}


def save_all(job: Job, directory: str, step: int) -> list[Any]:
    return job.each(lambda rank, saver: saver.save(values(rank, step), f"{directory}/m", step))


def check(prefix: str, stamp: float) -> None:
    with ck.open_checkpoint(prefix) as checkpoint:
        for rank in range(SIZE):
            np.testing.assert_array_equal(checkpoint[f"own/{rank}"], np.full(1000, stamp))


class OnCall(StorageWrapper):
    """Calls `act` before each call of a storage."""

    def __init__(self, inner: Storage, act: Callable[[str, list[str]], object]) -> None:
        super().__init__(inner)
        self._act = act

    def intercept(self, primitive: str, keys: Any, call: Callable[[], Any]) -> Any:
        self._act(primitive, list(keys))
        return call()


def calls_seen_by(act: Callable[[str, list[str]], object]) -> Any:
    return use_wrapper(lambda inner: OnCall(inner, act))


def is_data_of(rank: int, primitive: str, keys: list[str]) -> bool:
    return primitive == "upload.commit" and f"data-0000{rank}-of" in keys[0]


class Tap:
    """Changes or refuses the messages of a rank."""

    def __init__(self, job: Job, rank: int) -> None:
        coordinator = job.coordinators[rank]
        self.gather, self.broadcast = coordinator.gather, coordinator.broadcast
        self.coordinator = coordinator

    def on_gather(self, change: Callable[[str, bytes], bytes]) -> None:
        def gather(topic: str, data: bytes, **options: Any) -> Any:
            return self.gather(topic, change(topic, data), **options)

        self.coordinator.gather = gather  # type: ignore[method-assign]

    def on_broadcast(self, change: Callable[[str, bytes | None], bytes | None]) -> None:
        def broadcast(topic: str, data: bytes | None = None, **options: Any) -> Any:
            if data is not None:
                data = change(topic, data)
                return self.broadcast(topic, data, **options)
            return change(topic, self.broadcast(topic, None, **options))

        self.coordinator.broadcast = broadcast  # type: ignore[method-assign]

    def off(self) -> None:
        self.coordinator.gather = self.gather  # type: ignore[method-assign]
        self.coordinator.broadcast = self.broadcast  # type: ignore[method-assign]


class Interrupt(BaseException):
    """Stands for Ctrl-C, which only the main thread can have."""


@pytest.mark.parametrize("phase", ["hello", "done-0"])
def test_an_interrupt_right_after_a_message_never_tears_a_checkpoint(directory, phase):
    job = Job(SIZE)
    tap = Tap(job, 2)

    def gather(topic: str, data: bytes, **options: Any) -> Any:
        found = tap.gather(topic, data, **options)
        if topic.endswith(phase):
            raise Interrupt
        return found

    job.coordinators[2].gather = gather  # type: ignore[method-assign]
    found = save_all(job, directory, 1)
    tap.off()
    assert isinstance(found[2], Interrupt)
    others = [found[rank] for rank in (0, 1, 3)]
    if phase == "hello":
        assert {type(error) for error in others} == {CkptStoreError}
        assert names_in(directory) == []
    else:
        # It has given its word, and its file is named by the index.
        assert others == [f"{directory}/m-1"] * 3
        check(f"{directory}/m-1", 1)
    assert save_all(job, directory, 2) == [f"{directory}/m-2"] * SIZE
    check(f"{directory}/m-2", 2)


def test_a_report_whose_answer_is_lost_never_tears_a_checkpoint(directory):
    job = Job(SIZE)
    tap = Tap(job, 2)

    def gather(topic: str, data: bytes, **options: Any) -> Any:
        found = tap.gather(topic, data, **options)
        if topic.endswith("done-0"):
            raise CoordinatorLostError("the answer was lost")
        return found

    job.coordinators[2].gather = gather  # type: ignore[method-assign]
    assert save_all(job, directory, 1) == [f"{directory}/m-1"] * SIZE
    check(f"{directory}/m-1", 1)


def test_a_rank_that_cannot_hear_the_chief_asks_the_storage_until_it_answers(directory):
    job = Job(SIZE)
    tap = Tap(job, 2)
    asked = threading.Semaphore(0)

    def gather(topic: str, data: bytes, **options: Any) -> Any:
        found = tap.gather(topic, data, **options)
        if topic.endswith("done-0"):

            def lost(*_: Any, **__: Any) -> Any:
                raise CoordinatorLostError("the mailbox is gone")

            job.coordinators[2].broadcast = lost  # type: ignore[method-assign]
        return found

    def publish_when_asked_twice(primitive: str, keys: list[str]) -> None:
        if keys[0].endswith("m-1.index") and primitive == "get":
            asked.release()
        elif keys[0].endswith("m-1.index") and primitive == "put_new":
            assert asked.acquire(timeout=30.0)
            assert asked.acquire(timeout=30.0)

    job.coordinators[2].gather = gather  # type: ignore[method-assign]
    with calls_seen_by(publish_when_asked_twice):
        assert save_all(job, directory, 1) == [f"{directory}/m-1"] * SIZE
    check(f"{directory}/m-1", 1)


def test_another_coordinator_object_over_the_same_mailbox_is_an_error_that_says_so(directory):
    job = Job(SIZE)
    assert save_all(job, directory, 1) == [f"{directory}/m-1"] * SIZE

    class Wrapper:
        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

    job.savers = [ck.Saver(coordinator=Wrapper(each), deadline_s=20.0) for each in job.coordinators]
    for error in save_all(job, directory, 2):
        assert isinstance(error, ck.UsageError), repr(error)
        assert "coordinator object" in str(error)
    assert not ck.checkpoint_exists(f"{directory}/m-2")


@pytest.mark.parametrize("rank", [0, 2])
def test_a_failing_upload_has_one_class_on_all(directory, rank):
    job = Job(SIZE)

    def fail(primitive: str, keys: list[str]) -> None:
        if is_data_of(rank, primitive, keys):
            raise TransientError("the disk is gone", url="memory://")

    with calls_seen_by(fail):
        found = save_all(job, directory, 1)
    assert {type(error) for error in found} == {TransientError}
    assert all("the disk is gone" in str(error) for error in found)
    assert names_in(directory) == []
    assert save_all(job, directory, 2) == [f"{directory}/m-2"] * SIZE


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("moment", ["hello", "write"])
def test_a_cancelled_save_ends_on_all_ranks(directory, rank, moment):
    job = Job(SIZE)
    begun, go_on = threading.Event(), threading.Event()

    def wait(primitive: str, keys: list[str]) -> None:
        if moment == "write" and primitive == "upload.commit" and f"data-0000{rank}" in keys[0]:
            begun.set()
            assert go_on.wait(SAFETY_S)

    def save(own: int, saver: ck.Saver) -> Any:
        if moment == "hello" and own == (rank + 1) % SIZE:
            # It comes when the other one is cancelled.
            assert go_on.wait(SAFETY_S)
        handle = saver.save_async(values(own, 1), f"{directory}/m", 1, snapshot=False)
        if own == rank:
            if moment == "write":
                assert begun.wait(SAFETY_S)
            assert handle.cancel()
            if moment == "write":
                go_on.set()
            try:
                return handle.result(timeout_s=SAFETY_S)
            finally:
                go_on.set()
        return handle.result()

    with calls_seen_by(wait):
        found = job.each(save)
    assert {type(error) for error in found} == {SaveCancelledError}
    assert names_in(directory) == []
    assert save_all(job, directory, 2) == [f"{directory}/m-2"] * SIZE


def test_whoever_waits_for_the_others_can_be_cancelled(directory):
    """The chief for the hellos, a member for the order: nobody else comes, and the deadline is far away."""
    for rank in (0, 1):
        job = Job(SIZE)
        with job.savers[rank] as saver:
            handle = saver.save_async(values(rank), f"{directory}/m", snapshot=False)
            assert handle.cancel()
            with pytest.raises(SaveCancelledError):
                handle.result(timeout_s=SAFETY_S)


def test_the_chief_is_fenced_while_the_others_have_staged(directory):
    job = Job(SIZE)
    assert save_all(job, directory, 1) == [f"{directory}/m-1"] * SIZE
    ck.Saver(run="another").save({"own/0": np.zeros(3)}, f"{directory}/m", 2)

    def save(rank: int, saver: ck.Saver) -> Any:
        return saver.save_async(values(rank, 3), f"{directory}/m", 3).result()

    assert {type(error) for error in job.each(save)} == {ck.FencedError}
    assert not [name for name in names_in(directory) if name.startswith("m-3.index")]


def test_a_late_chief_learns_that_the_others_have_left(directory, monkeypatch):
    shorten_grace(monkeypatch)
    job = Job(SIZE, deadline_s=0.5)
    early = job.each(lambda rank, saver: saver.save(values(rank), f"{directory}/m", 1), ranks=[1, 2, 3])
    assert {type(error) for error in early} == {RanksMissingError}
    (late,) = job.each(lambda rank, saver: saver.save(values(rank), f"{directory}/m", 1), ranks=[0])
    assert isinstance(late, RanksMissingError)
    assert "the chief, was not heard of" in str(late)
    assert names_in(directory) == []


def test_messages_of_old_saves_are_dropped_also_when_saves_fail(directory):
    job = Job(SIZE)

    def save(rank: int, saver: ck.Saver) -> None:
        for step in range(40):
            arrays = values(rank, step)
            if step % 2 and rank == step % SIZE:
                arrays["odd"] = np.array(["2020-01-01"], "datetime64[D]")
            try:
                saver.save(arrays, f"{directory}/m", step, write_meta_graph=False)
            except UsageError:
                assert step % 2

    assert job.each(save) == [None] * SIZE
    assert job.coordinators[0].kept_messages() <= 8 * SIZE
    check(f"{directory}/m-38", 38)


@pytest.mark.parametrize(
    ("rank", "verb", "phase"),
    [(2, "gather", "hello"), (2, "gather", "done-0"), (0, "broadcast", "word-0"), (0, "broadcast", "word-1")],
)
def test_any_damaged_message_is_an_error_on_all_ranks(directory, rank, verb, phase):
    """Every byte of each kind of message, one after the other."""
    job = Job(SIZE, deadline_s=1.0)
    tap = Tap(job, rank)
    place = 0
    length = 1

    def damage(topic: str, data: Any) -> Any:
        nonlocal length
        if not topic.endswith(f".{phase}"):
            return data
        length = len(data)
        at = min(place, length - 1)
        return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]

    (tap.on_gather if verb == "gather" else tap.on_broadcast)(damage)
    while place < length:
        url = f"{directory}/d{place}"
        found = job.each(lambda own, saver, url=url: saver.save(values(own), f"{url}/m"))  # type: ignore[misc]
        if found == [f"{url}/m"] * SIZE:
            # The word was "committed": who cannot read it looks into the storage.
            assert phase == "word-1"
            check(f"{url}/m", 0)
            place += 1 if place < 20 else 53
            continue
        assert all(isinstance(error, CkptStoreError) for error in found), (place, found)
        if rank:
            assert {type(error) for error in found} == {CorruptError}
            assert all(f"rank {rank} (host-{rank})" in str(error) for error in found)
        assert names_in(url) == []
        # A few bytes of the middle stand for all of them.
        place += 1 if place < 20 else 53


@pytest.mark.parametrize(
    ("phase", "change"),
    [
        ("hello", {"fingerprint": 5}),
        ("hello", {"step": {"a": []}}),
        ("hello", {"error": "none"}),
        ("hello", {"error": {"class": "os.system", "what": 5}}),
        ("done-0", {"crcs": -1}),
        ("done-0", {"crcs": 1 << 40}),
        ("done-0", {"version": 7}),
        ("done-0", {"bytes": "many"}),
        ("done-0", {"error": []}),
    ],
)
def test_a_forged_message_of_a_rank_is_a_typed_error_on_all(directory, phase, change):
    job = Job(SIZE, deadline_s=5.0)
    tap = Tap(job, 2)

    def forge(topic: str, data: bytes) -> bytes:
        if not topic.endswith(f".{phase}"):
            return data
        head, blob = unpack(data)
        return pack(head | change, blob)

    tap.on_gather(forge)
    found = save_all(job, directory, 1)
    tap.off()
    assert all(isinstance(error, CkptStoreError) for error in found), found
    assert names_in(directory) == []
    assert save_all(job, directory, 2) == [f"{directory}/m-2"] * SIZE


@pytest.mark.parametrize(
    ("phase", "change"),
    [
        ("word-0", {"plan": 3, "name": 3}),
        ("word-0", {"kind": ["order"]}),
        ("word-0", {"left_s": float("inf"), "kind": 0}),
        ("word-1", {"order": "first"}),
        ("word-1", {"count": None}),
        ("word-1", {"plan": "another"}),
        ("word-1", {"kind": "committed"}),
        ("word-1", {"kind": "failed", "error": 3}),
        ("word-2", {"kind": "yes"}),
        ("word-2", {"kind": "failed"}),
    ],
)
def test_a_forged_word_is_a_typed_error(directory, phase, change):
    job = Job(SIZE, deadline_s=2.0)

    def forge(topic: str, data: bytes | None) -> bytes | None:
        if data is None or not topic.endswith(f".{phase}"):
            return data
        head, blob = unpack(data)
        return pack(head | change, blob)

    tap = Tap(job, 0)
    tap.on_broadcast(forge)
    found = save_all(job, directory, 1)
    assert all(isinstance(error, CkptStoreError) for error in found[1:]), found
    if phase == "word-2":
        # What is published stays whole, whatever is said of it.
        assert found[0] == f"{directory}/m-1"
        check(f"{directory}/m-1", 1)
    else:
        assert isinstance(found[0], CkptStoreError)
        assert names_in(directory) == []
    tap.off()
    assert save_all(job, directory, 2) == [f"{directory}/m-2"] * SIZE


def test_two_savers_of_one_job_save_side_by_side(directory):
    job = Job(SIZE)
    more = [ck.Saver(coordinator=each) for each in job.coordinators]

    def save(rank: int, saver: ck.Saver) -> Any:
        handles = []
        for step in range(4):
            handles.append(saver.save_async(values(rank, step), f"{directory}/a", step))
            assert more[rank].save(values(rank, step), f"{directory}/b", step) == f"{directory}/b-{step}"
        return [handle.result() for handle in handles]

    for found in job.each(save):
        assert found == [f"{directory}/a-{step}" for step in range(4)]
    for name in ("a-3", "b-3"):
        check(f"{directory}/{name}", 3)


def test_a_saver_is_used_again_after_close(directory):
    job = Job(SIZE)
    for step in (1, 2):
        assert save_all(job, directory, step) == [f"{directory}/m-{step}"] * SIZE
        job.each(lambda _, saver: saver.close())


@pytest.mark.parametrize("empty", [[2], [0], [0, 1, 2]])
@pytest.mark.parametrize("in_background", [True, False])
def test_ranks_with_nothing_to_save_take_part(directory, empty, in_background):
    job = Job(SIZE)

    def save(rank: int, saver: ck.Saver) -> Any:
        found = []
        for step in (1, 2):
            arrays = {} if rank in empty else {f"own/{rank}": np.full(5, step)}
            if in_background:
                found.append(saver.save_async(arrays, f"{directory}/m", step).result())
            else:
                found.append(saver.save(arrays, f"{directory}/m", step))
        return found

    assert job.each(save) == [[f"{directory}/m-1", f"{directory}/m-2"]] * SIZE
    with ck.open_checkpoint(f"{directory}/m-2") as checkpoint:
        assert set(checkpoint) == {f"own/{rank}" for rank in range(SIZE) if rank not in empty}


def test_nothing_at_all_is_an_error_on_all(directory):
    found = Job(SIZE).each(lambda _, saver: saver.save({}, f"{directory}/m"))
    assert {type(error) for error in found} == {UsageError}


def test_a_forked_child_cannot_speak_for_its_rank(directory):
    job = Job(2)

    def save(step: int) -> list[Any]:
        return job.each(lambda rank, saver: saver.save(values(rank, step), f"{directory}/m", step))

    assert save(1) == [f"{directory}/m-1"] * 2
    child = os.fork()
    if not child:
        code = 1
        try:
            job.savers[1].save(values(1), f"{directory}/m", 2)
        except UsageError:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert save(2) == [f"{directory}/m-2"] * 2


def test_no_thread_stays_when_saves_have_failed(directory):
    job = Job(SIZE, deadline_s=0.5)
    found = job.each(lambda rank, saver: saver.save(values(rank), f"{directory}/m", 1), ranks=[0, 1, 3])
    assert {type(error) for error in found} == {RanksMissingError}
    for thread in threading.enumerate():
        if thread.name == "ckptstore-ranks":
            thread.join(SAFETY_S)
            assert not thread.is_alive()


def test_layouts_that_change_while_saves_fail_and_are_cancelled(directory):
    """A rank never writes what it staged by another plan than the one that is ordered."""
    job = Job(SIZE)

    def arrays(rank: int, layout: int, step: int) -> dict[str, Any]:
        # Held by all; its owner changes with what else the ranks hold.
        own = np.full((1000 + 1000 * layout if rank == layout % SIZE else 10), float(step))
        return {f"own/{rank}": own, **{f"all/{i}": np.full(300 * (i + 1), float(step)) for i in range(6)}}

    def save(rank: int, saver: ck.Saver, layout: int, step: int) -> Any:
        return saver.save_async(arrays(rank, layout, step), f"{directory}/m", step).result()

    step = 0
    for layout in (0, 1, 2, 1, 3, 3, 0, 0):
        step += 1
        spoiler = 1 + step % (SIZE - 1)
        tap = Tap(job, spoiler)
        interrupts = [Interrupt()] if step % 2 else []

        def gather(topic: str, data: bytes, tap: Tap = tap, **options: Any) -> Any:
            if "done-0" in topic and interrupts:  # noqa: B023 (called in this round)
                raise interrupts.pop()  # noqa: B023
            return tap.gather(topic, data, **options)

        tap.coordinator.gather = gather  # type: ignore[method-assign]
        found = job.each(partial(save, layout=layout, step=step))
        tap.off()
        if step % 2:
            assert isinstance(found[spoiler], Interrupt)
            continue
        assert found == [f"{directory}/m-{step}"] * SIZE, found
        with ck.open_checkpoint(f"{directory}/m-{step}") as checkpoint:
            for name in checkpoint:
                assert set(checkpoint[name].ravel().tolist()) == {float(step)}, name


@pytest.mark.parametrize(
    ("rank", "missed", "in_background"), [(2, 1, False), (2, 2, True), (0, 1, True), (0, 2, False)]
)
def test_a_rank_that_did_not_begin_a_save_is_in_step_with_the_others_again(
    directory, rank, missed, in_background, monkeypatch
):
    if rank == 0:
        shorten_grace(monkeypatch)
    job = Job(SIZE, deadline_s=1.0)

    def save(step):
        def call(rank, saver):
            if in_background:
                return saver.save_async(values(rank), f"{directory}/m", step).result()
            return saver.save(values(rank), f"{directory}/m", step)

        return call

    assert job.each(save(0)) == [f"{directory}/m-0"] * SIZE
    others = [each for each in range(SIZE) if each != rank]
    for step in range(1, 1 + missed):
        for error in job.each(save(step), others):
            assert isinstance(error, ck.RanksMissingError)
            assert error.ranks == (rank,)
    assert job.each(save(5)) == [f"{directory}/m-5"] * SIZE
    assert job.each(save(6)) == [f"{directory}/m-6"] * SIZE
