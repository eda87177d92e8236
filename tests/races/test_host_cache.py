"""Many processes of a host with one cache: the store sends each byte once, whoever is killed.

CKPTSTORE_CACHE_KILLS=200 kills so many processes in place of a few; `make cache-kills` does.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.cache import turns
from ckptstore.storage.local import range_locks
from tests.own_warnings import own_warnings
from tests.servers.relay import Relay
from tests.servers.s3 import S3Server

KILLS = int(os.environ.get("CKPTSTORE_CACHE_KILLS", "6"))
MIB = 1 << 20
PROCESSES = 4
MANY = 1 << 40
pytestmark = pytest.mark.timeout(300 + 10 * KILLS)

# Forked from a process that has imported everything, once.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(
    [__name__, "ckptstore.cache.cache", "ckptstore.reading.open_checkpoint", "ckptstore.storage.s3.transport"]
)


def make_values(size_bytes: int, seed: int) -> dict[str, np.ndarray]:
    """Return tensors of all sizes, some larger than a cell."""
    chance = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {}
    left = size_bytes // 4
    sizes = [20 * MIB // 4, 5 * MIB // 4, 3 * MIB // 4, 50_000, 1000, 3]
    while left > 0:
        count = min(sizes[len(found) % len(sizes)], left)
        found[f"layer_{len(found):04d}"] = chance.random(count, np.float32)
        left -= count
    return found


def digest_of(arrays: dict[str, Any]) -> str:
    found = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        found.update(name.encode())
        found.update(np.ascontiguousarray(arrays[name]).data)
    return found.hexdigest()


def restore(
    prefix: str,
    directory: str,
    options: dict[str, Any] | None,
    way: str,
    locks: str = "own",
    max_bytes: int = MANY,
    begin: Any = None,
    answers: Any = None,
) -> str:
    """Restore a checkpoint through the cache; return, and put into `answers`, the digest of its arrays."""
    if locks == "none":
        range_locks.RangeLocks.acquire = lambda *_, **__: True  # type: ignore[method-assign]
    cache = ck.Cache(directory, max_bytes=max_bytes)
    if begin is not None:
        begin.wait(60)
    try:
        with own_warnings(), ck.open_checkpoint(prefix, cache=cache, storage_options=options) as found:
            if way == "map":
                answer = digest_of({name: found[name] for name in found})
            else:
                answer = digest_of(dict(found.restore().restored))
    except Exception as error:  # noqa: BLE001 - shown by the test
        answer = f"{type(error).__name__}: {error}"
    if answers is not None:
        answers.put(answer)
    return answer


def start(*arguments: Any) -> Any:
    process = _PROCESSES.Process(target=restore, args=arguments, daemon=True)
    process.start()
    return process


@pytest.fixture
def relay(minio: S3Server) -> Iterator[Relay]:
    with Relay(minio.process.port) as relay:
        yield relay


@pytest.fixture
def far(minio: S3Server, relay: Relay) -> S3Server:
    return minio.through(relay.url)


@pytest.mark.parametrize(
    ("locks", "way", "size_mib", "most"),
    [("own", "map", 64, 1.02), ("own", "restore", 32, 1.02), ("none", "map", 32, PROCESSES + 0.02)],
)
def test_four_processes_that_start_cold_share_what_the_store_sends(
    minio: S3Server,
    far: S3Server,
    relay: Relay,
    tmp_path: Path,
    locks: str,
    way: str,
    size_mib: int,
    most: float,
) -> None:
    values = make_values(size_mib * MIB, 1)
    with ck.Saver() as saver:
        prefix = saver.save(values, f"s3://{minio.make_bucket()}/run/model", storage_options=minio.options)
    begin, answers = _PROCESSES.Barrier(PROCESSES), _PROCESSES.Queue()
    arguments = (prefix, str(tmp_path), far.options, way, locks, MANY, begin, answers)
    processes = [start(*arguments) for _ in range(PROCESSES)]
    assert {answers.get(timeout=200) for _ in processes} == {digest_of(values)}
    for process in processes:
        process.join(60)
    assert 1 <= relay.sent_bytes / (size_mib * MIB) <= most


def test_restored_without_the_store(minio: S3Server, far: S3Server, relay: Relay, tmp_path: Path) -> None:
    values = make_values(8 * MIB, 2)
    directory = f"s3://{minio.make_bucket()}/run"
    with ck.Saver() as saver:
        prefix = str(saver.save(values, f"{directory}/model", 1, storage_options=minio.options))
    cache = ck.Cache(tmp_path / "cache", max_bytes=MANY)
    assert ck.latest_checkpoint(directory, cache=cache, storage_options=far.options) == prefix
    assert restore(prefix, str(tmp_path / "cache"), far.options, "map", "own") == digest_of(values)
    relay.cut()
    begin_s = time.monotonic()
    with pytest.warns(ck.CkptStoreWarning, match="seen last"):
        latest = ck.latest_checkpoint(directory, cache=cache, storage_options=far.options)
    assert latest == prefix
    with (
        pytest.warns(ck.CkptStoreWarning, match="as the cache"),
        ck.open_checkpoint(prefix, cache=cache, storage_options=far.options) as checkpoint,
    ):
        assert digest_of(dict(checkpoint)) == digest_of(values)
    # Without an answer of the cache it takes a minute to give up.
    assert time.monotonic() - begin_s < 45
    relay.mend()
    with own_warnings("error"):
        assert ck.latest_checkpoint(directory, cache=cache, storage_options=far.options) == prefix


def test_whoever_is_killed_and_whatever_is_flipped_every_restore_is_right(tmp_path: Path) -> None:
    chance = random.Random(os.environ.get("CKPTSTORE_CACHE_SEED", "1"))
    wanted, prefixes = {}, []
    with ck.Saver() as saver:
        for number in range(3):
            values = make_values(6 * MIB, number)
            prefix = str(saver.save(values, f"{tmp_path}/store/model", number))
            prefixes.append(prefix)
            wanted[prefix] = digest_of(values)
    directory = tmp_path / "cache"
    # Room for two of the three: what is used least is removed all the time.
    small = ("own", 14 * MIB)
    killed = flipped = 0
    running: list[tuple[Any, str, Any]] = []
    while killed < KILLS or running:
        while killed < KILLS and len(running) < PROCESSES:
            prefix, answers = chance.choice(prefixes), _PROCESSES.Queue()
            way = chance.choice(["map", "restore"])
            running.append((start(prefix, str(directory), None, way, *small, None, answers), prefix, answers))
        if killed < KILLS:
            time.sleep(chance.random() * 0.1)
            process, _, _ = running.pop(chance.randrange(len(running)))
            if process.is_alive():
                process.kill()
                killed += 1
            process.join(60)
            # What others have mapped is not to be touched: pages of a disk do not change under a reader.
            if not any(each.is_alive() for each, _, _ in running):
                flipped += flip(directory, chance)
        if chance.random() < 0.3 or killed >= KILLS:
            process, prefix, answers = running.pop(0)
            assert answers.get(timeout=120) == wanted[prefix]
            process.join(60)
    for _ in range(10):
        flipped += flip(directory, chance)
    for prefix in prefixes * 2:
        assert restore(prefix, str(directory), None, "map", *small) == wanted[prefix]
        assert restore(prefix, str(directory), None, "restore", *small) == wanted[prefix]
    assert flipped >= 10


def flip(directory: Path, chance: random.Random) -> int:
    """Change some bytes anywhere in the cache, index included; return how many."""
    paths = [path for path in sorted(directory.rglob("*")) if path.is_file() and path.stat().st_size]
    count = 0
    for path in chance.sample(paths, min(3, len(paths))):
        with path.open("r+b") as file:
            for _ in range(3):
                at = chance.randrange(path.stat().st_size)
                file.seek(at)
                (byte,) = file.read(1)
                file.seek(at)
                file.write(bytes([byte ^ chance.randrange(1, 256)]))
                count += 1
    return count


def test_a_process_that_is_frozen_with_a_lock_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = make_values(2 * MIB, 5)
    with ck.Saver() as saver:
        prefix = str(saver.save(values, f"{tmp_path}/store/model"))
    ck.Cache(tmp_path / "cache", max_bytes=MANY)
    with ck.open_checkpoint(prefix, cache=tmp_path / "cache") as checkpoint:
        assert len(checkpoint) == len(values)
        (lock,) = (tmp_path / "cache").rglob("lock")
        holder = range_locks.RangeLocks(str(lock))
        assert holder.acquire(1)
        monkeypatch.setattr(turns, "_PATIENCE_S", 0.1)
        assert digest_of(dict(checkpoint)) == digest_of(values)


def test_a_cached_checkpoint_is_opened_without_the_client_of_the_store(
    minio: S3Server, tmp_path: Path
) -> None:
    with ck.Saver() as saver:
        url = f"s3://{minio.make_bucket()}/run/model"
        prefix = saver.save({"w": np.arange(9.0)}, url, storage_options=minio.options)
    program = (
        "import sys, ckptstore\n"
        f"cache = ckptstore.Cache({str(tmp_path)!r}, max_bytes=1 << 30)\n"
        f"with ckptstore.open_checkpoint({prefix!r}, cache=cache) as checkpoint:\n"
        "    assert checkpoint['w'].sum() == 36\n"
        "assert not {'s3fs', 'botocore', 'fsspec'} & set(sys.modules)\n"
    )
    environment = {**os.environ, **minio.environment}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", program], check=True, env=environment, timeout=60)
