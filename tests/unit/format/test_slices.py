"""Slices: TensorFlow's texts and keys, boxes."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.errors import FormatError, UnsupportedError, UsageError
from ckptstore.format.entry import HEADER_KEY, decode_entry, key_to_name
from ckptstore.format.slices import (
    decode_slice_key,
    encode_slice_key,
    find_overlap,
    format_slice,
    full_slice,
    make_slice,
    parse_shape_and_slice,
    parse_slice_spec,
)
from ckptstore.format.table import Table
from ckptstore.types import Slice


class TestTexts:
    @pytest.mark.parametrize(
        ("text", "extents"),
        [
            ("-", ((0, -1),)),
            ("0,14:-", ((0, 14), (0, -1))),
            ("27,13:0,3", ((27, 13), (0, 3))),
            ("-:-:5,1", ((0, -1), (0, -1), (5, 1))),
        ],
    )
    def test_spec_round_trips(self, text, extents):
        assert parse_slice_spec(text) == Slice(extents)
        assert format_slice(Slice(extents)) == text

    def test_shape_and_slice(self):
        assert parse_shape_and_slice("40 3 0,14:0,3") == ((40, 3), Slice(((0, 14), (0, 3))), (14, 3))
        assert parse_shape_and_slice("100 -") == ((100,), Slice(((0, -1),)), (100,))
        assert parse_shape_and_slice("0 3 -:1,2") == ((0, 3), Slice(((0, -1), (1, 2))), (0, 2))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("-", "Need least two elements in shape_and_slice specification: -"),
            ("", "Need least two elements in shape_and_slice specification: "),
            ("40 3 3", "Expected a pair of numbers or '-' but got '3': string = 3"),
            (
                "40 3 0,0:-",
                "Expected non-negative start and positive length but got "
                "start = 0, length = 0: string = 0,0:-",
            ),
            (
                "40 3 -1,2:-",
                "Expected non-negative start and positive length but got "
                "start = -1, length = 2: string = -1,2:-",
            ),
            ("40 x -:-", "Non numerical dimension in shape_and_slice: 40 x -:-"),
            ("40  3 -:-", "Non numerical dimension in shape_and_slice: 40  3 -:-"),
            ("-4 -", "Non numerical dimension in shape_and_slice: -4 -"),
            ("40 3 -", "Mismatching ranks: shape = [40,3], slice = -"),
            ("40 3 30,14:-", "Extent in dimension 0 out of bounds: shape = [40,3], slice = 30,14:-"),
            ("4 1,2,3", "Expected a pair of numbers or '-' but got '1,2,3': string = 1,2,3"),
            ("4 1_0,2", "Expected a pair of numbers or '-' but got '1_0,2': string = 1_0,2"),
            ("4 ٣,1", "Expected a pair of numbers or '-' but got '٣,1': string = ٣,1"),
            ("4 " + "9" * 5000 + ",1", "Expected a pair of numbers or '-' but got"),
            ("4 9223372036854775808,1", "Expected a pair of numbers or '-' but got"),
        ],
    )
    def test_malformed_texts_are_refused_in_tensorflows_words(self, text, message):
        with pytest.raises(UsageError) as caught:
            parse_shape_and_slice(text)
        assert str(caught.value).startswith(message)


class TestMakeSlice:
    @pytest.mark.parametrize(
        ("spec", "extents"),
        [
            ("0,14:-", ((0, 14), (0, -1))),
            ([(0, 14), (0, -1)], ((0, 14), (0, -1))),
            ([[0, 14], [0, 3]], ((0, 14), (0, 3))),
            (np.array([[26, 14], [0, 3]]), ((26, 14), (0, 3))),
            (Slice(((1, 2), (0, -1))), ((1, 2), (0, -1))),
        ],
    )
    def test_texts_and_pairs(self, spec, extents):
        assert make_slice(spec, (40, 3)) == Slice(extents)

    @pytest.mark.parametrize("spec", ["", "-:-", "0,40:0,3", [(0, -1), (0, 3)], Slice(((0, 40), (0, -1)))])
    def test_a_spec_that_covers_everything_is_no_slice(self, spec):
        assert make_slice(spec, (40, 3)) is None

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ("-", "Mismatching ranks: shape = [40,3], slice = -"),
            ([(30, 11), (0, -1)], "Extent in dimension 0 out of bounds: shape = [40,3], slice = 30,11:-"),
            ([(0, 0), (0, -1)], "Expected non-negative start and positive length"),
            ([(3, -1), (0, -1)], "Expected non-negative start and positive length"),
            ([(0, -2), (0, -1)], "Expected non-negative start and positive length"),
            ([(0, 2**70), (0, -1)], "Expected non-negative start and positive length"),
            ([(0, 1.5), (0, -1)], "a slice is a sequence of (start, length) pairs"),
            ([3, 4], "a slice is a sequence of (start, length) pairs"),
            ([(1, 2, 3)], "a slice is a sequence of (start, length) pairs"),
            (7, "a slice is a sequence of (start, length) pairs"),
            ("0;1", "Expected a pair of numbers or '-' but got '0;1'"),
        ],
    )
    def test_bad_specs_name_the_tensor(self, spec, message):
        with pytest.raises(UsageError) as caught:
            make_slice(spec, (40, 3), tensor="w")
        assert str(caught.value).startswith(message)
        assert caught.value.tensor == "w"


class TestKeys:
    @pytest.mark.parametrize(
        ("name", "spec", "hex_bytes"),
        [
            ("w", "0,14:-", "00 77 0001 0102 808e 807f"),
            ("w", "27,13:0,3", "00 77 0001 0102 9b8d 8083"),
            ("big", "64,65:0,1", "00 626967 0001 0102 c040c041 8081"),
            ("v1d", "8192,1000", "00 763164 0001 0101 e02000 c3e8"),
            ("é", "-", "00 c3a9 0001 0101 807f"),
            ("a\x00b", "-", "00 6100ff62 0001 0101 807f"),
        ],
    )
    def test_keys_have_tensorflows_bytes(self, name, spec, hex_bytes):
        key = bytes.fromhex(hex_bytes)
        assert encode_slice_key(name, parse_slice_spec(spec)) == key
        assert decode_slice_key(key) == (name, parse_slice_spec(spec))

    def test_an_explicit_full_range_is_another_key_than_the_full_extent(self):
        assert encode_slice_key("w", Slice(((0, 3),))) != encode_slice_key("w", Slice(((0, -1),)))

    def test_the_key_of_a_scalar(self):
        assert encode_slice_key("a", full_slice(0)).hex() == "0061000100"
        assert decode_slice_key(bytes.fromhex("0061000100")) == ("a", Slice(()))

    def test_the_keys_in_the_fixtures_are_those_of_their_slices(self, fixtures_dir):
        found = 0
        for path in fixtures_dir.rglob("*.index"):
            items = dict(Table.from_bytes(path.read_bytes(), source="s").items())
            for key, value in items.items():
                if key == HEADER_KEY:
                    continue
                entry = decode_entry(value, source="s", tensor="w")
                for box in entry.slices:
                    slice_key = encode_slice_key(key_to_name(key), box)
                    part = decode_entry(items[slice_key], source="s", tensor="w")
                    assert part.shape == box.shape_within(entry.shape)
                    assert decode_slice_key(slice_key) == (key_to_name(key), box)
                    found += 1
        assert found > 30

    @pytest.mark.parametrize(
        "hex_bytes",
        [
            "",
            "0101",
            "00",
            "0077",
            "00770001",
            "0077000101",
            "00770001010180",
            "00770001010180" + "7f" + "00",
            "0077000101017f81",
            "0077000101018" + "07e",
            "0077000101018" + "17f",
            "007700010" + "2ffff",
            "00770001" + "08" + "ff" * 8,
        ],
    )
    def test_what_is_no_slice_key_is_a_format_error(self, hex_bytes):
        with pytest.raises(FormatError):
            decode_slice_key(bytes.fromhex(hex_bytes), source="s")

    @given(st.binary(max_size=30).map(lambda data: b"\x00" + data))
    def test_any_bytes_end_in_a_slice_or_a_format_error(self, data):
        try:
            name, box = decode_slice_key(data, source="s")
        except FormatError:
            return
        if name:
            assert encode_slice_key(name, box) == data


SHAPE = (5, 4)


def extents(size: int) -> st.SearchStrategy[tuple[int, int]]:
    """Draw the whole dimension, or a start and a length within it."""
    starts = st.integers(0, size - 1)
    parts = starts.flatmap(lambda start: st.tuples(st.just(start), st.integers(0, size - start)))
    return st.just((0, -1)) | parts


BOXES = st.tuples(*map(extents, SHAPE)).map(Slice)


def painted(box: Slice) -> np.ndarray:
    canvas = np.zeros(SHAPE, int)
    canvas[tuple(slice(start, start + length) for start, length in box.resolve(SHAPE))] = 1
    return canvas


class TestBoxes:
    @given(st.lists(BOXES, max_size=6))
    def test_overlap_is_found_exactly_when_something_is_painted_twice(self, boxes):
        found = find_overlap(boxes, SHAPE)
        total = sum((painted(box) for box in boxes), np.zeros(SHAPE, int))
        assert (found is None) == (total.max() <= 1)
        if found is not None:
            first, second = found
            assert first < second
            assert (painted(boxes[first]) * painted(boxes[second])).any()

    def test_tensorflows_example_of_an_overlap(self):
        boxes = [parse_slice_spec(text) for text in ("0,14:-", "20,5:-", "10,14:-")]
        assert find_overlap(boxes, (40, 3)) == (0, 2)

    def test_scalars_meet_if_there_are_two(self):
        assert find_overlap([Slice(())], ()) is None
        assert find_overlap([Slice(()), Slice(())], ()) == (0, 1)

    def test_thousands_of_slices_take_no_quadratic_time(self):
        row = [Slice(((n * 10, 10), (0, -1))) for n in range(5_000)]
        grid = [Slice(((i, 1), (j, 1))) for i, j in itertools.product(range(70), range(70))]
        started = time.process_time()
        assert find_overlap(row[::-1], (50_000, 3)) is None
        assert find_overlap(grid, (70, 70)) is None
        assert find_overlap([*grid, Slice(((3, 1), (60, 2)))], (70, 70)) == (3 * 70 + 60, 4900)
        assert time.process_time() - started < 15

    def test_slices_made_to_be_slow_are_refused(self):
        n = 30_000
        boxes = [Slice(((i, 2 * n - 2 * i), (i, 1))) for i in range(n // 2)] + [
            Slice(((2 * n + i, 1), (i, 2 * n - 2 * i))) for i in range(n // 2)
        ]
        boxes = [Slice((*box.extents, (0, 1))) for box in boxes]
        started = time.process_time()
        with pytest.raises(UnsupportedError, match="too many slices"):
            find_overlap(boxes * 3, (4 * n, 4 * n, 1))
        assert time.process_time() - started < 15
