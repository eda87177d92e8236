"""One rank of a job that is preempted again and again: `python -m tests.preempted_rank ENGINE … ROUNDS`.

Says ``ready PID`` in each round, trains until it should save, and says ``saved STEP``. With torch every step
has a collective, in which the others wait for the slowest; elsewhere each rank has a pace of its own.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable

import ckptstore as ck
from tests import rank_program


def torch_step() -> None:
    import torch
    import torch.distributed as dist

    dist.all_reduce(torch.ones(8))


def own_step() -> None:
    time.sleep(random.uniform(0, 0.004))


if __name__ == "__main__":
    engine, *numbers = sys.argv[1:]
    *rest, rounds = map(int, numbers)
    coordinator = getattr(rank_program, f"{engine}_rank")(*rest)()
    take_step: Callable[[], None] = torch_step if engine == "torch" else own_step
    for _ in range(rounds):
        with ck.Preemption(coordinator, grace_s=60) as preemption:
            print("ready", os.getpid(), flush=True)
            step = 0
            while not preemption.should_save(step):
                take_step()
                step += 1
            assert preemption.requested
            assert 0 < preemption.left_s <= 60
            print("saved", step, flush=True)
            # All at the same step, or the collectives of the next round would not fit together.
            coordinator.gather(f"round-{_}", b"", timeout_s=60)
            coordinator.broadcast(f"round-{_}", None if coordinator.rank else b"", timeout_s=60)
    os._exit(0)
