"""Many small tensors at once have the bytes and entries that each has alone."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from ckptstore.bundle.gathered import gather
from ckptstore.bundle.plan import write_items
from ckptstore.format.crc32c import crc32c, mask
from ckptstore.format.entry import BundleEntry

TYPES = ["<f4", "<i8", "?", "<c8", "u1", "<f2", ml_dtypes.bfloat16, ml_dtypes.int4]


@pytest.mark.parametrize("offset", [0, 1 << 40])
def test_bytes_and_entries_are_those_of_each_tensor_behind_the_other(offset):
    rng = np.random.default_rng(1)
    shapes = [(), (0, 3), (7,), (2, 3, 5), (256,)]
    arrays = [rng.integers(0, 2, shape).astype(dtype) for dtype in TYPES for shape in shapes]
    items = write_items((f"é{number}", array) for number, array in enumerate(arrays))
    payload, entries = gather(items, shard_id=3, offset=offset)
    assert payload == b"".join([array.tobytes() for array in arrays])
    at = offset
    for number, (item, (key, entry)) in enumerate(zip(items, entries, strict=True)):
        raw = arrays[number].tobytes()
        enum = item.dtype.as_datatype_enum
        assert key == f"é{number}".encode()
        assert entry == BundleEntry(enum, arrays[number].shape, 3, at, len(raw), mask(crc32c(raw)))
        at += len(raw)


def test_nothing_has_no_bytes():
    assert gather([], shard_id=0, offset=5) == (b"", [])
