"""Checkpoints whose unchanged data files were taken from the one before, and saves in the background."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import ckptstore as ck

tf1 = tf.compat.v1


def values(step: int) -> dict[str, np.ndarray]:
    return {
        "frozen/a": np.arange(1000, dtype=np.float32),
        "frozen/b": np.arange(12, dtype=np.int64).reshape(3, 4),
        "frozen/text": np.array([b"same", b"as ever"], object),
        "w": np.full((2, 3), step, np.float32),
        "step": np.array(step),
    }


@pytest.mark.parametrize("save", ["save", "save_async"])
def test_tensorflow_restores_what_was_linked(save: str, tmp_path: Path) -> None:
    with ck.Saver(reuse_unchanged=True, max_to_keep=1) as saver:
        for step in (1, 2, 3, 4):
            getattr(saver, save)(values(step), tmp_path / "m", step)
    prefix = str(tmp_path / "m-4")
    assert len(list(tmp_path.glob("m-4.data-*-of-00002"))) == 2
    assert tf1.train.latest_checkpoint(str(tmp_path)) == prefix
    reader = tf.train.load_checkpoint(prefix)
    for name, array in values(4).items():
        assert np.array_equal(reader.get_tensor(name), array), name
    with tf1.Session() as session:
        tf1.train.import_meta_graph(f"{prefix}.meta").restore(session, prefix)
        assert session.run("w:0").tolist() == values(4)["w"].tolist()


@pytest.mark.parametrize("snapshot", [True, False])
def test_a_save_in_the_background_has_tensorflows_bytes(snapshot: bool, tmp_path: Path) -> None:
    arrays = {name: array for name, array in values(1).items() if array.dtype != object}
    theirs = str(tmp_path / "theirs")
    with tf.Graph().as_default(), tf1.Session() as session:
        names = sorted(arrays)
        session.run(tf.raw_ops.SaveV2(
            prefix=theirs, tensor_names=names, shape_and_slices=[""] * len(names),
            tensors=[tf.constant(arrays[name]) for name in names],
        ))  # fmt: skip
    with ck.Saver(memory_budget=1) as saver:
        saver.save_async(arrays, tmp_path / "ours", snapshot=snapshot)
    for end in (".index", ".data-00000-of-00001"):
        assert (tmp_path / f"ours{end}").read_bytes() == Path(theirs + end).read_bytes()
