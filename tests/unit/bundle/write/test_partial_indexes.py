"""One index from those of single data files: the bytes of TensorFlow's merge."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.bundle.write.index import build_index
from ckptstore.bundle.write.merge import MergeInput, merge_indexes
from ckptstore.bundle.write.partial_indexes import merge_partial_indexes
from ckptstore.errors import ChecksumError, FormatError, UsageError
from ckptstore.format.entry import BundleEntry, BundleHeader
from ckptstore.format.slices import encode_slice_key
from ckptstore.types import Slice

Entries = list[tuple[bytes, BundleEntry]]


def slices(name: str, shape: tuple[int, ...], *boxes: Slice, shard_id: int = 0) -> Entries:
    """Return the entries of one data file with these slices."""
    entries = [
        (encode_slice_key(name, box), BundleEntry(1, box.shape_within(shape), shard_id, 8 * at, 4, at + 1))
        for at, box in enumerate(boxes)
    ]
    return [*entries, (name.encode(), BundleEntry(1, shape, shard_id, slices=boxes))]


def rows(start: int, length: int) -> Slice:
    return Slice(((start, length), (0, -1)))


def merged(*parts: Entries) -> bytes:
    """Return what the merge of decoded indexes writes."""
    inputs = [MergeInput(sorted(part), BundleHeader(1), f"part {at}") for at, part in enumerate(parts)]
    return merge_indexes(inputs).index_bytes()


def packed(*parts: Entries) -> list[tuple[int, bytes]]:
    return [(number, build_index(part, 1)) for number, part in enumerate(parts)]


def test_slices_and_whole_tensors_are_merged_as_tensorflow_does() -> None:
    parts = [
        [*slices("w", (300, 5), rows(200, 100), rows(0, 7)), (b"a", BundleEntry(9, (), 0, 16, 8, 77))],
        [(b"long" * 40, BundleEntry(1, (1,) * 40, 0, 0, 4, 1)), *slices("v", (6, 1), rows(0, 6))],
        [*slices("w", (300, 5), rows(7, 193))],
    ]
    assert merge_partial_indexes(packed(*parts), 3) == merged(*parts)


@st.composite
def many_parts(draw: st.DrawFn) -> list[Entries]:
    count = draw(st.integers(1, 12))
    parts: list[Entries] = [[] for _ in range(count)]
    for number in range(draw(st.integers(1, 30))):
        name = draw(st.sampled_from(["w", "\x00", "é/" * 9])) + str(number)
        if draw(st.booleans()):
            entry = BundleEntry(draw(st.sampled_from([1, 3, 101, 130])), (number,), 0, number, 4, number)
            parts[draw(st.integers(0, count - 1))].append((name.encode(), entry))
            continue
        height = draw(st.integers(1, 2**40))
        for at in range(count):
            if draw(st.booleans()):
                parts[at] += slices(name, (height * count, 3), rows(at * height, height))
    # TensorFlow gives numbers only to files with something in them.
    return [part for part in parts if part] or [[(b"x", BundleEntry(1, ()))]]


@given(many_parts())
def test_the_bytes_are_those_of_the_merge_of_decoded_indexes(parts: list[Entries]) -> None:
    # Numbered by part, not by first appearance, which is another order where names are not sorted by part.
    expected = build_index(
        [(key, entry._replace(shard_id=at)) for at, part in enumerate(parts) for key, entry in part],
        len(parts),
    )
    assert merge_partial_indexes(packed(*parts), len(parts)) == expected


def test_numbers_that_are_there_are_replaced() -> None:
    parts = [slices("w", (4, 1), rows(0, 2), shard_id=500), slices("w", (4, 1), rows(2, 2), shard_id=3)]
    zeros = [slices("w", (4, 1), rows(0, 2)), slices("w", (4, 1), rows(2, 2))]
    assert merge_partial_indexes(packed(*parts), 2) == merge_partial_indexes(packed(*zeros), 2)


def test_the_numbers_and_the_count_are_the_caller_s() -> None:
    part = slices("w", (4, 1), rows(0, 4))
    expected = build_index([(key, entry._replace(shard_id=41_000)) for key, entry in part], 70_000)
    assert merge_partial_indexes([(41_000, build_index(part, 1))], 70_000) == expected


def test_without_parts_there_is_a_header() -> None:
    assert merge_partial_indexes([], 5) == build_index([], 5)


@pytest.mark.parametrize(
    ("one", "two", "message"),
    [
        ([(b"a", BundleEntry(1, ()))], [(b"a", BundleEntry(1, ()))], "Adding duplicate key: a"),
        (
            slices("w", (4, 1), rows(0, 2)),
            slices("w", (4, 1), rows(0, 2)),
            r"duplicate key: w \(slice 0,2:-\)",
        ),
        (slices("w", (4, 1), rows(0, 2)), [(b"w", BundleEntry(1, (4, 1)))], "Adding duplicate key: w"),
        (slices("w", (4, 1), rows(0, 2)), slices("w", (5, 1), rows(2, 3)), "do not agree on its type"),
    ],
)
def test_what_does_not_go_together_is_refused(one: Entries, two: Entries, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        merge_partial_indexes(packed(one, two), 2)


def test_byte_orders_are_not_mixed() -> None:
    part = [(b"a", BundleEntry(1, ()))]
    foreign = build_index([(b"b", BundleEntry(1, ()))], 1, header=BundleHeader(1, big_endian=True))
    with pytest.raises(UsageError, match="byte order"):
        merge_partial_indexes([*packed(part), (1, foreign)], 2)
    assert merge_partial_indexes([(0, foreign)], 1) == foreign


def test_a_damaged_part_is_named() -> None:
    data = bytearray(packed(slices("w", (4, 1), rows(0, 2)))[0][1])
    data[3] ^= 1
    with pytest.raises(ChecksumError, match="data file 7"):
        merge_partial_indexes([(7, bytes(data))], 8)
    with pytest.raises(FormatError, match="data file 7"):
        merge_partial_indexes([(7, np.arange(300, dtype=np.uint8).tobytes())], 8)
