"""Retention by rules, on every backend: what stays after restarts, and what TensorFlow's numbers still do."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.directory.record_update import read_record
from ckptstore.directory.repair import repair_record
from ckptstore.directory.retention_rules import RetentionRule
from ckptstore.format.record import format_state
from ckptstore.format.record_facts import Record
from ckptstore.storage.base import Storage
from ckptstore.storage.registry import locate, use_wrapper
from ckptstore.testing import FaultyStorage, ManualClock, SimulatedCrash
from tests.backends.conftest import names_in

HOUR_S = 3600.0


def save(saver: ck.Saver, directory: str, step: int, **options: object) -> None:
    values = {"w": np.full(2, float(step))}
    saver.save(values, f"{directory}/model", step, write_meta_graph=False, **options)  # type: ignore[arg-type]


def steps_in(url: str) -> list[int]:
    names = [name.removesuffix(".index") for name in names_in(url) if name.endswith(".index")]
    return sorted(int(name.rpartition("-")[2]) for name in names)


def notes_in(url: str) -> dict[str, dict[str, float]]:
    return {prefix: dict(metrics) for prefix, metrics in record_in(url).notes.items()}


def record_in(url: str) -> Record:
    return read_record(locate(url).child("checkpoint")).record


def listed(url: str) -> list[str]:
    state = ck.get_checkpoint_state(url)
    assert state is not None
    return [path.rpartition("/")[2] for path in state.all_model_checkpoint_paths]


def test_rules_hold_across_restarts(run_url: str) -> None:
    clock = ManualClock()
    rules = [ck.Latest(2), ck.EveryNSteps(10), ck.EveryHours(5)]
    for start in range(2, 32, 6):
        # A new run each time: nothing but the record tells it what was.
        saver = ck.Saver(retention=rules, clock=clock, run=f"run {start}")
        for step in range(start, start + 6, 2):
            clock.advance(HOUR_S)
            save(saver, run_url, step)
    # One hour for two steps: every five hours is every ten steps, from the first on.
    assert steps_in(run_url) == [2, 10, 12, 20, 22, 28, 30]
    assert listed(run_url) == [f"model-{step}" for step in steps_in(run_url)]
    assert [path.rpartition("/")[2] for path in saver.last_checkpoints] == listed(run_url)
    # Other rules hold from the next save on, after a warning that says what goes.
    with pytest.warns(ck.CkptStoreWarning, match="no rule keeps them: 'model-2', 'model-10'"):
        save(ck.Saver(retention=[ck.EveryNSteps(20)], clock=clock, run="last"), run_url, 34)
    assert steps_in(run_url) == [20, 34]


def test_a_clock_that_is_set_back_deletes_nothing_that_a_rule_keeps(run_url: str) -> None:
    clock = ManualClock(1e9)
    saver = ck.Saver(retention=[ck.EveryHours(1), ck.YoungerThan(2 * HOUR_S)], clock=clock)
    save(saver, run_url, 1)
    clock.advance(2 * HOUR_S)
    save(saver, run_url, 2)
    clock.advance(-5e8)
    for step in (3, 4, 5, 6, 7):
        save(saver, run_url, step)
        clock.advance(HOUR_S / 2)
    # What is dated in the future is young; from the third on the hours begin anew.
    assert steps_in(run_url) == [1, 2, 3, 4, 5, 6, 7]
    clock.advance(2 * HOUR_S)
    save(saver, run_url, 8)
    clock.advance(2 * HOUR_S)
    save(saver, run_url, 9)
    assert steps_in(run_url) == [1, 2, 3, 5, 7, 8, 9]


def test_only_what_is_unusual_is_announced(run_url: str) -> None:
    saver = ck.Saver(retention=[ck.Latest(2), ck.Best(1, "loss")])
    with warnings.catch_warnings():
        warnings.simplefilter("error", ck.CkptStoreWarning)
        for step in range(1, 9):
            # Each is better than the last: two go with each save.
            save(saver, run_url, step, metrics={"loss": -float(step)})
        for step in range(9, 12):
            save(saver, run_url, step)
    assert steps_in(run_url) == [8, 10, 11]


def test_two_savers_of_one_run_count_their_own(run_url: str) -> None:
    often = ck.Saver(max_to_keep=2, run="job")
    seldom = ck.Saver(retention=[ck.Latest(2)], run="job")
    for step in range(1, 9):
        save(seldom if step % 2 else often, run_url, step)
    assert steps_in(run_url) == [5, 6, 7, 8]
    # The next run counts everything.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ck.CkptStoreWarning)
        save(ck.Saver(retention=[ck.Latest(2)], run="next"), run_url, 9)
    assert steps_in(run_url) == [8, 9]


def test_a_manager_takes_rules(run_url: str) -> None:
    tree = ck.Checkpoint(w=np.arange(3.0))
    manager = ck.CheckpointManager(tree, run_url, None, retention=[ck.Latest(1), ck.EveryNSteps(3)])
    for _ in range(7):
        manager.save()
    assert steps_in(run_url) == [3, 6, 7]
    again = ck.CheckpointManager(tree, run_url, None, retention=[ck.Latest(1)], run="again")
    assert [path.rpartition("/")[2] for path in again.checkpoints] == ["ckpt-3", "ckpt-6", "ckpt-7"]


@pytest.mark.parametrize(
    "given",
    [
        {"max_to_keep": 5},
        {"max_to_keep": None},
        {"keep_checkpoint_every_n_hours": 10000.0},
        {"max_to_keep": 3, "keep_checkpoint_every_n_hours": 1.0},
    ],
    ids=str,
)
def test_rules_are_not_combined_with_the_two_numbers(given: dict[str, float | None]) -> None:
    with pytest.raises(ck.UsageError, match="max_to_keep"):
        ck.Saver(retention=[ck.Latest(3)], **given)  # type: ignore[arg-type]
    given.setdefault("max_to_keep", None)
    if any(value is not None for value in given.values()):
        with pytest.raises(ck.UsageError, match="max_to_keep"):
            ck.CheckpointManager(
                ck.Checkpoint(),
                "memory://backends-never/run",
                retention=[ck.Latest(3)],
                **given,  # type: ignore[arg-type]
            )


def test_a_saver_with_rules_tells_tensorflow_to_delete_nothing() -> None:
    saver_def = ck.SaverDef(max_to_keep=7, keep_checkpoint_every_n_hours=2.0, sharded=True)
    stated = ck.Saver(saver_def=saver_def, retention=[ck.Latest(3)]).as_saver_def()
    assert (stated.max_to_keep, stated.keep_checkpoint_every_n_hours, stated.sharded) == (0, 10000.0, True)


def test_the_best_stay_until_better_ones_come(run_url: str) -> None:
    losses = {1: 0.9, 2: 0.2, 3: 0.5, 4: math.nan, 5: 0.3, 6: 0.8, 7: math.inf, 8: 0.1}
    for step, loss in losses.items():
        # Each save in a run of its own.
        saver = ck.Saver(retention=[ck.Best(2, "loss")], run=f"run {step}")
        save(saver, run_url, step, metrics={"loss": np.float64(loss), "val/top 5": step})
        if step == 7:
            assert steps_in(run_url) == [2, 5, 7]
    assert steps_in(run_url) == [2, 8]
    assert notes_in(run_url) == {
        "model-2": {"loss": 0.2, "val/top 5": 2.0},
        "model-8": {"loss": 0.1, "val/top 5": 8.0},
    }
    # Saved again without metrics, it has none; the other one is the best then.
    again = ck.Saver(retention=[ck.Best(2, "loss")], run="again")
    save(again, run_url, 8)
    assert notes_in(run_url) == {"model-2": {"loss": 0.2, "val/top 5": 2.0}}


def test_metrics_in_the_background_and_of_a_manager(run_url: str) -> None:
    with ck.Saver(retention=[ck.Latest(1), ck.Best(1, "score", mode="max")]) as saver:
        for step, score in ((1, 0.1), (2, 0.7), (3, 0.4)):
            saver.save_async({"w": np.ones(2)}, f"{run_url}/model", step, metrics={"score": score})
    assert steps_in(run_url) == [2, 3]
    manager = ck.CheckpointManager(
        ck.Checkpoint(w=np.ones(2)), f"{run_url}/managed", None, retention=[ck.Best(1, "loss")]
    )
    for loss in (0.3, 0.5, 0.4):
        manager.save(metrics={"loss": loss})
    assert steps_in(f"{run_url}/managed") == [1, 3]
    assert notes_in(f"{run_url}/managed") == {"ckpt-1": {"loss": 0.3}, "ckpt-3": {"loss": 0.4}}


def test_a_save_that_died_before_the_record_is_adopted_with_its_metrics(run_url: str) -> None:
    rules: list[RetentionRule] = [ck.Best(1, "loss")]
    save(ck.Saver(retention=rules, run="first"), run_url, 1, metrics={"loss": 0.5})
    storages: list[FaultyStorage] = []

    def wrap(inner: Storage) -> Storage:
        storages.append(FaultyStorage(inner, crash_before=3, counted=is_record_put))
        return storages[-1]

    with use_wrapper(wrap), pytest.raises(SimulatedCrash):
        # Before the third: taking over, announcing, and then the list.
        save(ck.Saver(retention=rules, run="second"), run_url, 2, metrics={"loss": 0.1})
    for storage in storages:
        storage.release_holds()
    assert listed(run_url) == ["model-1"]
    save(ck.Saver(retention=rules, run="third"), run_url, 3, metrics={"loss": 0.9})
    assert listed(run_url) == ["model-2", "model-3"]
    assert notes_in(run_url) == {"model-2": {"loss": 0.1}, "model-3": {"loss": 0.9}}
    assert steps_in(run_url) == [2, 3]


def is_record_put(primitive: str, keys: Sequence[str]) -> bool:
    return primitive in ("put_new", "put_if") and keys[0].endswith("/checkpoint")


def test_repair_adopts_with_metrics_and_forgets_those_of_what_is_gone(run_url: str) -> None:
    saver = ck.Saver(retention=[ck.Latest(5)])
    for step in (1, 2):
        save(saver, run_url, step, metrics={"loss": float(step)})
    ck.remove_checkpoint(f"{run_url}/model-1")
    directory = locate(run_url)
    report = repair_record(directory, directory.child("checkpoint"))
    assert report.is_written
    assert notes_in(run_url) == {"model-2": {"loss": 2.0}}


@pytest.mark.parametrize(
    "metrics",
    [
        ["loss"],
        {"loss": "low"},
        {"loss": None},
        {"loss": [0.1]},
        {"loss": 1j},
        {"": 0.1},
        {1: 0.1},
        {"x" * 201: 0.1},
        {str(number): 0.1 for number in range(101)},
    ],
    ids=lambda metrics: repr(metrics)[:20],
)
def test_wrong_metrics_are_refused_before_anything_is_written(metrics: object) -> None:
    with pytest.raises(ck.UsageError, match="metric"):
        save(ck.Saver(), "memory://backends-never/run", 1, metrics=metrics)
    assert names_in("memory://backends-never/run") == []


def test_metrics_without_a_record_are_refused() -> None:
    with pytest.raises(ck.UsageError, match="write_state"):
        save(ck.Saver(), "memory://backends-never/run", 1, metrics={"loss": 1.0}, write_state=False)


def test_a_foreign_program_that_drops_the_metrics_of_a_run_gets_them_back(run_url: str) -> None:
    saver = ck.Saver(retention=[ck.Best(1, "loss")])
    for step, loss in ((1, 0.1), (2, 0.5)):
        save(saver, run_url, step, metrics={"loss": loss})
    record = locate(run_url).child("checkpoint")
    snapshot = read_record(record)
    assert snapshot.record.state is not None
    assert snapshot.version is not None
    record.storage.put_if(record.key, format_state(snapshot.record.state), snapshot.version)
    with pytest.warns(ck.CkptStoreWarning, match="another program rewrote"):
        save(saver, run_url, 3, metrics={"loss": 0.7})
    save(saver, run_url, 4, metrics={"loss": 0.8})
    assert steps_in(run_url) == [1, 4]
