"""What holds on every backend of Keras: `test_keras.py` runs this file with each of them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest

import ckptstore as ck
import ckptstore.keras
from tests.meta.source import ROOT

pytestmark = pytest.mark.usefixtures("without_sync")

BACKENDS = ("jax", "torch", "tensorflow")
X = np.random.default_rng(1).random((32, 4), np.float32)
Y = X.sum(1, keepdims=True)


class Block(keras.layers.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.norms = {"a": keras.layers.LayerNormalization(), "b": [keras.layers.LayerNormalization()]}
        self.dense = keras.layers.Dense(4)
        self.again = self.dense

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(4,), initializer="ones", name="scale")
        for one in (self.norms["a"], *self.norms["b"], self.dense):
            one.build(shape)

    def call(self, x: Any) -> Any:
        x = self.norms["a"](x)
        return self.dense(self.norms["b"][0](x)) * self.scale


class Sub(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = [Block(), Block()]
        self.head = keras.Sequential([keras.layers.Dense(3), keras.layers.Dense(1)])

    def call(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def sequential() -> Any:
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), keras.layers.BatchNormalization()])
    return keras.Sequential([keras.Input((4,)), inner, keras.layers.Dropout(0.1), keras.layers.Dense(1)])


def functional() -> Any:
    there = keras.Input((4,))
    both = [keras.layers.Dense(3, name=f"n{keras.backend.get_uid('n')}")(there) for _ in range(2)]
    return keras.Model(there, keras.layers.Dense(1)(keras.layers.Add()(both)))


def attention() -> Any:
    there = keras.Input((4,))
    rows = keras.layers.Reshape((2, 2))(there)
    found = keras.layers.MultiHeadAttention(2, 4)(rows, rows)
    return keras.Model(there, keras.layers.Dense(1)(keras.layers.Flatten()(found)))


def subclassed() -> Any:
    model = Sub()
    model(X[:2])
    return model


MODELS = {one.__name__: one for one in (sequential, functional, subclassed, attention)}


def built(name: str, optimizer: Any = "adam") -> Any:
    model = MODELS[name]()
    # Compiling takes longer than training does.
    model.compile(optimizer, "mse", metrics=["mae"], run_eagerly=True)
    model.optimizer.build(model.trainable_variables)
    return model


def filled(name: str) -> Any:
    """Return a model with other values in each of its variables."""
    model = built(name)
    random = np.random.default_rng(len(name))
    for variable in (*model.weights, *model.optimizer.variables):
        variable.assign(random.random(variable.shape) + 1)
    return model


def weights(model: Any) -> list[Any]:
    # Without the states of random numbers and metrics.
    return [keras.ops.convert_to_numpy(one) for one in (*model.weights, *model.optimizer.variables)]


def same(one: Any, other: Any) -> None:
    for left, right in zip(weights(one), weights(other), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("name", MODELS)
def test_names_and_values_are_those_of_the_file_that_keras_writes(name: str, tmp_path: Path) -> None:
    model = filled(name)
    model.save_weights(tmp_path / "m.weights.h5")
    expected = {}
    with h5py.File(tmp_path / "m.weights.h5") as file:
        file.visititems(
            lambda path, one: expected.update({path: one[()]}) if isinstance(one, h5py.Dataset) else None
        )
    prefix = ckptstore.keras.save(model, f"{tmp_path}/model", 3)
    assert prefix == f"{tmp_path}/model-3"
    found = dict(ck.open_checkpoint(prefix))
    assert sorted(found) == sorted(expected)
    assert any(path.startswith("optimizer/") for path in found)
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value, path)


@pytest.mark.parametrize("name", MODELS)
def test_a_second_model_of_the_process_restores(name: str, tmp_path: Path) -> None:
    model = filled(name)
    prefix = ckptstore.keras.save(model, f"{tmp_path}/model")
    other = built(name)
    report = ckptstore.keras.load(other, prefix)
    assert len(report.restored) == len(ck.open_checkpoint(prefix))
    same(other, model)


def test_a_checkpoint_moves_between_backends(tmp_path: Path) -> None:
    shared = Path(os.environ["CKPTSTORE_TEST_SHARED"])
    model = filled("attention")
    np.save(shared / f"{keras.backend.backend()}.npy", model.predict(X, verbose=0))
    ckptstore.keras.save(model, f"{shared}/{keras.backend.backend()}")
    for backend in BACKENDS[: BACKENDS.index(keras.backend.backend()) + 1]:
        other = built("attention")
        ckptstore.keras.load(other, f"{shared}/{backend}")
        found = other.predict(X, verbose=0)
        np.testing.assert_allclose(found, np.load(shared / f"{backend}.npy"), rtol=1e-4, atol=1e-5)


def test_a_model_with_another_optimizer_is_refused_and_unchanged(tmp_path: Path) -> None:
    prefix = ckptstore.keras.save(filled("functional"), f"{tmp_path}/model")
    for optimizer in ("sgd", keras.optimizers.Adam(amsgrad=True)):
        other = built("functional", optimizer)
        before = weights(other)
        with pytest.raises((ck.UsageError, ck.TensorNotFoundError), match="optimizer/vars/"):
            ckptstore.keras.load(other, prefix)
        for left, right in zip(weights(other), before, strict=True):
            np.testing.assert_array_equal(left, right)
        ckptstore.keras.load(other, prefix, optimizer=False)
        assert int(keras.ops.convert_to_numpy(other.optimizer.iterations)) == 0


def test_a_layer_of_another_shape_is_refused_by_its_name(tmp_path: Path) -> None:
    def model(width: int, layers: int) -> Any:
        return keras.Sequential([keras.Input((4,)), *(keras.layers.Dense(width) for _ in range(layers))])

    prefix = ckptstore.keras.save(model(3, 2), f"{tmp_path}/model")
    with pytest.raises(ck.UsageError, match=r"layers/dense/vars/0.*float32\[4, 5\].*float32\[4, 3\]"):
        ckptstore.keras.load(model(5, 2), prefix)
    with pytest.raises(ck.TensorNotFoundError, match="layers/dense_2/vars/0"):
        ckptstore.keras.load(model(3, 3), prefix)
    report = ckptstore.keras.load(model(3, 3), prefix, missing="ignore")
    assert report.missing == ("layers/dense_2/vars/0", "layers/dense_2/vars/1")
    with pytest.raises(ck.UsageError, match="not built"):
        ckptstore.keras.load(keras.Sequential([keras.layers.Dense(3)]), prefix)
    with pytest.raises(ck.UsageError, match="no model of Keras"):
        ckptstore.keras.save(object(), prefix)
    with pytest.raises(ck.UsageError, match=r"ckptstore\.keras\.save"):
        ck.Saver().save(model(3, 1), prefix)


class Late(keras.Model):
    """Its layer is built by the first batch."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(2)

    def build(self, shape: Any) -> None:
        self.built = True

    def call(self, x: Any) -> Any:
        return self.dense(x)


