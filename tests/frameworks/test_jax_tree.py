"""Trees of JAX on eight devices of one process: saved, and restored elsewhere."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import NamedSharding, PartitionSpec

import ckptstore as ck
import ckptstore.jax
from ckptstore.bundle.read.open_bundle import open_bundle
from ckptstore.jax.habit import JaxHabit
from ckptstore.reading.open_checkpoint import OpenCheckpoint
from ckptstore.storage.base import Location
from ckptstore.storage.registry import locate
from ckptstore.storage.wrappers import StorageWrapper
from ckptstore.train.kept_savers import kept_saver
from ckptstore.tree.document import parse
from tests.engines.page import block

pytestmark = pytest.mark.usefixtures("without_sync")

MESHES = {shape: jax.make_mesh(shape, ("x", "y")) for shape in ((4, 2), (2, 4), (1, 8))}
TYPES = ("float32", "bfloat16", "float16", "int8", "uint16", "int32", "bool", "complex64")
SMALL = ("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float8_e3m4", "int4", "uint4", "int2")
RANDOM = np.random.default_rng(5)


def sharding(mesh: tuple[int, int], *spec: Any) -> NamedSharding:
    return NamedSharding(MESHES[mesh], PartitionSpec(*spec))


def like(tree: Any) -> Any:
    """Return the tree as shapes, types and shardings."""
    return jax.tree.map(lambda one: jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=one.sharding), tree)


def equal(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, one), other in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        assert type(one) is type(other), path
        if isinstance(one, jax.Array):
            assert one.dtype == other.dtype, path
            assert one.sharding == other.sharding, path
            assert one.committed == other.committed, path
            if jax.dtypes.issubdtype(one.dtype, jax.dtypes.prng_key):
                assert jax.random.key_impl(one) == jax.random.key_impl(other), path
                np.testing.assert_array_equal(jax.random.key_data(one), jax.random.key_data(other))
                continue
        if not isinstance(one, jax.Array | np.ndarray):
            assert one == other, path
            continue
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes(), path


def states(mesh: tuple[int, int]) -> dict[str, Any]:
    """Return arrays with the same values on any mesh: split, in part and wholly replicated, of all types."""
    random = np.random.default_rng(7)
    rows = random.random((24, 16), np.float32)
    tree: dict[str, Any] = {
        "both": jax.device_put(rows, sharding(mesh, "x", "y")),
        "turned": jax.device_put(rows, sharding(mesh, "y", "x")),
        "rows": jax.device_put(rows, sharding(mesh, "x")),
        "all on one axis": jax.device_put(rows, sharding(mesh, ("x", "y"))),
        "everywhere": jax.device_put(rows, sharding(mesh)),
        "scalar": jax.device_put(np.float32(3), sharding(mesh)),
        "nothing": jax.device_put(np.empty((0, 8), np.float32), sharding(mesh, None, "y")),
        "one device": jnp.arange(5),
        "keys": jax.device_put(jax.random.split(jax.random.key(3), 8), sharding(mesh, "x")),
        "key": jax.random.key(4, impl="rbg"),
    }
    for name in (*TYPES, *SMALL):
        values = random.integers(0, 2, (8, 8)).astype(getattr(np, name, None) or getattr(ml_dtypes, name))
        tree[name] = jax.device_put(values, sharding(mesh, "x", "y"))
    return tree


@pytest.mark.parametrize("mesh", [(4, 2), (2, 4), (1, 8)])
def test_every_type_and_layout_comes_back_on_every_mesh(mesh: tuple[int, int], tmp_path: Path) -> None:
    prefix = ckptstore.jax.save(states((4, 2)), f"{tmp_path}/model", 7)
    assert prefix == f"{tmp_path}/model-7"
    wanted = states(mesh)
    found = ckptstore.jax.restore(like(wanted), prefix)
    # What was committed to a device in the shapes is so afterwards.
    wanted["one device"] = jax.device_put(wanted["one device"], jax.devices()[0])
    wanted["key"] = jax.device_put(wanted["key"], jax.devices()[0])
    equal(found, wanted)


def test_rows_that_do_not_divide_evenly_between_two_layouts(tmp_path: Path) -> None:
    rows = np.arange(24 * 3, dtype=np.int32).reshape(24, 3)
    six = jax.make_mesh((6,), ("x",), devices=jax.devices()[:6])
    saved = jax.device_put(rows, sharding((4, 2), ("x", "y")))
    prefix = ckptstore.jax.save({"w": saved}, f"{tmp_path}/model")
    where = NamedSharding(six, PartitionSpec("x"))
    found = ckptstore.jax.restore({"w": jax.ShapeDtypeStruct((24, 3), rows.dtype, sharding=where)}, prefix)
    assert found["w"].sharding == where
    np.testing.assert_array_equal(found["w"], rows)


class Counted(StorageWrapper):
    """Sums up what is read of data files."""

    read_bytes = 0

    def read_into(self, key: str, ranges: Any, buffers: Any, *more: Any, **options: Any) -> Any:
        self.read_bytes += sum(memoryview(buffer).nbytes for buffer in buffers)
        return super().read_into(key, ranges, buffers, *more, **options)


def test_each_box_is_written_once_and_read_once(tmp_path: Path) -> None:
    tree = {
        "both": jax.device_put(RANDOM.random((64, 256), np.float32), sharding((4, 2), "x", "y")),
        "in part": jax.device_put(RANDOM.random((64, 256), np.float32), sharding((4, 2), "x")),
        "everywhere": jax.device_put(RANDOM.random((64, 256), np.float32), sharding((4, 2))),
    }
    prefix = ckptstore.jax.save(tree, f"{tmp_path}/model", 1)
    size = 3 * 64 * 256 * 4
    [data] = tmp_path.glob("model-1.data*")
    document = bytes(ck.open_checkpoint(prefix)["_CKPTSTORE_TREE"][()])
    # A string has its length and a checksum before it.
    assert size + len(document) < data.stat().st_size < size + len(document) + 20
    specs = ck.open_checkpoint(prefix).specs()
    assert [len(specs[name].slices) for name in tree] == [8, 4, 0]
    place = locate(prefix)
    counted = Counted(place.storage)
    opened = OpenCheckpoint(open_bundle(Location(counted, place.key, place.url)))
    equal(ckptstore.jax.restore(like(tree), opened), tree)
    assert size <= counted.read_bytes < size + 2 * len(document)


def test_optimizer_chains_come_back_as_they_were(tmp_path: Path) -> None:
    params = {"a": {"w": jnp.ones((8, 4)), "b": jnp.zeros(4)}, "c/d": jnp.ones(3)}
    labels = {"a": {"w": "slow", "b": "fast"}, "c/d": "none"}
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.multi_transform(
            {
                "slow": optax.inject_hyperparams(optax.adamw)(
                    learning_rate=optax.linear_schedule(1e-3, 0, 9)
                ),
                "fast": optax.sgd(0.1, momentum=0.9),
                "none": optax.set_to_zero(),
            },
            labels,
        ),
    )

    def step(params: Any, state: Any) -> Any:
        gradients = jax.tree.map(jnp.ones_like, params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    fresh = (params, optimizer.init(params))
    trained = step(*step(*fresh))
    prefix = ckptstore.jax.save({"train": trained, "step": 2}, f"{tmp_path}/model", 2)
    found = ckptstore.jax.restore({"train": fresh, "step": 0}, prefix)
    equal(found, {"train": trained, "step": 2})
    equal(step(*found["train"]), step(*trained))
    assert "train/0/c.Sd" in ck.open_checkpoint(prefix)
    assert fresh[0]["a"]["w"][0, 0] == 1.0


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(4, 8, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.last(self.drop(self.first(x)))


def test_the_state_of_an_nnx_model_comes_back_with_its_keys(tmp_path: Path) -> None:
    model = Net(nnx.Rngs(1))
    model(jnp.ones((3, 4)))
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    prefix = ckptstore.jax.save(nnx.state((model, optimizer)), f"{tmp_path}/model")
    other = Net(nnx.Rngs(2))
    pair = (other, nnx.Optimizer(other, optax.adam(1e-3), wrt=nnx.Param))
    nnx.update(pair, ckptstore.jax.restore(nnx.state(pair), prefix))
    np.testing.assert_array_equal(other(jnp.ones((3, 4))), model(jnp.ones((3, 4))))
    equal(nnx.state(pair), nnx.state((model, optimizer)))


def test_a_train_state_resumes_from_shapes_alone(tmp_path: Path) -> None:
    def create() -> Any:
        return TrainState.create(apply_fn=lambda x: x, params={"w": jnp.ones((4, 2))}, tx=optax.adam(1e-3))

    new = create()
    saved = new.apply_gradients(grads={"w": jnp.ones((4, 2))})
    prefix = ckptstore.jax.save(saved, f"{tmp_path}/model")
    equal(ckptstore.jax.restore(new, prefix).params, saved.params)
    assert ckptstore.jax.restore(new, prefix).step == 1
    # Where the step is traced, it is an array in the one tree and a number in the other.
    traced = new.replace(step=jnp.int32(0))
    assert int(ckptstore.jax.restore(traced, prefix).step) == 1
    prefix = ckptstore.jax.save(saved.replace(step=jnp.int32(5)), f"{tmp_path}/model")
    found = ckptstore.jax.restore(new, prefix)
    assert (type(found.step), found.step) == (int, 5)


def test_plain_values_and_arrays_of_numpy_come_back(tmp_path: Path) -> None:
    tree = {
        "epoch": 3,
        "rate": 0.1,
        "name": "run",
        "big": 2**70,
        "done": False,
        "nothing": None,
        "pair": (1, np.arange(4)),
        "scalar": np.float32(2),
        "generator": np.random.default_rng(1).bit_generator.state,
    }
    prefix = ckptstore.jax.save(tree, f"{tmp_path}/model")
    blank = jax.tree.map(lambda one: one * 0 if is_number(one) else "", tree)
    found = ckptstore.jax.restore(blank, prefix)
    equal(found, tree)
    assert isinstance(found["pair"][1], np.ndarray)
    np.testing.assert_array_equal(blank["pair"][1], np.zeros(4))


def is_number(value: Any) -> bool:
    return not isinstance(value, str)


def test_a_tree_is_never_left_as_it_was_in_silence(tmp_path: Path) -> None:
    prefix = ckptstore.jax.save({"w": jnp.full(3, 7.0)}, f"{tmp_path}/model")
    tree = {"w": jnp.zeros(3)}
    found = ckptstore.jax.restore(tree, prefix)
    assert found["w"].tolist() == [7, 7, 7]
    assert tree["w"].tolist() == [0, 0, 0]


WRONG: dict[str, tuple[Any, str]] = {
    "shape": ({"a": [jnp.zeros(4)]}, r"tensor 'a/0'"),
    "type": ({"a": [jnp.zeros(3, jnp.int32)]}, r"tensor 'a/0'"),
    "missing": ({"a": [jnp.zeros(3), jnp.zeros(2)]}, r"tensor 'a/1'"),
    "keys for an array": ({"a": [jax.random.key(1)]}, r"tensor 'a/0'"),
    "an array for keys": ({"key": jnp.zeros(2, jnp.uint32)}, r"at \['key'\] \[tensor 'key'\]"),
    "other keys": ({"key": jax.random.key(1, impl="rbg")}, r"at \['key'\].*rbg.*threefry"),
    "a number for an array": ({"a": [1.5]}, r"at \['a'\]\[0\]"),
    "an array for a text": ({"name": jnp.zeros(3)}, r"at \['name'\]"),
    "a value that is nowhere": ({"epoch": 1}, r"no value for \['epoch'\]"),
    "something else": ({"name": object()}, r"at \['name'\].*object"),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    tree = {"a": [jnp.ones(3)], "key": jax.random.key(3), "name": "run"}
    return str(ckptstore.jax.save(tree, f"{tmp_path_factory.mktemp('small')}/model"))


@pytest.mark.parametrize("case", WRONG)
def test_an_error_names_the_leaf(case: str, small: str) -> None:
    tree, expected = WRONG[case]
    with pytest.raises((ck.UsageError, ck.TensorNotFoundError), match=expected):
        ckptstore.jax.restore(tree, small)


@pytest.mark.parametrize(
    ("number", "leaf"),
    [
        (0.001, jnp.int32(0)),
        (2.7, np.int64(0)),
        (0.5, jnp.zeros((), bool)),
        (2.5, jnp.zeros((), jnp.int4)),
        (float("nan"), jnp.int32(0)),
        (1e300, jnp.float32(0)),
        (1 + 2j, jnp.float32(0)),
    ],
)
def test_a_number_is_never_cut_to_the_type_of_an_array(number: Any, leaf: Any, tmp_path: Path) -> None:
    prefix = ckptstore.jax.save({"lr": number}, f"{tmp_path}/model")
    with pytest.raises(ck.UsageError, match=r"differ at \['lr'\]"):
        ckptstore.jax.restore({"lr": leaf}, prefix)


@pytest.mark.parametrize("number", [0.1, float("nan"), float("-inf"), 2.0, True, 1 + 2j])
def test_a_number_becomes_an_array_that_can_hold_it(number: Any, tmp_path: Path) -> None:
    prefix = ckptstore.jax.save({"lr": number}, f"{tmp_path}/model")
    for dtype in (jnp.complex64,) if isinstance(number, complex) else (jnp.float32, jnp.bfloat16):
        found = ckptstore.jax.restore({"lr": jnp.zeros((), dtype)}, prefix)["lr"]
        assert found.dtype == dtype
        assert jnp.array_equal(found, jnp.asarray(number, dtype), equal_nan=True)


def test_missing_leaves_may_stay_and_more_values_may_be_refused(small: str) -> None:
    more = jax.ShapeDtypeStruct((2,), jnp.float32)
    found = ckptstore.jax.restore({"a": [jnp.zeros(3), more], "epoch": 4}, small, missing="ignore")
    assert found["a"][0].tolist() == [1, 1, 1]
    assert found["a"][1] is more
    assert found["epoch"] == 4
    with pytest.raises(ck.UsageError, match=r"2 values that the tree has not .*: found key, name"):
        ckptstore.jax.restore({"a": [jnp.zeros(3)]}, small, unexpected="raise")
    with pytest.raises(ck.UsageError, match="missing must be"):
        ckptstore.jax.restore({}, small, missing="no")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({"a": [jnp.ones(1), {1, object()}]}, r"\['a'\]\[1\]"),
        ({"f": {"g": lambda: 0}}, r"\['f'\]\['g'\].*tensor 'f/g'"),
        ({"a": jnp.ones(1), 3: jnp.ones(1)}, "JAX takes no such tree"),
        ({"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}, "a.Sb": 1}, None),
        (jnp.ones(3), "the root cannot be named"),
    ],
)
def test_what_cannot_be_restored_is_not_saved(tree: Any, expected: str | None, tmp_path: Path) -> None:
    if expected is None:
        equal(ckptstore.jax.restore(tree, ckptstore.jax.save(tree, f"{tmp_path}/m")), tree)
        return
    with pytest.raises(ck.UsageError, match=expected):
        ckptstore.jax.save(tree, f"{tmp_path}/model")
    assert not list(tmp_path.iterdir())


def test_a_traced_or_donated_array_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ck.UsageError, match="being traced"):
        jax.jit(lambda x: ckptstore.jax.save({"x": x}, f"{tmp_path}/m"))(1.0)
    gone = jnp.ones(3)
    gone.delete()
    with pytest.raises(ck.UsageError, match=r"tensor 'w'.*donated|donated.*tensor 'w'"):
        ckptstore.jax.save({"w": gone}, f"{tmp_path}/m")


def test_a_background_save_copies_nothing_and_survives_donation(tmp_path: Path) -> None:
    step = jax.jit(lambda x: x * 2 + 1, donate_argnums=0)
    x = jax.device_put(jnp.arange(1 << 16, dtype=jnp.float32), sharding((4, 2), "x"))
    before = np.array(x)
    addresses = {shard.data.unsafe_buffer_pointer() for shard in x.addressable_shards if not shard.replica_id}
    host = np.zeros(3)
    values = ckptstore.jax.pieces({"x": x})["x"]
    assert {piece.array.ctypes.data for piece in values} == addresses
    del values
    with warnings.catch_warnings(), ck.Saver() as saver:
        warnings.simplefilter("ignore")
        handle = ckptstore.jax.save_async({"x": x, "host": host}, f"{tmp_path}/m", 1, saver=saver)
        for _ in range(3):
            x = step(x)
        host += 5
        prefix = str(handle.result())
    found = ckptstore.jax.restore({"x": x, "host": host}, prefix)
    np.testing.assert_array_equal(found["x"], before)
    assert found["host"].tolist() == [0, 0, 0]


def test_the_saver_of_a_path_is_kept_and_keeps_the_newest_five(tmp_path: Path) -> None:
    for step in range(7):
        ckptstore.jax.save({"w": jnp.full(2, step)}, f"{tmp_path}/model", step)
    assert {path.name for path in tmp_path.glob("*.index")} == {f"model-{step}.index" for step in range(2, 7)}
    assert ck.latest_checkpoint(tmp_path) == f"{tmp_path}/model-6"
    assert not list(tmp_path.glob("*.meta"))


def test_a_document_with_flipped_bytes_is_a_typed_error(tmp_path: Path) -> None:
    tree = {"a": [jnp.ones(3), 5], "name": "run"}
    prefix = str(ckptstore.jax.save(tree, f"{tmp_path}/model"))
    [data] = tmp_path.glob("model.data*")
    whole = data.read_bytes()
    document = bytes(ck.open_checkpoint(prefix)["_CKPTSTORE_TREE"][()])
    at = whole.index(document)
    for offset in range(0, len(document), 31):
        damaged = bytearray(whole)
        damaged[at + offset] ^= 0x15
        data.write_bytes(damaged)
        with pytest.raises(ck.CorruptError):
            ckptstore.jax.restore(tree, prefix)
    # With checksums that agree: whoever wrote it, it is no tree of ours.
    for offset in range(len(document)):
        damaged = bytearray(document)
        damaged[offset] ^= 0x80
        with pytest.raises(ck.FormatError):
            parse(bytes(damaged), JaxHabit(), url=prefix)
        if offset % 19:
            continue
        ck.Saver().save({"a/0": np.ones(3), "_CKPTSTORE_TREE": np.array(bytes(damaged), object)}, prefix)
        with pytest.raises(ck.FormatError, match="_CKPTSTORE_TREE"):
            ckptstore.jax.restore(tree, prefix)


def test_a_checkpoint_without_a_document_is_restored_by_names(tmp_path: Path) -> None:
    prefix = str(ck.Saver().save({"a/w": np.ones((8, 2)), "n": np.int32(3)}, f"{tmp_path}/model"))
    where = sharding((4, 2), "x")
    tree = {"a": {"w": jax.ShapeDtypeStruct((8, 2), np.dtype("float64"), sharding=where)}, "n": 0}
    with jax.enable_x64(True):
        found = ckptstore.jax.restore(tree, prefix)
    assert (found["n"], found["a"]["w"].sharding, found["a"]["w"].dtype) == (3, where, np.float64)
    # JAX would make another type of it, without a word.
    with pytest.raises(ck.UsageError, match="another type"):
        ckptstore.jax.restore(tree, prefix)


def test_the_page_saves_and_resumes(tmp_path: Path) -> None:
    lines = block("resume", "frameworks/jax").replace("s3://bucket", str(tmp_path))
    assert len([line for line in lines.splitlines() if "train" not in line]) <= 6

    def train(state: Any) -> Any:
        return {"step": state["step"] + 1, "w": state["w"] * 2}

    for steps in (5, 9):
        state = {"step": 0, "w": jnp.ones(3)}
        names = {"ckptstore": ck, "state": state, "train": train, "steps": steps, "every": 2}
        exec(lines, names)
        kept_saver(f"{tmp_path}/run/model").close()
        found: Any = names["state"]
        assert found["w"].tolist() == [2.0**steps] * 3
    assert ck.latest_checkpoint(tmp_path / "run") == f"{tmp_path}/run/model-8"
