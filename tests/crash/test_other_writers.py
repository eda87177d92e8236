"""As test_every_call, for all else that publishes: the writer dies before and after each storage call."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import ckptstore as ck
from tests.crash.crashing_process import run_until_crash
from tests.own_warnings import own_warnings


@dataclass(frozen=True)
class Scenario:
    """What was there, what is interrupted, and how to see which save a reader finds."""

    before: Callable[[str], object]
    dies: Callable[[str], object]
    found: Callable[[str], float | None]
    allowed: tuple[float | None, ...]
    goes_on: Callable[[str], object]
    at_the_end: float


def stamp_of(prefix: str) -> float:
    with ck.open_checkpoint(prefix) as opened:
        names = [name for name in opened if not name.startswith(("_", "save_counter"))]
        stamps = {value for name in names for value in np.unique(opened[name]).tolist()}
    assert len(stamps) == 1, f"{prefix} mixes {sorted(stamps)}"
    return float(stamps.pop())


def latest(directory: str) -> float | None:
    path = ck.latest_checkpoint(directory)
    return None if path is None else stamp_of(path)


def at(name: str) -> Callable[[str], float | None]:
    def found(directory: str) -> float | None:
        prefix = f"{directory}/{name}"
        return stamp_of(prefix) if ck.checkpoint_exists(prefix) else None

    return found


def bundle(directory: str, name: str, stamp: float, tensors: str = "ab") -> None:
    with ck.BundleWriter(f"{directory}/{name}") as writer:
        for tensor in tensors:
            writer.add(tensor, np.full(50, stamp))


def tree(stamp: float) -> ck.Checkpoint:
    return ck.Checkpoint(w=np.full(50, stamp), deep={"b": np.full(3, stamp)})


def managed(directory: str, run: str, *stamps: float) -> None:
    values = tree(0.0)
    manager = ck.CheckpointManager(values, directory, 2, run=run)
    if manager.latest_checkpoint:
        values.restore(manager.latest_checkpoint)
    for stamp in stamps:
        values.w[...] = stamp
        values.deep["b"][...] = stamp
        manager.save()


def counted(directory: str, *stamps: float) -> None:
    values = tree(0.0)
    values.restore(ck.latest_checkpoint(directory))
    for stamp in stamps:
        values.w[...] = stamp
        values.deep["b"][...] = stamp
        values.save(f"{directory}/ckpt")


def newest(directory: str) -> str | None:
    try:
        return ck.latest_checkpoint(directory)
    except ck.CorruptError:
        # The merge died before the first index that is not one of a part.
        return None


PARTS = [ck.part_prefix("m", number, 3) for number in range(3)]


def parts(directory: str, stamp: float) -> None:
    for part, tensors in zip(PARTS, ("ab", "c", "de"), strict=True):
        bundle(directory, part, stamp, tensors)


def merge(directory: str) -> None:
    ck.merge_bundles([f"{directory}/{part}" for part in PARTS], f"{directory}/m")


SCENARIOS = {
    "first bundle": Scenario(
        lambda d: None,
        lambda d: bundle(d, "m", 1),
        at("m"),
        (None, 1.0),
        lambda d: bundle(d, "m", 9),
        9.0,
    ),
    "bundle over another": Scenario(
        lambda d: bundle(d, "m", 1),
        lambda d: bundle(d, "m", 2),
        at("m"),
        (1.0, 2.0),
        lambda d: bundle(d, "m", 9),
        9.0,
    ),
    "merge": Scenario(
        lambda d: parts(d, 1), merge, at("m"), (None, 1.0), lambda d: (parts(d, 9), merge(d)), 9.0
    ),
    "parts": Scenario(
        lambda d: bundle(d, "m", 1),
        lambda d: (parts(d, 2), merge(d)),
        at("m"),
        (1.0, 2.0),
        lambda d: (parts(d, 9), merge(d)),
        9.0,
    ),
    "merge over another": Scenario(
        lambda d: (bundle(d, "m", 1), parts(d, 2)),
        merge,
        at("m"),
        (1.0, 2.0),
        lambda d: (parts(d, 9), merge(d)),
        9.0,
    ),
    "manager": Scenario(
        lambda d: managed(d, "before", 1, 2, 3),
        lambda d: managed(d, "dies", 4),
        latest,
        (3.0, 4.0),
        lambda d: managed(d, "after", 7, 8, 9),
        9.0,
    ),
    "Checkpoint.save": Scenario(
        lambda d: counted(d, 1, 2), lambda d: counted(d, 3), latest, (2.0, 3.0), lambda d: counted(d, 9), 9.0
    ),
    "Checkpoint.write": Scenario(
        lambda d: tree(1).write(f"{d}/m"),
        lambda d: tree(2).write(f"{d}/m"),
        at("m"),
        (1.0, 2.0),
        lambda d: tree(9).write(f"{d}/m"),
        9.0,
    ),
}


@pytest.mark.filterwarnings("ignore::ckptstore.CkptStoreWarning")
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_crash_in_any_call_leaves_the_old_or_the_new(name: str, make_directory: Callable[[], str]) -> None:
    scenario = SCENARIOS[name]
    directory = make_directory()
    scenario.before(directory)
    calls = run_until_crash(scenario.dies, directory).calls
    assert len(calls) >= 6
    for number, side in itertools.product(range(1, len(calls) + 1), ("crash_before", "crash_after")):
        directory = make_directory()
        scenario.before(directory)
        run_until_crash(scenario.dies, directory, **{side: number})
        place = f"{side} {number}, {calls[number - 1]}"
        found = scenario.found(directory)
        assert found in scenario.allowed, place
        if name.startswith("merge") and found != scenario.allowed[-1]:
            assert {at(part)(directory) for part in PARTS} == {scenario.allowed[-1]}, place
        if name == "parts" or name.startswith("merge"):
            # Whatever is left of the parts, nobody takes it for a checkpoint.
            expected = None if found is None else f"{directory}/m"
            assert newest(directory) == expected, place
        scenario.goes_on(directory)
        assert scenario.found(directory) == scenario.at_the_end, place


@pytest.mark.filterwarnings("ignore::ckptstore.CkptStoreWarning")
def test_a_manager_leaves_nothing_of_the_dead(tmp_path: Path) -> None:
    scenario = SCENARIOS["manager"]
    scenario.before(f"{tmp_path}/0")
    count = len(run_until_crash(scenario.dies, f"{tmp_path}/0").calls)
    for number in range(1, count + 1):
        directory = tmp_path / str(number)
        scenario.before(str(directory))
        run_until_crash(scenario.dies, str(directory), crash_after=number)
        scenario.goes_on(str(directory))
        names = sorted(path.name for path in directory.iterdir())
        assert len([name for name in names if name.endswith(".index")]) == 2
        assert len(names) == 6, (number, names)  # lock, record, two checkpoints


def test_warnings_as_errors_do_not_break_a_save(tmp_path: Path) -> None:
    with own_warnings("error"):
        managed(str(tmp_path), "strict", 1, 2, 3, 4)
    assert latest(str(tmp_path)) == 4
