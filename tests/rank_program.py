"""One rank of the coordinator contract: `python -m tests.rank_program ENGINE ADDRESS [RANK SIZE [PORT]]`.

Ended by `os._exit`: what an engine does at a normal end waits for others, which a test may have killed.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import ckptstore as ck
from ckptstore.testing.coordinator_contract.serve import serve_rank


def torch_rank(rank: int, size: int, port: int) -> Callable[[], Any]:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    return lambda: ck.coordinator("auto")


def jax_rank(rank: int, size: int, port: int) -> Callable[[], Any]:
    import jax

    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=size, process_id=rank)
    return lambda: ck.coordinator("auto")


def mpi_rank() -> Callable[[], Any]:
    from mpi4py import MPI

    assert MPI.COMM_WORLD.Get_size() > 1
    return lambda: ck.coordinator("auto")


def store_rank(rank: int, size: int) -> Callable[[], Any]:
    options = json.loads(os.environ["STORE_OPTIONS"])
    url = os.environ["STORE_URL"]
    return lambda: ck.coordinator(
        "store", url=url, rank=rank, size=size, attempt="1", storage_options=options or None
    )


if __name__ == "__main__":
    faulthandler.enable()
    engine, address, *rest = sys.argv[1:]
    open_coordinator = globals()[f"{engine}_rank"](*map(int, rest))
    serve_rank(address, open_coordinator)
    os._exit(0)
