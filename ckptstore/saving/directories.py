"""The directories that a Saver saves into, and the checkpoints that its retention counts in each."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from ckptstore.config import process_run
from ckptstore.directory.checkpoint_writer import CheckpointWriter
from ckptstore.directory.retention import Entry, Retention
from ckptstore.storage.base import Location
from ckptstore.storage.registry import locate
from ckptstore.types import Options

__all__ = ["SaverDirectories"]

_Key: TypeAlias = tuple[Any, str, str]


class SaverDirectories:
    """One `CheckpointWriter` for each directory and record.

    Parameters
    ----------
    clock : callable
        Seconds since 1970.
    run : str or None
        As for `Saver`.
    storage_options : mapping, optional
        For the paths that the user set.

    Threads
    -------
    One thread at a time; `paths` also while the writers save.
    """

    def __init__(
        self,
        retention: Retention,
        clock: Callable[[], float],
        run: str | None,
        storage_options: Options = None,
    ) -> None:
        self._retention = retention
        self._clock = clock
        self._run = run
        self._storage_options = storage_options
        self._writers: dict[_Key, CheckpointWriter] = {}
        self._pid = os.getpid()
        # What the user set and no writer has taken over yet, and the writers that have taken over their part;
        # None: the user set nothing.
        self._set: list[tuple[str, float]] = []
        self._taken_over: set[_Key] | None = None

    def writer(self, prefix: Location, record: Location) -> CheckpointWriter:
        """Return the writer for the directory of `prefix`."""
        if self._pid != os.getpid():
            # The parent goes on with its own writers.
            self._pid = os.getpid()
            self._writers.clear()
        key = (prefix.storage, prefix.parent.key, record.name)
        writer = self._writers.get(key)
        if writer is None:
            writer = CheckpointWriter(prefix.parent, record.name, self._retention, self._clock)
            self._writers[key] = writer
        if self._taken_over is not None and key not in self._taken_over:
            self._taken_over.add(key)
            places = [(locate(path, self._storage_options), time_s) for path, time_s in self._set]
            here = [(place.name, time_s) for place, time_s in places if place.parent.key == prefix.parent.key]
            writer.set_window(tuple(Entry(name, time_s) for name, time_s in here))
            names = {name for name, _ in here}
            self._set = [
                item
                for item, (place, _) in zip(self._set, places, strict=True)
                if place.parent.key != prefix.parent.key or place.name not in names
            ]
        return writer

    @property
    def run(self) -> str:
        """Identity for fencing, of this process now: a forked child is another run."""
        return self._run or process_run()

    @property
    def paths(self) -> list[str]:
        """Prefixes that retention counts, oldest first in each directory."""
        paths = [path for path, _ in self._set]
        for writer in list(self._writers.values()):
            paths += [writer.directory.child(entry.prefix).url for entry in writer.window]
        return paths

    def set(self, checkpoints: Sequence[tuple[str, float]]) -> None:
        """Make retention count exactly these ``(prefix, seconds since 1970)``; no save may be in flight."""
        self._set = [(os.fsdecode(path), float(time_s)) for path, time_s in checkpoints]
        self._taken_over = set()
        for writer in self._writers.values():
            writer.set_window(())
