"""What a contender is: a few methods that a worker calls, of which one at a time is measured."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from benchmarks.sets import Data

OPERATIONS = {
    "save": "save",
    "restore_into": "restore_into",
    "restore_columns": "restore_into",
    "restore_new": "restore_new",
    "restore_mapped": "restore_mapped",
    "read_one": "read_one",
    "read_first": "read_one",
    "async_save": "async_save",
    "ask_steps": "ask_steps",
}
"""What rows ask for, and the method that does it."""

SAVES = ("save", "async_save")
LOOKS = ("read_one", "read_first", "ask_steps")
"""Operations that move next to nothing."""
WARM = "warm"


@dataclass(frozen=True)
class Place:
    """Where it writes: a directory (`bucket` is empty), or a bucket of an S3 server.

    Attributes
    ----------
    root : str
        Directory, or the first part of every key.
    endpoint : str
        URL of the server.
    authority : str
        File with the certificate authority of an ``https`` server, empty without one.
    """

    root: str
    bucket: str = ""
    endpoint: str = ""
    key: str = ""
    secret: str = ""
    authority: str = ""
    region: str = "us-east-1"

    def url(self, where: str) -> str:
        """Return `where` below this place, as a path or as an ``s3://`` URL."""
        return f"s3://{self.bucket}/{self.root}/{where}" if self.bucket else str(Path(self.root, where))

    def object_key(self, where: str) -> str:
        """Return the key of `where` in the bucket."""
        return f"{self.root}/{where}"


class Contender:
    """One way to save and restore the arrays of a set.

    A subclass has those of the methods in `OPERATIONS` that its library can do. All get `where`, the name of
    the round's checkpoint: a directory of its own for it, or the first part of its keys.

    Calls
    -----
    ``load``, then ``connect`` and a warm-up with eight tiny tensors (neither where the first contact is
    measured); then for each operation ``prepare``, the operation itself, which alone is measured, ``settle``,
    ``release``; and ``close``.

    Attributes
    ----------
    scratch : str
        A directory of its own for what must pass through a disk.
    port : int
        Set before ``load`` where it is one of many ranks: where rank 0 may listen.
    """

    libraries: ClassVar[tuple[str, ...]] = ()
    """Distributions whose versions are written down."""

    def __init__(self, place: Place, data: Data, scratch: str, **options: Any) -> None:
        self.place = place
        self.data = data
        self.scratch = scratch
        self.options = options
        self.flat: np.ndarray | None = None
        self.port = 0

    def load(self) -> None:
        """Import the library."""

    def connect(self) -> None:
        """Make the client; the warm-up lets it speak to the server."""

    def visit(self, where: str) -> None:
        """Called before a restore is measured: for what keeps something on this host."""

    def prepare(self, operation: str, stamp: int) -> None:
        """Have the arrays ready, in the form that the library takes, every page of them touched."""
        if operation == "async_save" and self.flat is not None and self.flat.size == self.data.elements:
            # Training goes on with the arrays it has; so does whoever recognises them.
            self.data.stamp(self.flat, stamp)
        elif operation in SAVES:
            self.flat = self.data.source(stamp)
        elif OPERATIONS[operation] == "restore_into":
            self.flat = self.data.destination()
        if self.flat is not None:
            self.take(self.data.views(self.flat))

    def take(self, arrays: dict[str, np.ndarray]) -> None:
        """Keep the arrays of the next operation; a subclass may turn them into tensors of its own."""
        self.arrays: Mapping[str, Any] = arrays

    def settle(self, operation: str, result: Any, where: str) -> Any:
        """Wait for what the operation left under way; return what the check shall look at."""
        return result

    def release(self, operation: str) -> None:
        """Let go of the arrays."""
        self.arrays = {}
        if operation != "async_save":
            self.flat = None

    def close(self) -> None:
        """End threads and connections."""

    def new_bytes(self, operation: str) -> int:
        """Return the bytes of the arrays that the operation makes, because its caller asked for them."""
        return self.data.nbytes if operation in ("restore_new", "restore_mapped") else 0

    # What several of them need.

    def local_directory(self, where: str) -> Path:
        """Return the directory of a checkpoint, made if it is not there."""
        path = Path(self.place.root, where)
        path.mkdir(parents=True, exist_ok=True)
        return path


def sync_files(directory: str | os.PathLike[str]) -> None:
    """Make the files of a directory, and their names, durable."""
    for path in [*sorted(Path(directory).rglob("*")), Path(directory)]:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
