"""One rank of a job under an engine: `python -m tests.engines.rank ENGINE SOCKET ADDRESS DIRECTORY [NUMBER]`.

It finds the others as docs/distributed.md says, and then does what the test says, in its main thread. It ends
by `os._exit` when the test hangs up: what an engine does at a normal end waits for others, which may be dead.
"""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

import ckptstore as ck
from ckptstore.testing.coordinator_contract.serve import serve_rank
from tests.engines.page import block

__all__ = ["serve"]


def serve(engine: str, address: str, names: dict[str, Any]) -> None:
    """Begin as the page says, with `names` in place of what a job has, and do what the test says."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        names = {"ckptstore": ck, "np": np, **names}
        lines = block(engine).replace('"first"', repr(os.environ.get("ATTEMPT", "first")))
        exec(compile(lines, f"docs/distributed.md, {engine}", "exec"), names)
        _Rank(engine, connection, names).run()


class _Rank:
    def __init__(self, engine: str, connection: socket.socket, names: dict[str, Any]) -> None:
        self._engine = engine
        self._stream = connection.makefile("rw")
        self._names = names
        self._coordinator = names["coordinator"]
        self._rank: int = names["rank"]
        assert (self._coordinator.rank, self._coordinator.size) == (self._rank, 4)
        self._take_step = getattr(_Steps, engine)(self._coordinator)

    def _say(self, **message: Any) -> None:
        self._stream.write(json.dumps(message) + "\n")
        self._stream.flush()

    def run(self) -> None:
        self._say(rank=self._rank, pid=os.getpid())
        for line in self._stream:
            command = json.loads(line)
            try:
                self._say(**getattr(self, command.pop("do"))(**command))
            except BaseException:  # noqa: BLE001 - the test looks at it
                self._say(error=traceback.format_exc())

    def contract(self, address: str) -> dict[str, Any]:
        """Serve the coordinator contract."""
        more: dict[str, Any] = (
            {"rank": self._rank, "size": 4, "name": "contract"} if self._engine == "ray" else {}
        )
        serve_rank(address, lambda: ck.coordinator("ray" if more else "auto", **more))
        return {}

    def page(self, directory: str) -> dict[str, Any]:
        """Save as the page says."""
        rows = np.full((4, 8), float(self._rank), np.float32)
        names = {**self._names, "rows": rows, "directory": directory}
        exec(compile(block("job"), "docs/distributed.md, job", "exec"), names)
        return {"newest": names["newest"], "step": int(names["mine"]["step"]), "rows": float(rows.mean())}

    def follow(self, directory: str, steps: int) -> dict[str, Any]:
        """Serve what rank 0 sees, as docs/serving.md says."""
        weights = {"w": np.zeros(9)}
        with ck.watch(directory, every_s=0.1) as watcher:
            names = {**self._names, "directory": directory, "weights": weights, "watcher": watcher}
            names["storage_options"] = None
            for name in (f"broadcast by {self._engine}", *["ranks"] * steps):
                exec(compile(block(name, "serving"), f"docs/serving.md, {name}", "exec"), names)
                if name == "ranks":
                    self._say(prefix=names["step"].prefix, weight=float(weights["w"].mean()))
        return {"looks": watcher.health().looked_s_ago is not None}

    def _values(self, step: int) -> dict[str, Any]:
        return {f"own/{self._rank}": np.full(1000, step), "shared": np.full(7, step)}

    def preempt(self, url: str, rounds: int, saves_all_the_time: bool, grace_s: float) -> dict[str, Any]:
        """In each round train until it should save."""
        saver = ck.Saver(coordinator=self._coordinator, durability="cache", deadline_s=grace_s)
        step = 0
        for _ in range(rounds):
            begun = step
            with ck.Preemption(self._coordinator, grace_s=grace_s) as preemption:
                while not preemption.should_save(step):
                    self._take_step()
                    if saves_all_the_time:
                        saver.save_async(self._values(step), f"{url}/m", step)
                    step += 1
                    if step == begun + 3:
                        self._say(ready=True)
                assert preemption.requested
                prefix = saver.save(self._values(step), f"{url}/m", step)
                self._say(step=step, prefix=prefix, left_s=preemption.left_s)
            step += 1
        saver.close()
        return {}

    def jax_tree(self, directory: str) -> dict[str, Any]:
        """Save a tree of arrays that all processes share."""
        from tests.engines import jax_trees

        jax_trees.work(4, self._rank, directory)
        return {}

    def preempt_by_jax(self, url: str) -> dict[str, Any]:
        """Train until JAX's own sync point says that it is time to save."""
        from jax.experimental import multihost_utils

        saver = ck.Saver(coordinator=self._coordinator, durability="cache")
        step = 0
        while not multihost_utils.reached_preemption_sync_point(step):
            self._take_step()
            step += 1
            if step == 3:
                self._say(ready=True)
        prefix = saver.save(self._values(step), f"{url}/m", step)
        saver.close()
        return {"step": step, "prefix": prefix}

    def save_beside_collectives(self, url: str, saves: int) -> dict[str, Any]:
        """Save in the background while torch computes with the other ranks; count its collectives."""
        import torch
        import torch.distributed as dist

        group = dist.group.WORLD
        assert group is not None
        groups = len(dist.distributed_c10d._world.pg_map)  # noqa: SLF001
        before = group._get_sequence_number_for_group()  # noqa: SLF001
        values = {f"own/{self._rank}/{n}": torch.zeros(256) for n in range(16)}
        saver = ck.Saver(coordinator=self._coordinator, durability="cache", max_to_keep=2)
        handles = []
        begun_s = time.monotonic()
        computed = 0
        for step in range(saves):
            for tensor in values.values():
                tensor.fill_(step)
            handles.append(saver.save_async(values, f"{url}/m", step))
            for _ in range(3):
                total = torch.full((64,), float(self._rank))
                dist.all_reduce(total)
                assert total.tolist() == [0.0 + 1 + 2 + 3] * 64
                computed += 1
        prefixes = [handle.result() for handle in handles]
        saver.close()
        return {
            "prefixes": prefixes,
            "seconds": time.monotonic() - begun_s,
            "computed": computed,
            "collectives": group._get_sequence_number_for_group() - before,  # noqa: SLF001
            "new groups": len(dist.distributed_c10d._world.pg_map) - groups,  # noqa: SLF001
        }

    def train(self) -> dict[str, Any]:
        """Let the workers of Ray Train find each other."""
        from ray.train import ScalingConfig
        from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

        DataParallelTrainer(_find_each_other, scaling_config=ScalingConfig(num_workers=2)).fit()
        return {"agreed": True}

    def resume(self, directory: str) -> dict[str, Any]:
        """Let the workers of Ray Train save, die, and go on, as docs/frameworks/ray.md says."""
        from tests.engines.ray_training import resume

        return resume(directory)


