"""ckptstore through its public names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.contenders.base import Contender


class Ours(Contender):
    """Options: ``memory_budget``, ``durability`` go to the Saver; ``promise`` saves without a snapshot.

    ``cache`` restores through a cache on the host that has all of it.
    """

    libraries = ("ckptstore", "numpy", "s3fs", "urllib3")

    def load(self) -> None:
        import ckptstore

        self.ckptstore = ckptstore
        # Names are resolved on first use; a program that saves has done so.
        for name in ("Saver", "open_checkpoint", "latest_checkpoint"):
            getattr(ckptstore, name)
        self.reading = {key: self.options[key] for key in ("memory_budget",) if key in self.options}
        self.storage: dict[str, Any] = {}
        if self.place.bucket:
            client: dict[str, Any] = {"region_name": self.place.region}
            if self.place.authority:
                client["verify"] = self.place.authority
            self.storage["storage_options"] = {
                "key": self.place.key,
                "secret": self.place.secret,
                "endpoint_url": self.place.endpoint,
                "client_kwargs": client,
            }
        if self.options.get("cache"):
            cache = ckptstore.Cache(f"{self.scratch}/cache", max_bytes=3 * self.data.nbytes + (1 << 30))
            self.reading["cache"] = cache
        self.saver = ckptstore.Saver(**self.keywords)

    @property
    def keywords(self) -> dict[str, Any]:
        """What the Saver is made with."""
        return {name: self.options[name] for name in ("memory_budget", "durability") if name in self.options}

    def prefix(self, where: str) -> str:
        return self.place.url(f"{where}/model")

    def save(self, where: str) -> None:
        self.saver.save(self.arrays, self.prefix(where), write_meta_graph=False, **self.storage)

    def async_save(self, where: str) -> Any:
        return self.saver.save_async(
            self.arrays,
            self.prefix(where),
            write_meta_graph=False,
            snapshot=not self.options.get("promise", False),
            **self.storage,
        )

    def settle(self, operation: str, result: Any, where: str) -> Any:
        if operation != "async_save":
            return result
        result.result(300)
        return self.restore_new(where)

    def open(self, where: str) -> Any:
        return self.ckptstore.open_checkpoint(self.prefix(where), **self.storage, **self.reading)

    def visit(self, where: str) -> None:
        if "cache" in self.reading:
            self.restore_mapped(where)

    def restore_into(self, where: str) -> Mapping[str, Any]:
        with self.open(where) as checkpoint:
            return dict(checkpoint.restore(into=self.arrays).restored)

    def restore_new(self, where: str) -> Mapping[str, Any]:
        with self.open(where) as checkpoint:
            return dict(checkpoint.restore().restored)

    def restore_mapped(self, where: str) -> Mapping[str, Any]:
        with self.open(where) as checkpoint:
            return dict(checkpoint.items())

    def read_one(self, where: str) -> Mapping[str, Any]:
        with self.open(where) as checkpoint:
            return {self.data.single: checkpoint[self.data.single]}

    def close(self) -> None:
        close = getattr(self.saver, "close", None)
        if close is not None:
            close()
