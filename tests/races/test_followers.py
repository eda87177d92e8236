"""Hosts that follow a job whose processes are killed, and readers that use what is replaced under them.

CKPTSTORE_FOLLOWERS=1 (`make followers`) kills a hundred writers, and serves large models.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptstore as ck
from tests.meta.source import ROOT

IS_LONG = bool(os.environ.get("CKPTSTORE_FOLLOWERS"))
KILLS, LAST_SAVES = (100, 1000) if IS_LONG else (3, 10)
MODEL_BYTES, READS = (64 << 20, 100_000) if IS_LONG else (2 << 20, 1_000)
SWITCHES, DAMAGED = 50, 10
SOON_S = 300.0 if IS_LONG else 120.0

pytestmark = pytest.mark.timeout(3600 if IS_LONG else 400)

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(
    [__name__, "ckptstore.train.saver", "ckptstore.storage.s3.transport", "s3fs"]
)


def write(environment: dict[str, str], url: str, attempt: int, saves: int | None) -> None:
    """Resume from the newest step, and save so many more; None: until somebody kills this."""
    os.environ.update(environment)
    warnings.simplefilter("ignore", ck.CkptStoreWarning)
    latest = ck.latest_checkpoint(url)
    step = 0 if latest is None else int(latest.rpartition("-")[2])
    saver = ck.Saver(max_to_keep=2, run=f"attempt {attempt}")
    while saves is None or saves > 0:
        step += 1
        # Which attempt, too: what two of them save under one step must not be mixed either.
        stamp = step + attempt / 1024
        values = {"first": np.full(3000, stamp), "middle": np.full((3, 7), stamp), "last": np.full(9, stamp)}
        saver.save(values, f"{url}/model", step, write_meta_graph=False)
        saves = None if saves is None else saves - 1


class SlowReader:
    """Opens each step that it is told of, and takes its time between the tensors."""

    def __init__(self, url: str, pause_s: float) -> None:
        self.watcher = ck.watch(url, every_s=0.05)
        self.newest = 0
        self.restored = 0
        self.failures: list[BaseException] = []
        self._pause_s = pause_s
        self.thread = threading.Thread(target=self._follow, args=(url,), daemon=True)
        self.thread.start()

    def _follow(self, url: str) -> None:
        try:
            for step in self.watcher:
                self._read(step)
                assert step.step is not None
                self.newest = step.step
        except BaseException as error:  # noqa: BLE001 - of a thread; the test looks at it
            self.failures.append(error)

    def _read(self, step: ck.Step) -> None:
        stamps: set[float] = set()
        try:
            with step.open() as checkpoint:
                for name in ("first", "middle", "last"):
                    stamps |= set(checkpoint.read(name, ...).ravel().tolist())
                    time.sleep(self._pause_s)
        except ck.NotFoundError:
            # Retention, or the same step saved again, was faster than this reader.
            return
        assert len(stamps) == 1, f"{step.prefix} mixes {sorted(stamps)}"
        assert int(stamps.pop()) == step.step
        self.restored += 1


@pytest.mark.parametrize("backend", ["local", "minio"], indirect=True)
def test_slow_readers_see_whole_steps_only_while_writers_are_killed(run_url: str) -> None:
    chance = random.Random(31)
    readers = [SlowReader(run_url, pause_s) for pause_s in (0.0, 0.02, 0.1)]
    environment = dict(os.environ)
    seen = 0
    for attempt in range(KILLS):
        writer = _PROCESSES.Process(target=write, args=(environment, run_url, attempt, None), daemon=True)
        writer.start()
        ends_s = time.monotonic() + SOON_S
        while readers[0].newest <= seen:
            assert writer.is_alive(), "the writer has ended"
            assert not readers[0].failures, readers[0].failures
            assert time.monotonic() < ends_s
            time.sleep(0.005)
        time.sleep(chance.uniform(0.0, 0.2))  # The random moment is the point.
        writer.kill()
        writer.join(SOON_S)
        seen = readers[0].newest
    last = _PROCESSES.Process(target=write, args=(environment, run_url, KILLS, LAST_SAVES), daemon=True)
    last.start()
    last.join(SOON_S)
    assert last.exitcode == 0
    newest = ck.latest_checkpoint(run_url)
    assert newest is not None
    step = int(newest.rpartition("-")[2])
    ends_s = time.monotonic() + SOON_S
    for reader in readers:
        while reader.newest < step and not reader.failures:
            assert time.monotonic() < ends_s
            time.sleep(0.02)
        reader.watcher.stop()
        reader.thread.join(SOON_S)
        assert not reader.failures, reader.failures
        assert reader.restored > KILLS / 4


# Serves what another process saves; told by a line of JSON what to wait for, answers with one.
HOST = """
import gc, json, sys, threading, weakref
import numpy as np
import ckptstore as ck
from tests.open_files import open_files

