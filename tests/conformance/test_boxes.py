"""Any part of any tensor of TensorFlow's checkpoints is what numpy picks from the whole."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ckptstore.bundle.read.open_bundle import BundleReader
from tests.conformance.fixtures import CASES, named


@functools.cache
def opened(number: int) -> tuple[BundleReader, dict[str, np.ndarray]]:
    reader = CASES[number].open()
    return reader, {name: reader.read(name) for name in reader.names()[:200]}


PARTITIONED = [
    (number, name)
    for number, case in enumerate(CASES)
    for name in case.tensors
    if case.expected.get("slices_order", {}).get(name) or (case.expected["prefix"], name) == ("v1slices", "p")
]


@settings(max_examples=300)
@given(st.data())
def test_any_box_of_a_partitioned_tensor(data):
    number, name = data.draw(st.sampled_from(PARTITIONED))
    reader, values = opened(number)
    index = data.draw(hnp.basic_indices(values[name].shape, allow_newaxis=True))
    np.testing.assert_array_equal(reader.read(name, index), values[name][index])


@settings(max_examples=300)
@given(st.data())
def test_any_box_of_any_tensor(data):
    number = data.draw(st.integers(0, len(CASES) - 1))
    reader, values = opened(number)
    name = data.draw(st.sampled_from(sorted(values)))
    whole = values[name]
    index = data.draw(hnp.basic_indices(whole.shape, allow_newaxis=True)) if whole.shape else ...
    found = reader.read(name, index)
    np.testing.assert_array_equal(found, whole[index])
    assert found.dtype == whole.dtype


@pytest.mark.parametrize(**named(CASES))
def test_every_tensor_backwards(case):
    reader = case.open()
    for name in reader.names()[:100]:
        whole = reader.read(name)
        if whole.ndim:
            np.testing.assert_array_equal(reader.read(name, np.s_[::-1]), whole[::-1])
            np.testing.assert_array_equal(reader.read(name, np.s_[..., :1]), whole[..., :1])
