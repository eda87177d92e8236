"""``python -m benchmarks.serving``: what following costs, and what a restore of the difference saves.

follow: watchers of many hosts, in one process, on one directory in MinIO, while a job saves: requests a
minute of each, and how long after a commit a step is returned.

changed: a checkpoint of which a twentieth differs from what is in memory, restored whole and with
``only_changed``, in turns: bytes that travel, seconds, and CPU seconds of the reader.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import ckptstore as ck
from benchmarks.measure import Cost, measured
from ckptstore.storage.base import Storage
from ckptstore.storage.registry import use_wrapper
from ckptstore.testing import CountingStorage
from tests.servers import s3
from tests.servers.toxiproxy import toxiproxy

MIB = 2**20

TENSOR_BYTES = 4 * MIB


def main() -> int:
    """Run what was asked for, on a MinIO of its own; print the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("part", choices=("follow", "changed"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hosts", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each round of `follow` (60)")
    parser.add_argument("--every", type=float, default=2.0, help="the period of a watcher, in seconds (2)")
    parser.add_argument("--save-every", type=float, default=5.0, help="seconds from save to save (5)")
    parser.add_argument("--size-mib", type=int, default=256, help="of the checkpoint of `changed` (256)")
    parser.add_argument(
        "--rate-mb-s", type=float, help="what the server of `changed` sends over one connection at most"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="serving-") as directory:
        server = s3.minio(Path(directory))
        if server is None:
            print("MinIO is not built: `make servers` (needs Go)", file=sys.stderr)
            return 1
        with server.process:
            if options.part == "follow":
                follow(server, options)
            else:
                changed(server, options)
    return 0


# ------------------------------------------------------------------------------------------------- follow


def follow(server: s3.S3Server, options: argparse.Namespace) -> None:
    """Print a line for each round."""
    print(f"{options.hosts} watchers, every {options.every:g} s; a save every {options.save_every:g} s")
    print(f"{'round':>5} {'requests/min':>13} {'seen':>11} {'p50 s':>7} {'p95 s':>7} {'max s':>7}")
    for number in range(1, options.rounds + 1):
        requests, seen, delays = _follow_once(server, options)
        ranked = sorted(delays)
        shown = [ranked[min(int(len(ranked) * share), len(ranked) - 1)] for share in (0.5, 0.95, 1.0)]
        print(
            f"{number:5} {requests:13.1f} {seen:>11} " + " ".join(f"{each:7.2f}" for each in shown),
            flush=True,
        )


def _follow_once(server: s3.S3Server, options: argparse.Namespace) -> tuple[float, str, list[float]]:
    """Return requests a minute of one watcher, how many steps were seen by how many, and the delays."""
    url = f"s3://{server.make_bucket()}/run"
    saver = ck.Saver(max_to_keep=2, storage_options=server.options)
    saver.save({"w": np.zeros(9)}, f"{url}/model", 0)
    committed_s: dict[int, float] = {}
    watchers = [_watch_as(f"host-{number}", url, server, options) for number in range(options.hosts)]

    def seen_by(watcher: ck.Watcher) -> list[tuple[int, float]]:
        return [(step.step or 0, time.monotonic()) for step in watcher]

    threads = ThreadPoolExecutor(len(watchers))
    runs = [threads.submit(seen_by, watcher) for watcher in watchers]
    started_s = time.monotonic()
    saves = int(options.seconds // options.save_every)
    for step in range(1, saves + 1):
        time.sleep(max(0.0, started_s + step * options.save_every - options.every - time.monotonic()))
        saver.save({"w": np.full(9, float(step))}, f"{url}/model", step, write_meta_graph=False)
        committed_s[step] = time.monotonic()
    # The last one has a whole period, and a look.
    time.sleep(2 * options.every)
    minutes = (time.monotonic() - started_s) / 60
    for watcher in watchers:
        watcher.stop()
    seen_s = [seen for run in runs for seen in run.result()]
    requests = sum(watcher.health().requests for watcher in watchers) / options.hosts / minutes
    delays = [at_s - committed_s[step] for step, at_s in seen_s if step in committed_s]
    return requests, f"{len(delays)}/{saves * options.hosts}", delays


def _watch_as(host: str, url: str, server: s3.S3Server, options: argparse.Namespace) -> ck.Watcher:
    # The name of the host decides when it looks.
    own = platform.node
    platform.node = lambda: host
    try:
        return ck.watch(url, every_s=options.every, storage_options=server.options)
    finally:
        platform.node = own


# ------------------------------------------------------------------------------------------------ changed


def changed(server: s3.S3Server, options: argparse.Namespace) -> None:
    """Print what both ways cost in each round, and the ratios."""
    url = f"s3://{server.make_bucket()}/run/model"
    random = np.random.default_rng(5)
    before = {
        f"layer_{number:03d}": random.random(TENSOR_BYTES // 4, np.float32)
        for number in range(options.size_mib * MIB // TENSOR_BYTES)
    }
    others = list(before)[:: max(1, len(before) // max(1, len(before) // 20))][: max(1, len(before) // 20)]
    after = before | {name: before[name] + 1 for name in others}
    saver = ck.Saver(storage_options=server.options)
    prefix = saver.save(after, url, 1, write_meta_graph=False)
    assert prefix is not None
    differ_bytes = len(others) * TENSOR_BYTES
    print(f"{options.size_mib} MiB in tensors of 4 MiB, {differ_bytes / MIB:.0f} MiB of them differ")
    heads = ("whole s", "changed s", "ratio", "whole CPU", "changed CPU", "whole MiB", "changed MiB")
    print("round " + " ".join(f"{head:>11}" for head in heads))
    arrays = {name: array.copy() for name, array in before.items()}
    ratios, shares = [], []
    storages: list[CountingStorage] = []

    def counting(inner: Storage) -> Storage:
        storages.append(CountingStorage(inner))
        return storages[-1]

    with use_wrapper(counting), _at_a_rate(server, options.rate_mb_s) as place:
        for number in range(options.rounds + 1):
            found: dict[bool, tuple[Cost, int]] = {}
            for only_changed in (False, True) if number % 2 else (True, False):
                for name in others:
                    arrays[name][...] = before[name]
                for storage in storages:
                    storage.reset()
                cost = _restored(prefix, arrays, after, place, only_changed=only_changed)
                found[only_changed] = cost, sum(storage.read_bytes for storage in storages)
            if not number:
                continue  # the first contact
            (whole, whole_bytes), (part, part_bytes) = found[False], found[True]
            ratios.append(part.seconds / whole.seconds)
            shares.append(part.cpu_s / part.seconds)
            figures = (whole.seconds, part.seconds, ratios[-1], whole.cpu_s, part.cpu_s)
            print(
                f"{number:5} "
                + " ".join(f"{figure:11.3f}" for figure in figures)
                + f" {whole_bytes / MIB:11.2f} {part_bytes / MIB:11.2f}",
                flush=True,
            )
            bound = 1.1 * differ_bytes + 300 * 1024
            assert part_bytes <= bound, f"{part_bytes} bytes travelled, above {bound:.0f}"
    print(f"ratio: median {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    print(f"CPU share of the restore of what changed: median {statistics.median(shares):.2f}")


@contextmanager
def _at_a_rate(server: s3.S3Server, rate_mb_s: float | None) -> Iterator[s3.S3Server]:
    """Yield the server, or the way to it through a proxy that slows down each connection."""
    if rate_mb_s is None:
        yield server
        return
    with tempfile.TemporaryDirectory(prefix="toxiproxy-") as directory:
        toxics = toxiproxy(Path(directory))
        if toxics is None:
            raise SystemExit("toxiproxy is not built: `make servers` (needs Go)")
        rate = round(rate_mb_s * 1000)
        with toxics.process, toxics.proxy(server.process.port) as proxy, proxy.toxic("bandwidth", rate=rate):
            yield server.through(proxy.url)


def _restored(
    prefix: str, arrays: dict[str, Any], expected: dict[str, Any], server: s3.S3Server, *, only_changed: bool
) -> Cost:
    """Return what one restore costs; check its result."""

    def restore() -> None:
        with ck.open_checkpoint(prefix, storage_options=server.options) as checkpoint:
            checkpoint.restore(arrays, only_changed=only_changed)

    cost, _ = measured(restore)
    assert all(np.array_equal(arrays[name], array) for name, array in expected.items())
    return cost


if __name__ == "__main__":
    sys.exit(main())
