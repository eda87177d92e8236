"""The Savers of calls that are given none."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import ckptstore as ck
from ckptstore.train.kept_savers import kept_saver


def test_a_path_has_one_saver_and_another_path_another() -> None:
    first = kept_saver("memory://kept/model")
    assert kept_saver("memory://kept/model") is first
    assert kept_saver("memory://kept/ema") is not first
    coordinator = ck.coordinator("single")
    alike = kept_saver("memory://kept/model", coordinator)
    assert alike is not first
    assert kept_saver("memory://kept/model", coordinator) is alike


def test_retention_goes_on_when_a_saver_was_let_go(tmp_path: Path) -> None:
    path = f"{tmp_path}/model"
    first = kept_saver(path)
    for step in range(4):
        first.save({"w": np.ones(1)}, path, step)
    for number in range(64):
        kept_saver(f"memory://kept/other{number}")
    again = kept_saver(path)
    assert again is not first
    for step in range(4, 7):
        again.save({"w": np.ones(1)}, path, step)
    assert {one.name for one in tmp_path.glob("*.index")} == {f"model-{step}.index" for step in range(2, 7)}
