"""Graphs both ways: ours run in TensorFlow, TensorFlow's are read here."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

import ckptstore as ck

tf1 = tf.compat.v1


def test_a_generated_graph_restores_and_saves_in_tensorflow(tmp_path: Path) -> None:
    values = {
        "f32": np.arange(4, dtype=np.float32),
        "f16": np.arange(3, dtype=np.float16),
        "bf16": np.arange(3).astype(ml_dtypes.bfloat16),
        "i64": np.array([[1, -2]], np.int64),
        "flag": np.array(True),
        "text": np.array([b"a", b""], object),
        "c64": np.array([1 + 2j], np.complex64),
        "u16": np.array([65535], np.uint16),
        "empty": np.zeros((0, 3), np.float64),
        "odd name! ü": np.arange(2.0),
        "scope/nested/v": np.float64(1.5),
    }
    prefix = ck.Saver().save(values, f"{tmp_path}/model", 1)
    with tf.Graph().as_default() as graph, tf1.Session(graph=graph) as session:
        saver = tf1.train.import_meta_graph(f"{prefix}.meta")
        saver.restore(session, prefix)
        for name in ("f32", "f16", "bf16", "i64", "flag", "text", "c64", "u16", "empty", "scope/nested/v"):
            np.testing.assert_array_equal(session.run(f"{name}:0"), values[name], err_msg=name)
        assert len(tf1.global_variables()) == len(values)
        again = saver.save(session, f"{tmp_path}/tf/model")
    for kind in ("index", "data-00000-of-00001"):
        ours, theirs = Path(f"{prefix}.{kind}"), Path(f"{again}.{kind}")
        assert ours.read_bytes() == theirs.read_bytes(), kind


def test_a_built_graph_runs_in_tensorflow(tmp_path: Path) -> None:
    builder = ck.GraphBuilder()
    x = builder.placeholder("x", "float32", (None, 3))
    w = builder.variable("w", "float32", (3, 2))
    b = builder.variable("b", "float32", (2,))
    scale = builder.constant("scale", np.float32(2.0))
    product = builder.operation("product", "MatMul", [x, w])
    shifted = builder.operation("shifted", "Add", [product, b])
    builder.operation("y", "Mul", [shifted, scale])
    saver = ck.Saver(graph=builder.build())
    values = {"w": np.arange(6, dtype=np.float32).reshape(3, 2), "b": np.array([10, 20], np.float32)}
    prefix = saver.save(values, f"{tmp_path}/model", 5)
    with tf.Graph().as_default() as graph, tf1.Session(graph=graph) as session:
        tf1.train.import_meta_graph(f"{prefix}.meta").restore(session, prefix)
        got = session.run("y:0", {"x:0": [[1.0, 2.0, 3.0]]})
    np.testing.assert_array_equal(got, (np.array([[1, 2, 3]], np.float32) @ values["w"] + values["b"]) * 2)


@pytest.mark.parametrize("resource", [False, True], ids=["reference", "resource"])
@pytest.mark.parametrize("scope", [None, "imported"])
def test_a_graph_by_tensorflow_is_read_here(tmp_path: Path, resource: bool, scope: str | None) -> None:
    with tf.Graph().as_default() as graph, tf1.Session(graph=graph) as session:
        x = tf1.placeholder(tf.float32, [None, 3], name="x")
        with tf1.device("/cpu:0"):
            w = tf1.get_variable("w", [3, 2], use_resource=resource)
        step = tf1.train.get_or_create_global_step()
        table = tf.constant([[1, 2], [3, 4]], name="table")
        tf.matmul(x, w, name="y")
        optimizer = tf1.train.AdamOptimizer().minimize(tf.reduce_sum(w), global_step=step)
        tf1.add_to_collection("mine", "text")
        tf1.add_to_collection("mine_numbers", 7)
        session.run(tf1.global_variables_initializer())
        session.run(optimizer)
        saver = tf1.train.Saver(max_to_keep=3, keep_checkpoint_every_n_hours=1.5)
        prefix = saver.save(session, f"{tmp_path}/model", global_step=step)
        expected = session.run({"w": w, "table": table})
        names = sorted(operation.name for operation in graph.get_operations())
        outputs = {
            tensor.name: (tensor.dtype.base_dtype.name, tensor.shape)
            for operation in graph.get_operations()
            for tensor in operation.outputs
        }
    imported = ck.import_meta_graph(f"{prefix}.meta", import_scope=scope)
    assert imported.graph is not None
    start = f"{scope}/" if scope else ""
    assert sorted(operation.name for operation in imported.graph.get_operations()) == sorted(
        start + name for name in names
    )
    for name, (dtype, shape) in outputs.items():
        tensor = imported.graph.get_tensor_by_name(start + name)
        assert tensor.dtype is not None
        assert tensor.dtype.name == dtype, name
        if tensor.shape is not None and shape.rank is not None:
            assert tensor.shape == tuple(shape.as_list()), name
    np.testing.assert_array_equal(
        imported.graph.get_tensor_by_name(f"{start}table:0").value, expected["table"]
    )
    assert imported.as_saver_def().max_to_keep == 3
    assert imported.as_saver_def().keep_checkpoint_every_n_hours == 1.5
    assert [tensor.name for tensor in imported.graph.placeholders] == [f"{start}x:0"]
    values: dict[str, np.ndarray] = {}
    imported.restore(values, prefix)
    np.testing.assert_array_equal(values["w"], expected["w"])
    if scope is None:
        assert imported.export_meta_graph() == Path(f"{prefix}.meta").read_bytes()


def test_an_exported_graph_of_tensorflow_goes_back(tmp_path: Path) -> None:
    with tf.Graph().as_default(), tf1.Session() as session:
        v = tf1.get_variable("v", initializer=np.arange(3, dtype=np.float32))
        tf.identity(v * 2, name="doubled")
        session.run(tf1.global_variables_initializer())
        prefix = tf1.train.Saver().save(session, f"{tmp_path}/model", 1)
    saver = ck.import_meta_graph(f"{prefix}.meta", clear_devices=True)
    values: dict[str, np.ndarray] = {}
    saver.restore(values, prefix)
    values["v"] += 10
    again = saver.save(values, f"{tmp_path}/ours/model", 2)
    with tf.Graph().as_default(), tf1.Session() as session:
        tf1.train.import_meta_graph(f"{again}.meta").restore(session, again)
        np.testing.assert_array_equal(session.run("doubled:0"), [20, 22, 24])
