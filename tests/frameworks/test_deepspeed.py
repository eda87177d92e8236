"""The page about DeepSpeed: two ranks of ZeRO save one checkpoint, and new engines go on from it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.engines.page import block
from tests.meta.source import ROOT
from tests.servers.process import free_port

PROGRAM = """
import sys
import numpy as np, torch, deepspeed, torch.distributed as dist
import ckptstore, ckptstore.torch

# Otherwise it compiles a module on first use, and needs a compiler.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
deepspeed.init_distributed("gloo")
PAGE

def engine_of(seed, stage):
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    return deepspeed.initialize(model=net, model_parameters=net.parameters(), config={
        "train_batch_size": 8,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 4}},
        "zero_optimization": {"stage": stage},
        "bf16": {"enabled": True},
    })[0]

def train(engine, steps):
    for step in steps:
        torch.manual_seed(step * 2 + dist.get_rank())
        engine.backward(engine(torch.randn(4, 8).bfloat16()).square().mean())
        engine.step()

for stage in (1, 2):
    directory = f"{sys.argv[1]}/{stage}"
    unbroken = engine_of(0, stage)
    train(unbroken, range(6))
    first = engine_of(0, stage)
    train(first, range(3))
    prefix = ckptstore.torch.save(state_of(first), directory + "/model", first.global_steps)
    assert prefix == ckptstore.latest_checkpoint(directory) == directory + "/model-3", prefix
    second = engine_of(1, stage)
    restore(second, prefix)
    assert second.global_steps == 3
    train(second, range(3, 6))
    for name, expected in unbroken.module.state_dict().items():
        assert torch.equal(second.module.state_dict()[name], expected), name
    (found,), (expected,) = (one.optimizer.single_partition_of_fp32_groups for one in (second, unbroken))
    assert torch.equal(found, expected)
    print("EQUAL", stage)
"""


def test_new_engines_go_on_from_one_checkpoint(tmp_path: Path) -> None:
    shared = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    program = PROGRAM.replace("PAGE", block("deepspeed", "frameworks/deepspeed"))
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)],
            env={**shared, "RANK": str(rank)},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        printed = [rank.communicate(timeout=400)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert [rank.returncode for rank in ranks] == [0, 0], printed
    assert all("EQUAL 1" in one and "EQUAL 2" in one for one in printed)
