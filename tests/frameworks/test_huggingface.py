"""The pages about the Trainer of Hugging Face, killed and gone on, and about servers of its model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import ckptstore as ck
from tests.engines.page import block
from tests.meta.source import ROOT

# One process, because importing transformers takes most of the time; the runs share only the directory.
PROGRAM = """
import dataclasses, json, os, sys
import numpy as np, torch, transformers
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments
import ckptstore, ckptstore.torch

transformers.logging.set_verbosity_error()
CALLBACK

class Killed(BaseException):
    pass

class Dies(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == args.dies_at:
            raise Killed

def run(directory, dies_at=None):
    os.makedirs(directory + "/own")
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=8, n_embd=16, n_layer=2, n_head=2))
    ids = torch.Generator().manual_seed(1)
    data = [{"input_ids": row, "labels": row} for row in torch.randint(32, (64, 8), generator=ids)]
    args = TrainingArguments(
        directory + "/own", max_steps=12, per_device_train_batch_size=4, save_steps=4, save_total_limit=1,
        report_to=[], use_cpu=True, disable_tqdm=True, logging_strategy="no",
    )
    args.dies_at = dies_at
    bucket = SaveToBucket(sys.argv[1] + f"/{DIRECTORY[directory]}/model", max_to_keep=2)
    trainer = Trainer(model, args, train_dataset=data, callbacks=[bucket, Dies()])
    trainer.train(resume_from_checkpoint=bucket.resume(model, directory + "/own"))
    MADE[directory] = model
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}

MADE = {}
DIRECTORY = {"whole": "whole", "killed": "bucket", "again": "bucket"}
whole = run("whole")
try:
    run("killed", dies_at=6)
except Killed:
    print("LATEST", ckptstore.latest_checkpoint(sys.argv[1] + "/bucket"))
torch.manual_seed(77)
again = run("again")
assert whole.keys() == again.keys()
for name, expected in whole.items():
    np.testing.assert_array_equal(again[name], expected, err_msg=name)
print("EQUAL", len(whole))

model = MADE["again"]
directory, prefix = "served", ckptstore.latest_checkpoint(sys.argv[1] + "/bucket")
THE BLOCK
served = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
ids = torch.arange(8)[None]
assert torch.equal(served(ids).logits, model.eval()(ids).logits)
print("SERVED", sorted(os.listdir(directory)))
"""


def test_a_killed_run_ends_as_an_unbroken_one_and_its_model_is_served(tmp_path: Path) -> None:
    program = PROGRAM.replace("CALLBACK", block("trainer", "frameworks/huggingface"))
    program = program.replace("THE BLOCK", block("serve", "frameworks/vllm"))
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"LATEST {tmp_path}/bucket/model-4" in done.stdout
    assert "EQUAL " in done.stdout
    assert "SERVED ['config.json', 'model.safetensors']" in done.stdout
    # The tied weight is one tensor; two checkpoints are kept.
    names = list(ck.open_checkpoint(tmp_path / "bucket" / "model-12"))
    assert sum(name in ("model.lm_head.weight", "model.transformer.wte.weight") for name in names) == 1
    found = sorted(path.name for path in (tmp_path / "bucket").glob("*.index"))
    assert found == ["model-12.index", "model-8.index"]
