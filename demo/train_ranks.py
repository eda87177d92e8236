"""One of several processes of a training job: each holds some rows of every array, together they save.

    python demo/train_ranks.py DIRECTORY --steps N --rank R --size S [--attempt A] [--slow-save STEP]

The gradients are the same on all of them, as after an all-reduce, so no message is needed for those. It
writes one line per checkpoint to standard output. It may be killed at any moment.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from typing import Any

import network
import numpy as np
import slow_disk

import ckptstore

SAVE_EVERY = 50  # steps
STALL_S = 6.0  # a process that writes nothing for so long is missing
DEADLINE_S = 40.0
PREFIX = "model"


def own_rows(values: dict[str, np.ndarray], rank: int, size: int) -> dict[str, Any]:
    """Return this rank's rows of every array; what has no rows is the same on all ranks."""
    own: dict[str, Any] = {}
    for name, array in values.items():
        if array.ndim == 0:
            own[name] = array
            continue
        begin, end = len(array) * rank // size, len(array) * (rank + 1) // size
        own[name] = ckptstore.Piece(array[begin:end], array.shape, (begin,) + (0,) * (array.ndim - 1))
    return own


def train(directory: str, steps: int, coordinator: ckptstore.Coordinator) -> None:
    """Go on where the newest good checkpoint ends, up to step `steps`."""
    inputs, targets = network.load_years()
    values = network.new_values()
    saver = ckptstore.Saver(coordinator=coordinator, stall_s=STALL_S, deadline_s=DEADLINE_S)
    newest = ckptstore.latest_checkpoint(directory, coordinator=coordinator)
    if newest is not None:
        # Whole arrays, however many ranks have saved them.
        saver.restore(values, newest)
        print(f"resumed from {newest}", flush=True)
    while int(values["global_step"]) < steps:
        loss = network.train_step(values, inputs, targets)
        step = int(values["global_step"])
        if step % SAVE_EVERY == 0:
            own = own_rows(values, coordinator.rank, coordinator.size)
            saver.save(own, f"{directory}/{PREFIX}", global_step=step)
            print(f"saved step {step} loss {loss!r}", flush=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory")
    parser.add_argument("--steps", type=int, required=True, help="train until the model has seen so many")
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--attempt", default="0", help="a name for this start of the job")
    parser.add_argument("--slow-save", type=int, metavar="STEP", help="write this rank's part slowly")
    arguments = parser.parse_args()
    slowly = slow_disk.slow_for(f"{PREFIX}-{arguments.slow_save}") if arguments.slow_save else nullcontext()
    with slowly:
        # Words travel as small objects beside the checkpoints; in a real job, through its engine.
        coordinator = ckptstore.coordinator(
            "store",
            url=arguments.directory,
            rank=arguments.rank,
            size=arguments.size,
            attempt=arguments.attempt,
        )
        try:
            train(arguments.directory, arguments.steps, coordinator)
        except ckptstore.RanksMissingError as error:
            print(f"{type(error).__name__}: {error}", flush=True)
            sys.exit(1)
        finally:
            coordinator.close()


if __name__ == "__main__":
    main()
