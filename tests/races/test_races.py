"""Many processes, one directory: no update lost, no checkpoint mixed or torn, nothing left behind.

CKPTSTORE_RACES=5 lets each process do five times as much; `make campaign` does.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.directory.garbage import collect_garbage
from ckptstore.directory.garbage_search import find_garbage
from ckptstore.directory.record_update import RecordSnapshot, read_record, update_record
from ckptstore.format.record import CheckpointState
from ckptstore.format.record_facts import Owner, OwnerName, Record
from ckptstore.storage.registry import locate
from tests.backends.conftest import names_in

TIMES = int(os.environ.get("CKPTSTORE_RACES", "1"))
# A thousand saves by two processes beside four readers and a server: minutes on two shared cores.
pytestmark = pytest.mark.timeout(300 + 200 * TIMES)

# Forked from a process that has imported everything, once: that takes longer than many of the races.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(
    [
        __name__,
        "ckptstore.train.saver",
        "ckptstore.storage.s3.transport",
        "s3fs",
        "ckptstore.storage.gcs.transport",
        "gcsfs",
    ]
)


def run_one(environment: dict[str, str], target: Callable[..., None], *arguments: Any) -> None:
    # The process that it was forked from has the environment of an earlier test.
    os.environ.update(environment)
    target(*arguments)


def run_all(target: Callable[..., None], arguments: list[tuple[Any, ...]], timeout_s: float) -> list[Any]:
    """Run one process for each tuple of arguments; return what each put into its queue."""
    queue = _PROCESSES.Queue()
    environment = dict(os.environ)
    workers = [
        _PROCESSES.Process(target=run_one, args=(environment, target, queue, *each), daemon=True)
        for each in arguments
    ]
    for worker in workers:
        worker.start()
    answers: list[Any] = []
    stop_s = time.monotonic() + timeout_s
    try:
        while len(answers) < len(workers):
            answers.append(queue.get(timeout=max(0.1, stop_s - time.monotonic())))
        for worker in workers:
            worker.join(30)
            assert worker.exitcode == 0
    finally:
        for worker in workers:
            worker.terminate()
    for answer in answers:
        assert not isinstance(answer, str), answer
    return answers


def count_up(queue: Any, url: str, times: int) -> None:
    """Add 1 to a number in the record, so often."""
    record = locate(url).child("checkpoint")
    number = multiprocessing.current_process().pid

    def change(snapshot: RecordSnapshot) -> Record:
        count = snapshot.record.state.last_preserved_timestamp if snapshot.record.state else 0.0
        # Who and when makes the bytes of each write unique, as saves do.
        owner = Owner("m", 1, f"{number}", "host", time.time(), f"{number}-{count}")
        return Record(CheckpointState("m", ("m",), (1.0,), count + 1), {OwnerName("m", ""): owner})

    try:
        for _ in range(times):
            update_record(record, change, timeout_s=120.0)
        queue.put(times)
    except ck.CkptStoreError as error:
        queue.put(f"{type(error).__name__}: {error}")


@pytest.mark.parametrize("backend", ["local", "minio", "gcs"], indirect=True)
def test_eight_writers_of_one_record_lose_no_update(run_url: str) -> None:
    run_all(count_up, [(run_url, 40 * TIMES)] * 8, timeout_s=100 + 100 * TIMES)
    state = read_record(locate(run_url).child("checkpoint")).record.state
    assert state is not None
    assert state.last_preserved_timestamp == 320.0 * TIMES


def values_of(stamp: float) -> dict[str, np.ndarray]:
    return {
        "first": np.full(2000, stamp),
        "middle": np.full((3, 7), stamp, np.float32),
        "last": np.array([str(stamp)], object),
    }


def stamp_of(values: dict[str, np.ndarray]) -> float:
    stamps = set(values["first"].tolist()) | set(values["middle"].ravel().tolist())
    stamps |= {float(text) for text in values["last"]}
    assert len(stamps) == 1, f"mixed: {sorted(stamps)[:5]}"
    return stamps.pop()


def chief(queue: Any, url: str, basename: str, saves: int, run: str, start: Any = None) -> None:
    """Save so many steps, from the moment on that all chiefs are there."""
    warnings.simplefilter("ignore", ck.CkptStoreWarning)
    saver = ck.Saver(max_to_keep=3, run=run)
    step = 0
    try:
        if start is not None:
            start.wait(60)
        for step in range(1, saves + 1):
            saver.save(values_of(step), f"{url}/{basename}", step, write_meta_graph=step == 1)
        queue.put(("chief", step, ""))
    except ck.FencedError as error:
        queue.put(("chief", step, str(error)))
    except (ck.CkptStoreError, AssertionError) as error:
        queue.put(f"{basename} {step} {type(error).__name__}: {error}")


def reader(queue: Any, url: str, until_step: int, timeout_s: float) -> None:
    """Restore the latest checkpoint again and again, until the last step is seen."""
    warnings.simplefilter("ignore", ck.CkptStoreWarning)
    restores = 0
    stop_s = time.monotonic() + timeout_s
    try:
        while time.monotonic() < stop_s:
            prefix = ck.latest_checkpoint(url)
            if prefix is None:
                continue
            values: dict[str, np.ndarray] = {}
            try:
                ck.Saver().restore(values, prefix)
            except ck.NotFoundError:
                # Retention was faster than we: the next look finds a newer one.
                continue
            stamp = stamp_of(values)
            assert stamp == float(prefix.rpartition("-")[2]), f"{prefix} holds step {stamp}"
            restores += 1
            if stamp >= until_step:
                break
        queue.put(("reader", restores, ""))
    except (ck.CkptStoreError, AssertionError) as error:
        queue.put(f"reader {type(error).__name__}: {error}")


def data_files_needed(url: str) -> None:
    """Check that after gc every file belongs to a listed, complete checkpoint."""
    directory = locate(url)
    garbage = find_garbage(directory, [directory.child("checkpoint")], min_age_s=0.0)
    assert collect_garbage(directory, garbage).error is None
    state = ck.get_checkpoint_state(url)
    assert state is not None
    listed = {path.rpartition("/")[2] for path in state.all_model_checkpoint_paths}
    for prefix in state.all_model_checkpoint_paths:
        values: dict[str, np.ndarray] = {}
        ck.Saver().restore(values, prefix)
        stamp_of(values)
    owners = {name.rpartition(".")[0] for name in names_in(url) if name != "checkpoint"}
    assert owners == listed


@pytest.mark.parametrize(
    ("backend", "saves"), [("local", 100), ("minio", 100), ("gcs", 30)], indirect=["backend"]
)
def test_two_chiefs_and_four_readers(run_url: str, saves: int) -> None:
    saves *= TIMES
    jobs: list[tuple[Any, ...]] = [
        ("chief", run_url, name, saves, f"run {name}") for name in ("left", "right")
    ]
    jobs += [("reader", run_url, saves, 150.0 + 150.0 * TIMES)] * 4
    answers = run_all(act, jobs, timeout_s=200 + 180 * TIMES)
    assert sorted(a[:2] for a in answers if a[0] == "chief") == [("chief", saves), ("chief", saves)]
    assert all(a[1] > 0 for a in answers if a[0] == "reader")
    data_files_needed(run_url)
    state = ck.get_checkpoint_state(run_url)
    assert state is not None
    expected = {
        f"{run_url}/{name}-{step}" for name in ("left", "right") for step in range(saves - 2, saves + 1)
    }
    assert set(state.all_model_checkpoint_paths) == expected


def act(queue: Any, kind: str, *arguments: Any) -> None:
    (chief if kind == "chief" else reader)(queue, *arguments)


@pytest.mark.parametrize("backend", ["local", "minio", "gcs"], indirect=True)
def test_of_two_runs_of_one_basename_one_goes_on(run_url: str) -> None:
    ck.Saver(run="before").save(values_of(0), f"{run_url}/model", 0)
    start = _PROCESSES.Barrier(2)
    jobs = [("chief", run_url, "model", 40, f"run {number}", start) for number in range(2)]
    answers = run_all(act, jobs, timeout_s=200)
    done = [answer for answer in answers if answer[1] == 40 and not answer[2]]
    fenced = [answer for answer in answers if answer[2]]
    assert len(done) == 1, answers
    assert len(fenced) == 1, answers
    assert "another run took over" in fenced[0][2]
    data_files_needed(run_url)