def test_a_layer_that_is_not_built_does_not_begin_anew_in_silence(tmp_path: Path) -> None:
    model, other = Late(), Late()
    expected = keras.ops.convert_to_numpy(model(X))
    prefix = ckptstore.keras.save(model, f"{tmp_path}/model")
    other.build(X.shape)
    with pytest.raises(ck.UsageError, match=r"2 more variables there \[tensor 'dense/vars/0'.*on a batch"):
        ckptstore.keras.load(other, prefix)
    other(X)
    ckptstore.keras.load(other, prefix)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(other(X)), expected, rtol=1e-6)


def test_a_threshold_of_numpy_is_saved_with_the_best(tmp_path: Path) -> None:
    threshold: Any = np.float32(1.5)
    callback = ckptstore.keras.ModelCheckpoint(
        f"{tmp_path}/model", save_best_only=True, initial_value_threshold=threshold
    )
    callback.set_model(built("sequential"))
    with pytest.warns(ck.CkptStoreWarning, match="is not there"):
        callback.on_epoch_end(0, {"loss": 1.0})
    assert callback.best == 1.5
    assert ck.latest_checkpoint(tmp_path) == f"{tmp_path}/model-1"


class Epochs(keras.callbacks.Callback):
    """Notes the epochs, and may stop the program in one of them."""

    def __init__(self, dies_in: int | None = None) -> None:
        super().__init__()
        self.seen: list[int] = []
        self.dies_in = dies_in

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        del logs
        self.seen.append(epoch)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        del logs
        if (self.seen[-1], batch) == (self.dies_in, 1):
            raise KeyboardInterrupt


def fit(directory: Path, epochs: int, dies_in: int | None = None, **options: Any) -> tuple[Any, list[int]]:
    model = built("functional")
    noted = Epochs(dies_in)
    callback = ckptstore.keras.ModelCheckpoint(f"{directory}/model", monitor="loss", **options)
    try:
        model.fit(X, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, callbacks=[callback, noted])
    except KeyboardInterrupt:
        assert dies_in is not None
    return model, noted.seen


