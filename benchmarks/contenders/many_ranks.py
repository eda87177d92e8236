"""Ranks that save one checkpoint together: each contender is one of them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from benchmarks.contenders import orbax_files, ours, tensorstore_arrays, torch_dcp
from benchmarks.contenders.base import Contender
from benchmarks.parts import Part
from benchmarks.sets import is_replicated

STEPS = 100_000
_KEPT = 2


class RankContender(Contender):
    """One of the ranks; the others are processes like this one, which do the same at the same time."""

    data: Part

    @property
    def address(self) -> str:
        """Where rank 0 may listen for the others."""
        return f"127.0.0.1:{self.port}"

    def start_torch(self) -> None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        import torch.distributed as dist

        dist.init_process_group(
            "gloo", init_method=f"tcp://{self.address}", rank=self.data.rank, world_size=self.data.ranks
        )


class Ours(ours.Ours, RankContender):
    """Saves step after step under one prefix, as a job does: a save also deletes the oldest.

    Options: ``engine``, ``torch`` or ``store``, in which the messages travel; others as there.
    """

    @property
    def keywords(self) -> dict[str, Any]:
        return super().keywords | {"coordinator": self.open_coordinator(), "max_to_keep": _KEPT}

    def open_coordinator(self) -> Any:
        if self.options["engine"] == "torch":
            self.start_torch()
            self.coordinator = self.ckptstore.coordinator("torch")
        else:
            self.coordinator = self.ckptstore.coordinator(
                "store",
                url=self.place.url(f"messages-{self.port}"),
                rank=self.data.rank,
                size=self.data.ranks,
                attempt=self.port,
                **self.storage,
            )
        return self.coordinator

    def prefix(self, where: str) -> str:
        return self.place.url(f"{PurePosixPath(where).parent}/model")

    def take(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = {
            name: array
            if is_replicated(name)
            else self.ckptstore.Piece(array, self.data.full_shapes[name], self.data.start(name))
            for name, array in arrays.items()
        }
        self.local = arrays

    def prepare(self, operation: str, stamp: int) -> None:
        super().prepare(operation, stamp)
        self.step = stamp

    def save(self, where: str) -> None:
        self.saver.save(
            self.arrays, self.prefix(where), global_step=self.step, write_meta_graph=False, **self.storage
        )

    def async_save(self, where: str) -> Any:
        return self.saver.save_async(
            self.arrays, self.prefix(where), global_step=self.step, write_meta_graph=False, **self.storage
        )

    def settle(self, operation: str, result: Any, where: str) -> Any:
        if operation != "async_save":
            return result
        result.result(300)
        return self.restore_into(where)

    def restore_into(self, where: str) -> Mapping[str, Any]:
        self.saver.restore(dict(self.arrays), f"{self.prefix(where)}-{self.step}", **self.storage)
        return self.local

    def ask_steps(self, where: str) -> None:
        with self.ckptstore.Preemption(self.coordinator) as preemption:
            for step in range(STEPS):
                preemption.should_save(step)

    def close(self) -> None:
        super().close()
        self.coordinator.close()


class Memcpy(RankContender):
    """Each rank copies as much as it writes: what a snapshot costs at least."""

    libraries = ("numpy",)

    def connect(self) -> None:
        self.staging = np.zeros(self._share(), np.float32)

    def _share(self) -> int:
        return sum(math.prod(shape) for shape in self.data.full_shapes.values()) // self.data.ranks

    def async_save(self, where: str) -> None:
        assert self.flat is not None
        size = self._share()
        np.copyto(self.staging[:size], self.flat[:size])


class _Dcp(RankContender, torch_dcp.Dcp):
    """Sharded tensors are DTensors over a mesh of all ranks; every rank passes the replicated ones."""

    def load(self) -> None:
        super().load()
        self.start_torch()
        from torch.distributed.device_mesh import init_device_mesh

        self.mesh = init_device_mesh("cpu", (self.data.ranks,))

    def take(self, arrays: dict[str, np.ndarray]) -> None:
        from torch.distributed.tensor import DTensor, Shard

        tensors = {name: self.torch.from_numpy(array) for name, array in arrays.items()}
        self.arrays = {
            name: tensor
            if is_replicated(name)
            else DTensor.from_local(tensor, self.mesh, [Shard(self.data.axis)], run_check=False)
            for name, tensor in tensors.items()
        }
        self.local = tensors

    def save(self, where: str) -> None:
        self.dcp.save(dict(self.arrays), storage_writer=self.writer(where))

    def restore_into(self, where: str) -> Mapping[str, Any]:
        self.dcp.load(dict(self.arrays), storage_reader=self.reader(where))
        return self.local


class DcpLocal(_Dcp, torch_dcp.Local):
    pass


class DcpFsspec(_Dcp, torch_dcp.Fsspec):
    pass


class DcpS3Torch(_Dcp, torch_dcp.S3Torch):
    pass


class OrbaxV1(RankContender):
    """Orbax's interface v1: each process writes a database of its own, process 0 merges them."""

    libraries = orbax_files.Orbax.libraries

    def load(self) -> None:
        os.environ["JAX_PLATFORMS"] = "cpu"
        import jax

        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(self.address, num_processes=self.data.ranks, process_id=self.data.rank)
        import orbax.checkpoint.experimental.v1 as ocp

        self.jax, self.ocp = jax, ocp
        mesh = jax.sharding.Mesh(np.array(jax.devices()), ("ranks",))
        spec = jax.sharding.PartitionSpec
        self.sharded = jax.sharding.NamedSharding(mesh, spec("ranks", None))
        self.replicated = jax.sharding.NamedSharding(mesh, spec())

    def take(self, arrays: dict[str, np.ndarray]) -> None:
        make, device = self.jax.make_array_from_single_device_arrays, self.jax.local_devices()[0]
        self.arrays = {
            name.replace("/", "."): make(
                self.data.full_shapes[name],
                self.replicated if is_replicated(name) else self.sharded,
                [self.jax.device_put(array, device)],
            )
            for name, array in arrays.items()
        }
        self.jax.block_until_ready(self.arrays)

    def save(self, where: str) -> None:
        context = self.ocp.Context()
        context.array.saving.use_compression = False
        with context:
            self.ocp.save(str(self.local_directory(where) / "model"), self.arrays)


