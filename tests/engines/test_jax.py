"""Four processes of JAX."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ckptstore as ck
from tests.engines import scenarios
from tests.engines.job import SIZE, Job
from tests.meta.source import ROOT
from tests.servers.process import free_port

LAUNCHER = "jax"
pytestmark = pytest.mark.timeout(1000)


class TestPage(scenarios.PageLines):
    pass


def run(processes: int, directory: Path) -> None:
    """Run a program on eight devices, and look at what its processes say."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={8 // processes}",
    }
    arguments = [sys.executable, "-m", "tests.engines.jax_trees", str(processes)]
    port = str(free_port())
    printed = [directory.parent / f"printed {processes} {number}" for number in range(processes)]
    running = []
    for number, path in enumerate(printed):
        with path.open("wb") as out:
            command = [*arguments, str(number), port, str(directory)]
            running.append(
                subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT)
            )
    try:
        codes = [one.wait(400) for one in running]
    finally:
        for one in running:
            one.kill()
            one.wait(60)
    said = "\n".join(path.read_text(errors="replace")[-3000:] for path in printed)
    assert codes == [0] * processes, said


# Before the contract, which keeps the ranks until the end.
def test_a_tree_moves_from_four_processes_to_two_to_one(job: Job, tmp_path: Path) -> None:
    directory = tmp_path / "saved"
    directory.mkdir()
    job.ask("jax_tree", directory=str(directory))
    # Each distinct byte once: three arrays, one of two-byte numbers, keys, a number and the document.
    document = len(bytes(ck.open_checkpoint(f"{directory}/model-1")["_CKPTSTORE_TREE"].item()))
    size = sum(path.stat().st_size for path in directory.glob("model-1.data*"))
    assert size == 3 * (1 << 20) + (1 << 19) + 64 + 4 + document + 6
    assert not list(directory.glob("odd*.index"))
    run(2, directory)
    run(1, directory)


# JAX listens to SIGTERM until somebody else does, and tells of a notice once.
def test_at_the_sync_point_of_jax_all_save_one_checkpoint(job: Job, tmp_path: Path) -> None:
    url = str(tmp_path)
    job.begin("preempt_by_jax", url=url)
    assert job.answers() == [{"ready": True}] * SIZE
    job.terminate(1)
    found = job.answers()
    step = found[0]["step"]
    assert found == [{"step": step, "prefix": f"{url}/m-{step}"}] * SIZE
    scenarios.check_saved(url, step)


class TestPreempted(scenarios.Preempted):
    pass


class TestContract(scenarios.Contract):
    pass
