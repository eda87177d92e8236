"""Runs the rows: all contenders of an operation in each round, in shuffled order, one at a time."""

from __future__ import annotations

import datetime
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks import machine, server
from benchmarks.contenders.base import SAVES, Place
from benchmarks.contenders.registry import CONTENDERS, Spec
from benchmarks.measure import memory_bytes, touch_memory
from benchmarks.rows import SCENARIOS, Row, Scenario, work_of
from benchmarks.sets import Data, SetSpec
from benchmarks.team import Team
from benchmarks.workers import ROOT, WorkerError, WorkerProcess

SCHEMA = "ckptstore-benchmark/1"

IMPORTS = {
    "numpy": ("numpy", "bench", "import numpy"),
    "ckptstore": ("numpy, ckptstore", "bench", "import numpy, ckptstore"),
    "ckptstore-saver": (
        "… and Saver, open_checkpoint",
        "bench",
        "import ckptstore as c; c.Saver; c.open_checkpoint",
    ),
    "safetensors": ("safetensors.numpy", "bench-clients", "import safetensors.numpy"),
    "tensorstore": ("tensorstore", "bench-jax", "import tensorstore"),
    "torch-dcp": ("torch.distributed.checkpoint", "bench-torch", "import torch.distributed.checkpoint"),
    "orbax": ("orbax.checkpoint", "bench-jax", "import orbax.checkpoint"),
    "tensorflow": ("tensorflow", "bench-tensorflow", "import tensorflow"),
}
_ROOM = 25  # times W: the checkpoints of one round, twice for those that write a file and upload it


@dataclass(frozen=True)
class Settings:
    """What a run was asked for.

    Attributes
    ----------
    slow_rounds : int
        For contenders that are marked slow.
    directory : Path
        For everything that is written; on a disk, not on tmpfs.
    """

    rounds: int
    slow_rounds: int
    large: SetSpec
    small: SetSpec
    ranks: SetSpec
    imports: int
    seed: int
    directory: Path
    environments: Path
    only_quick: bool = False
    contenders: frozenset[str] = frozenset()

    def set_of(self, size: str) -> SetSpec:
        """Return the set that a scenario of this size moves."""
        few, many = SetSpec("slices", 16), SetSpec("slices", 2000)
        return {"large": self.large, "small": self.small, "ranks": self.ranks, "few": few, "many": many}[size]

    def takes_part(self, name: str) -> bool:
        if self.contenders:
            return name in self.contenders
        return CONTENDERS[name].quick or not self.only_quick

    def rounds_of(self, name: str, scenario: Scenario) -> int:
        is_short = CONTENDERS[name].slow and not scenario.all_rounds
        return min(self.rounds, self.slow_rounds) if is_short else self.rounds


@dataclass
class Entry:
    """One contender in one operation: the costs of its rounds, or why there are none."""

    rounds: dict[int, dict[str, float]] = field(default_factory=dict)
    failure: str = ""


Measured = dict[tuple[str, str], dict[str, Entry]]
"""(scenario, operation) → contender → entry."""


