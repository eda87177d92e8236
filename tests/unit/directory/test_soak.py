"""Saved again and again nothing grows: not the record, the requests, the work, nor what is remembered.

Work is counted in calls of Python functions, and memory in objects that the garbage collector knows: both are
the same on a busy machine.
"""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.saving.arguments import MAX_TO_KEEP
from ckptstore.storage.base import Storage
from ckptstore.storage.registry import use_wrapper
from ckptstore.testing import CountingStorage, FaultyStorage, ManualClock, SimulatedCrash
from tests.unit.directory.helpers import fresh_memory
from tests.unit.directory.repairing import record_of

VALUES = {"w": np.arange(6.0), "b": np.float32(1)}
PERIOD_S = 600.0


@dataclass(frozen=True)
class Way:
    """A way to save again and again."""

    name: str
    save: Callable[[Any, str, int], object]
    make: Callable[[ManualClock, str | None], Any]
    saves: int = 120
    runs: int = 60


def saver(**options: Any) -> Callable[[ManualClock, str | None], ck.Saver]:
    return lambda clock, run: ck.Saver(**{"max_to_keep": 3, "clock": clock, "run": run, **options})


def steps(saver: ck.Saver, directory: str, number: int, **options: Any) -> None:
    saver.save(VALUES, f"{directory}/model", number, **options)


RULES = [ck.Latest(2), ck.Best(2, "loss"), ck.YoungerThan(3 * PERIOD_S)]


def measured(saver: ck.Saver, directory: str, number: int) -> None:
    # Better and worse ones, in no order, and now and then the best so far.
    steps(saver, directory, number, metrics={"loss": float(number * 7919 % 1009), "other": 1.0})


def pinned(saver: ck.Saver, directory: str, number: int) -> None:
    measured(saver, directory, number)
    if number == 1:
        ck.pin(f"{directory}/model-1")


def waits(saver: ck.Saver, directory: str, number: int) -> None:
    saver.save_async(VALUES, f"{directory}/model", number).result()


class Managed:
    """A manager, made when the directory is known."""

    def __init__(self, clock: ManualClock, run: str | None) -> None:
        self.clock, self.run = clock, run
        self.manager: ck.CheckpointManager | None = None

    def save(self, directory: str, number: int) -> None:
        if self.manager is None:
            tree = ck.Checkpoint(w=np.arange(6.0))
            self.manager = ck.CheckpointManager(tree, directory, 3, 1.0, clock=self.clock, run=self.run)
        self.manager.save(checkpoint_number=number)


WAYS = [
    Way("steps", steps, saver(), 1000, 200),
    Way("one name", lambda s, d, n: s.save(VALUES, f"{d}/model"), saver(), 1000, 200),
    Way("a name each", lambda s, d, n: s.save(VALUES, f"{d}/model-{n}"), saver(), 300),
    Way("one step", lambda s, d, n: steps(s, d, 7), saver()),
    Way("no graph", lambda s, d, n: steps(s, d, n, write_meta_graph=False), saver()),
    Way("no limit", steps, saver(max_to_keep=None)),
    Way("one is kept", steps, saver(max_to_keep=1)),
    Way("another record", lambda s, d, n: steps(s, d, n, latest_filename="best"), saver()),
    Way("another suffix", lambda s, d, n: steps(s, d, n, meta_graph_suffix="graph"), saver()),
    Way("padded steps", steps, saver(pad_step_number=True)),
    Way("unchanged tensors", steps, saver(reuse_unchanged=True)),
    Way("in the background", waits, saver()),
    Way("limits", steps, saver(memory_budget=1 << 20, deadline_s=600.0)),
    Way("two names", lambda s, d, n: s.save(VALUES, f"{d}/{'ab'[n % 2]}", n), saver()),
    Way("negative steps", lambda s, d, n: steps(s, d, -n), saver()),
    Way("rules", measured, saver(max_to_keep=MAX_TO_KEEP, retention=RULES), 400, 100),
    Way("rules and a pin", pinned, saver(max_to_keep=MAX_TO_KEEP, retention=RULES)),
    Way("manager", lambda m, d, n: m.save(d, n), Managed),
]

KEEPS_FILES = ("no limit", "manager")


@pytest.fixture(params=WAYS, ids=lambda way: way.name.replace(" ", "-"))
def way(request: pytest.FixtureRequest) -> Way:
    return request.param


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ck.CkptStoreWarning)
        yield


class Meter:
    """Counts requests, and calls of functions in this thread."""

    def __init__(self) -> None:
        self.storages: list[CountingStorage] = []

    def wrap(self, inner: Any) -> CountingStorage:
        self.storages.append(CountingStorage(inner))
        return self.storages[-1]

    def requests(self) -> int:
        taken = sum(len(storage.calls) for storage in self.storages)
        for storage in self.storages:
            storage.reset()
        return taken

    def measure(self, save: Callable[[], object]) -> tuple[int, int]:
        """Return requests and calls of functions of one save."""
        calls = 0

        def count(frame: object, event: str, argument: object) -> None:
            nonlocal calls
            calls += event == "call"

        self.requests()
        sys.setprofile(count)
        try:
            save()
        finally:
            sys.setprofile(None)
        return self.requests(), calls


