"""In the workers of Ray Train nothing has to be said: rank, size and the job are known."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.meta.source import ROOT

PROGRAM = """
import ray
from ray.train import ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

def train_loop():
    import ckptstore as ck
    from ray import train
    coordinator = ck.coordinator()
    assert (coordinator.rank, coordinator.size) == (train.get_context().get_world_rank(), 2)
    found = coordinator.gather("t", b"%d" % coordinator.rank, timeout_s=60)
    answer = coordinator.broadcast("t", b"".join(found.values()) if found else None, timeout_s=60)
    assert answer == b"01", answer
    coordinator.close()

ray.init(num_cpus=4, include_dashboard=False, log_to_driver=True, object_store_memory=128 << 20,
         runtime_env={"env_vars": {"PYTHONPATH": ROOT}})
DataParallelTrainer(train_loop, scaling_config=ScalingConfig(num_workers=2)).fit()
print("agreed", flush=True)
ray.shutdown()
"""


def test_the_workers_of_ray_train_find_each_other() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("ROOT}", f"{str(ROOT)!r}}}")],
        cwd=ROOT,
        env={**os.environ, "RAY_raylet_start_wait_time_s": "120"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert "agreed" in done.stdout, done.stdout + done.stderr
