"""Tensors stored in slices: any box of them, of every element type, from the shards that hold it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ckptstore.bundle.read.open_bundle import open_bundle
from ckptstore.bundle.write.index import build_index
from ckptstore.errors import ChecksumError, FormatError, IncompleteBundleError
from ckptstore.format import dtypes
from ckptstore.format.entry import BundleEntry
from ckptstore.format.slices import encode_slice_key
from ckptstore.storage.base import Location
from ckptstore.storage.registry import locate
from ckptstore.testing import CountingStorage
from ckptstore.types import Slice
from tests.unit.bundle.helpers import data_file, put, read_many, save, saved, take, tracked


def values(dtype, shape):
    """Return an array of any type, of small whole numbers (or text of that length)."""
    numbers = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    if dtype.dtype.hasobject:
        array = np.empty(shape, object)
        array.ravel()[:] = [b"%d" % n * (n % 4) for n in numbers.ravel()]
        return array
    return (numbers % 3 % 2).astype(dtype.dtype) if dtype.dtype.itemsize == 1 else numbers.astype(dtype.dtype)


def pieces(name, array, grid, dtype=None):
    """Cut `array` into boxes at the places given for each dimension."""
    cuts = [
        sorted({0, size, *(cut for cut in at if 0 < cut < size)})
        for at, size in zip(grid, array.shape, strict=True)
    ]
    for corner in itertools.product(*(list(itertools.pairwise(at)) for at in cuts)):
        box = tuple(slice(low, high) for low, high in corner)
        spec = [(low, high - low) for low, high in corner]
        yield {"name": name, "array": array[box], "shape": array.shape, "spec": spec, "dtype": dtype}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data(), dtype=st.sampled_from(dtypes.ALL))
def test_any_box_of_any_type_is_what_numpy_picks(prefix, data, dtype):
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=8))
    grid = [data.draw(st.sets(st.integers(1, 7), max_size=3)) for _ in shape]
    array = values(dtype, shape)
    cut = list(pieces("w", array, grid, dtype))
    order = data.draw(st.permutations(cut))
    half = data.draw(st.integers(0, len(order)))
    reader = saved(prefix, [*order[:half], {"name": "x", "array": 1}], order[half:])
    index = data.draw(hnp.basic_indices(shape, allow_newaxis=True))
    for chosen in (..., index):
        found = reader.read("w", chosen)
        np.testing.assert_array_equal(found, array[chosen])
        assert found.dtype == array.dtype
    spec = reader.spec("w")
    assert (spec.shape, spec.dtype) == (shape, dtype)
    assert len(spec.slices) == (0 if len(cut) == 1 else len(cut))


def test_only_the_shards_that_the_box_meets_are_touched(prefix):
    array = np.arange(40, dtype="f4").reshape(10, 4)
    cut = list(pieces("w", array, [[3, 6], []]))
    save(prefix, *[[piece] for piece in cut])
    tracking, place = tracked(prefix)
    reader = open_bundle(place)
    np.testing.assert_array_equal(reader.read("w", np.s_[3:5]), array[3:5])
    assert tracking.of_data() == [("model.data-00001-of-00003", 0, 32)]


def test_a_step_leaves_out_the_shards_between(prefix):
    array = np.arange(30, dtype="f4")
    save(prefix, *[[piece] for piece in pieces("w", array, [range(1, 30)])])
    tracking, place = tracked(prefix)
    np.testing.assert_array_equal(open_bundle(place).read("w", np.s_[::-7]), array[::-7])
    assert len(tracking.of_data()) == 5


def test_a_missing_shard_leaves_the_rest_readable(prefix):
    array = np.arange(40, dtype="f4").reshape(10, 4)
    save(prefix, *[[piece] for piece in pieces("w", array, [[5], []])])
    data_file(prefix, 1, 2).storage.delete_many([data_file(prefix, 1, 2).key])
    reader = open_bundle(prefix)
    np.testing.assert_array_equal(reader.read("w", np.s_[:5]), array[:5])
    with pytest.raises(IncompleteBundleError, match=r"data-00001-of-00002") as caught:
        reader.read("w")
    assert caught.value.tensor == "w"


def test_whole_slices_are_verified(prefix):
    array = np.arange(40, dtype="f4").reshape(10, 4)
    save(prefix, list(pieces("w", array, [[5], []])))
    place = data_file(prefix)
    raw = bytearray(take(place))
    raw[100] ^= 1
    put(place, bytes(raw))
    reader = open_bundle(prefix)
    np.testing.assert_array_equal(reader.read("w", np.s_[:5]), array[:5])
    with pytest.raises(ChecksumError, match="'w'"):
        reader.read("w", np.s_[5:, ::-1])


def test_slices_that_leave_a_hole_are_reported_only_where_it_is_met(prefix):
    array = np.arange(40, dtype="f4").reshape(10, 4)
    cut = list(pieces("w", array, [[3, 6], []]))
    reader = saved(prefix, [cut[0], cut[2]])
    np.testing.assert_array_equal(reader.read("w", np.s_[7:9]), array[7:9])
    for index, spec in ((..., "-:-"), (np.s_[2:4, :1], "2,2:0,1")):
        message = f"Does not have sufficient slices for partitioned tensor w to restore in slice_spec: {spec}"
        with pytest.raises(FormatError, match=message):
            reader.read("w", index)
    with pytest.raises(FormatError, match="sufficient"):
        read_many(reader, [("w", None)])


def test_slices_that_overlap_cannot_be_read(prefix):
    array = np.arange(40, dtype="f4").reshape(10, 4)
    reader = saved(
        prefix,
        [
            {"name": "w", "array": array[:6], "shape": (10, 4), "spec": "0,6:-"},
            {"name": "w", "array": array[4:], "shape": (10, 4), "spec": "4,6:-"},
        ],
    )
    message = "Overlapping slices: existing slice = 0,6:-, new slice = 4,6:-"
    with pytest.raises(FormatError, match=message):
        reader.read("w", 0)


def test_many_slices_take_linear_time(prefix):
    array = np.arange(5000, dtype="f4")
    reader = saved(prefix, list(pieces("w", array, [range(1, 5000)])))
    np.testing.assert_array_equal(reader.read("w"), array)
    assert reader.names() == ["w"]


def test_a_spec_counts_the_bytes_of_all_slices(prefix):
    array = np.arange(40, dtype="f4").reshape(10, 4)
    save(prefix, *[[piece] for piece in pieces("w", array, [[3, 6], []])])
    spec = open_bundle(prefix).spec("w")
    assert spec.nbytes == 160
    assert spec.shards == (0, 1, 2)
    assert spec.slices == tuple(Slice(((low, length), (0, 4))) for low, length in ((0, 3), (3, 3), (6, 4)))


def test_rows_of_slices_are_received_in_place(prefix):
    """Slices along the first dimension need no memory beside the result."""
    array = np.arange(400_000, dtype="f4").reshape(4000, 100)
    reader = saved(prefix, list(pieces("w", array, [[1000, 2000], []])))
    out = np.zeros((4000, 100), "f4")
    assert read_many(reader, [("w", out)])[0] is out
    np.testing.assert_array_equal(out, array)


def test_columns_of_slices_are_put_together(prefix):
    array = np.arange(400_000, dtype="f4").reshape(1000, 400)
    reader = saved(prefix, list(pieces("w", array, [[], [100, 390]])))
    np.testing.assert_array_equal(read_many(reader, [("w", None)])[0], array)


@pytest.mark.parametrize("index", [np.s_[2:4], np.s_[1:5:2, 1], np.s_[96:91:-1]])
def test_a_box_across_slices_needs_no_other_shard(prefix, index):
    """Not even its size: of a thousand shards that would be a thousand requests."""
    array = np.arange(400, dtype="f4").reshape(100, 4)
    save(prefix, *[[piece] for piece in pieces("w", array, [range(3, 100, 3), []])])
    counting = CountingStorage(prefix.storage)
    reader = open_bundle(Location(counting, prefix.key, prefix.url))
    counting.reset()
    np.testing.assert_array_equal(reader.read("w", index), array[index])
    rows: Any = index[0] if isinstance(index, tuple) else index
    met = {row // 3 for row in range(100)[rows]}
    assert counting.counts["head"] == len(met)


def test_a_box_across_slices_is_read_though_another_shard_is_missing(tmp_path):
    place = locate(tmp_path / "model")
    array = np.arange(40, dtype="f4").reshape(10, 4)
    save(place, *[[piece] for piece in pieces("w", array, [[3, 6], []])])
    (tmp_path / "model.data-00002-of-00003").unlink()
    reader = open_bundle(place)
    np.testing.assert_array_equal(reader.read("w", np.s_[2:5]), array[2:5])
    with pytest.raises(IncompleteBundleError, match=r"data-00002-of-00003"):
        reader.read("w", np.s_[5:8])


def test_one_tensor_among_many_with_many_slices_takes_few_blocks(prefix):
    """The slices of a tensor lie side by side in an index; the rest of it is not read for one."""
    names = [f"layer{number:03d}/{'kernel' * 30}" for number in range(600)]
    entries = []
    for number, name in enumerate(names):
        boxes = tuple(Slice(((row, 1), (0, number + 1))) for row in range(40))
        shape = (40, number + 1)
        for row, box in enumerate(boxes):
            entry = BundleEntry(1, (1, number + 1), row, 8 * number, 4 * (number + 1), row)
            entries.append((encode_slice_key(name, box), entry))
        entries.append((name.encode(), BundleEntry(1, shape, slices=boxes)))
    index = build_index(entries, 40)
    put(prefix.suffixed(".index"), index)
    storage, tracked_prefix = tracked(prefix)
    assert len(index) > 5 << 18
    reader = open_bundle(tracked_prefix)
    tensor = reader.stored(names[300])
    # The tail of the file, the block with its entry, and two with its slices.
    assert storage.size_bytes() < 4 * (1 << 18) + 4096
    assert tensor.slices == tuple(Slice(((row, 1), (0, 301))) for row in range(40))
    assert [entry.shard_id for entry in tensor.entries] == list(range(40))
    of_all = open_bundle(prefix)
    assert of_all.names() == names
    for name in (names[0], names[7], names[300], names[599]):
        assert of_all.stored(name) == reader.stored(name)


def test_a_slice_among_many_that_contradicts_its_tensor_is_named(prefix):
    boxes = tuple(Slice(((row, 1),)) for row in range(40))
    entries = [(encode_slice_key("w", box), BundleEntry(1, (1,), size_bytes=4)) for box in boxes[:-1]]
    entries += [(encode_slice_key("w", boxes[-1]), BundleEntry(3, (1,), size_bytes=4))]
    entries += [(b"w", BundleEntry(1, (40,), slices=boxes))]
    put(prefix.suffixed(".index"), build_index(entries, 1))
    with pytest.raises(FormatError, match="entry of slice 39,1 contradicts"):
        open_bundle(prefix).stored("w")
