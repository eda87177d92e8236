"""One process plays all ranks of a job: how many messages and requests a save of many ranks takes.

The figures are those of `docs/distributed.md`; what is counted has no stop-watch.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.bundle.verify.verify import verify_bundle
from ckptstore.distributed.rounds import Message
from ckptstore.storage.abilities import KnowsWriters
from ckptstore.storage.base import Storage
from ckptstore.storage.registry import locate, use_wrapper
from ckptstore.storage.wrappers import StorageWrapper
from ckptstore.testing import LocalCoordinator, make_local_coordinators

# `make many-ranks` plays 1 024, for a minute.
RANKS = int(os.environ.get("CKPTSTORE_PLAYED_RANKS", "128"))
TENSORS = 4
MEASURED_TENSORS = 500
ROWS, COLUMNS = 2, 3

ROOT = Path(__file__).resolve().parents[2]

_LONG_S = 300.0

_T = TypeVar("_T")
_RANK: ContextVar[int] = ContextVar("rank")
_fresh = itertools.count()

# The parts of an upload that never leave the process.
_LOCAL = {"upload", "upload.send", "upload.abort", "upload.close"}


class Tally:
    """What each rank sent, heard and asked of the storage in one save."""

    def __init__(self, ranks: int) -> None:
        self.sent: list[list[str]] = [[] for _ in range(ranks)]
        self.heard: list[list[str]] = [[] for _ in range(ranks)]
        self.requests: list[list[str]] = [[] for _ in range(ranks)]


class CountingCoordinator:
    """Notes what really travels: to look for a message that is not there is none."""

    def __init__(self, inner: LocalCoordinator, job: PlayedJob) -> None:
        self.rank, self.size = inner.rank, inner.size
        self._inner = inner
        self._job = job
        self.forget, self.close = inner.forget, inner.close

    def gather(
        self,
        topic: str,
        data: bytes,
        *,
        timeout_s: float,
        enough: Callable[[Mapping[int, bytes]], bool] | None = None,
    ) -> dict[int, bytes]:
        found = self._inner.gather(topic, data, timeout_s=timeout_s, enough=enough)
        if self.rank:
            what = " of checksums" if "like" in Message.read(data).head else ""
            self._job.tally.sent[self.rank].append(_phase(topic) + what)
            if _phase(topic) == "hello":
                self._job.greeted.release()
        return found

    def broadcast(self, topic: str, data: bytes | None = None, *, timeout_s: float) -> bytes | None:
        found = self._inner.broadcast(topic, data, timeout_s=timeout_s)
        if found is not None:
            tally = self._job.tally
            kind = Message.read(found).head["kind"]
            (tally.sent if data is not None else tally.heard)[self.rank].append(kind)
        return found


def _phase(topic: str) -> str:
    return topic.rpartition(".")[2]


class ObjectStore(StorageWrapper):
    """Like an object store, which does not know whether the writer of a file lives; notes who asks."""

    hides = (KnowsWriters,)

    def __init__(self, inner: Storage, job: PlayedJob) -> None:
        super().__init__(inner)
        self._job = job

    def intercept(self, primitive: str, keys: Sequence[str], call: Callable[[], _T]) -> _T:
        if primitive not in _LOCAL:
            shown = str(len(keys)) if primitive == "delete_many" else keys[0].rpartition("/")[2]
            self._job.tally.requests[_RANK.get()].append(f"{primitive} {shown}")
        return call()


class PlayedJob:
    """A job of so many ranks, each a thread with a Saver of its own.

    Attributes
    ----------
    tally : Tally
        Of the save that is under way, or was last.
    """

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self.tally = Tally(ranks)
        self.greeted = threading.Semaphore(0)
        self.coordinators = make_local_coordinators(ranks)
        self.directory = f"memory://played-{next(_fresh)}/run"
        self._savers = [
            ck.Saver(max_to_keep=2, coordinator=CountingCoordinator(each, self), deadline_s=_LONG_S)
            for each in self.coordinators
        ]
        elements = np.arange(TENSORS * ranks * ROWS * COLUMNS, dtype=np.float32)
        self.full = elements.reshape(TENSORS, ranks * ROWS, COLUMNS)

    def save(self, step: int) -> Tally:
        """Save a piece of each tensor from every rank, and return what it took."""
        self.tally = Tally(self.ranks)
        results: list[object] = [None] * self.ranks
        chief, *others = [
            threading.Thread(target=self._save, args=(rank, step, results), daemon=True)
            for rank in range(self.ranks)
        ]
        for thread in others:
            thread.start()
        # The chief comes last: nobody has to be told to wait, however slow this machine is.
        for _ in others:
            assert self.greeted.acquire(timeout=_LONG_S)
        chief.start()
        for thread in (chief, *others):
            thread.join(_LONG_S)
            assert not thread.is_alive(), "a rank hangs"
        assert {str(result) for result in results} == {f"{self.directory}/m-{step}"}
        return self.tally

    def _save(self, rank: int, step: int, results: list[object]) -> None:
        _RANK.set(rank)
        first = rank * ROWS
        values = {
            f"layer/{number}/w": ck.Piece(whole[first : first + ROWS] + step, whole.shape, (first, 0))
            for number, whole in enumerate(self.full)
        }
        try:
            results[rank] = self._savers[rank].save(values, f"{self.directory}/m", step)
        except BaseException as error:  # noqa: BLE001 - the thread that waits compares it
            results[rank] = error


class Played:
    """Four saves of a job that keeps two, and what each took."""

    def __init__(self, ranks: int) -> None:
        self.job = PlayedJob(ranks)
        self.ranks = ranks
        with use_wrapper(lambda inner: ObjectStore(inner, self.job)):
            self.first, self.second, self.third, self.steady = map(self.job.save, range(1, 5))


@pytest.fixture(scope="module")
def played() -> Iterator[Played]:
    yield (found := Played(RANKS))
    place = locate(found.job.directory)
    place.storage.delete_many([info.key for info in place.storage.list(place.child("").key)])


def measured(ranks: int) -> dict[str, dict[str, float]]:
    """Return what the benchmark says of the chief of so many ranks, in processes of its own."""
    command = [sys.executable, "-m", "benchmarks.many_ranks", "--json"]
    command += ["--ranks", str(ranks), "--tensors", str(MEASURED_TENSORS)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, dict[str, float]] = json.loads(done.stdout)
    return found


def test_the_chief_takes_some_hundred_bytes_for_each_slice() -> None:
    """460 MiB for a million, the index of 54 MiB included."""
    few, many = measured(32), measured(160)
    slices = (160 - 32) * MEASURED_TENSORS
    for save in ("first save", "steady"):
        assert many[save]["rss_bytes"] - few[save]["rss_bytes"] < 700 * slices, save


def test_what_all_ranks_saved_is_one_checkpoint(played: Played) -> None:
    with ck.open_checkpoint(f"{played.job.directory}/m-4") as checkpoint:
        for number, whole in enumerate(played.job.full):
            np.testing.assert_array_equal(checkpoint[f"layer/{number}/w"], whole + 4)
    assert verify_bundle(locate(f"{played.job.directory}/m-4")).ok


def test_messages(played: Played) -> None:
    first, steady = played.first, played.steady
    assert all(each == ["hello", "done-0"] for each in first.sent[1:])
    assert all(each == ["hello", "done-0 of checksums"] for each in steady.sent[1:])
    assert all(each == ["plan", "order", "committed"] for each in (first.sent[0], *first.heard[1:]))
    assert all(each == ["order", "committed"] for each in (steady.sent[0], *steady.heard[1:]))
    assert first.heard[0] == steady.heard[0] == []


def test_messages_are_dropped_one_save_later(played: Played) -> None:
    # Hello and report of each rank, and what the chief said.
    assert played.job.coordinators[0].kept_messages() == 2 * (played.ranks - 1) + 2


def test_requests_of_the_others(played: Played) -> None:
    for tally, step in ((played.first, 1), (played.steady, 4)):
        for rank in range(1, played.ranks):
            assert tally.requests[rank] == [f"upload.commit m-{step}.data-{rank:05d}-of-{played.ranks:05d}"]


def test_requests_of_the_chief(played: Played) -> None:
    """As a save of one process, whatever the number of ranks: one bulk delete has all names."""
    assert played.first.requests[0] == [
        "get checkpoint",
        "list m",
        "abort_stale_uploads m-",
        "abort_stale_uploads checkpoint",
        f"upload.commit m-1.data-00000-of-{played.ranks:05d}",
        "get checkpoint",
        "put_new m-1.meta",
        "put_new m-1.index",
        "put_new checkpoint",
    ]
    assert played.steady.requests[0] == [
        f"upload.commit m-4.data-00000-of-{played.ranks:05d}",
        "put_if checkpoint",
        "head m-2.index",
        "put_new m-4.meta",
        "put_new m-4.index",
        "put_if checkpoint",
        "delete_if m-2.index",
        f"delete_many {played.ranks + 1}",
    ]
