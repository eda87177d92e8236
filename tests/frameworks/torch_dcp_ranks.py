"""Ranks that save and load through DCP: `python -m tests.frameworks.torch_dcp_ranks DIRECTORY`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, init_device_mesh

import ckptstore as ck
import ckptstore.torch
from ckptstore.torch import LoadPlanner, SavePlanner, StorageReader, StorageWriter
from tests.frameworks.torch_ranks import ROWS, Net, extras, run, whole


def fsdp_job(seed: int, steps: int) -> tuple[Net, Any]:
    torch.manual_seed(seed)
    net = Net()
    fully_shard(net, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = torch.optim.AdamW(net.parameters(), 0.01)
    for step in range(steps):
        torch.manual_seed(step)
        net(torch.rand(8, 10)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return net, optimizer


def failures_of(call: Any) -> dict[str, list[str]]:
    """Return the class and the text of what every rank raised."""
    try:
        call()
    except CheckpointException as error:
        return {str(rank): [type(one).__name__, str(one)] for rank, (one, _) in error.failures.items()}
    return {}


def save(directory: Path) -> dict[str, Any]:
    rank = dist.get_rank()
    net, optimizer = fsdp_job(0, 3)
    model, state = get_state_dict(net, optimizer)
    more = {**extras(1.0, Shard(0)), "whole": torch.arange(4.0)}
    tree = {"model": model, "optimizer": state, "extras": more, "step": 3, "layers": [1, "two", None]}

    def saved(name: str, own: dict[str, Any]) -> dict[str, list[str]]:
        where = {"checkpoint_id": str(directory / name), "storage_writer": StorageWriter()}
        return failures_of(lambda: dcp.save({**tree, **own}, planner=SavePlanner(), **where))

    found: dict[str, Any] = {"first": saved("model-1", {}), "second": saved("model-2", {})}
    values = whole(net, optimizer)
    if rank == 0:
        torch.save(values, directory / "expected")
    found["object"] = saved("model-3", {"bad": object()} if rank == 2 else {})
    found["values"] = saved("model-3", {"lr": float(rank)})
    return found


def load(directory: Path) -> dict[str, Any]:
    expected, found = torch.load(directory / "expected"), {}
    for how in ("dcp", "ckptstore"):
        net, optimizer = fsdp_job(1, 1)
        model, state = get_state_dict(net, optimizer)
        placement = Replicate() if how == "dcp" else Shard(1)
        more = {**extras(0.0, placement), "whole": torch.zeros(4)}
        tree = {"model": model, "optimizer": state, "extras": more, "step": 0, "layers": []}
        newest = str(ck.latest_checkpoint(directory))
        if how == "dcp":
            dcp.load(tree, checkpoint_id=newest, storage_reader=StorageReader(), planner=LoadPlanner())
        else:
            ckptstore.torch.load(tree, newest)
        set_state_dict(net, optimizer, model_state_dict=model, optim_state_dict=tree["optimizer"])
        values = whole(net, optimizer)
        found[how] = {
            "differ": [name for name in expected if not torch.equal(expected[name], values[name])],
            "tensors": len(expected),
            "rows": torch.equal(more["rows"].full_tensor(), ROWS),
            "bfloat16": torch.equal(more["bfloat16"].full_tensor(), ROWS.bfloat16()),
            "scalar": more["scalar"].full_tensor().item(),
            "whole": more["whole"].tolist(),
            "plain": [tree["step"], tree["layers"]],
        }
    return found


if __name__ == "__main__":
    where = Path(sys.argv[1])
    run(save, 4, where)
    for count in (4, 2):
        run(load, count, where)
