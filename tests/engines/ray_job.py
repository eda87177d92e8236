"""A job on Ray: `python -m tests.engines.ray_job SOCKET` runs each rank in an actor."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

import ray

from tests.engines.rank import serve
from tests.meta.source import ROOT

SIZE = 4
# Beside the ranks the workers of Ray Train, and what leads them.
_CPUS = SIZE + 3
_ATTEMPTS = 6


class Rank:
    def serve(self, socket_path: str, number: int) -> None:
        serve("ray", socket_path, {"number": number})


def start_ray() -> None:
    """Start Ray, again if need be: it gives its own helpers 15 s, and dies if a busy machine is slower."""
    for left in reversed(range(_ATTEMPTS)):
        try:
            ray.init(
                num_cpus=_CPUS,
                include_dashboard=False,
                object_store_memory=256 << 20,
                runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
            )
        except Exception:
            if not left:
                raise
            with suppress(Exception):
                ray.shutdown()
        else:
            return


if __name__ == "__main__":
    start_ray()
    made = ray.remote(num_cpus=1)(Rank)
    ranks = [made.remote() for _ in range(SIZE)]
    served = [one.serve.remote(sys.argv[1], number) for number, one in enumerate(ranks)]
    # Those that were killed are over too.
    ray.wait(served, num_returns=SIZE)
    ray.shutdown()
    os._exit(0)
