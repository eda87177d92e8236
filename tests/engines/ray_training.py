"""The page about Ray Train, run by a rank of Ray's job: one of its two workers dies, and all go on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tests.engines.page import block

STEPS, DIES_AT = 5, 3


def resume(directory: str) -> dict[str, Any]:
    """Train as the page says; return what the run reported, and what the directory holds."""
    import ray
    import ray.train
    import ray.train.torch
    import torch

    import ckptstore
    import ckptstore.torch

    # The worker gets a copy of the function, with these.
    names = {
        "__name__": "__main__",
        "ray": ray,
        "torch": torch,
        "ckptstore": ckptstore,
        "one_step": _Step(f"{directory}/died"),
    }
    exec(compile(block("ray-train", "frameworks/ray"), "docs/frameworks/ray.md", "exec"), names)
    trainer = ray.train.torch.TorchTrainer(
        names["train"],
        train_loop_config={"directory": f"{directory}/run", "steps": STEPS},
        scaling_config=ray.train.ScalingConfig(num_workers=2),
        run_config=ray.train.RunConfig(
            name="page",
            storage_path=f"{directory}/ray",
            failure_config=ray.train.FailureConfig(max_failures=1),
        ),
    )
    trainer.fit()
    newest = ckptstore.latest_checkpoint(f"{directory}/run")
    assert newest is not None
    with ckptstore.open_checkpoint(newest) as checkpoint:
        weight = float(checkpoint["model.module.weight"].sum())
    return {"newest": newest, "weight": weight}


class _Step:
    """Adds 1 to each weight; the second worker dies in the third step, once."""

    def __init__(self, flag: str) -> None:
        self._flag = flag

    def __call__(self, model: Any, optimizer: Any, step: int) -> None:
        import torch
        import torch.distributed as dist

        del optimizer
        if step == DIES_AT and dist.get_rank() == 1 and not Path(self._flag).exists():
            Path(self._flag).touch()
            os._exit(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(step)
