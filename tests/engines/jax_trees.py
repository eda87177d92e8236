"""A tree of JAX in a program of several processes: `python -m tests.engines.jax_trees COUNT NUMBER PORT DIR`.

Four processes of two devices each save a tree; two of four devices each restore it, and save another; one of
eight restores that.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import ckptstore as ck
import ckptstore.jax
from ckptstore.bundle.read.open_bundle import open_bundle
from ckptstore.reading.open_checkpoint import OpenCheckpoint
from ckptstore.storage.base import Location
from ckptstore.storage.registry import locate
from ckptstore.storage.wrappers import StorageWrapper

__all__ = ["work"]

ROWS = np.arange(256 * 1024, dtype=np.float32).reshape(256, 1024)
# The step that so many processes save, and restore.
_SAVES = {4: 1, 2: 2}
_RESTORES = {2: 1, 1: 2}
SHAPES = {4: (4, 2), 2: (2, 4), 1: (1, 8)}
SPECS: dict[int, dict[str, Any]] = {
    4: {"both": ("x", "y"), "in part": ("x",), "everywhere": (), "bf16": (("x", "y"),), "keys": ("x",)},
    2: {"both": ("y", "x"), "in part": (None, "y"), "everywhere": (), "bf16": ("y",), "keys": (("x", "y"),)},
    1: {"both": (("x", "y"),), "in part": (), "everywhere": ("y",), "bf16": (None, "y"), "keys": ()},
}


def _shardings(processes: int) -> dict[str, NamedSharding]:
    mesh = jax.make_mesh(SHAPES[processes], ("x", "y"))
    return {name: NamedSharding(mesh, PartitionSpec(*spec)) for name, spec in SPECS[processes].items()}


def _values(step: int) -> dict[str, Any]:
    return {
        "both": ROWS + step,
        "in part": ROWS * 2 + step,
        "everywhere": ROWS * 3 + step,
        "bf16": np.asarray(jnp.asarray(ROWS).astype(jnp.bfloat16)),
    }


def _tree(processes: int, step: int) -> dict[str, Any]:
    where = _shardings(processes)
    tree = {
        name: jax.make_array_from_callback(array.shape, where[name], array.__getitem__)
        for name, array in _values(step).items()
    }
    keys = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(step), 8)))
    data = jax.make_array_from_callback(keys.shape, where["keys"], keys.__getitem__)
    tree["keys"] = jax.random.wrap_key_data(data)
    # One device of each process has it: the same on all.
    return {"arrays": tree, "count": jnp.int32(step), "step": step, "name": f"step {step}"}


def _check(found: dict[str, Any], processes: int, step: int) -> None:
    expected = _tree(processes, step)
    assert (found["step"], found["name"], int(found["count"])) == (step, f"step {step}", step)
    for name, array in expected["arrays"].items():
        one, other = found["arrays"][name], array
        assert (one.dtype, one.shape) == (array.dtype, array.shape), name
        assert one.sharding.is_equivalent_to(array.sharding, array.ndim), name
        if name == "keys":
            one, other = jax.random.key_data(one), jax.random.key_data(array)
        for shard, wanted in zip(one.addressable_shards, other.addressable_shards, strict=True):
            assert shard.device == wanted.device
            assert np.asarray(shard.data).tobytes() == np.asarray(wanted.data).tobytes(), name


class _Counted(StorageWrapper):
    read_bytes = 0

    def read_into(self, key: str, ranges: Any, buffers: Any, *more: Any, **options: Any) -> Any:
        self.read_bytes += sum(memoryview(buffer).nbytes for buffer in buffers)
        return super().read_into(key, ranges, buffers, *more, **options)


def _blank(processes: int) -> dict[str, Any]:
    return jax.tree.map(
        lambda one: (
            jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=one.sharding)
            if isinstance(one, jax.Array)
            else one
        ),
        _tree(processes, 0),
    )


def work(processes: int, number: int, directory: str) -> None:
    """Do what one of so many processes has to do, or raise."""
    assert len(jax.devices()) == 8
    if processes in _RESTORES:
        newest = ck.latest_checkpoint(directory)
        _check(ckptstore.jax.restore(_blank(processes), str(newest)), processes, _RESTORES[processes])
    if processes in _SAVES:
        step = _SAVES[processes]
        tree = _tree(processes, step)
        prefix = ckptstore.jax.save(tree, f"{directory}/model", step)
        assert prefix == f"{directory}/model-{step}"
        handle = ckptstore.jax.save_async(tree, f"{directory}/background", step)
        assert handle.result() == f"{directory}/background-{step}"
    if processes == 4:
        _alone(prefix, tree, number)
        _at_odds(prefix, tree, directory, number)


def _alone(prefix: str, tree: dict[str, Any], number: int) -> None:
    """Each process reads what its devices have, once."""
    place = locate(prefix)
    counted = _Counted(place.storage)
    opened = OpenCheckpoint(open_bundle(Location(counted, place.key, place.url)))
    arrays = {"arrays": {"both": tree["arrays"]["both"], "in part": tree["arrays"]["in part"]}}
    ckptstore.jax.restore(arrays, opened)
    share = 2 * ROWS.nbytes // 4
    assert share <= counted.read_bytes < share + 4000, (number, counted.read_bytes, share)
    with pytest.raises(ck.UsageError, match=r"tensor 'both'.*ckptstore\.jax\.save"):
        ck.Saver().save({"both": tree["arrays"]["both"]}, f"{prefix}-other")


def _at_odds(prefix: str, tree: dict[str, Any], directory: str, number: int) -> None:
    """What is wrong on one process is raised on all."""
    more = {**tree, "more": jnp.zeros(3)}
    with pytest.raises(ck.TensorNotFoundError, match="more"):
        ckptstore.jax.restore(more, prefix)
    with pytest.raises(ck.UsageError, match=r"name|_CKPTSTORE_TREE"):
        ckptstore.jax.save({**tree, "name": f"process {number}"}, f"{directory}/odd", 1)


def _main(processes: int, number: int, port: str, directory: str) -> None:
    if processes > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", processes, number, initialization_timeout=300)
    work(processes, number, directory)


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
