"""TensorFlow's sessions and their variables on disk and on S3; TensorFlow reads what is written.

The scenarios are those of TensorFlow's own tests of its Saver, in our words.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

import ckptstore as ck
from ckptstore.tensorflow import CheckpointHook, Saver, import_meta_graph
from tests.engines.page import block

tf1 = tf.compat.v1
tf1.logging.set_verbosity(tf1.logging.ERROR)


@pytest.fixture
def _graph() -> Iterator[None]:
    with tf.Graph().as_default():
        yield


NO_SUMMARIES = {"save_summaries_steps": None, "save_summaries_secs": None}
IN_A_GRAPH = pytest.mark.usefixtures("_graph")


@pytest.fixture(params=["local", "minio"])
def directory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path)
    server = request.getfixturevalue("minio")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{server.make_bucket()}/run"


def session(*, initialize: bool = True) -> Any:
    made = tf1.Session()
    if initialize:
        made.run(tf1.global_variables_initializer())
    return made


def variable(name: str, value: Any, *, resource: bool = True, **options: Any) -> Any:
    return tf1.get_variable(name, initializer=value, use_resource=resource, **options)


def latest(directory: str, name: str) -> Any:
    """Return a variable of the newest checkpoint."""
    prefix = ck.latest_checkpoint(directory)
    assert prefix is not None
    return ck.load_variable(prefix, name)


@pytest.mark.parametrize("resource", [True, False], ids=["resource", "reference"])
@IN_A_GRAPH
def test_save_and_restore_of_a_session(directory: str, resource: bool) -> None:
    weights = variable("net/w", np.arange(6, dtype=np.float32).reshape(2, 3), resource=resource)
    half = variable("half", np.ones(3, ml_dtypes.bfloat16), resource=resource)
    text = variable("text", np.array([b"a", b"bc"], object), resource=resource)
    step = tf1.train.get_or_create_global_step()
    saver = Saver(max_to_keep=2)
    with session() as sess:
        sess.run(step.assign_add(7))
        assert saver.save(sess, f"{directory}/model", global_step=step) == f"{directory}/model-7"
        sess.run(weights.assign(weights + 1))
        handle = saver.save_async(sess, f"{directory}/model", global_step=8)
        sess.run(weights.assign(weights * 0))
        handle.result()
        saver.save(sess, f"{directory}/model", global_step=step + 2)
        assert saver.last_checkpoints == [f"{directory}/model-8", f"{directory}/model-9"]
        assert not ck.checkpoint_exists(f"{directory}/model-7")
        saver.restore(sess, f"{directory}/model-8")
        np.testing.assert_array_equal(sess.run(weights), np.arange(6).reshape(2, 3) + 1)
    with session(initialize=False) as fresh:
        saver.restore(fresh, ck.latest_checkpoint(directory))
        np.testing.assert_array_equal(fresh.run(weights), np.zeros((2, 3)))
        assert fresh.run(half).dtype == ml_dtypes.bfloat16
        assert fresh.run([text, step])[0].tolist() == [b"a", b"bc"]


@IN_A_GRAPH
def test_tensorflow_restores_it_and_we_restore_tensorflows(tmp_path: Path) -> None:
    weights = variable("w", np.arange(4.0))
    native = tf1.train.Saver()
    saver = Saver({"w": weights})
    with session() as sess:
        native.restore(sess, saver.save(sess, f"{tmp_path}/ours", 1))
        sess.run(weights.assign(weights + 10))
        theirs = native.save(sess, f"{tmp_path}/theirs", 3)
        sess.run(weights.assign(weights * 0))
        saver.restore(sess, theirs)
        np.testing.assert_array_equal(sess.run(weights), np.arange(4.0) + 10)


def partitioned(count: int) -> Any:
    with tf1.variable_scope("net", use_resource=True, reuse=tf1.AUTO_REUSE):
        return tf1.get_variable(
            "table",
            [5, 2],
            initializer=tf1.zeros_initializer(),
            partitioner=tf1.fixed_size_partitioner(count),
        )


@IN_A_GRAPH
def test_partitioned_variables_are_slices_and_come_back_in_another_partition(directory: str) -> None:
    table = partitioned(2)
    content = np.arange(10, dtype=np.float32).reshape(5, 2)
    saver = Saver()
    with session() as sess:
        start = 0
        for part in table:
            rows = part.shape[0]
            sess.run(part.assign(content[start : start + rows]))
            start += rows
        saver.save(sess, f"{directory}/model")
    with ck.open_checkpoint(f"{directory}/model") as checkpoint:
        assert len(checkpoint.specs()["net/table"].slices) == 2
        np.testing.assert_array_equal(checkpoint["net/table"], content)
    if "://" not in directory:
        np.testing.assert_array_equal(
            tf.train.load_checkpoint(f"{directory}/model").get_tensor("net/table"), content
        )
    for count in (1, 3):
        with tf.Graph().as_default():
            other = partitioned(count)
            with session() as sess:
                Saver().restore(sess, f"{directory}/model")
                np.testing.assert_array_equal(sess.run(tf.convert_to_tensor(other)), content)
    with tf.Graph().as_default():
        whole = tf1.get_variable("whole", [5, 2], initializer=tf1.zeros_initializer(), use_resource=True)
        with session() as sess:
            Saver({"net/table": whole}).restore(sess, f"{directory}/model")
            np.testing.assert_array_equal(sess.run(whole), content)


@IN_A_GRAPH
def test_the_graph_goes_with_it(directory: str, tmp_path: Path) -> None:
    given = tf1.placeholder(tf.float32, [None, 2], name="given")
    weights = variable("w", np.full((2, 1), 3, np.float32))
    tf.identity(given @ weights, name="output")
    saver = Saver(max_to_keep=9, keep_checkpoint_every_n_hours=2)
    with session() as sess:
        prefix = saver.save(sess, f"{directory}/model", 1)
        sess.graph.finalize()
        saver.save(sess, f"{directory}/model", 2)
    one = np.ones((1, 2))
    with tf.Graph().as_default():
        again = import_meta_graph(f"{prefix}.meta", import_scope="old")
        assert again is not None
        assert again.as_saver_def().max_to_keep == 9
        with tf1.Session() as sess:
            again.restore(sess, prefix)
            assert sess.run("old/output:0", {"old/given:0": one}).tolist() == [[6]]
            again.save(sess, f"{directory}/more", 5)
    assert ck.open_checkpoint(f"{directory}/more-5").specs().keys() == {"w"}
    local = tmp_path / "their.meta"
    local.write_bytes(again.export_meta_graph())
    if "://" not in directory:
        with tf.Graph().as_default(), tf1.Session() as sess:
            theirs = tf1.train.import_meta_graph(f"{prefix}.meta")
            theirs.restore(sess, prefix)
            assert sess.run("output:0", {"given:0": one}).tolist() == [[6]]
    with tf.Graph().as_default():
        assert tf1.train.import_meta_graph(str(local)) is not None


@IN_A_GRAPH
def test_a_data_file_for_each_device(tmp_path: Path) -> None:
    with tf.device("/cpu:0"):
        variable("a", np.ones(2))
    with tf.device("/cpu:1"):
        other = variable("b", np.ones(3))
    saver = Saver(sharded=True)
    with tf1.Session(config=tf1.ConfigProto(device_count={"CPU": 2})) as sess:
        sess.run(tf1.global_variables_initializer())
        prefix = saver.save(sess, f"{tmp_path}/model")
        assert len(list(tmp_path.glob("model.data-*-of-00002"))) == 2
        sess.run(other.assign(other * 0))
        saver.restore(sess, prefix)
        assert sess.run(other).tolist() == [1, 1, 1]


@IN_A_GRAPH
def test_var_list_of_names_variables_and_other_names(tmp_path: Path) -> None:
    first, second = variable("first", np.float32(1)), variable("second", np.float32(2))
    with session() as sess:
        for name, var_list in (("names", ["first"]), ("list", [first]), ("named", {"first": first})):
            Saver(var_list).save(sess, f"{tmp_path}/{name}")
            assert list(ck.open_checkpoint(f"{tmp_path}/{name}")) == ["first"]
        Saver({"first": second}).restore(sess, f"{tmp_path}/names")
        assert sess.run([first, second]) == [1, 1]
    with pytest.raises(ck.UsageError, match="'third'"):
        Saver(["third"])


@IN_A_GRAPH
def test_what_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    with ck.BundleWriter(tmp_path / "model") as writer:
        writer.add("a", np.ones(4, np.float32))
        writer.add("b", np.ones((2, 3)))
        writer.add("c", np.ones(2))
    a, b = variable("a", np.zeros(4, np.float32)), variable("b", np.zeros(6))
    c = variable("c", np.zeros(2, np.float32))
    with session() as sess:
        for variables, match in (([a, b], "another shape"), ([a, c], "another type")):
            with pytest.raises(ck.UsageError, match=match):
                Saver(variables).restore(sess, tmp_path / "model")
        with pytest.raises(ck.TensorNotFoundError):
            Saver({"a": a, "missing": b}).restore(sess, tmp_path / "model")
        assert sess.run(a).tolist() == [0] * 4
        Saver([a, b], reshape=True).restore(sess, tmp_path / "model")
        assert sess.run([a, b])[1].tolist() == [1] * 6


@IN_A_GRAPH
def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ck.UsageError, match="No variables to save"):
        Saver()
    weights = variable("w", np.ones(2))
    saver = Saver()
    with session(initialize=False) as sess:
        with pytest.raises(ck.UsageError, match="no value"):
            saver.save(sess, f"{tmp_path}/model")
        with pytest.raises(ck.UsageError, match="None"):
            saver.restore(sess, None)
    with tf.Graph().as_default(), tf1.Session() as other, pytest.raises(ck.UsageError, match="another graph"):
        saver.save(other, f"{tmp_path}/model")
    with pytest.raises(ck.UsageError, match="must be a Session"):
        saver.save({"w": 1}, f"{tmp_path}/model")
    with pytest.raises(ck.UnsupportedError):
        Saver(write_version=1)
    with pytest.raises(ck.UsageError, match="coordinator"):
        Saver(coordinator=None)
    late = Saver(defer_build=True)
    with pytest.raises(ck.UsageError, match="build"):
        late.save(None, f"{tmp_path}/model")
    late.build()
    with session() as sess, pytest.raises(ck.UsageError, match=r"ckptstore\.tensorflow\.Saver"):
        ck.Saver().save(sess, f"{tmp_path}/model")
    assert not list(tmp_path.iterdir())
    del weights


def test_eager_variables_are_targets_and_never_silently_unchanged(directory: str) -> None:
    weights, count = tf.Variable(np.ones((2, 2), np.float32)), tf.Variable(np.int64(3), name="count")
    saver = Saver({"w": weights, "count": count})
    prefix = saver.save(None, f"{directory}/model", count)
    assert prefix == f"{directory}/model-3"
    weights.assign(weights * 7)
    count.assign(9)
    with pytest.raises(ck.UsageError, match=r"ckptstore\.tensorflow\.Saver"):
        ck.open_checkpoint(prefix).restore(into={"w": weights}, missing="ignore")
    with pytest.raises(ck.UsageError, match=r"ckptstore\.tensorflow\.Saver"):
        ck.Checkpoint(w=weights)
    assert weights.numpy().tolist() == [[7, 7], [7, 7]]
    saver.restore(None, prefix)
    assert (weights.numpy().tolist(), int(count.numpy())) == ([[1, 1], [1, 1]], 3)
    other = tf.Variable(np.ones(4, np.float32))
    with pytest.raises(ck.UsageError, match="another shape"):
        Saver({"w": other, "count": count}).restore(None, prefix)
    Saver({"w": other}, reshape=True).restore(None, prefix)


def test_no_eager_variable_changes_if_one_of_an_open_shape_does_not_fit(tmp_path: Path) -> None:
    prefix = Saver({"a": tf.Variable(1), "w": tf.Variable(np.zeros(4, np.float32))}).save(
        None, tmp_path / "model"
    )
    first = tf.Variable(7)
    other = tf.Variable(np.zeros((2, 2), np.float32), shape=tf.TensorShape([None, 2]))
    with pytest.raises(ck.UsageError, match=r"another shape \[tensor 'w'\]"):
        Saver({"a": first, "w": other}).restore(None, prefix)
    assert int(first.numpy()) == 7


@IN_A_GRAPH
def test_no_variable_changes_if_one_cannot_be_reshaped(tmp_path: Path) -> None:
    a, b = variable("a", np.zeros(2, np.float32)), variable("b", np.zeros(4, np.float32))
    with session() as sess:
        Saver([a, b]).save(sess, tmp_path / "model")
    longer = variable("c", np.ones(5, np.float32))
    with session() as sess:
        sess.run(a.assign([3, 3]))
        with pytest.raises(ck.UsageError, match=r"another shape \[tensor 'b'\]"):
            Saver({"a": a, "b": longer}, reshape=True).restore(sess, tmp_path / "model")
        assert sess.run(a).tolist() == [3, 3]


def test_objects_of_tf_train_are_refused_with_what_to_do(tmp_path: Path) -> None:
    checkpoint = tf.train.Checkpoint(w=tf.Variable(1.0))
    for call in (
        lambda: ck.CheckpointManager(checkpoint, tmp_path, 3),
        lambda: ck.Saver().save(checkpoint, f"{tmp_path}/model"),
        lambda: ck.Checkpoint(net=checkpoint),
    ):
        with pytest.raises(ck.UsageError, match=r"ckptstore\.tensorflow\.Saver"):
            call()
    assert not list(tmp_path.iterdir())


def train(directory: str, last_step: int, *, fails_at: int | None = None) -> list[float]:
    """Count to `last_step` with a hook; return what each step saw."""
    seen: list[float] = []
    with tf.Graph().as_default():
        step = tf1.train.get_or_create_global_step()
        weights = variable("w", np.float32(0))
        with tf.control_dependencies([weights.assign_add(2.0)]):
            count = step.assign_add(1)
        hooks = [
            CheckpointHook(directory, save_steps=2),
            tf1.train.StopAtStepHook(last_step=last_step),
        ]
        with tf1.train.MonitoredTrainingSession(hooks=hooks, **NO_SUMMARIES) as sess:
            while not sess.should_stop():
                _, value = sess.run([count, weights])
                seen.append(float(value))
                if fails_at is not None and len(seen) == fails_at:
                    raise RuntimeError("the job dies")
    return seen


@IN_A_GRAPH
def test_a_monitored_session_resumes(directory: str) -> None:
    with pytest.raises(RuntimeError, match="dies"):
        train(directory, 9, fails_at=5)
    assert ck.latest_checkpoint(directory) in (f"{directory}/model.ckpt-4", f"{directory}/model.ckpt-5")
    reached = int(latest(directory, "global_step"))
    seen = train(directory, 9)
    assert len(seen) == 9 - reached
    assert latest(directory, "w") == 18


@IN_A_GRAPH
def test_a_hook_that_cannot_read_does_not_begin_from_scratch(tmp_path: Path) -> None:
    train(str(tmp_path), 3)
    for data in tmp_path.glob("*.data-*"):
        data.write_bytes(data.read_bytes()[:4])
    with pytest.raises(ck.CorruptError):
        train(str(tmp_path), 5)
    hostile: list[dict[str, Any]] = [{}, {"save_steps": 1, "save_secs": 1}, {"save_steps": -1}]
    for options in hostile:
        with pytest.raises(ck.UsageError):
            CheckpointHook(tmp_path, **options)
    with pytest.raises(ck.UsageError, match="global step"):
        CheckpointHook(tmp_path, 1).begin()


def test_the_lines_of_the_page() -> None:
    url = "memory://page-tensorflow/run"

    def model() -> Any:
        weights = variable("w", np.float32(0))
        return tf.group(weights.assign_add(1.0), tf1.train.get_or_create_global_step().assign_add(1))

    scene: dict[str, Any] = {"tf1": tf1, "ck": ck, "directory": url}
    for steps in (4, 8):
        with tf.Graph().as_default():
            scene |= {"train_op": model(), "steps": steps}
            exec(block("session", "frameworks/tensorflow"), scene)
    assert latest(url, "w") == 8
    with tf.Graph().as_default():
        scene |= {"train_op": model(), "directory": f"{url}/monitored"}
        scene["hooks"] = [tf1.train.StopAtStepHook(last_step=3)]
        exec(block("hook", "frameworks/tensorflow"), scene)
    assert latest(f"{url}/monitored", "w") == 3
    scene |= {"weights": tf.Variable(2.0), "bias": tf.Variable(1.0)}
    exec(block("eager", "frameworks/tensorflow"), scene)
