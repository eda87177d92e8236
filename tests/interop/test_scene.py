"""The scene the project grew from, with TensorFlow looking over our shoulder at every step."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.tools import inspect_checkpoint as tf_inspect

import ckptstore as ck

tf1 = tf.compat.v1


def tensorflow_values(prefix: str) -> dict[str, np.ndarray]:
    reader = tf.train.load_checkpoint(prefix)
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def run_tensorflow_session(meta: str, prefix: str, *names: str) -> list[np.ndarray]:
    """What a user of TensorFlow does elsewhere: import the graph, restore, fetch tensors by name."""
    with tf.Graph().as_default() as graph, tf1.Session(graph=graph) as session:
        saver = tf1.train.import_meta_graph(meta)
        saver.restore(session, prefix)
        return [session.run(graph.get_tensor_by_name(name)) for name in names]


def same(ours: dict, theirs: dict) -> None:
    assert sorted(ours) == sorted(theirs)
    for name, value in theirs.items():
        np.testing.assert_array_equal(np.asarray(ours[name]), value, err_msg=name)


@pytest.mark.parametrize("relative", [True, False], ids=["relative", "absolute"])
def test_the_scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool) -> None:
    monkeypatch.chdir(tmp_path)
    directory = "run/deep" if relative else f"{tmp_path}/run/deep"
    clock = iter(np.arange(0.0, 1000.0, 0.5) * 3600).__next__
    saver = ck.Saver(max_to_keep=4, keep_checkpoint_every_n_hours=2, clock=clock)
    values: dict[str, Any] = {
        "w1": np.arange(6, dtype=np.float32).reshape(2, 3),
        "scope/b1": np.float32(2.5),
        "names": np.array([b"x", b"caf\xc3\xa9"], object),
    }
    for step in range(1000, 12_000, 1000):
        values["w1"] += 1
        prefix = saver.save(values, f"{directory}/my-model", global_step=step, write_meta_graph=step == 1000)
        assert prefix == f"{directory}/my-model-{step}"
        assert tf.train.latest_checkpoint(directory) == prefix == ck.latest_checkpoint(directory)
        state = tf.train.get_checkpoint_state(directory)
        assert list(state.all_model_checkpoint_paths) == saver.last_checkpoints
        ours = ck.get_checkpoint_state(directory)
        assert ours is not None
        assert list(ours.all_model_checkpoint_paths) == saver.last_checkpoints
        same(values, tensorflow_values(prefix))
        # Never is the only graph there is deleted, although only the first save wrote one.
        metas = sorted(Path(directory).glob("*.meta"))
        assert metas
        fetched = run_tensorflow_session(str(metas[0]), prefix, "w1:0", "scope/b1:0", "names:0")
        np.testing.assert_array_equal(fetched[0], values["w1"])
        assert fetched[1] == np.float32(2.5)
        assert fetched[2].tolist() == [b"x", b"caf\xc3\xa9"]
    assert saver.last_checkpoints == [f"{directory}/my-model-{step}" for step in (8000, 9000, 10000, 11000)]

    monkeypatch.chdir(directory)
    again = ck.import_meta_graph(sorted(Path().glob("*.meta"))[0])
    restored: dict[str, np.ndarray] = {}
    again.restore(restored, ck.latest_checkpoint("./"))
    same(restored, tensorflow_values(tf.train.latest_checkpoint("./")))
    assert again.graph is not None
    tensor = again.graph.get_tensor_by_name("w1:0")
    assert (tensor.shape, tensor.dtype) == ((2, 3), "float32")

    printed = io.StringIO(), io.StringIO()
    for out, tool in zip(printed, (tf_inspect, ck.inspect_checkpoint), strict=True):
        with contextlib.redirect_stdout(out):
            tool.print_tensors_in_checkpoint_file(ck.latest_checkpoint("./"), "", True, True)
    assert printed[0].getvalue() == printed[1].getvalue()


def test_tensorflow_reads_an_overwrite_and_a_restart(tmp_path: Path) -> None:
    prefix = f"{tmp_path}/model"
    for generation in range(3):
        saver = ck.Saver(run=f"run {generation}")
        values = {"w": np.full(5, generation, np.int64), "big": np.full((100, 100), generation, np.float32)}
        saver.save(values, prefix)
        assert tf.train.latest_checkpoint(tmp_path) == prefix
        same(values, tensorflow_values(prefix))
        np.testing.assert_array_equal(run_tensorflow_session(f"{prefix}.meta", prefix, "w:0")[0], values["w"])
    # Two generations of data at most: the newest, and the one before it for readers in flight.
    assert len(list(tmp_path.glob("model.data-*"))) == 2


def test_tensorflow_removes_our_checkpoint(tmp_path: Path) -> None:
    prefix = ck.Saver().save({"w": np.ones(3)}, f"{tmp_path}/model", 7)
    assert prefix is not None
    assert tf1.train.get_checkpoint_mtimes([prefix]) == ck.get_checkpoint_mtimes([prefix])
    tf1.train.remove_checkpoint(prefix)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]
    assert not ck.checkpoint_exists(prefix)
