"""TensorStore: a zarr3 array for each tensor, in files or objects of its own or in one ocdbt database."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.contenders.base import Contender

_CHUNK_BYTES = 16 * 2**20


class TensorStore(Contender):
    """Uncompressed chunks of up to 16 MiB, everything in flight at once; ocdbt in one transaction."""

    libraries = ("tensorstore", "numpy")

    def load(self) -> None:
        import tensorstore

        self.library = tensorstore
        self.context: Any = None

    def connect(self) -> None:
        self.context = self.library.Context()

    def base(self, where: str) -> dict[str, Any]:
        if not self.place.bucket:
            return {"driver": "file", "path": f"{self.local_directory(where)}/"}
        return {
            "driver": "s3",
            "bucket": self.place.bucket,
            "endpoint": self.place.endpoint,
            "aws_region": self.place.region,
            "path": f"{self.place.object_key(where)}/",
        }

    def spec(self, where: str, name: str) -> dict[str, Any]:
        base = self.base(where)
        if self.options.get("ocdbt"):
            store = {"driver": "ocdbt", "base": base, "path": f"{name}/", "config": {"compression": None}}
        else:
            store = base | {"path": f"{base['path']}{name}/"}
        return {"driver": "zarr3", "kvstore": store}

    def created(self, where: str, name: str) -> dict[str, Any]:
        shape = self.data.shapes[name]
        row = 4 * math.prod(shape[1:])
        chunk = [max(1, min(shape[0], _CHUNK_BYTES // row)), *shape[1:]]
        return self.spec(where, name) | self.description(shape, chunk)

    def description(self, shape: tuple[int, ...], chunk: list[int]) -> dict[str, Any]:
        """Return what makes a new array."""
        return {
            "metadata": {
                "shape": list(shape),
                "data_type": "float32",
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
                "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
            },
            "create": True,
            "delete_existing": False,
        }

    def target(self, store: Any, name: str) -> Any:
        """Return what of an array is written or read."""
        return store

    def save(self, where: str) -> None:
        self.write(where, self.arrays)

    def write(self, where: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Make and write these arrays."""
        ts = self.library
        transaction = ts.Transaction() if self.options.get("ocdbt") else None
        opened = [
            ts.open(self.created(where, name), context=self.context, transaction=transaction)
            for name in arrays
        ]
        writes = [
            self.target(store.result(), name).write(array, can_reference_source_data_indefinitely=True)
            for store, (name, array) in zip(opened, arrays.items(), strict=True)
        ]
        if transaction is not None:
            for write in writes:
                write.copy.result()
            transaction.commit_sync()
        for write in writes:
            write.result()

    def restore_new(self, where: str) -> Mapping[str, np.ndarray]:
        return self._read(where, list(self.data.shapes))

    def read_one(self, where: str) -> Mapping[str, np.ndarray]:
        return self._read(where, [self.data.single])

    def _read(self, where: str, names: list[str]) -> Mapping[str, np.ndarray]:
        # A context of its own: what an earlier read cached is not there after a restart.
        context = self.context or self.library.Context()
        opened = [
            self.library.open(self.spec(where, name), context=context, open=True, read=True) for name in names
        ]
        reads = [store.result().read() for store in opened]
        return {name: read.result() for name, read in zip(names, reads, strict=True)}
