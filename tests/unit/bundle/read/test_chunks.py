from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.bundle.read.chunks import cut

SHAPES = st.lists(st.integers(1, 7), max_size=4).map(tuple)


@given(SHAPES, st.sampled_from([1, 2, 4, 8, 16]), st.integers(16, 400))
def test_the_boxes_are_the_array_in_its_order(shape: tuple[int, ...], item: int, most: int) -> None:
    array = np.arange(math.prod(shape)).reshape(shape)
    at = 0
    flat: list[int] = []
    for start, stop, where in cut(shape, item, most):
        assert start == at
        assert len(where) == len(shape)
        index: tuple[Any, ...] = (*where, ...)
        box = array[index]
        assert stop - start == box.size * item <= max(most, item)
        flat += box.ravel().tolist()
        at = stop
    assert flat == list(range(array.size))


@given(SHAPES, st.integers(16, 400))
def test_boxes_are_not_needlessly_small(shape: tuple[int, ...], most: int) -> None:
    count = len(list(cut(shape, 1, most)))
    size = math.prod(shape)
    row = shape[-1] if shape else 1
    assert count <= 2 * math.ceil(size / most) + 2 * size // max(1, min(row, most)) + 1
