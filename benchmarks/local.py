"""ckptstore against TensorFlow's SaveV2 and RestoreV2 on a local disk.

Both run in one process and in every round, in shuffled order, on the same arrays; what is printed beside the
times are their ratios, round by round. It needs TensorFlow's environment: ``make bench``, options in ARGS.

What is compared
----------------
* save: `Saver.save` without a graph, record included, against ``SaveV2``. Ours is durable when it returns:
  data, index, record and directories are synced. TensorFlow syncs nothing; the line "then synced" adds the
  fsync of its files, which is what the same promise would cost there.
* restore into memory at hand: `Saver.restore` into arrays that are there, against ``RestoreV2``, which gets
  the memory of its previous result back from its allocator (resident size and page faults show it).
* restore after a restart: each in a fresh process, into new memory, `open_checkpoint(…).restore()` against
  ``RestoreV2``. Starting the process, importing and listing the names are not counted. New memory is dear,
  and its price depends on the state of the machine: expect a wide spread.

All restores verify the checksum of every tensor. Arrays are filled before anything is timed, and one round
goes before those that count; how long its first calls take is told apart. Before each timed call dirty pages
are written out (sync), so that nobody pays for the other. The page cache is warm: the files that are restored
were just written.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

import ckptstore

Arrays = dict[str, np.ndarray]
Times = dict[str, list[float]]

OURS, THEIRS, THEIRS_SYNCED = "ckptstore", "TensorFlow", "TensorFlow, then synced"

SMALL_ELEMENTS = 256  # float32: 1 KiB each


def large_set(size_bytes: int) -> Arrays:
    """Return 121 float32 arrays as a transformer has them: an embedding, and twelve layers of ten."""
    elements = size_bytes // 4
    # 12 layers of 12 width² make about 60 % of it; the embedding is what remains.
    width = max(8, int(math.sqrt(elements * 0.6 / 144)) // 64 * 64)
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(12):
        for part, rows in (("qkv", 3 * width), ("out", width), ("up", 4 * width), ("down", width)):
            shapes[f"layer{layer:02d}/{part}/w"] = (rows, 4 * width if part == "down" else width)
            shapes[f"layer{layer:02d}/{part}/b"] = (rows,)
        for part in ("norm1", "norm2"):
            shapes[f"layer{layer:02d}/{part}"] = (width,)
    rest = elements - sum(math.prod(shape) for shape in shapes.values())
    shapes["embedding"] = (max(1, rest // width), width)
    return filled(shapes)


def small_set(count: int) -> Arrays:
    """Return many small float32 arrays."""
    return filled({f"block{i // 100:04d}/tensor{i % 100:02d}": (SMALL_ELEMENTS,) for i in range(count)})


def filled(shapes: dict[str, tuple[int, ...]]) -> Arrays:
    """Return arrays of noise, every page of them touched."""
    noise = np.random.default_rng(0).standard_normal(1 << 20, dtype=np.float32)
    arrays = {}
    for name, shape in sorted(shapes.items()):
        flat = np.empty(math.prod(shape), np.float32)
        for start in range(0, flat.size, noise.size):
            flat[start : start + noise.size] = noise[: flat.size - start]
        arrays[name] = flat.reshape(shape)
    return arrays


class Bench:
    """One set of arrays: saves and restores of both sides."""

    def __init__(self, title: str, arrays: Arrays, directory: Path) -> None:
        self.title = title
        self.arrays = arrays
        self.directory = directory
        self.size_bytes = sum(array.nbytes for array in arrays.values())
        self.existing = {name: np.ones_like(array) for name, array in arrays.items()}
        # Everything that TensorFlow's user has at hand already, too.
        self.tensors = [tf.constant(array) for array in arrays.values()]
        self.tf_names = tf.constant(list(arrays))
        self.tf_slices = tf.constant([""] * len(arrays))
        self.tf_types = [tensor.dtype for tensor in self.tensors]

    def rounds(self, count: int) -> tuple[dict[str, Times], dict[str, float]]:
        """Return operation → contender → seconds of each round; and the seconds of the very first calls."""
        first = {f"save {side}": seconds for side, (seconds, _) in self.round_of_saves().items()}
        first |= {f"restore {side}": timed(self.restorer(side)) for side in (OURS, THEIRS)}
        self.check()
        save: Times = {OURS: [], THEIRS: [], THEIRS_SYNCED: []}
        at_hand: Times = {OURS: [], THEIRS: []}
        restart: Times = {OURS: [], THEIRS: []}
        for number in range(count):
            told(f"{self.title}: round {number + 1} of {count}")
            saved = self.round_of_saves()
            save[OURS].append(saved[OURS][0])
            save[THEIRS].append(saved[THEIRS][0])
            save[THEIRS_SYNCED].append(sum(saved[THEIRS]))
            for side in shuffled(OURS, THEIRS):
                at_hand[side].append(timed(self.restorer(side)))
            for side in shuffled(OURS, THEIRS):
                restart[side].append(in_fresh_process(side, self.prefix(side)))
        return {"save": save, "restore, memory at hand": at_hand, "restore, fresh process": restart}, first

    def prefix(self, side: str) -> Path:
        return self.directory / side / "model"

    def round_of_saves(self) -> dict[str, tuple[float, float]]:
        """Save with both; return the seconds of each, and those that making it durable takes after it."""
        times = {}
        for side in shuffled(OURS, THEIRS):
            shutil.rmtree(self.directory / side, ignore_errors=True)
            seconds = timed(self.our_save if side == OURS else self.their_save)
            times[side] = seconds, 0.0 if side == OURS else timed(self.their_sync, settle=False)
        return times

    def our_save(self) -> None:
        ckptstore.Saver().save(self.arrays, self.prefix(OURS), write_meta_graph=False)

    def their_save(self) -> None:
        tf.raw_ops.SaveV2(
            prefix=str(self.prefix(THEIRS)),
            tensor_names=self.tf_names,
            shape_and_slices=self.tf_slices,
            tensors=self.tensors,
        )

    def their_sync(self) -> None:
        place = self.directory / THEIRS
        for path in [*place.iterdir(), place]:
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def restorer(self, side: str) -> Callable[[], object]:
        if side == OURS:
            return lambda: ckptstore.Saver().restore(self.existing, self.prefix(OURS))
        return lambda: tf.raw_ops.RestoreV2(
            prefix=str(self.prefix(THEIRS)),
            tensor_names=self.tf_names,
            shape_and_slices=self.tf_slices,
            dtypes=self.tf_types,
        )

    def check(self) -> None:
        """Make sure that both do the work: the files are the same, and what comes back is what went in."""
        for suffix in (".index", ".data-00000-of-00001"):
            one, other = (Path(f"{self.prefix(side)}{suffix}") for side in (OURS, THEIRS))
            assert same_bytes(one, other), f"{one} and {other} differ"
        self.restorer(OURS)()
        assert all(np.array_equal(self.existing[name], array) for name, array in self.arrays.items())
        restored: Any = self.restorer(THEIRS)()
        pairs = zip(self.arrays.values(), restored, strict=True)
        assert all(np.array_equal(tensor.numpy(), array) for array, tensor in pairs)


def in_fresh_process(side: str, prefix: Path) -> float:
    """Return the seconds that one restore takes in a process that did nothing before."""
    command = [sys.executable, __file__, "--restore-once", side, str(prefix)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return float(done.stdout)


def restore_once(side: str, prefix: str) -> float:
    """Return the seconds of one restore into new memory; what runs in the fresh process."""
    open_checkpoint = ckptstore.open_checkpoint  # imports what it needs
    if side == OURS:
        return timed(lambda: open_checkpoint(prefix).restore())
    names = [name for name, _ in ckptstore.list_variables(prefix)]
    slices = tf.constant([""] * len(names))
    types = [tf.float32] * len(names)
    wanted = tf.constant(names)  # TensorFlow itself is up with that
    return timed(
        lambda: tf.raw_ops.RestoreV2(
            prefix=prefix, tensor_names=wanted, shape_and_slices=slices, dtypes=types
        )
    )


def shuffled(*items: str) -> list[str]:
    return random.sample(items, len(items))


def timed(action: Callable[[], object], *, settle: bool = True) -> float:
    """Return the seconds that `action` takes. Letting go of its result is not its work."""
    if settle:
        os.sync()
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        result = action()
        seconds = time.perf_counter() - start
    finally:
        gc.enable()
    del result
    return seconds


def same_bytes(one: Path, other: Path) -> bool:
    piece = 1 << 24
    with one.open("rb") as a, other.open("rb") as b:
        while True:
            left, right = a.read(piece), b.read(piece)
            if left != right:
                return False
            if not left:
                return True


IMPORTS = {
    "import numpy": "import numpy",
    "import numpy, ckptstore": "import numpy, ckptstore",
    "… and its Saver": "import numpy, ckptstore; ckptstore.Saver; ckptstore.latest_checkpoint",
}


def import_times(count: int) -> Times:
    """Return the wall time of fresh processes that only import."""
    times: Times = {title: [] for title in IMPORTS}
    for number in range(count + 1):
        for title in shuffled(*IMPORTS):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", IMPORTS[title]], check=True)
            if number:  # the first writes bytecode and fills the page cache
                times[title].append(time.perf_counter() - start)
    return times


# ------------------------------------------------------------------------------------------ what is printed


def told(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def ratios(times: list[float], reference: list[float]) -> list[float]:
    """Return the ratio of each round."""
    return [one / other for one, other in zip(times, reference, strict=True)]


def spread(values: list[float], scale: float = 1.0, digits: int = 2) -> str:
    """Return median, lowest and highest."""
    low, middle, high = (scale * value for value in (min(values), statistics.median(values), max(values)))
    return f"{middle:9.{digits}f}  {f'{low:.{digits}f} – {high:.{digits}f}':>17}"


def show_set(bench: Bench, results: dict[str, Times], first: dict[str, float]) -> None:
    unit, scale = ("s", 1.0) if bench.size_bytes >= 1 << 29 else ("ms", 1000.0)
    digits = 2 if unit == "s" else 0
    print(f"\n{bench.title}: {len(bench.arrays):,} tensors, {bench.size_bytes / 2**20:,.0f} MiB of float32")
    heading = f"median {unit}", "lowest – highest", "ratio", "lowest – highest"
    print("{:26}{:>9}  {:>17}{:>9}  {:>17}".format("", *heading))
    for operation, times in results.items():
        print(operation)
        for side, seconds in times.items():
            line = f"  {side:24}{spread(seconds, scale, digits)}"
            print(line if side == THEIRS else line + spread(ratios(seconds, times[THEIRS])))
        if THEIRS_SYNCED in times:
            both = spread(ratios(times[OURS], times[THEIRS_SYNCED]))
            print(f"  {'ckptstore : then synced':24}{'':28}{both}")
    told_first = ", ".join(f"{what} {scale * seconds:.{digits}f}" for what, seconds in first.items())
    print(f"first calls in the process, not counted above, in {unit}: {told_first}", flush=True)


def show_imports(times: Times) -> None:
    print("\nImports: fresh processes, bytecode and page cache warm")
    base = statistics.median(times["import numpy"])
    for title, seconds in times.items():
        more = 1000 * (statistics.median(seconds) - base)
        print(f"{title:33}{spread(seconds, 1000, 0)} ms" + (f"   {more:+.0f} ms" if more else ""))


def main() -> None:
    """Run everything, print it, and write it down."""
    parser = argparse.ArgumentParser(description="ckptstore against TensorFlow on a local disk.")
    add = parser.add_argument
    add("--rounds", type=int, default=7)
    add("--large-bytes", type=int, default=1 << 30, help="size of the large set; 0: leave it out")
    add("--small-count", type=int, default=100_000, help="tensors of the small set; 0: leave it out")
    add("--imports", type=int, default=15, help="fresh processes for each import; 0: leave it out")
    add("--dir", type=Path, default=Path(".cache"), help="where the files go: a disk, not tmpfs")
    add("--json", type=Path, help="write all times, in seconds, to this file")
    add("--restore-once", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.restore_once:
        print(restore_once(*arguments.restore_once))
        return

    facts = {
        "ckptstore": ckptstore.__version__,
        "tensorflow": tf.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "page_cache": "warm",
        "rounds": arguments.rounds,
    }
    print(
        f"ckptstore {facts['ckptstore']} against TensorFlow {facts['tensorflow']}: "
        f"{arguments.rounds} rounds, both in each, in shuffled order.\n"
        f"{facts['system']}, {facts['cpus']} CPUs, Python {facts['python']}, numpy {facts['numpy']}. "
        "The page cache is warm.\n"
        "Ours is durable when it returns; TensorFlow's is not, except in the line that says so.\n"
        "Ratios are to TensorFlow, round by round; below 1 is faster.",
        flush=True,
    )
    report: dict[str, Any] = {"schema": "ckptstore-benchmark-local/1", **facts, "sets": {}}
    arguments.dir.mkdir(parents=True, exist_ok=True)
    for title, make, size in (
        ("large", large_set, arguments.large_bytes),
        ("small", small_set, arguments.small_count),
    ):
        if not size:
            continue
        with tempfile.TemporaryDirectory(prefix="bench-", dir=arguments.dir) as directory:
            bench = Bench(title, make(size), Path(directory))
            results, first = bench.rounds(arguments.rounds)
        show_set(bench, results, first)
        report["sets"][title] = {
            "tensors": len(bench.arrays),
            "size_bytes": bench.size_bytes,
            "seconds": results,
            "first_calls_s": first,
        }
        del bench
    if arguments.imports:
        report["imports"] = import_times(arguments.imports)
        show_imports(report["imports"])
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
