"""The floors of the package as data: `test_imports.py` enforces them, `make docs` draws them."""

from __future__ import annotations

from dataclasses import dataclass

from tests.meta.source import Import, Module, imports, modules

__all__ = ["PACKAGE_FLOORS", "STORAGE_FLOORS", "Floor", "Floors"]


@dataclass(frozen=True)
class Floor:
    """Boxes that stand side by side. A box imports from lower floors; peers may also import each other."""

    purpose: str
    boxes: tuple[str, ...]
    peers: bool = False


@dataclass(frozen=True)
class Floors:
    """Floors from low to high, and how a module's name is turned into the name of its box."""

    title: str
    floors: tuple[Floor, ...]
    prefix: str  # what stands before the boxes' names: "ckptstore." or "ckptstore.storage."

    @property
    def level(self) -> dict[str, int]:
        return {box: level for level, floor in enumerate(self.floors) for box in floor.boxes}

    def box(self, module_name: str) -> str | None:
        """The box of a module, None for a module outside this table."""
        if not module_name.startswith(self.prefix):
            return None
        return module_name.removeprefix(self.prefix).split(".")[0]

    def boxes(self) -> dict[str, Module]:
        """Each box that exists, with the first of its modules."""
        found: dict[str, Module] = {}
        for module in modules().values():
            box = self.box(module.name)
            if box is not None:
                found.setdefault(box, module)
        return found

    def arrows(self) -> dict[tuple[str, str], Import]:
        """Each pair (importing box, imported box), with one import of it; type-only ones count."""
        found: dict[tuple[str, str], Import] = {}
        for one in imports():
            source, target = self.box(one.source.name), self.box(one.target)
            if source is not None and target is not None and source != target:
                found.setdefault((source, target), one)
        return found

    def goes_down(self, source: str, target: str) -> bool:
        """Whether an import from box `source` to box `target` is allowed."""
        level = self.level
        if level[source] == level[target]:
            return self.floors[level[source]].peers
        return level[target] < level[source]


PACKAGE_FLOORS = Floors(
    "The package",
    (
        Floor(
            "the ground",
            ("errors", "types", "config", "checksums", "suggest", "warn", "frameworks"),
            peers=True,
        ),
        Floor("bytes: what a file holds, where it is kept", ("format", "storage")),
        Floor("many parts and ranges at once", ("transfer",)),
        Floor("one checkpoint", ("bundle", "graph", "trackable", "tree")),
        Floor("checkpoints over time; copies of them", ("directory", "distributed", "cache")),
        Floor("one read, one save", ("reading", "saving")),
        Floor("following a directory", ("serving",)),
        Floor("what tf.train has", ("train",)),
        Floor(
            "adapters, tools, the test kit",
            (
                *("inspect_checkpoint", "view", "testing", "fleet"),
                *("torch", "jax", "tensorflow", "keras", "safetensors"),
            ),
        ),
        Floor("adapters of what stands on a framework", ("lightning",)),
        Floor("the shell commands", ("cli",)),
        Floor("python -m ckptstore", ("__main__",)),
    ),
    "ckptstore.",
)

STORAGE_FLOORS = Floors(
    "Inside storage",
    (
        Floor(
            "plain data and means",
            (
                *("values", "finding", "redact", "fork_safe_locks", "huge_pages", "scope", "bucket_names"),
                *("credentials", "latch", "reentry"),
            ),
            peers=True,
        ),
        Floor("checks of arguments, time", ("checks", "retry")),
        Floor("one upload", ("upload",)),
        Floor("the seam", ("base",)),
        Floor("optional abilities; names", ("abilities", "prefix_names")),
        Floor(
            "backends, and what works with any backend",
            ("wrappers", "races", "local", "memory", "generic", "object_store"),
        ),
        Floor("URLs; what doctor says; bulk bytes over connections of our own", ("url", "diagnosis", "wire")),
        Floor("services", ("s3", "gcs")),
        Floor("from a URL to a storage", ("registry",)),
    ),
    "ckptstore.storage.",
)
