"""Ranks of torch.distributed that save and load together: `python -m tests.frameworks.torch_ranks DIRECTORY`.

torch is imported once, and the ranks of each job are forked. A line of JSON says what each rank found.
"""

from __future__ import annotations

import datetime
import faulthandler
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

# It is loaded at the first use of a DTensor otherwise: by each rank of each job.
import torch._dynamo
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import ckptstore as ck
import ckptstore.torch
from tests.servers.process import free_port

PATIENCE = datetime.timedelta(seconds=300)
ROWS = torch.arange(30.0).reshape(3, 10)


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Linear(10, 6)
        self.b = torch.nn.Linear(6, 10)
        self.norm = torch.nn.BatchNorm1d(10)

    def forward(self, x: torch.Tensor) -> Any:
        return self.norm(self.b(self.a(x).relu()))


def job_state(seed: int, steps: int) -> tuple[Net, Any]:
    """Return a model and its optimizer: on four ranks FSDP2 above tensor parallelism, else FSDP2, or HSDP."""
    torch.manual_seed(seed)
    net, size = Net(), dist.get_world_size()
    if size == 4:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
        parallelize_module(net, mesh["tp"], {"a": ColwiseParallel(), "b": RowwiseParallel()})
        # Three rows each of two: uneven, and strided.
        fully_shard(net, mesh=mesh["dp"])
    elif size == 2:
        fully_shard(net, mesh=init_device_mesh("cpu", (2, 1), mesh_dim_names=("copies", "shards")))
    else:
        fully_shard(net, mesh=init_device_mesh("cpu", (size,)))
    optimizer = torch.optim.AdamW(net.parameters(), 0.01)
    for step in range(steps):
        torch.manual_seed(step)
        net(torch.rand(8, 10)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return net, optimizer


def whole(net: Net, optimizer: Any) -> dict[str, torch.Tensor]:
    model, state = get_state_dict(net, optimizer)
    flat = {f"model.{name}": value for name, value in model.items()}
    for name, values in state["state"].items():
        flat |= {f"state.{name}.{key}": value for key, value in values.items()}
    return {
        name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in flat.items()
    }


def extras(fill: float, placement: Any) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return {
        "rows": distribute_tensor(ROWS * fill, mesh, [placement]),
        "bfloat16": distribute_tensor((ROWS * fill).bfloat16(), mesh, [placement]),
        "scalar": distribute_tensor(torch.tensor(5.0 * fill), mesh, [Replicate()]),
        "empty": distribute_tensor(torch.zeros(0, 4), mesh, [Shard(0)]),
    }


def save(directory: Path) -> dict[str, Any]:
    rank = dist.get_rank()
    net, optimizer = job_state(0, 3)
    model, state = get_state_dict(net, optimizer)
    own = {f"stage{rank}": {"w": torch.full((2,), float(rank)), "layers": rank}}
    tree = {"model": model, "optimizer": state, "extras": extras(1.0, Shard(0)), "step": 3, **own}
    found: dict[str, Any] = {"first": ckptstore.torch.save(tree, directory / "model", 2)}
    found["second"] = ckptstore.torch.save_async(tree, directory / "model", 3).result()
    values = whole(net, optimizer)
    if rank == 0:
        torch.save(values, directory / "expected")
    for what, more in (("object", {"bad": object()}), ("values", {"lr": float(rank)})):
        try:
            mine = more if what == "values" or rank == 2 else {}
            ckptstore.torch.save({**tree, **mine}, directory / "model", 4)
        except ck.UsageError as error:
            found[what] = str(error)
    try:
        ckptstore.torch.save(tree, directory / "alone", saver=ck.Saver())
    except ck.UsageError as error:
        found["alone"] = str(error)
    try:
        ckptstore.torch.load({"step": None}, directory / f"model-{3 if rank else 2}")
    except ck.UsageError as error:
        found["two"] = str(error)
    return found


def load(directory: Path) -> dict[str, Any]:
    net, optimizer = job_state(1, 1)
    model, state = get_state_dict(net, optimizer)
    tree = {"model": model, "optimizer": state, "extras": extras(0.0, Shard(1)), "step": None, "stage3": None}
    ckptstore.torch.load(tree, str(ck.latest_checkpoint(directory)))
    set_state_dict(net, optimizer, model_state_dict=model, optim_state_dict=tree["optimizer"])
    expected = torch.load(directory / "expected")
    found = whole(net, optimizer)
    more = tree["extras"]
    return {
        "differ": [name for name in expected if not torch.equal(expected[name], found[name])],
        "tensors": len(expected),
        "rows": torch.equal(more["rows"].full_tensor(), ROWS),
        "bfloat16": torch.equal(more["bfloat16"].full_tensor(), ROWS.bfloat16()),
        "scalar": more["scalar"].full_tensor().item(),
        "step": tree["step"],
        "stage3": [tree["stage3"]["w"].tolist(), tree["stage3"]["layers"]],
    }


def run(work: Any, size: int, directory: Path) -> None:
    """Fork the ranks of one job, wait for them, and print what they found."""
    address = f"tcp://127.0.0.1:{free_port()}"
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                faulthandler.dump_traceback_later(200)
                group = {"init_method": address, "rank": rank, "world_size": size}
                dist.init_process_group("gloo", timeout=PATIENCE, **group)
                found = work(directory)
                dist.barrier()
                line = json.dumps({"work": work.__name__, "size": size, "rank": rank, **found})
                sys.stdout.write(line + "\n")
                sys.stdout.flush()
                dist.barrier()
                code = 0
            except BaseException:  # noqa: BLE001 - the parent says so
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        sys.exit(f"{work.__name__} on {size} ranks ended with {codes}")


if __name__ == "__main__":
    where = Path(sys.argv[1])
    run(save, 4, where)
    for count in (4, 3, 2, 1):
        run(load, count, where)
