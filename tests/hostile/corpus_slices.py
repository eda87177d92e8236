"""Attacks by the slices of a partitioned tensor."""

from __future__ import annotations

from pathlib import Path

import ckptstore as ck
from ckptstore.format.slices import encode_slice_key
from ckptstore.types import Slice
from tests.hostile import crafted_files as crafted
from tests.hostile.corpus import FLOAT, attack, one


def _partition(directory: Path, sizes: list[int], boxes: list[list[tuple[int, int]]]) -> str:
    entries, data = crafted.sliced("x", sizes, boxes)
    return crafted.write_bundle(directory, crafted.index(entries), data)


@attack(ck.FormatError)
def overlapping_slices(directory: Path) -> str:
    return _partition(directory, [10], [[(0, 6)], [(4, 6)]])


@attack(ck.FormatError)
def the_same_slice_twice(directory: Path) -> str:
    entries, data = crafted.sliced("x", [10], [[(0, 5)], [(5, 5)]])
    half = crafted.extent(0, 5)
    entries["x"] = crafted.entry(FLOAT, [10], slices=[half, half])
    return crafted.write_bundle(directory, crafted.index(entries), data)


@attack(ck.FormatError)
def gap_between_slices(directory: Path) -> str:
    return _partition(directory, [10], [[(0, 4)], [(5, 5)]])


@attack(ck.FormatError)
def slice_outside_the_shape(directory: Path) -> str:
    return _partition(directory, [10], [[(0, 5)], [(5, 6)]])


@attack(ck.FormatError)
def slice_end_overflows_int64(directory: Path) -> str:
    box = crafted.extent((1 << 63) - 1, (1 << 63) - 1)
    return one(directory, crafted.entry(FLOAT, [10], slices=[box]))


@attack(ck.FormatError)
def slice_with_a_negative_start(directory: Path) -> str:
    return one(
        directory,
        crafted.entry(FLOAT, [10], slices=[crafted.extent(-5, 5), crafted.extent(5, 5)]),
    )


@attack(ck.FormatError)
def slice_with_a_negative_length(directory: Path) -> str:
    return one(directory, crafted.entry(FLOAT, [10], slices=[crafted.extent(0, -1)]))


@attack(ck.FormatError)
def slice_of_another_rank(directory: Path) -> str:
    return one(directory, crafted.entry(FLOAT, [10], slices=[crafted.extent(0, 5) * 2]))


@attack(ck.FormatError)
def slice_without_an_entry(directory: Path) -> str:
    entries, data = crafted.sliced("x", [10], [[(0, 5)], [(5, 5)]])
    del entries[encode_slice_key("x", Slice(((5, 5),)))]
    return crafted.write_bundle(directory, crafted.index(entries), data)


@attack(ck.FormatError)
def slice_entry_of_another_shape(directory: Path) -> str:
    entries, data = crafted.sliced("x", [10], [[(0, 5)], [(5, 5)]])
    entries[encode_slice_key("x", Slice(((5, 5),)))] = crafted.entry(FLOAT, [1 << 40], size=1 << 42)
    return crafted.write_bundle(directory, crafted.index(entries), data)


@attack(ck.FormatError)
def slice_entry_that_is_sliced_itself(directory: Path) -> str:
    entries, data = crafted.sliced("x", [10], [[(0, 5)], [(5, 5)]])
    key = encode_slice_key("x", Slice(((5, 5),)))
    entries[key] = crafted.entry(FLOAT, [5], slices=[crafted.extent(0, 5)])
    return crafted.write_bundle(directory, crafted.index(entries), data)


@attack(ck.FormatError, heavy=True)
def slices_of_a_scalar(directory: Path) -> str:
    return one(directory, crafted.entry(FLOAT, [], slices=[b""] * 100_000))


@attack(ck.FormatError)
def slices_that_share_their_bytes(directory: Path) -> str:
    boxes = [[(number, 1)] for number in range(1000)]
    entries, _ = crafted.sliced("x", [1000], boxes)
    for box in boxes:
        entries[encode_slice_key("x", Slice(tuple(box)))] = crafted.entry(FLOAT, [1], data=bytes(4))
    return crafted.write_bundle(directory, crafted.index(entries), bytes(4))


@attack(ck.FormatError, memory_bytes=150 << 20, heavy=True)
def a_hundred_thousand_slices_with_a_gap(directory: Path) -> str:
    count = 100_000
    boxes = [crafted.extent(number, 1) for number in range(count)]
    return one(directory, crafted.entry(FLOAT, [count + 1], slices=boxes))


@attack(ck.UnsupportedError, memory_bytes=150 << 20, heavy=True)
def many_slices_side_by_side_in_every_dimension(directory: Path) -> str:
    # Long bars across each other: whatever dimension a sweep goes along, nearly all are active at once.
    count, more = 9_000, 6
    entries: dict[str | bytes, bytes] = {}
    boxes = []
    for number in range(count):
        bar: tuple[tuple[int, int], ...]
        bar = ((number, 1), (0, count)) if number % 2 else ((0, count), (number, 1))
        bar += ((0, 1),) * more
        boxes.append(b"".join(crafted.extent(*extent) for extent in bar))
        lengths = [length for _, length in bar]
        entries[encode_slice_key("x", Slice(bar))] = crafted.entry(FLOAT, lengths, size=4 * count)
    entries["x"] = crafted.entry(FLOAT, [count, count] + [1] * more, slices=boxes)
    return crafted.write_bundle(directory, crafted.index(entries), bytes(8))


@attack(ck.UnsupportedError, verifies=True, heavy=True)
def full_extents_in_many_dimensions(directory: Path) -> str:
    # Two bytes an extent in the file.
    boxes = [crafted.extent(0, None) * 200] * 2_500
    return one(directory, crafted.entry(FLOAT, [1] * 200, slices=boxes))


@attack(ck.UnsupportedError, verifies=True)
def one_slice_of_more_dimensions_than_numpy_has(directory: Path) -> str:
    entries, data = crafted.sliced(
        "x", [2] + [1] * 199, [[(0, 1)] + [(0, 1)] * 199, [(1, 1)] + [(0, 1)] * 199]
    )
    return crafted.write_bundle(directory, crafted.index(entries), data)
