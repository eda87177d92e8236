"""The block of docs/serving.md that puts slices on the devices of a sharding; eight devices, one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import ckptstore as ck
from tests.engines.page import block
from tests.meta.source import ROOT

PROGRAM = """
import sys
import jax, ml_dtypes, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
import ckptstore as ck

mesh = jax.make_mesh((4, 2), ("x", "y"))
specs = {"w": ("x", "y"), "rows": ("x",), "bf16": (None, "y"), "all": (), "scalar": ()}
shardings = {name: NamedSharding(mesh, PartitionSpec(*spec)) for name, spec in specs.items()}
BLOCK
asked = []
checkpoint = ck.open_checkpoint(sys.argv[1])
whole = checkpoint.read_into
checkpoint.read_into = lambda requests: (asked.extend(requests), whole(requests))
found = load(checkpoint, None)
for name, array in found.items():
    expected = checkpoint.read(name, ...)
    assert array.sharding == shardings[name], name
    assert (array.dtype, array.shape) == (expected.dtype, expected.shape), name
    assert np.asarray(array).tobytes() == expected.tobytes(), name
# Eight, four, two, and one each of what is everywhere.
assert len(asked) == 8 + 4 + 2 + 1 + 1, len(asked)
print(len(jax.devices()), sorted(found))
"""


def test_each_box_is_read_once_and_put_where_the_sharding_says(tmp_path: Path) -> None:
    import ml_dtypes

    random = np.random.default_rng(3)
    tensors = {
        "w": random.random((64, 300), np.float32),
        "rows": random.integers(0, 9, (8, 3), np.int32),
        "bf16": random.random((3, 40)).astype(ml_dtypes.bfloat16),
        "all": random.random(7, np.float32),
        "scalar": np.float32(3),
    }
    ck.Saver().save(tensors, f"{tmp_path}/model")
    program = PROGRAM.replace("BLOCK", block("jax", "serving"))
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": str(ROOT),
    }
    ended = subprocess.run(
        [sys.executable, "-c", program, f"{tmp_path}/model"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split(maxsplit=1)[0] == "8"
