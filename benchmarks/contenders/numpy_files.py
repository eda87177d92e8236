"""numpy's own archive: one .npz, a zip file with a CRC32 of each member."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.contenders.base import Contender


class Npz(Contender):
    """``savez`` and ``load``."""

    libraries = ("numpy",)

    def file(self, where: str) -> str:
        return str(self.local_directory(where) / "model.npz")

    def save(self, where: str) -> None:
        np.savez(self.file(where), allow_pickle=False, **self.arrays)

    def restore_new(self, where: str) -> Mapping[str, Any]:
        with np.load(self.file(where)) as archive:
            return dict(archive.items())
