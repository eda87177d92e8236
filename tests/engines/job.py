"""A job of four real processes under an engine, started by its launcher, that a module of tests shares."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.meta.source import ROOT
from tests.rank_talk import SIZE, Talk
from tests.servers.process import free_port

__all__ = ["SIZE", "Job"]

# For anything that is to come at all. Ray may need minutes to start on a busy machine.
PATIENCE_S = 400.0
_LEAVE_S = 20.0
_BIN = Path(sys.executable).parent
_RANK = ("-m", "tests.engines.rank")


class Job(Talk):
    """Four ranks that have begun as docs/distributed.md says; a context manager that ends them.

    Parameters
    ----------
    launcher : str
        Name of a function of this module that returns the commands.
    directory : Path
        Gets what the processes print, and the messages of ranks without an engine.
    attempt : str
        Name of this start, for ranks without an engine.
    """

    def __init__(self, launcher: str, directory: Path, attempt: str = "first") -> None:
        super().__init__(PATIENCE_S)
        self.engine = "torch" if launcher == "torchrun" else launcher
        self.is_broken = False
        self._printed = directory / "printed"
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            # One thread of each is enough, and the machine has few cores.
            "OMP_NUM_THREADS": "1",
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "WORLD_SIZE": str(SIZE),
            "ATTEMPT": attempt,
            # After which Ray notices that its own start has failed.
            "RAY_raylet_start_wait_time_s": "60",
        }
        with self._printed.open("wb") as printed:
            self.processes = [
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env={**environment, "RANK": str(number)},
                    stdout=printed,
                    stderr=subprocess.STDOUT,
                )
                for number, command in enumerate(_LAUNCHERS[launcher](self.address, str(directory)))
            ]

    def __enter__(self) -> Job:
        try:
            self.accept(self._check)
        except BaseException as error:
            self.__exit__()
            raise AssertionError(f"the job did not start: {error}\n{self.printed()}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        ends_s = time.monotonic() + _LEAVE_S
        for process in self.processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(ends_s - time.monotonic(), 0.0))
        self.kill()
        for process in self.processes:
            process.kill()
            process.wait(PATIENCE_S)

    def printed(self) -> str:
        return self._printed.read_text(errors="replace")[-8000:]

    def _check(self) -> None:
        codes = [process.poll() for process in self.processes]
        assert all(code is None for code in codes), f"the processes ended with {codes}"

    def ask(self, do: str, **arguments: Any) -> list[dict[str, Any]]:
        """Return what all ranks say to a command, none of which fails."""
        assert not self.is_broken, "an earlier test has left this job in the middle of something"
        self.is_broken = True
        self.begin(do, **arguments)
        found = self.answers()
        self.is_broken = False
        return found

    def answers(self) -> list[dict[str, Any]]:
        found = self.hear_all()
        for rank, one in enumerate(found):
            assert one is not None, f"rank {rank} died\n{self.printed()}"
            assert "error" not in one, f"rank {rank}: {one['error']}"
        return [one for one in found if one is not None]

    def terminate(self, rank: int) -> None:
        os.kill(self.pids[rank], signal.SIGTERM)


def _each_by_itself(engine: str, socket_path: str, directory: str) -> list[list[str]]:
    address = f"127.0.0.1:{free_port()}"
    arguments = [*_RANK, engine, socket_path, address, directory]
    return [[sys.executable, *arguments, str(number)] for number in range(SIZE)]


def _torchrun(socket_path: str, directory: str) -> list[list[str]]:
    options = ["--nproc-per-node", str(SIZE), "--master-port", str(free_port())]
    return [[str(_BIN / "torchrun"), *options, *_RANK, "torch", socket_path, "", directory]]


def _mpiexec(socket_path: str, directory: str) -> list[list[str]]:
    mpiexec = shutil.which("mpiexec", path=str(_BIN))
    assert mpiexec is not None, "mpich is not installed in this environment"
    return [[mpiexec, "-n", str(SIZE), sys.executable, *_RANK, "mpi", socket_path, "", directory]]


_LAUNCHERS = {
    "torch": lambda *where: _each_by_itself("torch", *where),
    "torchrun": _torchrun,
    "jax": lambda *where: _each_by_itself("jax", *where),
    "mpi": _mpiexec,
    "store": lambda *where: _each_by_itself("store", *where),
    "ray": lambda socket_path, _: [[sys.executable, "-m", "tests.engines.ray_job", socket_path]],
}
