"""Small checkpoints, saved and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import ckptstore as ck
from ckptstore.format.record import parse_state
from tests.hostile.directory_listing import tree_of
from tests.hostile.entry_points import Outcome, quiet, typed

__all__ = ["VALUES", "checkpoints_in", "restored", "save", "try_to_save"]

VALUES = {"w": np.arange(1000, dtype=np.float32), "x": np.array([1, 2])}


def save(directory: Path | str, *steps: int, keep: int = 2) -> None:
    saver = ck.Saver(max_to_keep=keep, run="run", clock=lambda: 1000.0)
    for step in steps:
        saver.save(VALUES, f"{directory}/model", step)


def try_to_save(directory: str, step: int, keep: int = 2) -> Outcome:
    with quiet():
        return typed(save, directory, step, keep=keep)


def checkpoints_in(directory: Path) -> dict[str, str]:
    """Return what lies in a directory, of the record only what it lists: a save announces itself there."""
    found = {name: what for name, what in tree_of(directory).items() if name != ".ckptstore.lock"}
    if "checkpoint" in found:
        found["checkpoint"] = repr(parse_state((directory / "checkpoint").read_bytes(), source="checkpoint"))
    return found


def restored(prefix: Path | str) -> bool:
    values: dict[str, Any] = {}
    ck.Saver().restore(values, prefix)
    return all(np.array_equal(values[name], VALUES[name]) for name in VALUES)
