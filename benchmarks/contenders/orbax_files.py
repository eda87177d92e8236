"""Orbax: a tree of jax arrays, in TensorStore's ocdbt below."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.contenders.base import Contender


class Orbax(Contender):
    """Without compression. Its asynchronous save copies nothing, as jax arrays cannot change."""

    libraries = ("orbax-checkpoint", "jax", "tensorstore")

    def load(self) -> None:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        import jax
        import orbax.checkpoint as ocp

        self.jax, self.ocp = jax, ocp
        self.checkpointer = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(use_compression=False))

    def take(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = {self.key(name): self.jax.numpy.array(array) for name, array in arrays.items()}
        self.jax.block_until_ready(self.arrays)

    def key(self, name: str) -> str:
        return name.replace("/", ".")

    def path(self, where: str) -> str:
        return str(self.local_directory(where) / "model")

    def async_save(self, where: str) -> None:
        self.checkpointer.save(self.path(where), self.arrays)

    def save(self, where: str) -> None:
        self.async_save(where)
        self.checkpointer.wait_until_finished()

    def restore_new(self, where: str) -> Mapping[str, Any]:
        found = self.checkpointer.restore(self.path(where))
        self.jax.block_until_ready(found)
        return {name: found[self.key(name)] for name in self.data.shapes}

    def settle(self, operation: str, result: Any, where: str) -> Any:
        if operation != "async_save":
            return result
        self.checkpointer.wait_until_finished()
        return self.restore_new(where)

    def close(self) -> None:
        self.checkpointer.close()
