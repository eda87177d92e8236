"""Ranks that die or freeze in a save, and a job that goes on.

``python -m tests.frameworks.torch_bad_days DIRECTORY``: torch is imported once, and the ranks of each job are
forked. What each rank found is a file of JSON.
"""

from __future__ import annotations

import datetime
import faulthandler
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

# It is loaded at the first use of a DTensor otherwise: by each rank of each job.
import torch._dynamo
import torch.distributed as dist
from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

import ckptstore as ck
import ckptstore.torch
from ckptstore.storage.registry import use_wrapper
from ckptstore.storage.wrappers import StorageWrapper
from tests.frameworks.torch_bad_day_cases import CASES, SIZE, Case
from tests.servers.process import free_port

PATIENCE_S = 120.0
# Of the save that fails: by then the rank must have come to the point where it stops.
SHORT_S = 6.0
ROWS = torch.arange(35.0).reshape(7, 5)


def state_of(step: int) -> dict[str, Any]:
    """Return what is trained: tensors that are cut, whole on each rank, and plain values."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return {
        "rows": distribute_tensor(ROWS * step, mesh, [Shard(0)]),
        "columns": distribute_tensor((ROWS * step).bfloat16(), mesh, [Shard(1)]),
        "copies": distribute_tensor(ROWS * step, mesh, [Replicate()]),
        "plain": torch.full((3,), float(step)),
        "step": step,
    }


def differing(state: dict[str, Any], step: int) -> list[str]:
    """Return the names of what is not that of `step`."""
    expected = state_of(step)
    whole = {name: value.full_tensor() for name, value in state.items() if hasattr(value, "full_tensor")}
    wrong = [name for name, value in whole.items() if not torch.equal(value, expected[name].full_tensor())]
    if not torch.equal(state["plain"], expected["plain"]):
        wrong.append("plain")
    return wrong + ([] if state["step"] == step else ["step"])


class Stopper:
    """An object of the state that is asked for its values while the trees are compared."""

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop

    def state_dict(self) -> dict[str, Any]:
        self._stop()
        return {"n": 1}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        del state


class Watched(StorageWrapper):
    """A storage that says which call is due."""

    def __init__(self, inner: Any, reach: Callable[[str], None]) -> None:
        super().__init__(inner)
        self._reach = reach

    def intercept(self, primitive: str, keys: Sequence[str], call: Callable[[], Any]) -> Any:
        key = keys[0] if keys else ""
        if primitive == "upload.commit" and ".data-" in key:
            self._reach("write")
        elif primitive in ("put_new", "put_if") and key.endswith(".index"):
            self._reach("index")
        return call()


def stop_in_a_save(case: Case, directory: Path) -> dict[str, Any]:
    """Save step 1, and step 2, in which one rank stops."""
    at = ""

    def reach(point: str) -> None:
        if point == at:
            os.kill(os.getpid(), signal.SIGKILL if case.how == "kill" else signal.SIGSTOP)

    coordinator = ck.coordinator("torch")
    patient, short = (ck.Saver(coordinator=coordinator, deadline_s=s) for s in (PATIENCE_S, SHORT_S))
    with use_wrapper(lambda inner: Watched(inner, reach)):
        stopper = {"stopper": Stopper(lambda: reach("compare"))}
        ckptstore.torch.save(state_of(1) | stopper, directory / "m", 1, saver=patient)
        state = state_of(2) | stopper
        dist.barrier()
        at = case.point if dist.get_rank() == case.rank else ""
        try:
            ckptstore.torch.save(state, directory / "m", 2, saver=short)
        except ck.CkptStoreError as error:
            ranks = list(getattr(error, "ranks", ()))
            return {"error": type(error).__name__, "ranks": ranks, "text": str(error)}
    return {"error": None}


def go_on(directory: Path) -> dict[str, Any]:
    """Resume in the directory of each case, and save there."""
    found: dict[str, Any] = {}
    for case in CASES:
        where = directory / case.name
        newest = str(ck.latest_checkpoint(where))
        state = state_of(0) | {"step": None}
        ckptstore.torch.load(state, newest)
        one = {"newest": newest, "differ": differing(state, int(newest.rpartition("-")[2]))}
        ckptstore.torch.save(state_of(3), where / "m", 3)
        state = state_of(0)
        ckptstore.torch.load(state, str(ck.latest_checkpoint(where)))
        found[case.name] = {**one, "differ_later": differing(state, 3)}
    return found


def rank_main(work: Callable[[], dict[str, Any]], rank: int, size: int, address: str, place: Path) -> None:
    faulthandler.dump_traceback_later(2 * PATIENCE_S)
    group = {"init_method": address, "rank": rank, "world_size": size}
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=PATIENCE_S), **group)
    found = work()
    draft = place / f"draft-{rank}"
    draft.write_text(json.dumps(found))
    draft.rename(place / f"rank-{rank}")
    # The first rank holds the store of torch: it stays until all have heard.
    while not (place / "over").exists():
        time.sleep(0.02)


def run(work: Callable[[], dict[str, Any]], size: int, place: Path, lost: int | None = None) -> None:
    """Fork the ranks of one job, and wait for what all of them but `lost` have found."""
    place.mkdir()
    address = f"tcp://127.0.0.1:{free_port()}"
    children = {}
    for rank in range(size):
        children[rank] = os.fork()
        if children[rank] == 0:
            try:
                rank_main(work, rank, size, address, place)
            except BaseException:  # noqa: BLE001 - the parent says so
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
    try:
        ends_s = time.monotonic() + PATIENCE_S
        while not all((place / f"rank-{rank}").exists() for rank in children if rank != lost):
            if time.monotonic() > ends_s:
                sys.exit(f"only {sorted(os.listdir(place))} are there")
            time.sleep(0.02)
        if lost is not None:
            pid, status = os.waitpid(children.pop(lost), os.WUNTRACED)
            if os.WIFSTOPPED(status):
                (place / "state").write_text("stopped")
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            else:
                (place / "state").write_text(str(os.waitstatus_to_exitcode(status)))
    finally:
        (place / "over").touch()
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children.values()]
    if any(codes):
        sys.exit(f"the ranks of {place} ended with {codes}")


if __name__ == "__main__":
    top = Path(sys.argv[1])
    for each in CASES:
        run(lambda: stop_in_a_save(each, top / each.name), SIZE, top / f"{each.name}-said", each.rank)  # noqa: B023
    run(lambda: go_on(top), 2, top / "resumed")
