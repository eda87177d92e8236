"""Retention by rules, on every backend: what stays after restarts, and what TensorFlow's numbers still do."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.directory.retention_rules import RetentionRule
from ckptstore.testing import ManualClock
from tests.backends.conftest import names_in

HOUR_S = 3600.0


def save(saver: ck.Saver, directory: str, step: int, **options: object) -> None:
    values = {"w": np.full(2, float(step))}
    saver.save(values, f"{directory}/model", step, write_meta_graph=False, **options)  # type: ignore[arg-type]


def steps_in(url: str) -> list[int]:
    names = [name.removesuffix(".index") for name in names_in(url) if name.endswith(".index")]
    return sorted(int(name.rpartition("-")[2]) for name in names)


def listed(url: str) -> list[str]:
    state = ck.get_checkpoint_state(url)
    assert state is not None
    return [path.rpartition("/")[2] for path in state.all_model_checkpoint_paths]


def test_rules_hold_across_restarts(run_url: str) -> None:
    clock = ManualClock()
    rules: list[RetentionRule] = [ck.Latest(2), ck.EveryNSteps(10), ck.EveryHours(5)]
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
    with pytest.warns(ck.CkptStoreWarning, match="no rule keeps them: 'model-4', 'model-6'"):
        save(saver, run_url, 8)
    clock.advance(2 * HOUR_S)
    save(saver, run_url, 9)
    assert steps_in(run_url) == [1, 2, 3, 5, 7, 8, 9]


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
