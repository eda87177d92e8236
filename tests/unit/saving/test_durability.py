"""``durability="cache"`` waits for nothing, and promises the same otherwise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.saving.options import Durability
from ckptstore.storage.registry import use_wrapper
from ckptstore.testing import CountingStorage
from tests.unit.directory.helpers import checkpoints_in, listed, names_in, save_steps, values

BOTH = pytest.mark.parametrize("durability", ["disk", "cache"])


def a_saver(directory: str, durability: Durability) -> Callable[[], object]:
    saver = ck.Saver(max_to_keep=2, durability=durability)
    steps = iter(range(100))
    return lambda: saver.save(values(1), f"{directory}/model", next(steps))


def a_manager(directory: str, durability: Durability) -> Callable[[], object]:
    return ck.CheckpointManager(ck.Checkpoint(w=np.ones(3)), directory, 2, durability=durability).save


def a_checkpoint(directory: str, durability: Durability) -> Callable[[], object]:
    checkpoint = ck.Checkpoint(w=np.ones(3))
    return lambda: checkpoint.save(f"{directory}/model", durability=durability)


@BOTH
@pytest.mark.parametrize("make", [a_saver, a_manager, a_checkpoint])
def test_one_writer_makes_all_saves(
    make: Callable[[str, Durability], Callable[[], object]], durability: Durability, tmp_path: Path
) -> None:
    made: list[CountingStorage] = []

    def wrap(inner: object) -> CountingStorage:
        made.append(CountingStorage(inner))  # type: ignore[arg-type]
        return made[-1]

    with use_wrapper(wrap):
        save = make(str(tmp_path), durability)
        for _ in range(4):
            save()
        made[0].reset()
        save()
        # A new writer would list the directory, to find what others left.
        assert made[0].counts["list"] == 0


@BOTH
def test_the_older_run_is_fenced(durability: Durability, tmp_path: Path) -> None:
    base = f"{tmp_path}/model"
    old = ck.Saver(run="old", durability=durability)
    save_steps(old, base, [1])
    save_steps(ck.Saver(run="new", durability=durability), base, [2])
    for step in (3, 4):
        with pytest.raises(ck.FencedError, match="new"):
            save_steps(old, base, [step])
    assert checkpoints_in(str(tmp_path)) == ["model-1", "model-2"]


@BOTH
def test_what_another_program_wrote_is_not_adopted(durability: Durability, tmp_path: Path) -> None:
    base = f"{tmp_path}/model"
    saver = ck.Saver(max_to_keep=2, durability=durability)
    save_steps(saver, base, [1])
    ck.Saver().save(values(50), base, 50, write_state=False)
    save_steps(saver, base, [60, 61, 62])
    assert listed(saver) == ["model-61", "model-62"]
    assert checkpoints_in(str(tmp_path)) == ["model-50", "model-61", "model-62"]


@BOTH
def test_the_window_is_in_memory_too(durability: Durability, tmp_path: Path) -> None:
    base = f"{tmp_path}/model"
    saver = ck.Saver(max_to_keep=2, durability=durability)
    save_steps(saver, base, [1, 2, 3])
    assert listed(saver) == ["model-2", "model-3"]
    # Another program writes the record anew, with one entry.
    (tmp_path / "checkpoint").write_text(
        'model_checkpoint_path: "model-3"\nall_model_checkpoint_paths: "model-3"\n'
    )
    with pytest.warns(ck.CkptStoreWarning):
        save_steps(saver, base, [4])
    assert listed(saver)[-3:] == ["model-2", "model-3", "model-4"]


@BOTH
def test_replaced_data_files_go_one_save_later(durability: Durability, tmp_path: Path) -> None:
    saver = ck.Saver(durability=durability)
    data = []
    for stamp in (1, 2, 3):
        saver.save(values(stamp), f"{tmp_path}/model")
        data.append({name for name in names_in(str(tmp_path)) if ".data-" in name})
    first, second, third = data
    assert len(first) == 1
    assert len(second) == 2
    assert first < second
    assert len(third) == 2
    assert first.isdisjoint(third)
