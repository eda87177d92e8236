"""A warning points at the line of whoever called the package."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

import ckptstore


def test_a_warning_from_deep_inside_a_save_points_at_the_save():
    for step in range(4):
        ckptstore.Saver(max_to_keep=9).save({"a": np.ones(2)}, "memory://test_warn/model", step)
    saver = ckptstore.Saver(max_to_keep=1, run="another")
    frame = inspect.currentframe()
    assert frame is not None
    with pytest.warns(ckptstore.CkptStoreWarning, match="deletes 4 checkpoints") as found:
        saver.save({"a": np.ones(2)}, "memory://test_warn/model", 4)
    line = frame.f_lineno - 1
    assert [(each.filename, each.lineno) for each in found] == [(__file__, line)]
