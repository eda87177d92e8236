"""Byte identity with SaveV2 and MergeV2Checkpoints on tensors that no fixture holds."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

import ckptstore as ck
from ckptstore.bundle.write.partial_indexes import merge_partial_indexes

DTYPES = [
    "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "bool", "complex64", "complex128", "bfloat16", "float8_e5m2", "float8_e4m3fn", "int4", "uint4", "string",
]  # fmt: skip


def array_of(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    if dtype == "string":
        sizes = rng.integers(0, 400, shape)
        flat = [rng.bytes(int(size)) for size in np.ravel(sizes)]
        result = np.empty(shape, object)
        result[...] = np.array([*flat, None], object)[:-1].reshape(shape)
        return result
    kind = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    if kind == np.bool_:
        return rng.random(shape) < 0.5
    values = rng.integers(0, 7, shape)
    return np.asarray(values).astype(kind)


def save_with_tensorflow(
    prefix: str, tensors: dict[str, np.ndarray], specs: dict[str, str] | None = None
) -> None:
    specs = specs or {}
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=[name.split("#")[0] for name in tensors],
        shape_and_slices=[specs.get(name, "") for name in tensors],
        tensors=[tf.convert_to_tensor(value) for value in tensors.values()],
    )


def assert_same_files(ours: str, theirs: str) -> None:
    for path in sorted(Path(theirs).parent.glob(f"{Path(theirs).name}.*")):
        mine = Path(ours).parent / path.name.replace(Path(theirs).name, Path(ours).name, 1)
        assert mine.read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("seed", range(5))
def test_random_tensors(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shapes = [(), (1,), (0,), (3, 4), (2, 0, 5), (5, 1, 2, 3), (70_000,)]
    tensors = {
        f"{'/'.join(rng.choice(['a', 'é', 'b_1', '世']) for _ in range(3))}/{number}": array_of(
            rng, DTYPES[rng.integers(len(DTYPES))], shapes[rng.integers(len(shapes))]
        )
        for number in range(60)
    }
    save_with_tensorflow(f"{tmp_path}/theirs", tensors)
    with ck.BundleWriter(tmp_path / "ours") as writer:
        for name, value in tensors.items():
            writer.add(name, value)
    assert_same_files(f"{tmp_path}/ours", f"{tmp_path}/theirs")


@pytest.mark.parametrize(("count", "length"), [(12_000, 40), (900, 900), (7, 300_000)])
def test_tables_of_many_blocks(tmp_path: Path, count: int, length: int) -> None:
    names = [f"{number:05d}".ljust(length, chr(97 + number % 26)) for number in range(count)]
    tensors = {name: np.array([number], np.int32) for number, name in enumerate(names)}
    save_with_tensorflow(f"{tmp_path}/theirs", tensors)
    with ck.BundleWriter(tmp_path / "ours") as writer:
        for name, value in tensors.items():
            writer.add(name, value)
    assert_same_files(f"{tmp_path}/ours", f"{tmp_path}/theirs")


def test_slices_and_merge(tmp_path: Path, rng: np.random.Generator) -> None:
    whole = rng.standard_normal((40, 3)).astype(np.float32)
    parts = {"one": [(0, 14), (27, 13)], "two": [(14, 13)]}
    for number, (name, rows) in enumerate(parts.items()):
        tensors = {f"w#{row}": whole[row : row + size] for row, size in rows} | {
            f"v{number}": np.arange(number + 2)
        }
        specs = {f"w#{row}": f"40 3 {row},{size}:-" for row, size in rows}
        save_with_tensorflow(f"{tmp_path}/theirs_{name}", tensors, specs)
        with ck.BundleWriter(tmp_path / f"ours_{name}") as writer:
            for row, size in rows:
                writer.add_slice("w", (40, 3), f"{row},{size}:-", whole[row : row + size])
            writer.add(f"v{number}", np.arange(number + 2))
        assert_same_files(f"{tmp_path}/ours_{name}", f"{tmp_path}/theirs_{name}")
    partial = [Path(f"{tmp_path}/theirs_{name}.index").read_bytes() for name in parts]
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=[f"{tmp_path}/theirs_{name}" for name in parts],
        destination_prefix=f"{tmp_path}/theirs",
        delete_old_dirs=True,
        allow_missing_files=False,
    )
    assert merge_partial_indexes(enumerate(partial), 2) == Path(f"{tmp_path}/theirs.index").read_bytes()
    ck.merge_bundles([tmp_path / f"ours_{name}" for name in parts], tmp_path / "ours")
    assert_same_files(f"{tmp_path}/ours", f"{tmp_path}/theirs")
    assert not list(tmp_path.glob("ours_*"))
    np.testing.assert_array_equal(ck.load_variable(tmp_path / "ours", "w"), whole)
    assert ck.list_variables(tmp_path / "ours") == tf.train.list_variables(f"{tmp_path}/ours")


@pytest.mark.parametrize("writes", ["ours", "theirs"])
@pytest.mark.parametrize("form", ["m.part-{:05d}-of-00002", "m_temp/part-{:05d}-of-00002"])
def test_parts_by_their_names_in_tensorflow(tmp_path: Path, writes: str, form: str) -> None:
    tensors: list[dict[str, np.ndarray]] = [{"a": np.arange(3)}, {"b": np.arange(4.0)}]
    parts = [str(tmp_path / form.format(number)) for number in range(2)]
    if "_temp" not in form:
        assert parts == [ck.part_prefix(tmp_path / "m", number, 2) for number in range(2)]
    for part, held in zip(parts, tensors, strict=True):
        if writes == "theirs":
            Path(part).parent.mkdir(exist_ok=True)
            save_with_tensorflow(part, held)
        else:
            with ck.BundleWriter(part) as writer:
                for name, value in held.items():
                    writer.add(name, value)
    assert ck.latest_checkpoint(tmp_path) is None
    ck.merge_bundles(parts, tmp_path / "m")
    reader = tf.train.load_checkpoint(f"{tmp_path}/m")
    np.testing.assert_array_equal(reader.get_tensor("a"), np.arange(3))
    np.testing.assert_array_equal(reader.get_tensor("b"), np.arange(4.0))
    assert ck.latest_checkpoint(tmp_path) == f"{tmp_path}/m"


def test_tensorflow_reads_what_was_saved_in_pieces(tmp_path: Path, rng: np.random.Generator) -> None:
    rows = rng.standard_normal((7, 6)).astype(np.float32)
    grid = rng.integers(0, 99, (5, 4)).astype(np.int64)
    empty = np.zeros((0, 3), np.float32)
    values = {
        "rows": [ck.Piece(rows[at : at + 2], rows.shape, (at, 0)) for at in (4, 0, 6, 2, 7)],
        "grid": [
            ck.Piece(grid[top:end, left:right], grid.shape, (top, left))
            for top, end in ((0, 3), (3, 5))
            for left, right in ((0, 1), (1, 4))
        ],
        "empty": ck.Piece(empty, empty.shape, (0, 0)),
        "step": ck.Piece(np.array(3), (), ()),
    }
    path = ck.Saver().save(values, tmp_path / "model", 3)
    reader = tf.train.load_checkpoint(path)
    expected: dict[str, np.ndarray] = {"rows": rows, "grid": grid, "empty": empty, "step": np.array(3)}
    assert reader.get_variable_to_shape_map() == {name: list(a.shape) for name, a in expected.items()}
    for name, array in expected.items():
        np.testing.assert_array_equal(reader.get_tensor(name), array)
    # A slice of its own, as a partitioned variable restores it, for a type that TensorFlow cannot assemble.
    half = rows.astype(np.float16)
    pieces = [ck.Piece(half[:4], half.shape, (0, 0)), ck.Piece(half[4:], half.shape, (4, 0))]
    path = ck.Saver().save({"half": pieces}, tmp_path / "half")
    (found,) = tf.raw_ops.RestoreV2(
        prefix=path, tensor_names=["half"], shape_and_slices=["7 6 4,3:0,6"], dtypes=[tf.float16]
    )
    np.testing.assert_array_equal(found.numpy(), half[4:])
    with tf.Graph().as_default():
        graph = tf.compat.v1.train.import_meta_graph(f"{tmp_path}/model-3.meta")
        with tf.compat.v1.Session() as session:
            graph.restore(session, f"{tmp_path}/model-3")
            np.testing.assert_array_equal(session.run("rows:0"), rows)


ASSEMBLED = {
    *("float32", "float64", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "int4", "uint4"),
    *("bool", "complex64", "complex128"),
}


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensorflow_puts_slices_of_some_types_together(
    tmp_path: Path, rng: np.random.Generator, dtype: str
) -> None:
    whole = array_of(rng, dtype, (4, 2))
    pieces = [ck.Piece(whole[at : at + 2], whole.shape, (at, 0)) for at in (0, 2)]
    path = ck.Saver().save({"w": pieces}, tmp_path / "m", write_meta_graph=False)

    def restored() -> np.ndarray:
        (found,) = tf.raw_ops.RestoreV2(
            prefix=path, tensor_names=["w"], shape_and_slices=[""], dtypes=[tf.as_dtype(dtype)]
        )
        return found.numpy()

    if dtype in ASSEMBLED:
        np.testing.assert_array_equal(restored(), whole)
        return
    with pytest.raises((tf.errors.InvalidArgumentError, tf.errors.UnimplementedError)):
        restored()
    np.testing.assert_array_equal(ck.load_variable(path or "", "w"), whole)


def test_a_saver_writes_the_bytes_of_tensorflows_saver(tmp_path: Path, rng: np.random.Generator) -> None:
    tf1 = tf.compat.v1
    values = {f"layer_{k}/w": rng.standard_normal((k + 1, 4)) for k in range(12)} | {
        "global_step": np.int64(3)
    }
    with tf.Graph().as_default(), tf1.Session() as session:
        for name, value in values.items():
            tf1.get_variable(name, initializer=value)
        session.run(tf1.global_variables_initializer())
        theirs = tf1.train.Saver().save(session, f"{tmp_path}/theirs/model", 3)
    ours = ck.Saver().save(values, f"{tmp_path}/ours/model", 3)
    assert Path(f"{ours}.index").read_bytes() == Path(f"{theirs}.index").read_bytes()
    data = "data-00000-of-00001"
    assert Path(f"{ours}.{data}").read_bytes() == Path(f"{theirs}.{data}").read_bytes()
