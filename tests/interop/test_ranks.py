"""What ranks save together is what TensorFlow makes of the same slices, and TensorFlow reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

import ckptstore as ck
from tests.unit.saving.ranks import Job

SIZE = 4
# Of these TensorFlow puts a tensor together from its slices.
ASSEMBLED = ["float32", "float64", "bfloat16", "int8", "int32", "int64", "uint8", "bool", "complex64"]


def _array(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    return rng.integers(0, 2, shape).astype(getattr(ml_dtypes, dtype, None) or dtype)


def test_tensorflow_restores_whole_tensors_of_many_ranks(tmp_path: Path, rng: np.random.Generator) -> None:
    arrays = {name: _array(rng, name, (9, 5)) for name in ASSEMBLED}
    large = rng.random((4096, 4096), np.float32) * 2
    huge = np.concatenate([large, large])
    edges = [0, 2, 3, 7, 9]

    def save(rank: int, saver: ck.Saver) -> Any:
        begin, end = edges[rank : rank + 2]
        values: dict[str, Any] = {
            f"cut/{name}": ck.Piece(array[begin:end], array.shape, (begin, 0))
            for name, array in arrays.items()
        }
        values["huge"] = huge
        values["half"] = arrays["float32"].astype(np.float16)
        values["text"] = np.array([b"one", b""], object)
        return saver.save(values, tmp_path / "m", 3)

    (prefix,) = set(Job(SIZE).each(save))
    with ck.open_checkpoint(prefix) as checkpoint:
        assert checkpoint.specs()["huge"].shards == (0, 1, 2, 3)
    reader = tf.train.load_checkpoint(prefix)
    for name, array in arrays.items():
        np.testing.assert_array_equal(reader.get_tensor(f"cut/{name}"), array)
    np.testing.assert_array_equal(reader.get_tensor("huge"), huge)
    np.testing.assert_array_equal(reader.get_tensor("half"), arrays["float32"])
    assert reader.get_tensor("text").tolist() == [b"one", b""]
    assert tf.train.latest_checkpoint(tmp_path) == prefix
    # The graph has the whole shapes.
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        saver = tf.compat.v1.train.import_meta_graph(f"{prefix}.meta")
        saver.restore(session, prefix)
        np.testing.assert_array_equal(session.run("cut/float32:0"), arrays["float32"])


def test_the_files_are_those_of_tensorflows_merge(tmp_path: Path, rng: np.random.Generator) -> None:
    rows = _array(rng, "float32", (8, 3))
    alone = [_array(rng, "int64", (rank + 1,)) for rank in range(SIZE)]

    def save(rank: int, saver: ck.Saver) -> Any:
        piece = ck.Piece(rows[2 * rank : 2 * rank + 2], rows.shape, (2 * rank, 0))
        values = {f"alone/{rank}": alone[rank], "rows": piece}
        return saver.save(values, tmp_path / "ours", write_meta_graph=False)

    (ours,) = set(Job(SIZE).each(save))
    parts = [str(tmp_path / f"part-{rank}") for rank in range(SIZE)]
    for rank, part in enumerate(parts):
        tf.raw_ops.SaveV2(
            prefix=part,
            tensor_names=[f"alone/{rank}", "rows"],
            shape_and_slices=["", f"8 3 {2 * rank},2:0,3"],
            tensors=[tf.constant(alone[rank]), tf.constant(rows[2 * rank : 2 * rank + 2])],
        )
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=str(tmp_path / "theirs"))
    names = [".index", *(f".data-0000{rank}-of-0000{SIZE}" for rank in range(SIZE))]
    for name in names:
        assert Path(f"{ours}{name}").read_bytes() == (tmp_path / f"theirs{name}").read_bytes(), name


@pytest.mark.parametrize("size", [1, 3])
def test_ranks_restore_what_tensorflow_saved_in_slices(
    tmp_path: Path, rng: np.random.Generator, size: int
) -> None:
    rows = _array(rng, "float32", (6, 4))
    prefix = str(tmp_path / "m")
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=["rows", "rows"],
        shape_and_slices=["6 4 0,4:0,4", "6 4 4,2:0,4"],
        tensors=[tf.constant(rows[:4]), tf.constant(rows[4:])],
    )

    def restore(rank: int, saver: ck.Saver) -> np.ndarray:
        columns = np.array_split(np.arange(4), size)[rank]
        target = np.zeros((6, len(columns)), np.float32)
        saver.restore({"rows": ck.Piece(target, (6, 4), (0, columns[0]))}, prefix)
        return target

    np.testing.assert_array_equal(np.concatenate(Job(size).each(restore), axis=1), rows)
