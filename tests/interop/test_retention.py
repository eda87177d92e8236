"""TensorFlow reads a record with pins and metrics, and lists what the rules kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf

import ckptstore as ck
from ckptstore.cli.main import main

tf1 = tf.compat.v1

LOSSES = (0.9, 0.2, 0.6, float("nan"), 0.4, 0.3, 0.8, 0.7)


def train(directory: Path) -> ck.Saver:
    saver = ck.Saver(retention=[ck.Latest(2), ck.EveryNSteps(4), ck.Best(1, "val/loss")])
    for step, loss in enumerate(LOSSES, 1):
        metrics = {"val/loss": loss, "top 5": 1.0 - loss}
        saver.save({"w": np.full(3, step, np.float32)}, directory / "model", step, metrics=metrics)
        if step == 3:
            ck.pin(directory / "model-3")
    return saver


def listed(directory: Path) -> list[str]:
    state = tf.train.get_checkpoint_state(str(directory))
    assert state is not None
    assert len(state.all_model_checkpoint_timestamps) == len(state.all_model_checkpoint_paths)
    return [Path(path).name for path in state.all_model_checkpoint_paths]


def on_disk(directory: Path) -> list[str]:
    return sorted(path.stem for path in directory.glob("*.index"))


def test_the_list_is_the_same_and_each_restores(tmp_path: Path) -> None:
    train(tmp_path)
    names = [f"model-{step}" for step in (2, 3, 4, 7, 8)]
    assert listed(tmp_path) == on_disk(tmp_path) == names
    ours = ck.get_checkpoint_state(tmp_path)
    assert ours is not None
    assert [Path(path).name for path in ours.all_model_checkpoint_paths] == names
    assert tf.train.latest_checkpoint(str(tmp_path)) == f"{tmp_path}/model-8"
    for name in names:
        restored = tf.train.load_checkpoint(str(tmp_path / name)).get_tensor("w")
        assert (restored == int(name.rpartition("-")[2])).all()
    assert main(["prune", str(tmp_path), "--keep-last", "1", "--yes"]) == 0
    assert listed(tmp_path) == on_disk(tmp_path) == ["model-3", "model-8"]


def test_a_run_goes_on_with_its_pins_after_tensorflow_has_saved(tmp_path: Path) -> None:
    saver = train(tmp_path)
    with tf.Graph().as_default(), tf1.Session() as session:
        w = tf1.get_variable("w", initializer=np.zeros(3, np.float32))
        session.run(w.initializer)
        theirs = tf1.train.Saver(max_to_keep=50)
        theirs.recover_last_checkpoints([str(tmp_path / name) for name in listed(tmp_path)])
        theirs.save(session, f"{tmp_path}/other", global_step=1)
    assert "#" not in (tmp_path / "checkpoint").read_text()
    for step in (9, 10):
        saver.save({"w": np.zeros(3, np.float32)}, tmp_path / "model", step, metrics={"val/loss": 0.5})
    assert '# pin "model-3"' in (tmp_path / "checkpoint").read_text()
    # The best is still the best, and the pinned one is there.
    assert [name for name in on_disk(tmp_path) if name != "other-1"] == [
        "model-10", *(f"model-{step}" for step in (2, 3, 4, 8, 9)),
    ]  # fmt: skip
    assert set(listed(tmp_path)) == set(on_disk(tmp_path))
