"""Both in one process, in either order: the protos of one must not disturb the other's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BODY = """
import numpy as np
prefix = ck.Saver().save({{"w": np.arange(3.0)}}, {prefix!r}, 1)
saver = ck.import_meta_graph(prefix + ".meta")
tf1 = tf.compat.v1
with tf.Graph().as_default(), tf1.Session() as session:
    tf1.train.import_meta_graph(prefix + ".meta").restore(session, prefix)
    assert session.run("w:0").tolist() == [0, 1, 2]
    theirs = tf1.train.Saver(tf1.global_variables()).save(session, prefix + "_tf")
again = ck.import_meta_graph(theirs + ".meta", clear_devices=True, import_scope="s")
assert again.graph.get_tensor_by_name("s/w:0").shape == (3,)
assert ck.get_checkpoint_state({directory!r}) and tf.train.get_checkpoint_state({directory!r})
assert ck.load_checkpoint(prefix).debug_string() == tf.train.load_checkpoint(prefix).debug_string()
print("fine")
"""


@pytest.mark.parametrize("first", ["import ckptstore as ck", "import tensorflow as tf"])
@pytest.mark.parametrize("warm", [True, False], ids=["protos used first", "imports first"])
def test_either_order(tmp_path: Path, first: str, warm: bool) -> None:
    use = "ck.GraphBuilder().build()" if warm and first.endswith("ck") else ""
    imports = [first, use, "import ckptstore as ck", "import tensorflow as tf"]
    body = BODY.format(prefix=f"{tmp_path}/model", directory=str(tmp_path))
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([*imports, body])],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "fine\n", done.stderr[-3000:]