class Run:
    """One run of the suite."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.random = random.Random(settings.seed)
        self.versions: dict[str, dict[str, str]] = {}
        self.measured: Measured = {}

    def all(self, rows: dict[str, Row]) -> dict[str, Any]:
        """Run what the rows need; return the results, ready to be written as JSON."""
        started = time.monotonic()
        facts = machine.facts(self.settings.directory)
        log(f"seed {self.settings.seed}: the same seed gives the same order")
        free = shutil.disk_usage(self.settings.directory).free
        if free < _ROOM * Data(self.settings.large).nbytes:
            log(f"!! only {free / 2**30:.0f} GiB of disk free; all checkpoints of a round lie side by side")
        # Pages that this machine never had in use are fetched now, and not by whoever comes first.
        touch_memory(min(memory_bytes() * 6 // 10, 10 * Data(self.settings.large).nbytes))
        try:
            for name, operations in work_of(rows).items():
                self.group(name, operations)
        except KeyboardInterrupt:
            log("!! interrupted: these are the results so far")
        return self.results(rows, facts, time.monotonic() - started)

    # -------------------------------------------------------------------------------------------- scenarios

    def group(self, name: str, operations: dict[str, list[str]]) -> None:
        """Run one scenario, or the imports, with those who take part."""
        if name == "import":
            self.imports()
            return
        chosen = {
            operation: [who for who in names if self.settings.takes_part(who)]
            for operation, names in operations.items()
        }
        self.scenario(name, SCENARIOS[name], chosen)

    def scenario(self, name: str, scenario: Scenario, operations: dict[str, list[str]]) -> None:
        spec = self.settings.set_of(scenario.size)
        for operation in operations:
            self.measured[name, operation] = {who: Entry() for who in operations[operation]}
        with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=self.settings.directory) as text:
            try:
                with _store(scenario, Path(text)) as store:
                    _Scenario(self, name, scenario, spec, operations, store, Path(text)).run()
            except server.NoServerError as error:
                self.fail_all(name, str(error))
            # The server is gone, say: what was measured before stands, and the other scenarios run.
            except Exception as error:  # noqa: BLE001
                traceback.print_exc()
                self.fail_all(name, f"the scenario broke off: {type(error).__name__}")

    def fail_all(self, scenario: str, reason: str) -> None:
        log(f"!! {scenario}: {reason}")
        for (name, _), entries in self.measured.items():
            for entry in entries.values():
                if name == scenario:
                    entry.failure = entry.failure or reason

    def imports(self) -> None:
        """Time fresh processes that only import."""
        entries = self.measured.setdefault(("import", "import"), {name: Entry() for name in IMPORTS})
        for number in range(self.settings.imports + 1):
            for name in self.random.sample(list(IMPORTS), len(IMPORTS)):
                _, environment, code = IMPORTS[name]
                heavy = environment not in ("bench", "bench-clients")
                if entries[name].failure or (heavy and number > 3):
                    continue
                python = self.settings.environments / f"venv-{environment}" / "bin" / "python"
                start = time.perf_counter()
                try:
                    subprocess.run([str(python), "-c", code], check=True, cwd=ROOT, capture_output=True)
                except (OSError, subprocess.CalledProcessError) as error:
                    entries[name].failure = f"did not run: {type(error).__name__}"
                    log(f"!! import {name}: {entries[name].failure}")
                    continue
                if number:  # the first writes bytecode and fills the page cache
                    entries[name].rounds[number] = {"seconds": time.perf_counter() - start}

    # -------------------------------------------------------------------------------------------- results

    def results(self, rows: dict[str, Row], facts: dict[str, Any], seconds: float) -> dict[str, Any]:
        settings = self.settings
        return {
            "schema": SCHEMA,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "seconds": round(seconds),
            "machine": facts,
            "settings": {
                "rounds": settings.rounds,
                "slow_rounds": settings.slow_rounds,
                "seed": settings.seed,
                "large_bytes": Data(settings.large).nbytes,
                "small_count": settings.small.size,
                "ranks_bytes": Data(settings.ranks).nbytes,
                "quick": settings.only_quick,
            },
            "contenders": {
                name: _described(CONTENDERS[name], self.versions.get(name, {}))
                for name in sorted(
                    {who for entries in self.measured.values() for who in entries} & CONTENDERS.keys()
                )
            },
            "imports": {name: title for name, (title, _, _) in IMPORTS.items()},
            "rows": [self._row(name, row) for name, row in rows.items()],
        }

    def _row(self, name: str, row: Row) -> dict[str, Any]:
        entries = self.measured.get((row.scenario, row.operation), {})
        is_import = row.scenario == "import"
        size = None if is_import else SCENARIOS[row.scenario].size
        data = Data(self.settings.set_of(size or "small"))
        one = row.operation.startswith("read")
        return {
            "id": name,
            "title": row.title,
            "scenario": row.scenario,
            "operation": row.operation,
            "store": "" if is_import else SCENARIOS[row.scenario].store,
            "measure": row.measure,
            "note": row.note,
            "set_bytes": data.expected(data.single, 0).nbytes if one else data.nbytes,
            "reference": list(row.reference),
            "targets": [asdict(target) for target in row.targets],
            "entries": [
                {"contender": who, "rounds": entries[who].rounds, "failure": entries[who].failure}
                for who in (IMPORTS if is_import else row.contenders)
                if who in entries
            ],
        }


class _Scenario:
    """One scenario of a run: its store, its workers, its rounds."""

    def __init__(
        self,
        run: Run,
        name: str,
        scenario: Scenario,
        spec: SetSpec,
        operations: dict[str, list[str]],
        store: server.Minio | None,
        directory: Path,
    ) -> None:
        self.owner, self.name, self.scenario, self.spec = run, name, scenario, spec
        self.operations, self.store, self.directory = operations, store, directory
        self.workers: dict[str, WorkerProcess | Team] = {}
        self.saved: dict[str, int] = {}  # contender → round of its last save

    def run(self) -> None:
        log(f"== {self.name}: {self.spec.title}")
        settings = self.owner.settings
        try:
            for number in range(settings.rounds + self.scenario.discarded):
                for operation, names in self.operations.items():
                    if operation == "save" and number and self.scenario.saved_once:
                        continue
                    counted = number - self.scenario.discarded
                    present = [who for who in names if counted < settings.rounds_of(who, self.scenario)]
                    for who in self.owner.random.sample(present, len(present)):
                        self.once(who, operation, number)
                log(f"{self.name}: round {number + 1} of {settings.rounds + self.scenario.discarded}")
        finally:
            for worker in self.workers.values():
                worker.close()

    def once(self, who: str, operation: str, number: int) -> None:
        entry = self.owner.measured[self.name, operation][who]
        if entry.failure:
            return
        is_save = operation in SAVES
        if not is_save and who not in self.saved:
            save = self.owner.measured[self.name, "save"][who]
            entry.failure = f"nothing to restore, its save failed: {save.failure}"
            return
        if is_save and not CONTENDERS[who].keeps:
            self.clear(who)
        where = f"{who}/r{number if is_save else self.saved[who]}"
        arguments = {"operation": operation, "where": where, "stamp": number if is_save else self.saved[who]}
        try:
            worker = self.worker(who, operation)
            costs = worker.ask("run", arguments)
        except WorkerError as error:
            entry.failure = self.cleaned(str(error))
            log(f"!! {self.name}, {operation}, {who}: {entry.failure}")
            self.end(who)
            return
        if is_save:
            self.saved[who] = number
        if number >= self.scenario.discarded:
            entry.rounds[number] = costs
            log(f"   {operation} {who}: {costs['seconds']:.3f} s")
        if self.scenario.lifetime == "operation":
            self.end(who)

    def worker(self, who: str, operation: str) -> WorkerProcess | Team:
        worker = self.workers.get(who)
        if worker is not None and worker.is_alive:
            return worker
        operations = [operation]
        if self.scenario.lifetime == "run":
            operations = [name for name, names in self.operations.items() if who in names]
        place = self.directory / "files"
        spec = CONTENDERS[who]
        self.workers[who] = made = (Team if spec.ranks > 1 else WorkerProcess)(
            spec,
            Place(str(place)) if self.store is None else replace(self.store.place, root=self.name),
            self.spec,
            operations,
            warm=operation != "read_first",
            environments=self.owner.settings.environments,
            directory=self.directory / "workers" / who,
        )
        self.owner.versions[who] = self.owner.versions.get(who, {}) | made.versions
        return made

    def end(self, who: str) -> None:
        worker = self.workers.pop(who, None)
        if worker is not None:
            worker.close()

    def clear(self, who: str) -> None:
        """Remove the files of its last save, outside the measurement."""
        self.saved.pop(who, None)
        if self.store is None:
            shutil.rmtree(self.directory / "files" / who, ignore_errors=True)
        else:
            self.store.clear(f"{self.name}/{who}/")

    def cleaned(self, text: str) -> str:
        """Return a reason without the paths of this machine."""
        for path in (self.directory, self.owner.settings.directory, ROOT):
            text = text.replace(str(path), "…")
        return text


@contextmanager
def _store(scenario: Scenario, directory: Path) -> Iterator[server.Minio | None]:
    if scenario.store == "local":
        yield None
        return
    with server.minio(directory / "minio", tls=scenario.store == "https") as running:
        yield running


def _described(spec: Spec, versions: dict[str, str]) -> dict[str, Any]:
    return {
        "label": spec.label,
        "kind": spec.kind,
        "environment": spec.environment,
        "slow": spec.slow,
        "versions": versions,
        **asdict(spec.traits),
    }


def log(text: str) -> None:
    """Print one line of progress to standard error."""
    print(text, file=sys.stderr, flush=True)
