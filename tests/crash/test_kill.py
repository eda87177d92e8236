"""Real processes, killed with SIGKILL at random moments of their saves on a local disk.

CKPTSTORE_KILLS asks for more of them; `make campaign` does.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

import ckptstore as ck

KILLS = int(os.environ.get("CKPTSTORE_KILLS", "16"))

# Resumes from the latest, saves until it is killed, and prints each save that was acknowledged.
CHILD = """
import sys, warnings
import numpy as np
import ckptstore as ck
warnings.simplefilter("ignore")
directory, run = sys.argv[1:]
path = ck.latest_checkpoint(directory)
values = {}
ck.Saver().restore(values, path)
stamp = int(values["a"][0])
saver = ck.Saver(max_to_keep=2, run=run)
print("ready", flush=True)
while True:
    stamp += 1
    values = {name: np.full(size, stamp, np.float64) for name, size in (("a", 5), ("b", 40_000), ("c", 3))}
    saver.save(values, directory + "/model", stamp // 2, write_meta_graph=stamp % 7 == 0)
    print(stamp, flush=True)
    saver.save(values, directory + "/plain", write_meta_graph=False)
"""


def stamp_of(prefix: str) -> int:
    values: dict[str, np.ndarray] = {}
    ck.Saver().restore(values, prefix)
    stamps = {int(value) for array in values.values() for value in np.unique(array)}
    assert len(stamps) == 1, f"{prefix} mixes {sorted(stamps)}"
    return stamps.pop()


def run_and_kill(directory: Path, run: str, after_s: float) -> int:
    """Return the last save that the child acknowledged before it was killed, 0 if none."""
    arguments = [sys.executable, "-c", CHILD, str(directory), run]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        first = child.stdout.readline()
        if first != "ready\n":
            pytest.fail(f"the child did not start: {child.communicate()[1][-2000:]}")
        time.sleep(after_s)  # The random moment is the point of this lane.
        os.kill(child.pid, signal.SIGKILL)
        printed, errors = child.communicate()
        assert child.returncode == -signal.SIGKILL, errors[-2000:]
    # The last line may have been cut short.
    lines = printed.split("\n")[:-1]
    return int(lines[-1]) if lines else 0


@pytest.mark.slow
@pytest.mark.timeout(240 + 10 * KILLS)
def test_whatever_the_moment_a_reader_finds_all_of_one_save(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    first = {name: np.full(2, 2.0) for name in "abc"}
    ck.Saver(max_to_keep=2, run="first").save(first, f"{directory}/model", 1)
    chance = random.Random(20)
    acknowledged = 2
    for number in range(KILLS):
        acknowledged = max(acknowledged, run_and_kill(directory, f"run {number}", chance.uniform(0.0, 0.2)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ck.CkptStoreWarning)
            latest = ck.latest_checkpoint(directory)
        assert latest is not None
        found = stamp_of(latest)
        # `plain` is saved after `model`, with the same stamp; one save may be complete and not printed yet.
        assert acknowledged <= found <= acknowledged + 1
        acknowledged = found
        for prefix in (path.with_suffix("") for path in directory.glob("*.index")):
            stamp_of(str(prefix))
    saver = ck.Saver(max_to_keep=2, run="last")
    for stamp in (10_000, 10_001, 10_002):
        values = {"a": np.full(2, float(stamp))}
        saver.save(values, f"{directory}/model", stamp, write_meta_graph=False)
        saver.save(values, f"{directory}/plain", write_meta_graph=False)
    # One more to collect what the last overwrite replaced.
    saver.save(values, f"{directory}/model", 10_003, write_meta_graph=False)
    names = sorted(path.name for path in directory.iterdir() if not path.name.endswith(".meta"))
    indexes = [name for name in names if name.endswith(".index")]
    assert indexes == ["model-10003.index", "plain.index"]
    assert len(names) == 6, names  # lock, record, two indexes, two data files
    assert len(list(directory.glob("*.meta"))) == 1
