from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ckptstore.bundle.read.indexing import Axis, BoxLayout, as_slices, parse_index, view_of
from ckptstore.errors import UsageError

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6)


@st.composite
def shape_and_index(draw):
    shape = draw(SHAPES)
    index = (
        draw(hnp.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True))
        if shape
        else draw(st.sampled_from([(), ..., None, (..., None)]))
    )
    return shape, index


@given(shape_and_index())
def test_a_box_has_the_shape_that_numpy_gives(case):
    shape, index = case
    wanted = np.empty(shape)[index]
    box = parse_index(index, shape, tensor="t")
    assert box.shape == np.shape(wanted)


@given(shape_and_index(), st.integers(0, 200), st.integers(2, 2000), st.sampled_from([1, 8, 64, 1 << 20]))
def test_the_ranges_of_a_box_hold_exactly_its_elements(case, gap, stage, direct):
    shape, index = case
    array = np.arange(np.prod(shape, dtype=int), dtype="<i2").reshape(shape)
    raw = array.tobytes()
    box = parse_index(index, shape, tensor="t")
    found = np.full(box.counts, -1, "<i2")
    layout = BoxLayout(
        box.axes, shape, 2, gap_size_bytes=gap, direct_size_bytes=direct, stage_size_bytes=stage
    )
    size_bytes = 0
    for read in layout.reads():
        data = raw[read.start : read.stop]
        assert len(data) == read.stop - read.start
        size_bytes += len(data)
        place = view_of(found, read.where)
        if read.is_contiguous:
            assert layout.is_contiguous
            assert len(data) == place.nbytes
            place[...] = np.frombuffer(data, "<i2").reshape(place.shape)
        else:
            assert len(data) <= stage
            place[...] = np.ndarray(place.shape, "<i2", data, read.first, read.strides)
    # Reading rows in groups adds the gaps between them.
    assert layout.size_bytes <= size_bytes
    assert layout.size_bytes == size_bytes or not layout.is_contiguous
    np.testing.assert_array_equal(found.reshape(box.shape), array[index])


@given(
    st.integers(0, 20),
    st.integers(-7, 7).filter(bool),
    st.integers(0, 8),
    st.integers(0, 20),
    st.integers(0, 9),
)
def test_clipping_keeps_the_indexes_inside(start, step, size, low, length):
    axis = Axis(start, step, size)
    indexes = [start + n * step for n in range(size)]
    where, inner = axis.clipped(low, low + length)
    inside = [index for index in indexes if low <= index < low + length]
    assert indexes[where] == inside
    assert [low + inner.start + n * inner.step for n in range(inner.size)] == inside


@given(shape_and_index())
def test_slices_pick_what_the_axes_say(case):
    shape, index = case
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    box = parse_index(index, shape, tensor="t")
    np.testing.assert_array_equal(array[as_slices(box.axes)].reshape(box.shape), array[index])


def test_rows_of_a_matrix_are_one_range_without_gaps():
    box = parse_index(np.s_[10:20], (1000, 100), tensor="t")
    (read,) = BoxLayout(box.axes, (1000, 100), 4).reads()
    assert (read.start, read.stop, read.is_contiguous) == (4000, 8000, True)


def test_a_column_is_read_in_pieces_of_bounded_size():
    shape = (100_000, 100)
    box = parse_index(np.s_[:, 3], shape, tensor="t")
    reads = list(BoxLayout(box.axes, shape, 4, gap_size_bytes=1000, stage_size_bytes=1 << 20).reads())
    assert all(read.stop - read.start <= 1 << 20 for read in reads)
    assert len(reads) < 50
    assert [read.where[0].start for read in reads[1:]] == [read.where[0].stop for read in reads[:-1]]


def test_rows_far_apart_are_read_one_by_one():
    shape = (10, 100_000)
    box = parse_index(np.s_[::3, :4], shape, tensor="t")
    reads = list(BoxLayout(box.axes, shape, 4).reads())
    assert [(read.start, read.stop) for read in reads] == [
        (row * 400_000, row * 400_000 + 16) for row in (0, 3, 6, 9)
    ]


@pytest.mark.parametrize(
    ("index", "shape"),
    [(3, (3,)), (-4, (3,)), ((0, 0), (3,)), ((0, ..., 0, ...), (3, 3)), (0, ()), (0, (0, 2))],
)
def test_what_numpy_calls_out_of_range_is_an_index_error(index, shape):
    with pytest.raises(IndexError):
        np.empty(shape)[index]
    with pytest.raises(IndexError, match="t"):
        parse_index(index, shape, tensor="t")


@pytest.mark.parametrize(
    "index",
    [
        True,
        np.True_,
        [0, 1],
        np.array([0]),
        np.array(0),
        1.0,
        "0",
        slice(0, 2, 0),
        slice("a"),
        (slice(None), [1]),
    ],
)
def test_what_is_no_basic_index_is_refused(index):
    with pytest.raises(UsageError, match="w") as caught:
        parse_index(index, (3, 3), tensor="w")
    assert caught.value.tensor == "w"


@pytest.mark.parametrize("index", [np.int8(1), np.uint64(1), np.s_[np.int64(0) : np.int64(2)]])
def test_numpy_integers_are_integers(index):
    box = parse_index(index, (3,), tensor="t")
    assert box.shape == np.empty(3)[index].shape
