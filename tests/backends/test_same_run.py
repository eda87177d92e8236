"""Ranks that pass one ``run`` and save their parts under one prefix, each by itself: one is told ok."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import ckptstore as ck

# Waits before its first data file until all have looked at the directory.
_RANK = """
import sys
import numpy as np
import ckptstore as ck
from ckptstore.storage.registry import use_wrapper
from ckptstore.storage.wrappers import StorageWrapper

base, rank, waiting = sys.argv[1], int(sys.argv[2]), [True]

class Waits(StorageWrapper):
    def intercept(self, primitive, keys, call):
        if primitive == "upload" and waiting:
            waiting.clear()
            print("ready", flush=True)
            sys.stdin.readline()
        return call()

with use_wrapper(Waits):
    try:
        ck.Saver(run="job").save({f"part{rank}": np.full(3, rank)}, base, 7, write_meta_graph=False)
        print("ok", flush=True)
    except ck.ConflictError:
        print("refused", flush=True)
"""
_WAIT_S = 120


@pytest.mark.parametrize("run_before", [False, True], ids=["new directory", "a run before"])
@pytest.mark.parametrize("backend", ["local", "minio", "gcs"], indirect=True)
def test_of_four_ranks_one_saves_and_three_are_refused(run_url: str, run_before: bool) -> None:
    base = f"{run_url}/model"
    if run_before:
        ck.Saver(run="job").save({"w": np.zeros(3)}, base, 6)
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", _RANK, base, str(rank)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(4)
    ]  # fmt: skip
    try:
        for rank in ranks:
            assert rank.stdout is not None
            assert rank.stdout.readline() == "ready\n"
        for rank in ranks:
            assert rank.stdin is not None
            rank.stdin.write("go\n")
            rank.stdin.flush()
        outcomes = []
        for rank in ranks:
            said, errors = rank.communicate(timeout=_WAIT_S)
            assert rank.returncode == 0, errors[-2000:]
            outcomes.append(said.strip())
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert sorted(outcomes) == ["ok", "refused", "refused", "refused"]
    latest = ck.latest_checkpoint(run_url)
    assert latest == f"{base}-7"
    assert list(ck.open_checkpoint(latest)) == [f"part{outcomes.index('ok')}"]
    # One after the other it is no mistake, and a restart of the run may save that step again.
    ck.Saver(run="job").save({"whole": np.zeros(3)}, base, 7)
    assert list(ck.open_checkpoint(latest)) == ["whole"]