def _find_each_other() -> None:
    from ray import train

    coordinator = ck.coordinator()
    assert (coordinator.rank, coordinator.size) == (train.get_context().get_world_rank(), 2)
    found = coordinator.gather("t", b"%d" % coordinator.rank, timeout_s=100)
    answer = coordinator.broadcast("t", b"".join(found.values()) if found else None, timeout_s=100)
    assert answer == b"01", answer
    coordinator.close()


class _Steps:
    """A step of training, in which each rank waits for the others, by the means of the engine."""

    @staticmethod
    def torch(coordinator: Any) -> Callable[[], object]:
        import torch
        import torch.distributed as dist

        return lambda: dist.all_reduce(torch.ones(8))

    @staticmethod
    def jax(coordinator: Any) -> Callable[[], object]:
        import jax

        mesh = jax.sharding.Mesh(jax.devices(), "x")
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        ones = jax.make_array_from_process_local_data(sharding, np.ones(2, np.float32))
        total = jax.jit(lambda values: values.sum(), out_shardings=everywhere)
        return lambda: total(ones).block_until_ready()

    @staticmethod
    def mpi(coordinator: Any) -> Callable[[], object]:
        from mpi4py import MPI

        ones = np.ones(8)
        return lambda: MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, ones)

    @staticmethod
    def ray(coordinator: Any) -> Callable[[], object]:
        return lambda: time.sleep(0.002)

    store = ray


if __name__ == "__main__":
    faulthandler.enable()
    engine, socket_path, address, directory, *number = sys.argv[1:]
    numbers = {"process": int(number[0]), "number": int(number[0])} if number else {}
    try:
        serve(engine, socket_path, {"address": address, "directory": directory, **numbers})
    finally:
        traceback.print_exc()
        os._exit(0)
