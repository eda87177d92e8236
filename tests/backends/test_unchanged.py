"""Frozen tensors on every backend: they travel twice at most, and the newer checkpoint needs no older one."""

from __future__ import annotations

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.storage.registry import use_wrapper
from ckptstore.testing import CountingStorage
from tests.backends.conftest import names_in


def values(step: int) -> dict[str, np.ndarray]:
    return {"frozen": np.arange(200_000.0), "w": np.full(10, float(step))}


@pytest.mark.parametrize("save", ["save", "save_async"])
def test_frozen_tensors_are_copied_by_the_storage(save: str, run_url: str) -> None:
    made: list[CountingStorage] = []

    def wrap(inner: object) -> CountingStorage:
        made.append(CountingStorage(inner))  # type: ignore[arg-type]
        return made[-1]

    with use_wrapper(wrap), ck.Saver(reuse_unchanged=True, max_to_keep=1) as saver:
        for step in (1, 2):
            getattr(saver, save)(values(step), f"{run_url}/m", step)
        saver.close()
        made[0].reset()
        for step in (3, 4):
            getattr(saver, save)(values(step), f"{run_url}/m", step)
        saver.close()
        assert made[0].counts["copy_from"] == 2
        # One for what changed, in each save.
        assert made[0].counts["upload"] == 2
    assert {name.split(".")[0] for name in names_in(run_url)} == {"checkpoint", "m-4"}
    with ck.open_checkpoint(f"{run_url}/m-4") as checkpoint:
        for name, array in values(4).items():
            assert np.array_equal(checkpoint[name], array), name
