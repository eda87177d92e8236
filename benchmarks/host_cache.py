"""What four processes of a host cost the store when they start at once: with one cache, and without.

``python -m benchmarks.host_cache``: MinIO behind a relay that counts what it sends; the two ways alternate.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.sets import Data, SetSpec
from ckptstore import Saver
from tests.servers import s3
from tests.servers.relay import Relay

_PROCESSES = 4

# Every tensor is verified. What was imported, and who connects first, is not what is measured.
_PROGRAM = """
import sys, ckptstore
ckptstore.open_checkpoint, ckptstore.Cache
print("ready", flush=True)
prefix, directory = sys.argv[1], sys.stdin.readline().strip()
cache = ckptstore.Cache(directory, max_bytes=1 << 40) if directory else None
with ckptstore.open_checkpoint(prefix, cache=cache) as checkpoint:
    print(sum(array.nbytes for array in dict(checkpoint).values()))
"""


def _fetch(server: s3.S3Server, prefix: str, directory: str) -> float:
    """Return the seconds until the last of the processes has everything."""
    command = [sys.executable, "-c", _PROGRAM, prefix]
    environment = {**os.environ, **server.environment}
    processes = [
        subprocess.Popen(command, text=True, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(_PROCESSES)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    begin_s = time.perf_counter()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(f"{directory}\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    return time.perf_counter() - begin_s


def main() -> int:
    """Print bytes sent per byte of the checkpoint, and seconds: median, lowest, highest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="size of the checkpoint")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", type=Path, help="where files go: a disk")
    options = parser.parse_args()
    data = Data(SetSpec("large", options.mib << 20))
    found: dict[str, list[tuple[float, float]]] = {"one cache": [], "without": []}
    with tempfile.TemporaryDirectory(dir=options.dir) as directory:
        server = s3.minio(Path(directory, "minio"))
        assert server is not None, "`make servers` builds MinIO"
        with server.process, Relay(server.process.port) as relay:
            far, url = server.through(relay.url), f"s3://{server.make_bucket()}/run/model"
            with Saver() as saver:
                prefix = saver.save(data.views(data.source(1)), url, storage_options=server.options)
            for number in range(options.rounds):
                for way, results in found.items():
                    relay.sent_bytes = 0
                    where = f"{directory}/cache-{number}" if way == "one cache" else ""
                    seconds = _fetch(far, str(prefix), where)
                    results.append((relay.sent_bytes / data.nbytes, seconds))
    for way, results in found.items():
        sent, took = ([result[at] for result in results] for at in range(2))
        print(f"{way:10} sent {_shown(sent)} x what there is, {_shown(took)} s")
    return 0


def _shown(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    sys.exit(main())
