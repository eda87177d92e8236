"""S3 from threads, forked children and event loops; interrupted; a server that dies and comes back."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptstore.errors import CkptStoreError
from ckptstore.storage.base import Location
from ckptstore.storage.object_store.attempts import RetryPolicy
from ckptstore.storage.object_store.storage import ObjectStorage
from ckptstore.storage.registry import locate
from ckptstore.storage.s3.client import S3Client
from ckptstore.storage.s3.transport import S3Transport
from ckptstore.storage.values import Committed, Lost
from ckptstore.types import ByteRange
from tests.meta.source import ROOT
from tests.servers.fault_proxy import FaultProxy
from tests.servers.s3 import S3Server
from tests.servers.s3 import minio as make_minio
from tests.servers.toxiproxy import Toxiproxy

MIB = 1 << 20


@pytest.fixture
def bucket(minio: S3Server) -> str:
    return minio.make_bucket()


@pytest.fixture
def directory(minio: S3Server, bucket: str) -> Location:
    return locate(f"s3://{bucket}/run", minio.options)


def _in_child(work: object) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if work() else 2  # type: ignore[operator]
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_storage_made_before_a_fork_works_in_the_child_and_in_the_parent(directory: Location) -> None:
    storage, key = directory.storage, directory.child("x").key
    assert isinstance(storage.put_new(key, b"parent"), Committed)

    def work() -> bool:
        with storage.upload(directory.child("child").key) as upload:
            upload.write(bytes(20 * MIB))
            done = isinstance(upload.commit(), Committed)
        return done and storage.get(key).data == b"parent"

    assert _in_child(work) == 0
    assert _in_child(work) == 2, "the name is taken by the first child"
    assert storage.get(key).data == b"parent"
    assert storage.head(directory.child("child").key).size_bytes == 20 * MIB


def test_a_fork_in_the_middle_of_requests_of_other_threads_is_no_trap(directory: Location) -> None:
    storage, key = directory.storage, directory.child("x").key
    assert isinstance(storage.put_new(key, bytes(MIB)), Committed)
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            storage.get(key)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            assert _in_child(lambda: storage.get(key).size_bytes == MIB) == 0
    finally:
        over.set()
        for thread in threads:
            thread.join()


def _count(options: dict[str, str], url: str, times: int) -> None:
    location = locate(url, options)
    done = 0
    while done < times:
        got = location.storage.get(location.key)
        new = b"%06d %d" % (int(got.data.split()[0]) + 1, os.getpid())
        done += isinstance(location.storage.put_if(location.key, new, got.version), Committed)


def test_no_increment_of_three_processes_is_lost(minio: S3Server, directory: Location) -> None:
    counter = directory.child("counter")
    assert isinstance(counter.storage.put_new(counter.key, b"000000"), Committed)
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_count, args=(minio.options, counter.url, 25)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert counter.storage.get(counter.key).data.startswith(b"000075")


def test_many_threads_share_one_storage(directory: Location) -> None:
    storage = directory.storage
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(20):
                key = directory.child(f"{number}-{turn}").key
                assert isinstance(storage.put_new(key, b"%d" % turn), Committed)
                assert storage.get(key).data == b"%d" % turn
        except BaseException as error:  # noqa: BLE001 - told in the test's own thread
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(list(storage.list(f"{directory.key}/"))) == 320


def test_it_works_inside_a_running_event_loop_and_in_that_of_fsspec(directory: Location) -> None:
    import fsspec.asyn

    async def use(name: str) -> bytes:
        key = directory.child(name).key
        directory.storage.put_new(key, b"data")
        return directory.storage.get(key).data

    assert asyncio.run(use("mine")) == b"data"
    assert fsspec.asyn.sync(fsspec.asyn.get_loop(), use, "theirs") == b"data"


_INTERRUPTED = """
import sys, threading
from ckptstore.storage.registry import locate
from ckptstore.storage.object_store.attempts import RetryPolicy
directory = locate(sys.argv[1], dict(key="testtest", secret="testtest", endpoint_url=sys.argv[2]))
storage, what = directory.storage, sys.argv[3]
storage.probe(directory.child("x").key)
print("ready", flush=True)
sys.stdin.readline()
try:
    print("begun", flush=True)
    if what == "put":
        storage.put_new(directory.child("x").key, b"data")
    elif what == "get":
        storage.get(directory.child("there").key)
    else:
        with storage.upload(directory.child("x").key) as upload:
            while True:
                upload.write(bytes(1 << 20))
except KeyboardInterrupt:
    print("interrupted", flush=True)
    alive = [thread.name for thread in threading.enumerate() if "transfer" in thread.name]
