"""The coordinator contract with four processes of each engine that runs training jobs."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ckptstore.testing import CoordinatorContract
from ckptstore.testing.coordinator_contract import StartRanks
from tests.rank_processes import PROGRAM, running
from tests.servers.process import free_port


def starting(commands: Callable[[int, str], list[tuple[str, ...]]]) -> StartRanks:
    # One thread of each is enough, and the machine has few cores.
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "JAX_PLATFORMS": "cpu",
        "RAY_raylet_start_wait_time_s": "120",
    }

    @contextmanager
    def start_ranks(size: int, address: str) -> Iterator[None]:
        with running(commands(size, address), environment):
            yield

    return start_ranks


def each_by_itself(engine: str) -> StartRanks:
    def commands(size: int, address: str) -> list[tuple[str, ...]]:
        port = str(free_port())
        return [(*PROGRAM, engine, address, str(rank), str(size), port) for rank in range(size)]

    return starting(commands)


class TestTorch(CoordinatorContract):
    @pytest.fixture(scope="class")
    @classmethod
    def start_ranks(cls) -> StartRanks:
        return each_by_itself("torch")


class TestJax(CoordinatorContract):
    @pytest.fixture(scope="class")
    @classmethod
    def start_ranks(cls) -> StartRanks:
        return each_by_itself("jax")


class TestMpi(CoordinatorContract):
    # mpiexec ends all of them.
    survives_death = False

    @pytest.fixture(scope="class")
    @classmethod
    def start_ranks(cls) -> StartRanks:
        mpiexec = shutil.which("mpiexec", path=str(Path(sys.executable).parent))
        assert mpiexec is not None, "mpich is not installed in this environment"
        return starting(lambda size, address: [(mpiexec, "-n", str(size), *PROGRAM, "mpi", address)])


class TestRay(CoordinatorContract):
    @pytest.fixture(scope="class")
    @classmethod
    def start_ranks(cls) -> StartRanks:
        return starting(lambda size, address: [(sys.executable, "-m", "tests.ray_job", address, str(size))])
