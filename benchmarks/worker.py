"""One contender in a process of its own: commands come in as lines of JSON, answers go out the same way."""

from __future__ import annotations

import gc
import importlib
import importlib.metadata
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import IO, Any

from benchmarks.contenders.base import LOOKS, OPERATIONS, SAVES, WARM, Contender, Place
from benchmarks.measure import (
    Cost,
    give_memory_back,
    measured,
    memory_bytes,
    read_files,
    settle,
    touch_memory,
)
from benchmarks.parts import Part
from benchmarks.sets import Data, SetSpec


class Worker:
    """One contender, set up by the orders of the harness, and the commands it answers."""

    def __init__(self, orders: dict[str, Any]) -> None:
        self.port: int = orders["port"]
        # One of many ranks holds a part of the set.
        self.data = (Part if self.port else Data)(SetSpec(**orders["set"]), **orders["part"])
        self.place = Place(**orders["place"])
        module, _, name = orders["class"].partition(":")
        kind: type[Contender] = getattr(importlib.import_module(module), name)
        self.contender = kind(self.place, self.data, orders["scratch"], **orders["options"])
        self.contender.port = self.port
        self.operations: list[str] = orders["operations"]
        self.is_warm = bool(orders["warm"])
        # Of the operation performed last.
        self.cost: Cost
        self.result: Any = None

    def load(self) -> dict[str, Any]:
        """Import the library, and warm it up unless the first contact is what shall be measured."""
        self.contender.load()
        if self.is_warm:
            self.contender.connect()
            self.warm_up()
        return {"versions": {name: _version(name) for name in self.contender.libraries}}

    def warm_up(self) -> None:
        """Do with eight tiny tensors what shall be measured: what is lazy is there then."""
        contender = self.contender
        contender.data = tiny = self.data.tiny()
        saves = [name for name in self.operations if name in SAVES]
        restores = [name for name in self.operations if name not in SAVES]
        for operation in [*(saves or ["save"]), *restores]:
            contender.data = _cut(tiny, operation)
            contender.prepare(operation, 0)
            where = f"{WARM}/{self.port or os.getpid()}/0"
            contender.settle(operation, getattr(contender, OPERATIONS[operation])(where), where)
            contender.release(operation)
        contender.data = self.data

    def run(self, operation: str, where: str, stamp: int) -> dict[str, Any]:
        """Do one operation: prepare, measure, check, release."""
        self.prepare(operation, where, stamp)
        self.perform(operation, where, stamp)
        return self.finish(operation, where, stamp)

    def prepare(self, operation: str, where: str, stamp: int) -> dict[str, Any]:
        """Do what comes before the measurement; one of many ranks then waits for the others."""
        self.contender.data = _cut(self.data, operation)
        self.contender.prepare(operation, stamp)
        if operation not in SAVES and not self.place.bucket:
            read_files(Path(self.place.root, where))
        if operation not in SAVES:
            self.contender.visit(where)
        if operation not in LOOKS:
            touch_memory(min(2 * self.data.nbytes, memory_bytes() // 3))
        settle()
        gc.collect()
        return {}

    def perform(self, operation: str, where: str, stamp: int, at_s: float = 0.0) -> dict[str, Any]:
        """Measure; the operation begins at `at_s` on the monotonic clock, or now."""
        contender = self.contender
        action = getattr(contender, OPERATIONS[operation])
        time.sleep(max(0.0, at_s - time.monotonic()))
        try:
            self.cost, self.result = measured(lambda: action(where), is_clean=True)
            if operation == "async_save" and not contender.options.get("promise"):
                # The arrays belong to the caller again: what he does to them must not reach the checkpoint.
                assert contender.flat is not None
                contender.flat[list(contender.data.starts.values())] = -2.0
        except BaseException:
            self._release(operation)
            raise
        return {}

    def finish(self, operation: str, where: str, stamp: int) -> dict[str, Any]:
        """Check, release, and return what it cost: when all ranks are ready, none of which this may delay."""
        contender = self.contender
        data = contender.data
        is_restore = operation not in (*SAVES, "ask_steps")
        cost, result = self.cost, self.result
        self.result = None
        try:
            result = contender.settle(operation, result, where)
            if is_restore:
                names = [data.single] if OPERATIONS[operation] == "read_one" else None
                data.check(result, stamp, names)
            elif operation == "async_save" and result is not None:
                data.check(result, stamp)
            del result
        finally:
            self._release(operation)
        extra = max(0, int(cost.peak_bytes) - contender.new_bytes(operation))
        return cost.as_dict() | {"peak_bytes": extra}

    def _release(self, operation: str) -> None:
        self.contender.release(operation)
        give_memory_back()

    def close(self) -> dict[str, Any]:
        self.contender.close()
        return {}


def _cut(data: Data, operation: str) -> Data:
    """Return what an operation moves: the same set, perhaps cut in another way than it was saved."""
    return data.columns if isinstance(data, Part) and operation == "restore_columns" else data


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return str(getattr(importlib.import_module(name), "__version__", "unknown"))


def _answers() -> IO[str]:
    """Return the pipe to the harness; whatever a library prints goes to standard error."""
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return pipe


def main() -> int:
    """Answer each command with one line: its values, or ``{"error": …}``."""
    answers = _answers()
    worker: Worker | None = None
    for line in sys.stdin:
        command = json.loads(line)
        name, arguments = command["do"], command.get("with", {})
        try:
            if name == "be":
                worker = Worker(arguments)
                answer: dict[str, Any] = worker.load()
            else:
                assert worker is not None
                answer = getattr(worker, name)(**arguments)
        # A contender that fails is a result; the next ones run all the same.
        except Exception as error:  # noqa: BLE001
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"[:600]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if name == "close":
            break
    answers.flush()
    # Some libraries wait at exit for threads that never end.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
