"""A directory of ours with things of others in and beside it, and records that a stranger wrote."""

from __future__ import annotations

import atexit
import functools
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import ckptstore as ck
from tests.hostile.directory_listing import tree_of
from tests.hostile.entry_points import quiet, typed

__all__ = ["OURS", "OWNER", "VALUES", "build", "check_only_ours_is_gone", "protocol", "save_steps", "state"]

VALUES = {"w": np.arange(4, dtype=np.float32)}
OURS = "# ckptstore 1\n"
OWNER = 'owner "model" epoch=3 run="old" host="h" time=5.0 write="0" highest_step=5'

# What saves of model-6, -7 and -8 may write, and what retention may take away for them.
_OURS = re.compile(r"run/(model-[35678]\.(index|meta|data-00000-of-[0-9]{5})|checkpoint|\.ckptstore\.lock)")


@functools.cache
def _template() -> Path:
    root = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    _fill(root)
    return root


def build(root: Path) -> Path:
    """Make a directory with two checkpoints of ours and things of others, and one beside it; return it."""
    shutil.copytree(_template(), root, dirs_exist_ok=True)
    return root / "run"


def _fill(root: Path) -> None:
    directory = root / "run"
    for other in ("model.ckpt-12", "modeling-7", "other"):
        ck.Saver(run="others", clock=lambda: 1000.0).save(VALUES, directory / other, latest_filename="theirs")
    ck.Saver(run="others").save(VALUES, directory / "model", 4, latest_filename="theirs")
    saver = ck.Saver(run="before", clock=lambda: 1000.0)
    for step in (3, 5):
        saver.save(VALUES, directory / "model", step)
    for name in ("notes.txt", "model-3.h5", "model-5.json", "model.pbtxt", "model-99", "checkpoint.bak"):
        (directory / name).write_bytes(b"mine")
    (directory / "sub").mkdir()
    (directory / "model-5.").mkdir()
    ck.Saver(run="others").save(VALUES, directory / "sub" / "model", 70)
    outside = root / "elsewhere"
    ck.Saver(run="others").save(VALUES, outside / "model", 90)
    (outside / "x.index").write_bytes(b"precious")
    (outside / "victim").write_bytes(b"precious")
    (root / "x.index").write_bytes(b"precious")


def state(latest: str, *paths: str) -> bytes:
    """Return TensorFlow's fields."""
    lines = [f"model_checkpoint_path: {json.dumps(latest)}"]
    lines += [f"all_model_checkpoint_paths: {json.dumps(path)}" for path in paths or (latest,)]
    return "\n".join(lines).encode() + b"\n"


def protocol(*lines: str, latest: str = "model-5", paths: tuple[str, ...] = ("model-3", "model-5")) -> bytes:
    """Return a record with protocol lines."""
    return (OURS + "".join(f"# {line}\n" for line in lines)).encode() + state(latest, *paths)


def save_steps(directory: str, *steps: int) -> list[Any]:
    """Save with a window of one; return what each save gave."""
    saver = ck.Saver(max_to_keep=1, run="after", clock=lambda: 2000.0)
    with quiet():
        return [typed(saver.save, VALUES, f"{directory}/model", step) for step in steps]


def check_only_ours_is_gone(root: Path, before: dict[str, str]) -> None:
    """Assert that saves of ``run/model`` left everything else as it was."""
    after = tree_of(root)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    strange = {name for name in changed if not _OURS.fullmatch(name)}
    assert not strange, strange
