"""``python -m benchmarks.many_ranks``: what the chief of a thousand ranks pays for a save.

The chief is a real Saver in a process of its own. What the other ranks say was prepared before: the messages
of a real rank of a job of two, with the tensors, boxes and checksums of each played rank put in. The storage
drops what it is given, so that the memory is that of the chief alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import ckptstore as ck
from benchmarks.measure import Cost, measured, peak_rss_bytes
from ckptstore.bundle.read.open_bundle import open_bundle
from ckptstore.bundle.write.index import build_index
from ckptstore.bundle.write.index_memory import IndexMemory, deflated
from ckptstore.bundle.write.manifest import manifest_of
from ckptstore.bundle.write.plan import write_items
from ckptstore.distributed.manifests import encode_manifest, fingerprint_of
from ckptstore.distributed.messages import pack, unpack
from ckptstore.format.entry import BundleEntry, name_to_key
from ckptstore.format.slices import encode_slice_key
from ckptstore.storage.abilities import KnowsWriters
from ckptstore.storage.registry import locate, use_wrapper
from ckptstore.storage.values import PutOutcome
from ckptstore.storage.wrappers import StorageWrapper
from ckptstore.testing import LocalCoordinator, make_local_coordinators
from ckptstore.types import Piece, Slice

ROOT = Path(__file__).resolve().parents[1]
MIB = 2**20

SAVES = 4
"""One of a new layout, and three more; from the third on one is deleted, too."""

_ROWS, _COLUMNS = 2, 4
_PREFIX = "memory://many-ranks/model"
_FLOAT32 = 1


def main() -> int:
    """Prepare the messages, measure in processes of their own, print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.many_ranks", description=__doc__)
    parser.add_argument("--ranks", type=int, default=1024)
    parser.add_argument("--tensors", type=int, default=1000, help="each cut over all ranks (1000)")
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")
    parser.add_argument("--part", choices=sorted(_PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--messages", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part is not None:
        print(json.dumps(_PARTS[options.part](options.messages, options.tensors)))
        return 0
    with tempfile.TemporaryDirectory(prefix="many-ranks-") as text:
        directory = Path(text)
        prepare(directory, options.ranks, options.tensors)
        found: dict[str, dict[str, float]] = {}
        for part in ("chief", "index", "specs"):
            command = [sys.executable, "-m", "benchmarks.many_ranks", "--part", part]
            command += ["--messages", text, "--tensors", str(options.tensors)]
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
            found |= json.loads(done.stdout)
    if options.json:
        print(json.dumps(found))
        return 0
    print(f"{options.ranks} ranks, {options.tensors} tensors, each cut over all of them")
    print(f"{'':14} {'CPU s':>8} {'peak MiB':>9}")
    for row, cost in found.items():
        print(f"{row:14} {cost['cpu_s']:8.2f} {cost['rss_bytes'] / MIB:9.0f}")
    return 0


# ------------------------------------------------------------------------------------------- what ranks hold


def pieces_of(rank: int, ranks: int, tensors: int) -> dict[str, Piece]:
    """Return what a rank holds: some rows of each tensor."""
    array = np.full((_ROWS, _COLUMNS), rank, np.float32)
    shape, start = (ranks * _ROWS, _COLUMNS), (rank * _ROWS, 0)
    return {f"model/layer_{number:04d}/kernel": Piece(array, shape, start) for number in range(tensors)}


def _entries_of(pieces: Mapping[str, Piece], crcs: Sequence[int]) -> Iterator[tuple[bytes, BundleEntry]]:
    for number, ((name, piece), crc) in enumerate(zip(pieces.items(), crcs, strict=True)):
        size_bytes = piece.array.nbytes
        box = Slice(tuple(zip(piece.start, piece.array.shape, strict=True)))
        yield name_to_key(name), BundleEntry(_FLOAT32, piece.shape, slices=(box,))
        entry = BundleEntry(_FLOAT32, piece.array.shape, 0, number * size_bytes, size_bytes, crc)
        yield encode_slice_key(name, box), entry


# ----------------------------------------------------------------------------------------- what ranks say


class _Recorder:
    """Notes what the other rank of a job of two says."""

    def __init__(self, inner: LocalCoordinator) -> None:
        self.rank, self.size = inner.rank, inner.size
        self.said: dict[str, bytes] = {}
        self._inner = inner
        self.broadcast, self.forget, self.close = inner.broadcast, inner.forget, inner.close

    def gather(
        self,
        topic: str,
        data: bytes,
        *,
        timeout_s: float,
        enough: Callable[[Mapping[int, bytes]], bool] | None = None,
    ) -> dict[int, bytes]:
        self.said[topic] = data
        return self._inner.gather(topic, data, timeout_s=timeout_s, enough=enough)


def _recorded(tensors: int) -> dict[str, bytes]:
    """Return what a rank says in some saves, by topic."""
    coordinators = [_Recorder(each) for each in make_local_coordinators(2)]
    savers = [ck.Saver(coordinator=each) for each in coordinators]

    def save(rank: int) -> None:
        for step in range(SAVES):
            savers[rank].save(pieces_of(rank, 2, tensors), _PREFIX, step)

    with use_wrapper(_Sink):
        threads = [threading.Thread(target=save, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return coordinators[1].said


def prepare(directory: Path, ranks: int, tensors: int) -> None:
    """Write what all ranks but the chief say, a file for each topic and rank."""
    random = np.random.default_rng(1)
    held = [pieces_of(rank, ranks, tensors) for rank in range(ranks)]
    manifests = [encode_manifest(manifest_of(write_items(own.items()))) for own in held]
    prints = list(map(fingerprint_of, manifests))
    plan = fingerprint_of("".join(prints).encode())
    for topic, message in _recorded(tensors).items():
        head, blob = unpack(message)
        (directory / topic).mkdir()
        for rank in range(1, ranks):
            own = dict(head)
            data = blob
            if topic.endswith(".hello"):
                own |= {"fingerprint": prints[rank], "plan": head["plan"] and plan}
                data = blob and manifests[rank]
            else:
                crcs = random.integers(1, 2**32, tensors, np.uint32)
                if "like" in head:
                    data = crcs.tobytes()
                else:
                    data = deflated(build_index(_entries_of(held[rank], crcs.tolist()), 1))
            (directory / topic / str(rank)).write_bytes(pack(own, data))
    (directory / "ranks").write_text(str(ranks))


class PlayedCoordinator:
    """The chief's; the others have said what was prepared, at once."""

    rank = 0

    def __init__(self, directory: Path) -> None:
        self.size = int((directory / "ranks").read_text())
        self._directory = directory

    def gather(
        self,
        topic: str,
        data: bytes,
        *,
        timeout_s: float,
        enough: Callable[[Mapping[int, bytes]], bool] | None = None,
    ) -> dict[int, bytes]:
        said = self._directory / topic
        return {0: data} | {rank: (said / str(rank)).read_bytes() for rank in range(1, self.size)}

    def broadcast(self, topic: str, data: bytes | None = None, *, timeout_s: float) -> bytes | None:
        return data

    def forget(self, topic: str) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing is open."""


class _Sink(StorageWrapper):
    """Like an object store that keeps names and no bytes, but those of the record."""

    hides = (KnowsWriters,)
    index = b""

    def put_new(self, key: str, data: Any, *args: Any, **options: Any) -> PutOutcome:
        if key.endswith(".index"):
            _Sink.index = data
            data = b""
        return self.inner.put_new(key, data, *args, **options)


# --------------------------------------------------------------------------------------- what is measured


def _row(cost: Cost) -> dict[str, float]:
    return {"cpu_s": cost.cpu_s, "seconds": cost.seconds, "rss_bytes": peak_rss_bytes()}


def _chief(directory: Path, tensors: int) -> dict[str, dict[str, float]]:
    coordinator = PlayedCoordinator(directory)
    values = pieces_of(0, coordinator.size, tensors)
    found = {}
    with use_wrapper(_Sink):
        saver = ck.Saver(max_to_keep=2, coordinator=coordinator)
        for step, name in enumerate(("first save", "second", "third", "steady")):
            cost, _ = measured(partial(saver.save, values, _PREFIX, step))
            found[name] = _row(cost)
    (directory / "model.index").write_bytes(_Sink.index)
    return found


def _index(directory: Path, tensors: int) -> dict[str, dict[str, float]]:
    coordinator = PlayedCoordinator(directory)
    said = coordinator.gather("save-0-0.done-0", b"", timeout_s=0.0)
    parts = [(rank, unpack(said[rank])[1]) for rank in range(1, coordinator.size)]
    cost, _ = measured(lambda: IndexMemory().build(parts, coordinator.size))
    return {"index build": _row(cost)}


def _specs(directory: Path, tensors: int) -> dict[str, dict[str, float]]:
    cost, specs = measured(lambda: open_bundle(locate(str(directory / "model"))).specs())
    assert len(specs) == tensors
    return {"specs": _row(cost)}


_PARTS = {"chief": _chief, "index": _index, "specs": _specs}

if __name__ == "__main__":
    sys.exit(main())
