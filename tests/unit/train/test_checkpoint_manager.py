"""CheckpointManager, as measured on TensorFlow 2.21 wherever the differences page says nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.storage.registry import use_wrapper
from ckptstore.testing import ManualClock
from tests.unit.directory.helpers import FailingOnce, checkpoints_in, names_in

HOUR = 3600.0


def checkpoint(value: float = 1.0) -> ck.Checkpoint:
    return ck.Checkpoint(w=np.full(2, value))


def names(manager: ck.CheckpointManager) -> list[str]:
    return [path.rpartition("/")[2] for path in manager.checkpoints]


@pytest.mark.parametrize("wrong", [0, -1])
def test_the_limit_must_be_positive(wrong: int, tmp_path: Path) -> None:
    with pytest.raises(ck.UsageError, match="Expected a positive integer or `None` for `max_to_keep`"):
        ck.CheckpointManager(checkpoint(), tmp_path, wrong)


def test_an_interval_needs_a_counter(tmp_path: Path) -> None:
    with pytest.raises(ck.UsageError, match="`step_counter` should be passed"):
        ck.CheckpointManager(checkpoint(), tmp_path, 1, checkpoint_interval=5)


def test_the_directory_is_made_at_the_first_save(tmp_path: Path) -> None:
    manager = ck.CheckpointManager(checkpoint(), tmp_path / "a" / "b", 2)
    assert not (tmp_path / "a").exists()
    assert manager.latest_checkpoint is None
    assert manager.checkpoints == []
    assert manager.directory == f"{tmp_path}/a/b"
    assert manager.save() == f"{tmp_path}/a/b/ckpt-1"
    assert manager.latest_checkpoint == f"{tmp_path}/a/b/ckpt-1"


def test_the_newest_are_kept(tmp_path: Path) -> None:
    manager = ck.CheckpointManager(checkpoint(), tmp_path, 3, checkpoint_name="m")
    for _ in range(5):
        manager.save()
    assert names(manager) == checkpoints_in(str(tmp_path)) == ["m-3", "m-4", "m-5"]


def test_none_keeps_and_lists_all(tmp_path: Path) -> None:
    manager = ck.CheckpointManager(checkpoint(), tmp_path, None)
    for _ in range(7):
        manager.save()
    assert names(manager) == [f"ckpt-{n}" for n in range(1, 8)]


@pytest.mark.parametrize("restart", [False, True])
def test_tensorflows_timeline(restart: bool, tmp_path: Path) -> None:
    clock = ManualClock()
    tree = checkpoint()

    def make() -> ck.CheckpointManager:
        return ck.CheckpointManager(tree, tmp_path, 2, 2, clock=clock, run=str(clock.now_s))

    manager = make()
    for _ in range(14):
        clock.advance(HOUR / 2)
        if restart:
            manager = make()
        manager.save()
    # Kept are 4 (2 h), 8 (4 h) and 12 (6 h): last_preserved begins one second before the start. Where each
    # save is a new process, the first one is that much later.
    expected = [4, 8, 12, 13, 14] if not restart else [5, 9, 13, 14]
    assert sorted(int(name[5:]) for name in checkpoints_in(str(tmp_path))) == expected
    assert names(manager) == ["ckpt-13", "ckpt-14"]
    state = ck.get_checkpoint_state(tmp_path)
    assert state is not None
    assert state.last_preserved_timestamp == clock.now_s - (1.0 if not restart else 2.5) * HOUR


def test_numbers(tmp_path: Path) -> None:
    tree = checkpoint()
    manager = ck.CheckpointManager(tree, tmp_path, 10)
    assert manager.save(checkpoint_number=np.array(40)) == f"{tmp_path}/ckpt-40"
    assert manager.save() == f"{tmp_path}/ckpt-2"
    assert int(tree.save_counter) == 2
    for wrong in (1.5, "3", [3]):
        with pytest.raises(ck.UsageError, match="checkpoint_number"):
            manager.save(checkpoint_number=wrong)


def test_a_failed_save_uses_up_its_number(tmp_path: Path) -> None:
    wrappers: list[FailingOnce] = []

    def wrap(inner):
        wrappers.append(FailingOnce(inner, 0, "before", lambda: ck.StorageFullError("full")))
        return wrappers[0]

    with use_wrapper(wrap):
        manager = ck.CheckpointManager(checkpoint(), tmp_path, 2)
        manager.save()
        wrappers[0].begin(2)
        with pytest.raises(ck.StorageFullError):
            manager.save()
        assert manager.latest_checkpoint == f"{tmp_path}/ckpt-1"
        assert manager.save() == f"{tmp_path}/ckpt-3"
    assert checkpoints_in(str(tmp_path)) == ["ckpt-1", "ckpt-3"]


def test_the_interval(tmp_path: Path) -> None:
    step = np.array(0)
    manager = ck.CheckpointManager(checkpoint(), tmp_path, 9, step_counter=step, checkpoint_interval=10)
    saved = []
    for value in (0, 0, 5, 10, 10, 19, 20):
        step[...] = value
        if manager.save() is not None:
            saved.append(value)
    assert saved == [0, 10, 20]
    step[...] = 21
    assert manager.save(check_interval=False) is not None
    # The very same step is never saved twice.
    assert manager.save(check_interval=False) is None


def test_last_checkpoint_step_counts(tmp_path: Path) -> None:
    step = np.array(12)
    manager = ck.CheckpointManager(
        checkpoint(), tmp_path, 9, step_counter=step, checkpoint_interval=10, last_checkpoint_step=5
    )
    assert manager.save() is None
    step[...] = 15
    assert manager.save() is not None


def test_restore_or_initialize(tmp_path: Path) -> None:
    calls: list[str] = []
    step = np.array(7)
    tree = ck.Checkpoint(w=np.ones(2), step=step)
    manager = ck.CheckpointManager(
        tree, tmp_path, 3, step_counter=step, checkpoint_interval=5, init_fn=lambda: calls.append("init")
    )
    assert manager.restore_or_initialize() is None
    assert calls == ["init"]
    manager.save()
    later_step = np.array(0)
    later = ck.Checkpoint(w=np.zeros(2), step=later_step)
    again = ck.CheckpointManager(
        later, tmp_path, 3, step_counter=later_step, checkpoint_interval=5, init_fn=lambda: calls.append("no")
    )
    assert again.checkpoints == manager.checkpoints
    assert again.restore_or_initialize() == f"{tmp_path}/ckpt-1"
    assert calls == ["init"]
    assert later.w.all()
    assert int(later_step) == 7
    assert again.save() is None
    later_step[...] = 12
    assert again.save() == f"{tmp_path}/ckpt-2"


def test_a_new_process_that_does_not_restore_counts_from_one(tmp_path: Path) -> None:
    first = ck.CheckpointManager(checkpoint(), tmp_path, 2, run="a")
    for _ in range(4):
        first.save()
    second = ck.CheckpointManager(checkpoint(), tmp_path, 2, run="b")
    assert names(second) == ["ckpt-3", "ckpt-4"]
    second.save()
    assert checkpoints_in(str(tmp_path)) == ["ckpt-1", "ckpt-4"]


def test_two_managers_and_a_saver_in_one_directory(tmp_path: Path) -> None:
    one = ck.CheckpointManager(checkpoint(), tmp_path, 1, checkpoint_name="one")
    two = ck.CheckpointManager(checkpoint(), tmp_path, 2, checkpoint_name="two")
    saver = ck.Saver(max_to_keep=1)
    for step in (1, 2, 3):
        one.save()
        two.save()
        saver.save({"w": np.ones(1)}, f"{tmp_path}/three", step, write_meta_graph=False)
        ck.Checkpoint(w=np.ones(1)).write(tmp_path / "plain")
    assert checkpoints_in(str(tmp_path)) == ["one-3", "plain", "three-3", "two-2", "two-3"]
    state = ck.get_checkpoint_state(tmp_path)
    assert state is not None
    assert len(state.all_model_checkpoint_paths) == 4


def test_a_record_by_tensorflow_is_gone_on_with(fixtures_dir: Path, tmp_path: Path) -> None:
    source = fixtures_dir / "10_checkpoint_record" / "manager"
    (tmp_path / "checkpoint").write_bytes((source / "checkpoint").read_bytes())
    with pytest.warns(ck.CkptStoreWarning, match="fresh_start"):
        # Only the record was copied.
        manager = ck.CheckpointManager(checkpoint(), tmp_path, 2, fresh_start=True)
    assert manager.latest_checkpoint is None
    manager.save(checkpoint_number=1000)
    manager.save(checkpoint_number=1001)
    assert names(manager) == ["ckpt-1000", "ckpt-1001"]


@pytest.mark.parametrize("content", [b"", b"garbage"])
def test_an_unreadable_record_does_not_stop_it(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_bytes(content)
    with pytest.warns(ck.CkptStoreWarning):
        manager = ck.CheckpointManager(checkpoint(), tmp_path, 2)
    with pytest.warns(ck.CkptStoreWarning):
        manager.save()
    assert names_in(str(tmp_path)) == ["checkpoint", "ckpt-1.data-00000-of-00001", "ckpt-1.index"]
