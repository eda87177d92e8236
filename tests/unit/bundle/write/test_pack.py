"""Many small tensors at once have the bytes and entries that each has alone."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ckptstore.bundle.write.index import build_index
from ckptstore.bundle.write.pack import gather
from ckptstore.bundle.write.plan import write_item, write_items
from ckptstore.bundle.write.shard_writer import ShardWriter
from ckptstore.format.crc32c import crc32c, mask
from ckptstore.format.entry import BundleEntry
from tests.unit.bundle.helpers import Sink, add_all

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


def some_pieces() -> list[dict[str, Any]]:
    """Return runs of small tensors of several lengths, with something else behind each."""
    others: list[dict[str, Any]] = [
        {"array": ["text", "more"]},
        {"array": np.arange(6, dtype=">i4")},
        {"array": np.zeros(300_000, "u1")},
        {"array": np.asfortranarray(np.arange(6.0).reshape(2, 3))},
        {"array": np.ones((1, 2), "f4"), "shape": (4, 2), "spec": "1,1:-"},
        {"array": np.ones((1, 2), "f4"), "shape": (4, 2), "spec": "3,1:-"},
    ]
    found: list[dict[str, Any]] = []
    for count, other in zip([1, 15, 16, 40, 0, 17], others, strict=True):
        for number in range(count):
            array = np.full((number, 2), number, TYPES[number % len(TYPES)])
            found.append({"name": f"w{len(found)}", "array": array})
        found.append({"name": "part" if "spec" in other else f"other{len(found)}", **other})
    # More than one batch.
    found += [{"name": f"many{number}", "array": np.full(60_000, number, "f4")} for number in range(40)]
    return found


def test_a_plan_is_written_as_its_tensors_one_by_one():
    pieces = some_pieces()
    single, planned = Sink(), Sink()
    writer, other = ShardWriter(single), ShardWriter(planned)
    add_all(writer, pieces)
    other.write([write_item(**piece) for piece in pieces])
    other.finish()
    assert planned.data == single.data
    assert build_index(other.entries, 1) == build_index(writer.entries, 1)
    assert (other.crc32c, other.size_bytes) == (writer.crc32c, writer.size_bytes)
    assert sum(entry.size_bytes for _, entry in other.entries) == len(single.data)


def test_an_array_may_change_once_it_was_added():
    sink = Sink()
    writer = ShardWriter(sink)
    array = np.zeros(4, "u1")
    for number in range(40):
        array[:] = number
        writer.add(str(number), array)
    writer.finish()
    assert sink.data == np.repeat(np.arange(40, dtype="u1"), 4).tobytes()
