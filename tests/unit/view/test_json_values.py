from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest

from ckptstore.view.json_values import value_object


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.array([[1, 2], [3, 4]], np.int32), [[1, 2], [3, 4]]),
        (np.float32(1.5), 1.5),
        (np.bool_(True), True),
        (np.array([True, False]), [True, False]),
        (np.array([1.5, np.nan, np.inf, -np.inf]), [1.5, "NaN", "Infinity", "-Infinity"]),
        (np.float64("nan"), "NaN"),
        (np.array([1 + 2j, complex(0, np.inf)]), [[1.0, 2.0], [0.0, "Infinity"]]),
        (np.complex64(1 - 1j), [1.0, -1.0]),
        (np.array([1.5, 2], ml_dtypes.bfloat16), [1.5, 2.0]),
        (np.array([1, -2], ml_dtypes.int4), [1, -2]),
        (np.array([2**63], np.uint64), [2**63]),
        (np.float16(0.5), 0.5),
        (np.zeros((0, 3), np.float32), []),
        (b"text", "text"),
        (b"\xff", {"base64": "/w=="}),
        (np.array([["é".encode(), b"\xff"]], object), [["é", {"base64": "/w=="}]]),
    ],
)
def test_values_as_json(value, expected):
    found = value_object(value)
    assert found == expected
    assert json.loads(json.dumps(found, allow_nan=False)) == expected
