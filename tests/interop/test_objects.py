"""Object-based checkpoints both ways, optimizer slots included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

import ckptstore as ck

tf1 = tf.compat.v1


def test_tensorflow_restores_a_tree_of_ours(tmp_path: Path) -> None:
    tree: dict[str, Any] = {
        "model": {"w": np.arange(6.0).reshape(2, 3), "layers": [np.float32(1), np.arange(2)]},
        "step": np.int64(4),
    }
    saved = ck.Checkpoint(**tree)
    path = saved.save(tmp_path / "ck")
    assert tf.train.latest_checkpoint(tmp_path) == path == f"{tmp_path}/ck-1"
    w, a, b, step = (
        tf.Variable(tf.zeros((2, 3), tf.float64)),
        tf.Variable(0.0),
        tf.Variable([0, 0], dtype=tf.int64),
        tf.Variable(0, dtype=tf.int64),
    )
    module = tf.Module()
    module.w, module.layers = w, [a, b]
    checkpoint = tf.train.Checkpoint(model=module, step=step)
    status = checkpoint.restore(path)
    status.assert_consumed()
    status.assert_existing_objects_matched()
    np.testing.assert_array_equal(w.numpy(), tree["model"]["w"])
    assert (a.numpy(), b.numpy().tolist(), step.numpy()) == (1, [0, 1], 4)
    assert int(checkpoint.save_counter) == 1
    written = saved.write(tmp_path / "plain")
    tf.train.Checkpoint(model=module, step=step).read(written).expect_partial()


def test_we_restore_a_tree_of_tensorflow(tmp_path: Path) -> None:
    module = tf.Module()
    module.w = tf.Variable(np.arange(4, dtype=np.float32))
    module.table = {"a/b": tf.Variable(3), "x.y": tf.Variable("text")}
    checkpoint = tf.train.Checkpoint(model=module, step=tf.Variable(9, dtype=tf.int64))
    path = checkpoint.save(f"{tmp_path}/ck")
    path = checkpoint.save(f"{tmp_path}/ck")
    w, count, text, step = (
        np.zeros(4, np.float32),
        np.zeros((), np.int32),
        np.array(b"", object),
        np.zeros((), np.int64),
    )
    ours = ck.Checkpoint(model={"w": w, "table": {"a/b": count, "x.y": text}}, step=step)
    status = ours.restore(path)
    status.assert_consumed()
    status.assert_existing_objects_matched()
    np.testing.assert_array_equal(w, [0, 1, 2, 3])
    assert (int(count), text[()], int(step)) == (3, b"text", 9)
    assert int(ours.save_counter) == 2
    assert ours.save(f"{tmp_path}/ck") == f"{tmp_path}/ck-3"


def test_slots_of_adam_go_both_ways(tmp_path: Path) -> None:
    def adam_of(value: float) -> tuple[tf.Variable, Any, tf.train.Checkpoint]:
        w = tf.Variable([value, value], name="w")
        optimizer = tf1.train.AdamOptimizer(0.1)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(w * w)
        optimizer.apply_gradients([(tape.gradient(loss, w), w)])
        return w, optimizer, tf.train.Checkpoint(net=tf.train.Checkpoint(w=w), optimizer=optimizer)

    w, optimizer, checkpoint = adam_of(3.0)
    path = checkpoint.save(f"{tmp_path}/theirs")
    mine_w, m, v = np.zeros(2, np.float32), np.zeros(2, np.float32), np.zeros(2, np.float32)
    beta1, beta2 = np.zeros((), np.float32), np.zeros((), np.float32)
    ours = ck.Checkpoint(
        net={"w": mine_w},
        optimizer=ck.Optimizer(
            values={"beta1_power": beta1, "beta2_power": beta2}, slots={"m": {"net/w": m}, "v": {"net/w": v}}
        ),
    )
    ours.restore(path).assert_existing_objects_matched()
    np.testing.assert_array_equal(mine_w, w.numpy())
    np.testing.assert_array_equal(m, optimizer.get_slot(w, "m").numpy())
    np.testing.assert_array_equal(v, optimizer.get_slot(w, "v").numpy())
    m += 5
    mine_w += 1
    back = ours.save(f"{tmp_path}/ours")
    other_w, other_optimizer, other = adam_of(-1.0)
    status = other.restore(back)
    status.assert_consumed()
    status.assert_existing_objects_matched()
    np.testing.assert_array_equal(other_w.numpy(), mine_w)
    np.testing.assert_array_equal(other_optimizer.get_slot(other_w, "m").numpy(), m)