def size_of_record(directory: str, way: Way) -> int:
    """Return how many lines and how many objects of the protocol the record has."""
    if way.name == "another record":
        return 0
    record = record_of(directory)
    state = record.state
    assert state is not None
    lines = (
        *(record.owners, record.pending, record.superseded, record.kept, record.counted, record.intents),
        *(record.pins, record.notes),
    )
    return sum(map(len, lines)) + len(state.all_model_checkpoint_paths)


def objects() -> int:
    gc.collect()
    return len(gc.get_objects())


def test_a_thousand_saves_of_one_process(way: Way) -> None:
    directory = fresh_memory()
    meter = Meter()
    clock = ManualClock()
    with use_wrapper(meter.wrap):
        one = way.make(clock, "run")
        early: list[tuple[int, int]] = []
        late: list[tuple[int, int]] = []
        lines = 0
        before = 0
        for number in range(1, way.saves + 1):
            clock.advance(PERIOD_S)
            if number in (way.saves // 3, way.saves - 1):
                meter.requests()
                if number < way.saves - 1:
                    lines, before = size_of_record(directory, way), objects()
            if way.saves // 3 <= number < way.saves // 3 + 5:
                early.append(meter.measure(partial(way.save, one, directory, number)))
            elif number > way.saves - 5:
                late.append(meter.measure(partial(way.save, one, directory, number)))
            else:
                way.save(one, directory, number)
                meter.requests()
        after = objects()
    assert size_of_record(directory, way) <= lines + 1
    assert max(requests for requests, _ in late) <= max(requests for requests, _ in early)
    assert max(calls for _, calls in late) <= 1.1 * max(calls for _, calls in early)
    grown = (after - before) / (way.saves - way.saves // 3)
    # The three files of a checkpoint that stays are some five objects each of the storage here.
    assert grown < (20.0 if way.name in KEEPS_FILES else 3.0)


@pytest.mark.parametrize("kind", ["process", "Saver"])
def test_runs_that_save_once_and_end(way: Way, kind: str) -> None:
    """A job that is preempted again and again, or a program that makes a Saver for each save."""
    directory = fresh_memory()
    meter = Meter()
    clock = ManualClock()
    sizes: list[int] = []
    early: list[tuple[int, int]] = []
    late: list[tuple[int, int]] = []
    with use_wrapper(meter.wrap):
        for number in range(1, way.runs + 1):
            clock.advance(PERIOD_S)
            one = way.make(clock, f"run {number}" if kind == "process" else "run")
            save = partial(way.save, one, directory, number)
            if 6 < number <= 12:
                early.append(meter.measure(save))
            elif number > way.runs - 6:
                late.append(meter.measure(save))
            else:
                save()
            sizes.append(size_of_record(directory, way))
    if way.name in ("a name each", "negative steps"):
        # As many models as saves: no Saver has saved two of them.
        assert sizes[-1] == 2 * way.runs
        return
    assert max(sizes[-6:]) <= max(sizes[6:12])
    assert max(requests for requests, _ in late) <= max(requests for requests, _ in early)
    # A new run lists the directory, once.
    if way.name not in KEEPS_FILES:
        assert max(calls for _, calls in late) <= 1.1 * max(calls for _, calls in early)


@pytest.mark.parametrize("way", ["one run", "a name each"])
def test_saves_that_die_before_their_index(way: str) -> None:
    directory = fresh_memory()
    ck.Saver(run="job").save(VALUES, f"{directory}/model", 0)
    sizes = []
    for number in range(1, 201):
        storages: list[FaultyStorage] = []

        def wrap(inner: Storage, storages: list[FaultyStorage] = storages) -> Storage:
            storages.append(FaultyStorage(inner, crash_before=1, counted=is_index_put))
            return storages[-1]

        one = way == "one run"
        saver = ck.Saver(run="job" if one else f"job {number}")
        prefix, step = (f"{directory}/model", number) if one else (f"{directory}/model-{number}", None)
        with use_wrapper(wrap), pytest.raises(SimulatedCrash):
            saver.save(VALUES, prefix, step)
        for storage in storages:
            storage.release_holds()
        record = record_of(directory)
        sizes.append(len(record.intents) + len(record.owners))
    assert sizes[-1] == sizes[99]
    ck.Saver(run="job").save(VALUES, f"{directory}/model", 300)
    assert ck.latest_checkpoint(directory) == f"{directory}/model-300"


def is_index_put(primitive: str, keys: Sequence[str]) -> bool:
    return primitive in ("put_new", "put_if") and keys[0].endswith(".index")


def test_without_waiting_for_the_disk(tmp_path: Path) -> None:
    saver = ck.Saver(max_to_keep=3, durability="cache")
    for number in range(1, 100):
        steps(saver, str(tmp_path), number)
    assert len(list(tmp_path.iterdir())) == 2 + 3 * 3
    assert len((tmp_path / "checkpoint").read_text().splitlines()) <= 12
