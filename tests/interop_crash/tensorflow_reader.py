"""TensorFlow in a process of its own, asked for one directory a line: run by its environment's interpreter.

For each line of input, a JSON object with ``directory`` and perhaps ``prefix``, there is one of output: what
its own `latest_checkpoint` names, and the different numbers that it restores from there. This file imports
nothing of ckptstore, whose opinion is not asked.
"""

from __future__ import annotations

import json
import os
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tensorflow as tf


def numbers_in(prefix: str) -> dict[str, list[float]]:
    """Restore every tensor, by the operation that a Saver runs, and return the different numbers of each."""
    types = tf.train.load_checkpoint(prefix).get_variable_to_dtype_map()
    names = sorted(types)
    restored = tf.raw_ops.RestoreV2(
        prefix=prefix,
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        dtypes=[types[n] for n in names],
    )
    return {
        name: sorted({float(value) for value in np.unique(tensor.numpy()).tolist()})
        for name, tensor in zip(names, restored, strict=True)
    }


def answer(question: dict[str, str]) -> dict[str, object]:
    """Return what TensorFlow finds."""
    try:
        prefix = question.get("prefix") or tf.train.latest_checkpoint(question["directory"])
        return {"prefix": prefix, "numbers": None if prefix is None else numbers_in(prefix)}
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
        return {"error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
