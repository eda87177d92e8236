"""A forked child, and several processes of one run, save into one directory."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import ckptstore as ck
from tests.unit.directory.helpers import checkpoints_in, listed, save_steps, stamp_of


def test_a_forked_child_is_a_run_of_its_own(tmp_path: Path) -> None:
    base = f"{tmp_path}/model"
    saver = ck.Saver(max_to_keep=2)
    manager = ck.CheckpointManager(ck.Checkpoint(w=np.ones(1)), tmp_path / "managed", 2)
    save_steps(saver, base, [1])
    manager.save()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:  # pragma: no cover
        code = 1
        try:
            save_steps(saver, base, [2, 3])
            manager.save()
            code = 0 if listed(saver) == ["model-2", "model-3"] else 3
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with pytest.raises(ck.FencedError):
        save_steps(saver, base, [4])
    with pytest.raises(ck.FencedError):
        manager.save()
    assert checkpoints_in(str(tmp_path)) == ["model-2", "model-3"]


def test_processes_of_one_run_save_into_one_list(tmp_path: Path) -> None:
    script = (
        "import sys, warnings, numpy as np, ckptstore as ck\n"
        "first, base = int(sys.argv[1]), sys.argv[2]\n"
        "saver = ck.Saver(run='job', max_to_keep=0 or 1000)\n"
        "for step in range(first, first + 25):\n"
        "    for base in sys.argv[2:]:\n"
        "        s = step if base.endswith('own') else step % 5\n"
        "        values = {'w': np.full(3, float(s)), 'b': np.array(-float(s))}\n"
        "        try:\n"
        "            saver.save(values, base, s, write_meta_graph=False)\n"
        "        except ck.ConflictError:\n"
        "            # Another process saved the same step at the same time.\n"
        "            assert base.endswith('same')\n"
    )
    bases = [f"{tmp_path}/own", f"{tmp_path}/same"]
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(100 * n), *bases], stderr=subprocess.PIPE)
        for n in range(1, 5)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()[-2000:]
    state = ck.get_checkpoint_state(tmp_path)
    assert state is not None
    names = [os.path.basename(path) for path in state.all_model_checkpoint_paths]
    own = {f"own-{100 * n + step}" for n in range(1, 5) for step in range(25)}
    assert sorted(names) == sorted(own | {f"same-{step}" for step in range(5)})
    for name in names:
        assert stamp_of(tmp_path / name) == float(name.rpartition("-")[2])
