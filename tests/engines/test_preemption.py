"""A signal to one rank of a job whose ranks wait for each other in every step."""

from __future__ import annotations

import os

from tests.preempted_job import steps_saved
from tests.servers.process import free_port


def test_one_of_four_ranks_gets_a_signal_and_all_save_at_one_step_twenty_times() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    port = str(free_port())
    saved = steps_saved("torch", [(str(rank), "4", port) for rank in range(4)], environment, rounds=20)
    assert len(saved) == 20
    for steps in saved:
        assert len(set(steps)) == 1, f"the ranks saved at {steps}"
