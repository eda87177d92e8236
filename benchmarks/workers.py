"""Workers from the outside: started in their environment, spoken to over pipes, given up on after a while."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.contenders.base import Place
from benchmarks.contenders.registry import Spec
from benchmarks.sets import SetSpec

ROOT = Path(__file__).resolve().parents[1]
START_S = 300.0
OPERATION_S = 240.0


class WorkerError(Exception):
    """A contender failed; the message is the reason."""


class WorkerProcess:
    """One contender.

    Parameters
    ----------
    environments : Path
        The directory of virtual environments.
    directory : Path
        Its own: logs, and what it must put on a disk on the way.
    part : mapping
        ``rank`` and ``ranks`` of one of many.
    port : int
        Where rank 0 may listen for the others.
    """

    def __init__(
        self,
        spec: Spec,
        place: Place,
        data: SetSpec,
        operations: list[str],
        *,
        warm: bool,
        environments: Path,
        directory: Path,
        part: Mapping[str, int] = MappingProxyType({}),
        port: int = 0,
    ) -> None:
        python = environments / f"venv-{spec.environment}" / "bin" / "python"
        if not python.is_file():
            raise WorkerError(f"did not run: environment {spec.environment} is missing (make bench-setup)")
        scratch = directory / "scratch"
        scratch.mkdir(parents=True, exist_ok=True)
        with (directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(python), "-m", "benchmarks.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=scratch,
                env=_environment(place),
            )
        self._rest = b""
        orders = {
            "class": spec.code,
            "set": asdict(data),
            "place": asdict(place),
            "scratch": str(scratch),
            "options": spec.options,
            "operations": operations,
            "warm": warm,
            "part": dict(part),
            "port": port,
        }
        try:
            self.versions: dict[str, str] = self.ask("be", orders, START_S)["versions"]
        except WorkerError:
            self.kill()
            raise

    def ask(self, command: str, arguments: dict[str, Any], timeout_s: float = OPERATION_S) -> dict[str, Any]:
        """Return its answer.

        Raises
        ------
        WorkerError
            If it reports a failure; or ends or does not answer in time, and then it is gone.
        """
        pipe = self._process.stdin
        assert pipe is not None
        try:
            pipe.write(json.dumps({"do": command, "with": arguments}).encode() + b"\n")
            pipe.flush()
            answer: dict[str, Any] = json.loads(self._line(timeout_s))
        except BrokenPipeError:
            self.kill()
            raise WorkerError("its process has ended") from None
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def _line(self, timeout_s: float) -> bytes:
        pipe = self._process.stdout
        assert pipe is not None
        deadline_s = time.monotonic() + timeout_s
        while b"\n" not in self._rest:
            ready, _, _ = select.select([pipe], [], [], max(0.0, deadline_s - time.monotonic()))
            if not ready:
                self.kill()
                raise WorkerError(f"no answer within {timeout_s:.0f} s")
            piece = os.read(pipe.fileno(), 1 << 16)
            if not piece:
                self.kill()
                raise WorkerError(f"its process ended with status {self._process.returncode}")
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """Let it end, with force if it does not."""
        if self.is_alive:
            try:
                self.ask("close", {}, 20)
                self._process.wait(10)
            except (WorkerError, subprocess.TimeoutExpired):
                pass
        self.kill()

    def kill(self) -> None:
        if self.is_alive:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def _environment(place: Place) -> dict[str, str]:
    """Return this process's environment with the place's settings for S3 instead of anybody's."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "FSSPEC_"))
    }
    environment["PYTHONPATH"] = str(ROOT)
    environment["TF_CPP_MIN_LOG_LEVEL"] = "2"
    if place.bucket:
        environment |= {
            "AWS_ACCESS_KEY_ID": place.key,
            "AWS_SECRET_ACCESS_KEY": place.secret,
            "AWS_DEFAULT_REGION": place.region,
            "AWS_REGION": place.region,
            "AWS_ENDPOINT_URL": place.endpoint,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }
        if place.authority:
            environment |= {"SSL_CERT_FILE": place.authority, "AWS_CA_BUNDLE": place.authority}
    return environment