directory, reads = sys.argv[1], int(sys.argv[2])

class Model:
    def __init__(self, w):
        self.w, self.is_closed = w, False

    def close(self):
        self.is_closed = True

models = []

def load(checkpoint, previous):
    model = Model(checkpoint.read("w", ...))
    assert (model.w == model.w[0]).all()
    models.append(weakref.ref(model))
    return model

def resident(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(field))

live = ck.Live(load, directory, close=Model.close, every_s=0.02)
assert live.wait_ready(120)
at_rest = resident("VmRSS")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")

stop, counts, seen, failures = threading.Event(), [0] * 8, set(), []

def use(number):
    size = len(live._held.value.w)
    places = [0, size // 2, size - 1]
    try:
        while not stop.is_set():
            with live.use() as model:
                values = {float(model.w[place]) for place in places}
                assert not model.is_closed
            assert len(values) == 1, values
            seen.update(values)
            counts[number] += 1
            stop.wait(0.0005)
    except BaseException as error:
        failures.append(repr(error))

threads = [threading.Thread(target=use, args=(number,)) for number in range(8)]
for thread in threads:
    thread.start()
print(json.dumps("ready"), flush=True)
changed = threading.Event()
for line in sys.stdin:
    kind, step = json.loads(line)
    def holds():
        health = live.health()
        found = health.step if kind == "served" else health.failed
        return found is not None and found.step == step
    while kind != "end" and not holds() and not failures:
        changed.wait(0.002)
    if kind == "end":
        while sum(counts) < reads and not failures:
            changed.wait(0.01)
        break
    print(json.dumps(failures or kind), flush=True)
stop.set()
for thread in threads:
    thread.join()
peak = resident("VmHWM")
live.close()
gc.collect()
found = {
    "failures": failures,
    "reads": sum(counts),
    "seen": sorted(seen),
    "alive": sum(model() is not None for model in models),
    "loaded": len(models),
    "open": open_files(directory),
    "grown_bytes": peak - at_rest,
}
print(json.dumps(found), flush=True)
"""


class HostProcess:
    def __init__(self, directory: Path) -> None:
        command = [sys.executable, "-c", HOST, str(directory), str(READS)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.child = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def answer(self) -> Any:
        assert self.child.stdout is not None
        line = self.child.stdout.readline()
        assert line, "the host has ended"
        return json.loads(line)

    def ask(self, kind: str, step: int) -> Any:
        assert self.child.stdin is not None
        print(json.dumps([kind, step]), file=self.child.stdin, flush=True)
        return self.answer()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[HostProcess]:
    ck.Saver(run="job").save({"w": np.zeros(MODEL_BYTES // 8)}, f"{tmp_path}/model", 0)
    host = HostProcess(tmp_path)
    with host.child:
        try:
            yield host
        finally:
            host.child.kill()


def test_eight_threads_see_one_step_each_and_nothing_is_left(tmp_path: Path, host: HostProcess) -> None:
    damaged = set(random.Random(8).sample(range(2, SWITCHES + DAMAGED), DAMAGED))
    saver = ck.Saver(run="job", max_to_keep=2)
    assert host.answer() == "ready"
    for step in range(1, SWITCHES + DAMAGED + 1):
        values = {"w": np.full(MODEL_BYTES // 8, float(step))}
        if step in damaged:
            save_damaged(saver, values, tmp_path, step)
        else:
            saver.save(values, f"{tmp_path}/model", step, write_meta_graph=False)
        kind = "failed" if step in damaged else "served"
        assert host.ask(kind, step) == kind
    found = host.ask("end", 0)
    assert host.child.wait(SOON_S) == 0
    assert found["failures"] == []
    assert found["reads"] >= READS
    assert found["loaded"] == SWITCHES + 1
    assert not damaged & {int(value) for value in found["seen"]}
    assert (found["alive"], found["open"]) == (0, [])
    # The first model is at rest; one more while it is replaced.
    assert found["grown_bytes"] <= MODEL_BYTES + (64 << 20)


def save_damaged(saver: ck.Saver, values: dict[str, Any], directory: Path, step: int) -> None:
    """Save a step that has rotted before the record names it."""
    prefix = f"{directory}/model-{step}"
    saver.save(values, f"{directory}/model", step, write_meta_graph=False, write_state=False)
    with next(directory.glob(f"model-{step}.data-*")).open("r+b") as file:
        file.seek(1000)
        file.write(b"\xff")
    kept = ck.get_checkpoint_state(directory)
    assert kept is not None
    ck.update_checkpoint_state(directory, prefix, [*kept.all_model_checkpoint_paths, prefix])
