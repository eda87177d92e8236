"""Slices in bulk are what slices one by one are: the same keys, the same numbers, the same refusals."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.errors import FormatError
from ckptstore.format.entry import BundleEntry, decode_entry, encode_entry, name_to_key
from ckptstore.format.slice_columns import (
    are_disjoint,
    decode_slice_columns,
    encode_slice_keys,
    slice_key_prefix,
    slice_starts,
)
from ckptstore.format.slices import encode_slice_key, find_overlap
from ckptstore.types import Slice

SHAPE = (300, 5, 1 << 40)


def some_slice(rng: random.Random) -> Slice:
    extents = []
    for size in SHAPE:
        start = rng.choice([0, 0, 1, 127, 128, rng.randrange(size)]) % size
        extents.append(rng.choice([(0, -1), (0, size), (0, 0), (start, rng.randint(0, size - start))]))
    return Slice(tuple(extents))


def starts_in(value: bytes) -> list[int] | None:
    """Return where the slices of an entry begin that has nothing but type and shape before them."""
    return slice_starts(value, 4 + value[3])


@pytest.mark.parametrize("seed", range(5))
def test_slices_and_their_keys_are_those_of_single_ones(seed):
    rng = random.Random(seed)
    boxes = [[some_slice(rng) for _ in range(rng.randint(1, 9))] for _ in range(50)]
    values = [encode_entry(BundleEntry(1, SHAPE, slices=tuple(own))) for own in boxes]
    names = [rng.choice(["w", "a/b\x00c", "ü\udcff", "x" * 300]) + str(number) for number in range(50)]
    starts = [found for found in map(starts_in, values) if found]
    slices = decode_slice_columns(values, starts, np.array([SHAPE] * 50))
    assert slices.is_sound.all()
    found = [
        Slice(tuple(zip(begins, lengths, strict=True)))
        for begins, lengths in zip(slices.starts.tolist(), slices.lengths.tolist(), strict=True)
    ]
    assert found == list(itertools.chain(*boxes))
    assert slices.tensors.tolist() == [number for number, own in enumerate(boxes) for _ in own]
    prefixes = [slice_key_prefix(name_to_key(name), len(SHAPE)) for name in names]
    assert encode_slice_keys(prefixes, slices) == [
        encode_slice_key(name, box) for name, own in zip(names, boxes, strict=True) for box in own
    ]
    expected = [list(box.shape_within(SHAPE)) for box in found]
    assert slices.resolved_lengths(np.array([SHAPE] * 50)).tolist() == expected


@pytest.mark.parametrize("seed", range(20))
def test_damaged_slices_are_not_sound_or_mean_the_same(seed):
    rng = random.Random(seed)
    values: list[bytes] = []
    starts = []
    while len(values) < 300:
        value = bytearray(
            encode_entry(BundleEntry(1, SHAPE, slices=tuple(some_slice(rng) for _ in range(3))))
        )
        for _ in range(rng.randrange(3)):
            value[rng.randrange(4 + value[3], len(value))] = rng.choice(
                [0, 1, 8, 0x0A, 0x10, 0x3A, 0x80, 0xFF]
            )
        if rng.random() < 0.2:
            value = value[: rng.randrange(4 + value[3], len(value) + 1)]
        found = starts_in(bytes(value))
        if found:
            values.append(bytes(value))
            starts.append(found)
    slices = decode_slice_columns(values, starts, np.array([SHAPE] * 300))
    refused = 0
    for number, stored in enumerate(values):
        own = slices.tensors == number
        if not slices.is_sound[own].all():
            refused += 1
            continue
        boxes = zip(slices.starts[own].tolist(), slices.lengths[own].tolist(), strict=True)
        expected = tuple(Slice(tuple(zip(*box, strict=True))) for box in boxes)
        assert decode_entry(stored, source="s", tensor="t").slices == expected
    assert 0 < refused < 300


@pytest.mark.parametrize(
    "tail", [b"\x3a", b"\x3a\x05\x0a", b"\x3a\x80\x01" + bytes(128), b"\x3a\x00\x40\x00", b"\x3a\x00\x3a"]
)
def test_what_does_not_go_on_as_slices_is_left_to_single_entries(tail):
    assert slice_starts(b"\x08\x01\x12\x00" + tail, 4) is None


@pytest.mark.parametrize(
    ("extents", "shape"),
    [
        ([(0, 4)], (3,)),
        ([(2, 2)], (3,)),
        ([(1 << 62, 1 << 62)], (3,)),
        ([((1 << 63) - 1, (1 << 63) - 1)], ((1 << 63) - 1,)),
    ],
)
def test_a_slice_outside_its_tensor_is_not_sound(extents, shape):
    value = encode_entry(BundleEntry(1, shape, slices=(Slice(tuple(extents)),)))
    slices = decode_slice_columns([value], [starts_in(value) or []], np.array([shape]))
    assert not slices.is_sound.any()
    with pytest.raises(FormatError):
        decode_entry(value, source="s", tensor="t")


def boxes_of(slices: list[Slice], shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    extents = np.array([box.resolve(shape) for box in slices]).reshape(len(slices), len(shape), 2)
    return extents[:, :, 0], extents[:, :, 0] + extents[:, :, 1]


@given(st.data())
def test_boxes_that_are_told_apart_do_not_overlap(data):
    shape = data.draw(st.sampled_from([(6,), (4, 4), (3, 2, 4)]))
    groups = []
    for _ in range(3):
        boxes = []
        for _ in range(data.draw(st.integers(1, 5))):
            starts = [data.draw(st.integers(0, size - 1)) for size in shape]
            boxes.append(
                Slice(
                    tuple(
                        (start, data.draw(st.integers(0, size - start)))
                        for start, size in zip(starts, shape, strict=True)
                    )
                )
            )
        groups.append(boxes)
    numbers = np.repeat(np.arange(3), [len(boxes) for boxes in groups])
    first, last = boxes_of([box for boxes in groups for box in boxes], shape)
    for boxes, is_disjoint in zip(groups, are_disjoint(numbers, first, last).tolist(), strict=True):
        if is_disjoint:
            assert find_overlap(boxes, shape) is None


@given(st.data())
def test_every_grid_is_told_apart_whatever_the_order(data):
    shape = data.draw(st.sampled_from([(9,), (9, 7), (4, 1, 5)]))
    cuts = [sorted({0, size, *data.draw(st.sets(st.integers(1, size)))}) for size in shape]
    corners = itertools.product(*(list(itertools.pairwise(at)) for at in cuts))
    grid = [Slice(tuple((low, high - low) for low, high in corner)) for corner in corners]
    starts, stops = boxes_of(data.draw(st.permutations(grid)), shape)
    numbers = np.zeros(len(grid), np.int64)
    assert are_disjoint(numbers, starts, stops).tolist() == [True]
    twice = (
        np.concatenate((numbers, numbers)),
        np.concatenate((starts, starts)),
        np.concatenate((stops, stops)),
    )
    assert are_disjoint(*twice).tolist() == [False]
