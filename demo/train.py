"""The training job of the demo: resumes from the newest good checkpoint, trains, saves.

    python demo/train.py DIRECTORY --steps N [--slow-save STEP]

It writes one line per checkpoint to standard output. It may be killed at any moment.
"""

from __future__ import annotations

import argparse
import warnings
from contextlib import nullcontext

import network
import numpy as np
import slow_disk

import ckptstore

SAVE_EVERY = 50  # steps
STEPS_AN_HOUR = 50  # the clock of the demo: retention counts hours, which would take too long here
MAX_TO_KEEP = 3
KEEP_EVERY_HOURS = 3
PREFIX = "model"


def resume(values: dict[str, np.ndarray], directory: str) -> None:
    """Fill `values` from the newest checkpoint whose every byte is what was written."""
    newest = ckptstore.latest_checkpoint(directory)
    if newest is None:
        print("fresh start: there is no checkpoint", flush=True)
        return
    state = ckptstore.get_checkpoint_state(directory)
    saver = ckptstore.Saver()
    older = [path for path in state.all_model_checkpoint_paths if path != newest] if state else []
    for prefix in [newest, *reversed(older)]:
        try:
            saver.restore(values, prefix)
        except ckptstore.CorruptError as error:
            print(f"refused {prefix}\n  {type(error).__name__}: {error}", flush=True)
        else:
            print(f"resumed from {prefix}", flush=True)
            return
    raise SystemExit("there are checkpoints, and none is good: not starting from scratch over them")


def train(directory: str, steps: int) -> None:
    """Go on where the newest good checkpoint ends, up to step `steps`."""
    inputs, targets = network.load_years()
    values = network.new_values()
    # Before the Saver is made that saves: the clock of this demo is the step, and must not go back.
    resume(values, directory)
    saver = ckptstore.Saver(
        max_to_keep=MAX_TO_KEEP,
        keep_checkpoint_every_n_hours=KEEP_EVERY_HOURS,
        clock=lambda: 3600.0 * int(values["global_step"]) / STEPS_AN_HOUR,
        graph=network.describe(values),
    )
    while int(values["global_step"]) < steps:
        loss = network.train_step(values, inputs, targets)
        step = int(values["global_step"])
        if step % SAVE_EVERY == 0:
            saver.save(values, f"{directory}/{PREFIX}", global_step=step)
            print(f"saved step {step} loss {loss!r}", flush=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory")
    parser.add_argument("--steps", type=int, required=True, help="train until the model has seen so many")
    parser.add_argument("--slow-save", type=int, metavar="STEP", help="write the data of this save slowly")
    arguments = parser.parse_args()
    warnings.simplefilter("always", ckptstore.CkptStoreWarning)
    slowly = slow_disk.slow_for(f"{PREFIX}-{arguments.slow_save}") if arguments.slow_save else nullcontext()
    with slowly:
        train(arguments.directory, arguments.steps)


if __name__ == "__main__":
    main()
