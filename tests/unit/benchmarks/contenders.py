"""Contenders that misbehave, each in its own way; workers import them."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from benchmarks.contenders.numpy_files import Npz
from benchmarks.parts import Part


class Dies(Npz):
    def save(self, where: str) -> None:
        os._exit(7)


class Hangs(Npz):
    def save(self, where: str) -> None:
        time.sleep(3600)


class Prints(Npz):
    def save(self, where: str) -> None:
        print('{"error": "this is no answer"}', flush=True)
        super().save(where)


class Forgets(Npz):
    """Restores what the first save left."""

    first: dict[str, Any] | None = None

    def save(self, where: str) -> None:
        super().save(where)
        if self.first is None and self.data.spec.size != 8:
            self.first = {name: array.copy() for name, array in self.arrays.items()}

    def restore_new(self, where: str) -> Mapping[str, Any]:
        return self.first or super().restore_new(where)


class Cuts(Npz):
    def restore_new(self, where: str) -> Mapping[str, Any]:
        found = dict(super().restore_new(where))
        found.pop(next(iter(found)))
        return found


class Complains(Npz):
    def save(self, where: str) -> None:
        raise OSError(f"no room in {self.place.root}, {self.scratch} and {os.path.realpath(__file__)}")


class Rank(Npz):
    """A file for each rank; the second rank is slow."""

    data: Part

    def file(self, where: str) -> str:
        return f"{super().file(where)}-{self.data.rank}.npz"

    def save(self, where: str) -> None:
        time.sleep(0.3 * self.data.rank)
        super().save(where)

    def restore_into(self, where: str) -> Mapping[str, Any]:
        return super().restore_new(where)


class RankFails(Rank):
    """The second rank fails, and the first waits for it."""

    def save(self, where: str) -> None:
        if self.data.spec.size == 8:
            super().save(where)
            return
        if self.data.rank:
            raise OSError("no room")
        time.sleep(3600)