class TensorStoreRanks(RankContender, tensorstore_arrays.TensorStore):
    """Each rank writes its boxes: into shared arrays, or into a database of its own that nobody merges."""

    def path(self, where: str) -> str:
        return f"{where}/rank{self.data.rank}" if self.options.get("ocdbt") else where

    def base(self, where: str) -> dict[str, Any]:
        return super().base(self.path(where))

    def chunk(self, name: str) -> list[int]:
        """Return the shape of a chunk: of what a rank wrote."""
        saved = self.data if self.data.is_cut_as_saved else self.data.columns
        return list(saved.shapes[name])

    def created(self, where: str, name: str) -> dict[str, Any]:
        shared = not self.options.get("ocdbt")
        shape = self.data.full_shapes[name] if shared else self.data.shapes[name]
        # Whoever comes first makes the description of a shared array.
        return self.spec(where, name) | self.description(shape, self.chunk(name)) | {"open": shared}

    def box(self, name: str) -> tuple[slice, ...]:
        start = self.data.start(name)
        return tuple(slice(at, at + n) for at, n in zip(start, self.data.shapes[name], strict=True))

    def save(self, where: str) -> None:
        # Each replicated tensor is written by one of the ranks.
        mine = [
            name
            for number, name in enumerate(self.arrays)
            if not is_replicated(name) or number % self.data.ranks == self.data.rank
        ]
        self.write(where, {name: self.arrays[name] for name in mine})

    def target(self, store: Any, name: str) -> Any:
        return store if self.options.get("ocdbt") else store[self.box(name)]

    def restore_into(self, where: str) -> Mapping[str, np.ndarray]:
        context = self.library.Context()
        opened = {
            name: self.library.open(self.spec(where, name), context=context, open=True, read=True)
            for name in self.arrays
        }
        reads = [
            self.library.array(self.arrays[name], copy=False).write(self.target(store.result(), name))
            for name, store in opened.items()
        ]
        for read in reads:
            read.result()
        return self.arrays
