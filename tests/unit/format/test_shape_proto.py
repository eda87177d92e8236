"""The protos of shapes and slices."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.errors import FormatError
from ckptstore.format.shape_proto import (
    MAX_RANK,
    check_slice,
    decode_shape,
    decode_slice,
    encode_shape,
    encode_slice,
)
from ckptstore.types import Slice

EXTENTS = st.just((0, -1)) | st.tuples(st.integers(0, 2**40), st.integers(0, 2**40))


@pytest.mark.parametrize(
    ("shape", "hex_bytes"),
    [((), ""), ((2,), "12020802"), ((0, 3), "120012020803"), ((300, 1), "120308ac0212020801")],
)
def test_shape_bytes(shape, hex_bytes):
    assert encode_shape(shape).hex() == hex_bytes
    assert decode_shape(bytes.fromhex(hex_bytes), source="s") == shape


def test_names_of_dimensions_are_skipped():
    assert decode_shape(bytes.fromhex("1207" + "0805" + "1203") + b"row", source="s") == (5,)


def test_the_highest_rank_is_accepted():
    assert decode_shape(encode_shape((1,) * MAX_RANK), source="s") == (1,) * MAX_RANK


@pytest.mark.parametrize(
    ("box", "hex_bytes"),
    [
        (Slice(((0, -1),)), "0a00"),
        (Slice(((0, 5),)), "0a021005"),
        (Slice(((7, 0),)), "0a0408071000"),
        (Slice(()), ""),
    ],
)
def test_slice_bytes(box, hex_bytes):
    assert encode_slice(box).hex() == hex_bytes
    assert decode_slice(bytes.fromhex(hex_bytes), source="s") == box


@given(st.lists(EXTENTS, max_size=5))
def test_slices_round_trip(extents):
    box = Slice(tuple(extents))
    assert decode_slice(encode_slice(box), source="s") == box


@given(st.binary(max_size=50))
def test_any_bytes_end_in_a_value_or_a_format_error(data):
    for decode in (decode_shape, decode_slice):
        error = None
        try:
            decode(data, source="s")
        except FormatError as caught:
            error = caught
        assert error is None or error.url == "s"


def test_a_slice_outside_its_shape_is_refused():
    check_slice(Slice(((2, 3), (0, -1))), (5, 0), source="s")
    with pytest.raises(FormatError, match="dimension 1 out of bounds") as caught:
        check_slice(Slice(((0, -1), (3, 3))), (5, 5), source="s", tensor="w")
    assert caught.value.tensor == "w"
    with pytest.raises(FormatError, match="Mismatching ranks"):
        check_slice(Slice(((0, 1),)), (5, 5), source="s")
