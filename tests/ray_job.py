"""A job on Ray: `python -m tests.ray_job ADDRESS SIZE` runs each rank of the contract in an actor."""

from __future__ import annotations

import os
import sys

import ray

import ckptstore as ck
from ckptstore.testing.coordinator_contract.serve import serve_rank
from tests.meta.source import ROOT


class Rank:
    def serve(self, address: str, rank: int, size: int) -> None:
        serve_rank(address, lambda: ck.coordinator("ray", rank=rank, size=size, name="contract"))


if __name__ == "__main__":
    address, size = sys.argv[1], int(sys.argv[2])
    ray.init(
        num_cpus=size,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=256 << 20,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    made = ray.remote(num_cpus=1)(Rank)
    ranks = [made.remote() for _ in range(size)]
    served = [one.serve.remote(address, number, size) for number, one in enumerate(ranks)]
    # Those that were killed are over too.
    ray.wait(served, num_returns=size)
    ray.shutdown()
    os._exit(0)
