"""A training run begun in one continues in the other, retention and all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf

import ckptstore as ck

tf1 = tf.compat.v1


def train_in_tensorflow(directory: Path, steps: range, max_to_keep: int = 2) -> list[str]:
    """Restore the latest checkpoint if there is one, then add 1 to every weight each step and save."""
    with tf.Graph().as_default(), tf1.Session() as session:
        w = tf1.get_variable("w", initializer=np.zeros((2, 2), np.float32))
        step = tf1.train.get_or_create_global_step()
        train = tf.group(w.assign_add(tf.ones_like(w)), step.assign_add(1))
        saver = tf1.train.Saver(max_to_keep=max_to_keep)
        session.run(tf1.global_variables_initializer())
        latest = tf1.train.latest_checkpoint(directory)
        if latest:
            saver.restore(session, latest)
            state = tf1.train.get_checkpoint_state(directory)
            saver.recover_last_checkpoints(list(state.all_model_checkpoint_paths))
        for number in steps:
            session.run(train)
            assert session.run(step) == number
            saver.save(session, f"{directory}/model", global_step=step)
        return saver.last_checkpoints


def train_here(directory: Path, steps: range, max_to_keep: int = 2) -> list[str]:
    values = {"w": np.zeros((2, 2), np.float32), "global_step": np.array(0)}
    saver = ck.Saver(max_to_keep=max_to_keep, run=f"run from {steps[0]}")
    latest = ck.latest_checkpoint(directory)
    if latest:
        saver.restore(values, latest)
    for number in steps:
        values["w"] += 1
        values["global_step"] += 1
        assert values["global_step"] == number
        saver.save(values, f"{directory}/model", global_step=values["global_step"])
    return saver.last_checkpoints


def complete(directory: Path) -> list[str]:
    return sorted(path.stem for path in directory.glob("*.index"))


def test_back_and_forth(tmp_path: Path) -> None:
    train_in_tensorflow(tmp_path, range(1, 4))
    assert complete(tmp_path) == ["model-2", "model-3"]
    kept = train_here(tmp_path, range(4, 7))
    assert kept == [f"{tmp_path}/model-5", f"{tmp_path}/model-6"]
    assert complete(tmp_path) == ["model-5", "model-6"]
    kept = train_in_tensorflow(tmp_path, range(7, 9))
    assert kept == [f"{tmp_path}/model-7", f"{tmp_path}/model-8"]
    assert complete(tmp_path) == ["model-7", "model-8"]
    train_here(tmp_path, range(9, 11))
    assert complete(tmp_path) == ["model-10", "model-9"]
    values: dict[str, np.ndarray] = {}
    ck.Saver().restore(values, ck.latest_checkpoint(tmp_path))
    np.testing.assert_array_equal(values["w"], np.full((2, 2), 10, np.float32))
    assert tf.train.load_variable(str(tmp_path), "global_step") == 10


def test_a_manager_goes_on_here_and_there(tmp_path: Path) -> None:
    w = tf.Variable(np.zeros(3, np.float32))
    manager = tf.train.CheckpointManager(tf.train.Checkpoint(w=w), str(tmp_path), max_to_keep=2)
    for _ in range(3):
        w.assign_add([1, 1, 1])
        manager.save()
    ours = np.zeros(3, np.float32)
    mine = ck.CheckpointManager(ck.Checkpoint(w=ours), tmp_path, max_to_keep=2, run="here")
    assert mine.checkpoints == [f"{tmp_path}/ckpt-2", f"{tmp_path}/ckpt-3"]
    assert mine.restore_or_initialize() == f"{tmp_path}/ckpt-3"
    np.testing.assert_array_equal(ours, [3, 3, 3])
    for _ in range(2):
        ours += 1
        mine.save()
    assert complete(tmp_path) == ["ckpt-4", "ckpt-5"]
    manager = tf.train.CheckpointManager(tf.train.Checkpoint(w=w), str(tmp_path), max_to_keep=2)
    assert manager.checkpoints == [f"{tmp_path}/ckpt-4", f"{tmp_path}/ckpt-5"]
    assert manager.restore_or_initialize() == f"{tmp_path}/ckpt-5"
    np.testing.assert_array_equal(w.numpy(), [5, 5, 5])
    manager.save()
    assert complete(tmp_path) == ["ckpt-5", "ckpt-6"]
    assert ck.latest_checkpoint(tmp_path) == f"{tmp_path}/ckpt-6"
