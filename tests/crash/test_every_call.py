"""The writer dies before and after each of its storage calls; a reader finds the old or the new checkpoint.

Each scenario is first run without a crash to count its calls, then once for each call and side of it, on
every backend, always in a fresh directory. After the crash: a fresh reader looks, then a new run saves and
keeps.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import ckptstore as ck
from tests.crash.crashing_process import run_until_crash


def values_of(step: int, generation: int = 0) -> dict[str, np.ndarray]:
    """Arrays, each of which shows the save that it belongs to."""
    stamp = 1000.0 * generation + step
    return {
        "big": np.full((300, 1000), stamp, np.float32),
        "small": np.array([stamp, -stamp]),
        "text": np.array([f"{stamp}"], object),
    }


def saver(run: str, **options: object) -> ck.Saver:
    settings: dict[str, object] = {"max_to_keep": 2, "run": run, "clock": lambda: 1000.0, **options}
    return ck.Saver(**settings)  # type: ignore[arg-type]


def stamp_of(prefix: str) -> float:
    """Return which save a checkpoint is, after checking that all of it belongs to that one."""
    values: dict[str, np.ndarray] = {}
    ck.Saver().restore(values, prefix)
    stamps = {float(values["small"][0]), -float(values["small"][1]), float(values["text"][0])}
    stamps |= set(np.unique(values["big"]).astype(float).tolist())
    assert len(stamps) == 1, f"{prefix} mixes the saves {sorted(stamps)}"
    return stamps.pop()


@dataclass(frozen=True)
class Scenario:
    """What happens before, what is interrupted, and what a reader may find as the latest afterwards."""

    name: str
    before: Callable[[str], object]
    interrupted: Callable[[str], object]
    latest: tuple[float | None, ...]
    overwrites: str | None = None


def save_steps(directory: str, *steps: int, run: str = "before", **options: object) -> None:
    with_state = saver(run, **options)
    for step in steps:
        with_state.save(values_of(step), f"{directory}/model", step, write_meta_graph=step == 1)


def four_devices() -> ck.Graph:
    """Return a graph that places each of the variables on a device of its own."""
    builder = ck.GraphBuilder()
    kinds = {"big": "float32", "small": "float64", "text": "string", "more": "float64"}
    for number, (name, dtype) in enumerate(kinds.items()):
        shape = {"big": (300, 1000), "text": (1,)}.get(name, (2,))
        builder.operation(
            name,
            "VariableV2",
            [],
            attrs={"dtype": dtype, "shape": shape, "shared_name": "", "container": ""},
            device=f"/device:CPU:{number}",
        )
    return builder.build()


def save_four_shards(directory: str, step: int, run: str) -> None:
    values = values_of(step) | {"more": np.full(2, float(step))}
    saver(run, sharded=True, graph=four_devices()).save(values, f"{directory}/model", step)


SCENARIOS = [
    Scenario("first save", lambda d: None, lambda d: save_steps(d, 1, run="dies"), (None, 1.0)),
    Scenario(
        "save with retention",
        lambda d: save_steps(d, 1, 2, 3),
        lambda d: save_steps(d, 4, run="dies"),
        (3.0, 4.0),
    ),
    Scenario(
        "converging to a lower limit",
        lambda d: save_steps(d, 1, 2, 3, 4, max_to_keep=4),
        lambda d: save_steps(d, 5, run="dies", max_to_keep=1),
        (4.0, 5.0),
    ),
    Scenario(
        "overwrite of the latest",
        lambda d: save_steps(d, 1, 2),
        lambda d: saver("dies").save(values_of(2, generation=1), f"{d}/model", 2),
        (2.0, 1002.0),
        overwrites="model-2",
    ),
    Scenario(
        "second overwrite, which collects what the first one replaced",
        lambda d: (save_steps(d, 1, 2), saver("before").save(values_of(2, 1), f"{d}/model", 2)),
        lambda d: saver("dies").save(values_of(2, generation=2), f"{d}/model", 2),
        (1002.0, 2002.0),
        overwrites="model-2",
    ),
    Scenario(
        "four shards over a checkpoint of four",
        lambda d: save_four_shards(d, 2, "before"),
        lambda d: save_four_shards(d, 3, "dies"),
        (2.0, 3.0),
    ),
    Scenario(
        "overwrite of a plain prefix",
        lambda d: saver("before").save(values_of(0), f"{d}/model"),
        lambda d: saver("dies").save(values_of(0, generation=1), f"{d}/model"),
        (0.0, 1000.0),
        overwrites="model",
    ),
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_crash_in_any_call_leaves_the_old_or_the_new(
    scenario: Scenario, make_directory: Callable[[], str]
) -> None:
    directory = make_directory()
    scenario.before(directory)
    calls = run_until_crash(scenario.interrupted, directory).calls
    assert len(calls) >= 8
    for number, side in itertools.product(range(1, len(calls) + 1), ("crash_before", "crash_after")):
        directory = make_directory()
        scenario.before(directory)
        run_until_crash(scenario.interrupted, directory, **{side: number})
        place = f"{side} {number}, {calls[number - 1]}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ck.CkptStoreWarning)
            check_reader(scenario, directory, place)
            check_next_run(scenario, directory, place)


def check_reader(scenario: Scenario, directory: str, place: str) -> None:
    latest = ck.latest_checkpoint(directory)
    found = None if latest is None else stamp_of(latest)
    assert found in scenario.latest, place
    if scenario.overwrites:
        assert stamp_of(f"{directory}/{scenario.overwrites}") in scenario.latest, place
    state = ck.get_checkpoint_state(directory)
    for prefix in state.all_model_checkpoint_paths if state else ():
        # A listed checkpoint is whole, or it is one that this save was about to delete.
        if ck.checkpoint_exists(prefix):
            stamp_of(prefix)


def check_next_run(scenario: Scenario, directory: str, place: str) -> None:
    had_record = ck.get_checkpoint_state(directory) is not None
    after = saver("after")
    for step in (11, 12, 13):
        prefix = after.save(values_of(step), f"{directory}/model", step, write_meta_graph=False)
        assert prefix is not None
        assert ck.latest_checkpoint(directory) == prefix, place
        assert stamp_of(prefix) == step, place
    assert after.last_checkpoints == [f"{directory}/model-12", f"{directory}/model-13"], place
    # Elsewhere leftovers wait for gc; a local disk can prove that the writer is dead. Without a record the
    # run that died owned nothing yet (docs/design/002-acquire-without-a-record.md).
    if had_record and not directory.startswith("memory"):
        names = sorted(path.name for path in Path(directory).iterdir())
        # What is saved without a step has an owner of its own, who cleans up when it is saved again.
        is_alone = scenario.overwrites == "model"
        assert [name for name in names if not (is_alone and name.startswith("model."))] == [
            ".ckptstore.lock",
            "checkpoint",
            "model-12.data-00000-of-00001",
            "model-12.index",
            *([] if is_alone else ["model-12.meta"]),
            "model-13.data-00000-of-00001",
            "model-13.index",
        ], place
        if is_alone:
            for _ in range(2):
                saver("alone").save(values_of(0, 5), f"{directory}/model", write_meta_graph=False)
            left = [path.name for path in Path(directory).glob("model.data-*")]
            # Those of the last two saves.
            assert len(left) == 2, place
