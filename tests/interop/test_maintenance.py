"""gc and repair on what TensorFlow wrote, and TensorFlow on what they left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import ckptstore as ck
from ckptstore.cli.main import main

tf1 = tf.compat.v1


def train(directory: Path, steps: range, **options: object) -> list[str]:
    """Save each step with TensorFlow's Saver, which goes on with what the record lists."""
    with tf.Graph().as_default(), tf1.Session() as session:
        w = tf1.get_variable("w", initializer=np.zeros(3, np.float32))
        saver = tf1.train.Saver(**options)
        state = tf1.train.get_checkpoint_state(directory)
        if state is not None:
            saver.recover_last_checkpoints(list(state.all_model_checkpoint_paths))
        for step in steps:
            session.run(w.assign(np.full(3, step, np.float32)))
            saver.save(session, f"{directory}/model", global_step=step)
        return [Path(path).name for path in saver.last_checkpoints]


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()} - {".ckptstore.lock"}


@pytest.mark.parametrize("damage", ["missing", "empty", "half"])
def test_tensorflow_finds_the_latest_again(tmp_path: Path, damage: str) -> None:
    train(tmp_path, range(1, 4))
    record = tmp_path / "checkpoint"
    data = record.read_bytes()
    if damage == "missing":
        record.unlink()
    else:
        record.write_bytes(b"" if damage == "empty" else data[: len(data) // 2 + 3])
    assert main(["repair", str(tmp_path)]) == 0
    assert tf.train.latest_checkpoint(str(tmp_path)) == f"{tmp_path}/model-3"
    state = tf.train.get_checkpoint_state(str(tmp_path))
    assert [Path(path).name for path in state.all_model_checkpoint_paths] == ["model-1", "model-2", "model-3"]
    assert len(state.all_model_checkpoint_timestamps) == 3
    assert train(tmp_path, range(4, 6), max_to_keep=3) == ["model-3", "model-4", "model-5"]


def test_a_checkpoint_manager_of_tensorflow_goes_on(tmp_path: Path) -> None:
    variable = tf.Variable(1.0)
    checkpoint = tf.train.Checkpoint(v=variable)
    manager = tf.train.CheckpointManager(checkpoint, str(tmp_path), max_to_keep=2)
    for _ in range(3):
        manager.save()
    (tmp_path / "checkpoint").unlink()
    assert main(["repair", str(tmp_path)]) == 0
    manager = tf.train.CheckpointManager(checkpoint, str(tmp_path), max_to_keep=2)
    assert manager.latest_checkpoint == f"{tmp_path}/ckpt-3"
    assert [Path(path).name for path in manager.checkpoints] == ["ckpt-2", "ckpt-3"]


def test_a_healthy_directory_is_left_as_it_is(tmp_path: Path) -> None:
    train(tmp_path, range(1, 8), max_to_keep=2, keep_checkpoint_every_n_hours=1e-9)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert main(["repair", str(tmp_path)]) == 0
    assert main(["gc", str(tmp_path), "--min-age", "0s"]) == 0
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_a_save_of_tensorflow_that_failed_left(tmp_path: Path) -> None:
    train(tmp_path, range(1, 3))
    before = names(tmp_path)
    # In the way of the index, so that the save fails after its data.
    (tmp_path / "broken-9.index").mkdir()
    with tf.Graph().as_default(), tf1.Session() as session:
        tf1.get_variable("w", initializer=np.zeros(3, np.float32))
        session.run(tf1.global_variables_initializer())
        with pytest.raises(tf.errors.OpError):
            tf1.train.Saver().save(session, f"{tmp_path}/broken", global_step=9)
    (tmp_path / "broken-9.index").rmdir()
    assert names(tmp_path) > before
    assert main(["gc", str(tmp_path), "--min-age", "0s"]) == 0
    assert names(tmp_path) == before
    assert tf.train.latest_checkpoint(str(tmp_path)) == f"{tmp_path}/model-2"


def test_data_of_another_shard_count(tmp_path: Path) -> None:
    train(tmp_path, range(1, 2))
    before = names(tmp_path)
    # What TensorFlow leaves when it saves a prefix again that had three shards.
    for shard in range(3):
        (tmp_path / f"model-1.data-{shard:05d}-of-00003").write_bytes(b"old")
    assert main(["gc", str(tmp_path), "--min-age", "0s"]) == 0
    assert names(tmp_path) == before
    reader = tf.train.load_checkpoint(f"{tmp_path}/model-1")
    np.testing.assert_array_equal(reader.get_tensor("w"), np.ones(3, np.float32))


def test_kept_lines_do_not_trouble_tensorflow(tmp_path: Path) -> None:
    saver = ck.Saver(max_to_keep=1)
    for step in (1, 2):
        saver.save({"w": np.full(3, step, np.float32)}, f"{tmp_path}/model", step)
    (tmp_path / "checkpoint").unlink()
    assert main(["repair", str(tmp_path)]) == 0
    assert b"# kept" in (tmp_path / "checkpoint").read_bytes()
    assert tf.train.latest_checkpoint(str(tmp_path)) == f"{tmp_path}/model-2"
