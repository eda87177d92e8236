"""One rank of a job that is preempted again and again: `python -m tests.preempted_rank RANK SIZE ROUNDS`.

Says ``ready PID`` in each round, trains until it should save, and says ``saved STEP``. Each rank has a pace
of its own.
"""

from __future__ import annotations

import os
import random
import sys
import time

import ckptstore as ck
from tests.rank_program import store_rank

if __name__ == "__main__":
    rank, size, rounds = map(int, sys.argv[1:])
    coordinator = store_rank(rank, size)()
    for _ in range(rounds):
        with ck.Preemption(coordinator, grace_s=60) as preemption:
            print("ready", os.getpid(), flush=True)
            step = 0
            while not preemption.should_save(step):
                time.sleep(random.uniform(0, 0.004))
                step += 1
            assert preemption.requested
            assert 0 < preemption.left_s <= 60
            print("saved", step, flush=True)
            # All at the same step, or the collectives of the next round would not fit together.
            coordinator.gather(f"round-{_}", b"", timeout_s=60)
            coordinator.broadcast(f"round-{_}", None if coordinator.rank else b"", timeout_s=60)
    os._exit(0)