"""


@pytest.mark.parametrize("what", ["put", "get", "upload"])
def test_ctrl_c_ends_it_at_once(minio: S3Server, bucket: str, what: str) -> None:
    minio.put(bucket, "run/there", b"x")
    with FaultProxy(minio.process.port) as proxy:
        arguments = [sys.executable, "-c", _INTERRUPTED, f"s3://{bucket}/run", proxy.url, what]
        process = subprocess.Popen(
            arguments, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        proxy.when("GET", "there").stall()
        proxy.when("PUT", "run/x").stall()
        before = len(proxy.requests)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "begun\n"
        deadline_s = time.monotonic() + 60
        # In the middle of the request that stalls, and of an upload's parts.
        wanted = 5 if what == "upload" else 1
        while len(proxy.requests) < before + wanted and time.monotonic() < deadline_s:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)  # a request that stalls takes 120 s
        assert said == "interrupted\n"
        assert process.returncode == 0
    assert minio.keys(bucket) == ["run/there"]
    assert minio.uploads(bucket, "run/x") == []


@pytest.fixture
def own_minio(tmp_path: Path) -> Iterator[S3Server]:
    server = make_minio(tmp_path / "own")
    if server is None:
        pytest.skip("minio was not built")
    with server.process:
        yield server


def test_a_server_that_comes_back_is_waited_for(own_minio: S3Server) -> None:
    bucket = own_minio.make_bucket()
    directory = locate(f"s3://{bucket}/run", own_minio.options)
    storage = directory.storage
    assert isinstance(storage.put_new(directory.child("x").key, b"old"), Committed)
    with storage.upload(directory.child("large").key) as upload:
        upload.write(bytes(20 * MIB))
        own_minio.process.kill()
        timer = threading.Timer(1.0, own_minio.process.start)
        timer.start()
        upload.write(bytes(20 * MIB))
        try:
            outcome = upload.commit()
        except CkptStoreError:
            outcome = None
        timer.join()
    assert storage.get(directory.child("x").key).data == b"old"
    found = [info.key.rpartition("/")[2] for info in storage.list(f"{directory.key}/")]
    if isinstance(outcome, Committed):
        assert storage.head(directory.child("large").key).size_bytes == 40 * MIB
    else:
        assert found == ["x"]


def test_half_of_all_connections_cut_loses_and_doubles_nothing(
    minio: S3Server, bucket: str, toxiproxy: Toxiproxy
) -> None:
    with toxiproxy.proxy(minio.process.port) as proxy:
        options = minio.through(proxy.url).options
        storage = ObjectStorage(S3Transport(S3Client(options)))
        key = f"{bucket}/run/counter"
        version = ""
        outcome = storage.put_new(key, b"000")
        assert isinstance(outcome, Committed)
        with proxy.toxic("limit_data", toxicity=0.5, bytes=700):
            version = outcome.version
            for number in range(1, 61):
                outcome = storage.put_if(key, b"%03d" % number, version)
                assert isinstance(outcome, Committed), "nobody else writes here"
                version = outcome.version
        assert minio.get(bucket, "run/counter") == b"060"


@pytest.mark.parametrize("size_bytes", [40, 4 * MIB])
def test_an_answer_cut_on_the_wire_is_read_back(
    minio: S3Server, bucket: str, toxiproxy: Toxiproxy, size_bytes: int
) -> None:
    with toxiproxy.proxy(minio.process.port) as proxy:
        storage = ObjectStorage(S3Transport(S3Client(minio.through(proxy.url).options)))
        storage.probe(f"{bucket}/run/x")
        key = f"{bucket}/run/x"
        # Wide enough for "100 Continue", and too narrow for the answer to a PUT.
        with proxy.toxic("limit_data", bytes=40):
            timer = threading.Timer(0.3, proxy.lift)
            timer.start()
            outcome = storage.put_new(key, bytes(size_bytes))
            timer.join()
        assert isinstance(outcome, Committed)
        assert isinstance(storage.put_new(key, b"again"), Lost)


def test_a_slow_line_is_no_stall(minio: S3Server, bucket: str, toxiproxy: Toxiproxy) -> None:
    with toxiproxy.proxy(minio.process.port) as proxy:
        options = minio.through(proxy.url).options
        # Each way takes longer than an attempt may stand still.
        policy = RetryPolicy(deadline_s=20.0, attempt_s=1.0)
        storage = ObjectStorage(S3Transport(S3Client(options)), policy)
        key = f"{bucket}/run/x"
        data = os.urandom(2 * MIB)
        storage.probe(key)
        with proxy.toxic("bandwidth", "upstream", rate=600), proxy.toxic("bandwidth", rate=600):
            assert isinstance(storage.put_new(key, data), Committed)
            memory = bytearray(2 * MIB)
            storage.read_into(key, [ByteRange(0, 2 * MIB)], [memoryview(memory)])
        assert memory == data
