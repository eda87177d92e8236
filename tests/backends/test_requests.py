"""How many requests each operation costs, counted at the seam and by a server; part of the design."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.storage.base import Storage
from ckptstore.storage.registry import use_wrapper
from ckptstore.testing import CountingStorage
from tests.servers.s3 import S3Server

VALUES = {"w": np.arange(6.0), "b": np.float32(1)}

# The parts of an upload that never leave the process.
_LOCAL = {"upload", "upload.send", "upload.abort", "upload.close"}


class Counter:
    """What was asked of the storage since the last look."""

    def __init__(self) -> None:
        self.storages: list[CountingStorage] = []

    def wrap(self, inner: Storage) -> Storage:
        self.storages.append(CountingStorage(inner))
        return self.storages[-1]

    def take(self) -> list[str]:
        """Return primitive and file name of each request since the last call, a bulk delete as one."""
        taken: list[str] = []
        for storage in self.storages:
            for call in storage.calls:
                name = f"{call.primitive} {call.key.rpartition('/')[2]}"
                if call.primitive in _LOCAL or (
                    call.primitive == "delete_many" and taken[-1:] == ["delete_many"]
                ):
                    continue
                taken.append("delete_many" if call.primitive == "delete_many" else name)
            storage.reset()
        return taken


@contextmanager
def counting() -> Iterator[Counter]:
    counter = Counter()
    with use_wrapper(counter.wrap):
        yield counter


@pytest.mark.parametrize("backend", ["local", "memory", "minio", "gcs"], indirect=True)
def test_each_operation_costs_what_the_design_says(run_url: str) -> None:
    with counting() as counter:
        saver = ck.Saver(max_to_keep=2)
        saver.save(VALUES, f"{run_url}/m", 1)
        counter.take()

        prefix = saver.save(VALUES, f"{run_url}/m", 2)
        data = "m-2.data-00000-of-00001"
        assert counter.take() == [
            f"upload.commit {data}",
            "put_if checkpoint",
            "put_new m-2.meta",
            "put_new m-2.index",
            "put_if checkpoint",
        ]

        saver.save(VALUES, f"{run_url}/m", 3)
        steady = counter.take()
        assert len(steady) == 8
        assert steady[2] == "head m-1.index"
        assert steady[-2:] == ["delete_if m-1.index", "delete_many"]

        saver.save(VALUES, f"{run_url}/m", 3)
        overwrite = [request.partition(" ")[0] for request in counter.take()]
        look = "get" if run_url.startswith(("/", "memory")) else "head"
        assert overwrite == ["get", "upload.commit", "put_if", look, "put_if", "put_if"]
        saver.save(VALUES, f"{run_url}/m", 3)
        *before, last = overwrite
        assert [request.partition(" ")[0] for request in counter.take()] == [*before, "delete_many", last]

        # One look at each data file more than record and index: what latest_checkpoint names can be restored.
        assert ck.latest_checkpoint(run_url) is not None
        assert [request.partition(" ")[0] for request in counter.take()] == ["get", "get", "head"]

        ck.Saver().restore({}, prefix)
        assert [request.partition(" ")[0] for request in counter.take()] == ["get", "head", "read_into"]

        ck.list_variables(str(prefix))
        assert counter.take() == ["get m-2.index"]


class Server:
    """The requests that a MinIO counted since the last look, of all clients."""

    def __init__(self, server: S3Server) -> None:
        self._server = server
        self._before = server.counted()

    def check(self, **expected: int) -> None:
        """Check that it was exactly so many requests of each kind, in S3's own names."""
        stop_s = time.monotonic() + 60.0
        # It counts a request when its answer is out, which the client may have heard of first.
        while (now := self._server.counted()) - self._before != expected and time.monotonic() < stop_s:
            time.sleep(0.02)
        assert now - self._before == expected
        self._before = now


@pytest.mark.parametrize("backend", ["minio"], indirect=True)
def test_a_server_counts_the_same(run_url: str, minio: S3Server) -> None:
    saver = ck.Saver(max_to_keep=2)
    server = Server(minio)
    saver.save(VALUES, f"{run_url}/m", 1)
    # Six of the probe, five of the save, and who begins looks around: the record, a listing, and because that
    # is empty whether an object has the directory's own name.
    server.check(
        PutObject=4 + 4,
        DeleteObject=1,
        DeleteMultipleObjects=1,
        GetObject=1 + 1,
        ListObjectsV2=1,
        HeadObject=1,
    )
    saver.save(VALUES, f"{run_url}/m", 2)
    server.check(PutObject=5)
    saver.save(VALUES, f"{run_url}/m", 3)
    server.check(PutObject=5, HeadObject=1, DeleteObject=1, DeleteMultipleObjects=1)
    saver.save(VALUES, f"{run_url}/m", 4)
    server.check(PutObject=5, HeadObject=1, DeleteObject=1, DeleteMultipleObjects=1)
    saver.save(VALUES, f"{run_url}/m", 4)
    server.check(PutObject=4, GetObject=1, HeadObject=1)
    saver.save(VALUES, f"{run_url}/m", 4)
    # One old data file: no need for a request that can delete many.
    server.check(PutObject=4, GetObject=1, HeadObject=1, DeleteObject=1)
    assert ck.latest_checkpoint(run_url) is not None
    server.check(GetObject=2, HeadObject=1)
    ck.Saver().restore({}, f"{run_url}/m-4")
    server.check(GetObject=2, HeadObject=1)
    ck.list_variables(f"{run_url}/m-4")
    server.check(GetObject=1)
    ck.get_checkpoint_state(run_url)
    server.check(GetObject=1)