def test_fit_that_died_goes_on_after_its_last_epoch(tmp_path: Path) -> None:
    keras.utils.set_random_seed(1)
    unbroken, seen = fit(tmp_path / "a", 5)
    assert seen == [0, 1, 2, 3, 4]
    keras.utils.set_random_seed(1)
    _, seen = fit(tmp_path / "b", 5, dies_in=3)
    assert seen == [0, 1, 2, 3]
    resumed, seen = fit(tmp_path / "b", 5)
    assert seen == [3, 4]
    same(resumed, unbroken)
    assert ck.latest_checkpoint(tmp_path / "b") == f"{tmp_path}/b/model-5"
    # All epochs are over: nothing is trained, and the weights are there.
    done, seen = fit(tmp_path / "b", 5)
    assert seen == []
    same(done, unbroken)
    # A later fit is told its first epoch.
    done.fit(X, Y, epochs=1, verbose=0, callbacks=[noted := Epochs()])
    assert noted.seen == [0]
    _, seen = fit(tmp_path / "b", 1, resume=False)
    assert seen == [0]


def test_fit_repeats_an_epoch_with_a_checkpoint_inside(tmp_path: Path) -> None:
    _, seen = fit(tmp_path, 3, dies_in=1, save_freq=5)
    assert seen == [0, 1]
    assert ck.latest_checkpoint(tmp_path) == f"{tmp_path}/model-5"
    model, seen = fit(tmp_path, 2, save_freq=5)
    assert seen == [1]
    assert int(keras.ops.convert_to_numpy(model.optimizer.iterations)) == 5 + 4


def test_the_best_checkpoints_stay(tmp_path: Path) -> None:
    def run(callback: Any, losses: list[float]) -> set[str]:
        callback.set_model(built("functional"))
        callback.on_train_begin()
        for epoch, loss in enumerate(losses):
            callback.on_epoch_begin(epoch)
            callback.on_epoch_end(epoch, {"loss": 1.0, "val_loss": loss})
        callback.on_train_end()
        return {path.stem for path in Path(callback.filepath).parent.glob("*.index")}

    losses = [3.0, 1.0, 2.0, float("nan"), 1.5]
    only = ckptstore.keras.ModelCheckpoint(tmp_path / "only" / "m", save_best_only=True)
    assert run(only, losses) == {"m-2"}
    saver = ck.Saver(retention=[ck.Best(2, "val_loss")])
    best = ckptstore.keras.ModelCheckpoint(tmp_path / "best" / "m", saver=saver)
    # The newest stays, too: it is one of the two here.
    assert run(best, losses) == {"m-2", "m-5"}
    assert run(ckptstore.keras.ModelCheckpoint(tmp_path / "five" / "m"), losses * 2) == {
        f"m-{step}" for step in range(6, 11)
    }
    # What was best before counts after a restart.
    again = ckptstore.keras.ModelCheckpoint(tmp_path / "only" / "m", save_best_only=True)
    assert run(again, [1.2, 0.5]) == {"m-2"}
    assert again.best == 0.5


def test_fit_fills_the_fields_of_the_path(tmp_path: Path) -> None:
    model = built("functional")
    path = f"{tmp_path}/fields/m-{{epoch:03d}}-{{loss:.0f}}"
    for epochs in (1, 2):
        callback = ckptstore.keras.ModelCheckpoint(path)
        model.fit(X, Y, epochs=epochs, verbose=0, callbacks=[callback, noted := Epochs()])
        assert noted.seen == [epochs - 1]
    names = sorted(one.name[:6] for one in (tmp_path / "fields").glob("*.index"))
    assert names == ["m-001-", "m-002-"]
    wrong = ckptstore.keras.ModelCheckpoint(f"{tmp_path}/m-{{nothing}}")
    wrong.set_model(model)
    with pytest.raises(ck.UsageError, match="fields among epoch"):
        wrong.on_epoch_end(0, {})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"mode": "best"}, "mode"),
        ({"save_freq": 0}, "save_freq"),
        ({"monitor": "goodness", "save_best_only": True}, "Pass mode="),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ck.UsageError, match=expected):
        ckptstore.keras.ModelCheckpoint("memory://keras/m", **options)


def test_fit_as_the_page_says(tmp_path: Path) -> None:
    model = built("functional")
    names = {"ckptstore": ck, "model": model, "x": X, "y": Y, "epochs": 1, "step": 7}
    for name in ("resume", "plain"):
        text = (ROOT / "docs" / "frameworks" / "keras.md").read_text()
        [lines] = re.findall(rf"<!-- {name} -->\n```python\n(.*?)```\n", text, re.DOTALL)
        assert len(lines.splitlines()) <= 6
        exec(lines.replace("s3://bucket", str(tmp_path)), names)
    assert {one.stem for one in (tmp_path / "run").glob("*.index")} == {"model-1", "model-7"}
