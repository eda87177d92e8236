"""Entries in bulk are what entries one by one are: the same bytes, the same values, the same refusals."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.errors import FormatError, UnsupportedError, UsageError
from ckptstore.format.block import BlockRows, rows_of
from ckptstore.format.entry import (
    HEADER_KEY,
    BundleEntry,
    BundleHeader,
    check_entry,
    decode_entry,
    encode_entry,
    encode_entry_head,
    encode_header,
)
from ckptstore.format.entry_columns import (
    EntryColumns,
    encode_columns,
    encode_entries,
    encode_index,
    shards_of,
)
from ckptstore.format.table import Table
from ckptstore.format.table_builder import TableBuilder
from ckptstore.types import Slice

EDGES = [0, 1, 127, 128, 255, 16383, 16384, (1 << 21) - 1, 1 << 28, (1 << 31) - 1]
LARGE = [*EDGES, 1 << 35, (1 << 42) - 1, 1 << 56, (1 << 62) - 1]
SHAPES = [(), (0,), (1,), (256,), (3, 0), (16, 16), (7, 128, 3), (1 << 40,), (2,) * 60, (1,) * 64]


def some_entry(rng: random.Random) -> BundleEntry:
    shape = rng.choice(SHAPES)
    slices = (Slice(((0, 1),) * len(shape)),) if 0 not in shape and shape and rng.random() < 0.1 else ()
    return BundleEntry(
        rng.choice([0, 1, 2, 7, 14, 20, 21, 33, 34, 101, 300]),
        shape,
        rng.choice(EDGES),
        rng.choice(LARGE),
        rng.choice(LARGE),
        rng.choice([*EDGES, (1 << 32) - 1, 0x80]),
        slices,
    )


def as_rows(values: list[bytes]) -> BlockRows:
    return rows_of([(b"%06d" % row, value) for row, value in enumerate(values)])


def decoded(values: list[bytes]) -> EntryColumns:
    return EntryColumns.decode([as_rows(values)])


@pytest.mark.parametrize("count", [0, 1, 63, 64, 3000])
def test_the_bytes_are_those_of_single_entries(count):
    rng = random.Random(count)
    entries = [some_entry(rng) for _ in range(count)]
    assert encode_entries(entries) == [encode_entry(entry) for entry in entries]


@given(
    st.lists(
        st.tuples(
            st.integers(0, (1 << 31) - 1),
            st.integers(0, (1 << 63) - 1),
            st.integers(0, (1 << 63) - 1),
            st.integers(0, (1 << 32) - 1),
        ),
        max_size=20,
    )
)
def test_columns_of_any_numbers_are_encoded_like_entries(numbers):
    entries = [BundleEntry(1, (2, 3), *four) for four in numbers]
    heads = [encode_entry_head(1, (2, 3))] * len(entries)
    columns = [[four[place] for four in numbers] for place in range(4)]
    assert encode_columns(heads, *columns) == [encode_entry(entry) for entry in entries]


@pytest.mark.parametrize("count", [5, 63, 64, 2000])
def test_usual_entries_are_decoded_to_what_was_encoded(count):
    rng = random.Random(count)
    entries = [
        BundleEntry(1, (i % 7, 3), i % 3, i * 84, i % 7 * 12, rng.getrandbits(32)) for i in range(count)
    ]
    columns = decoded([encode_entry(entry) for entry in entries])
    assert [columns.entry(row) for row in range(count)] == entries
    assert len(columns.kinds) == min(count, 7)


def assert_agrees_with_single_entries(values: list[bytes]) -> int:
    """Compare row by row; return how many were left to `decode_entry`."""
    columns = decoded(values)
    left = 0
    for row, value in enumerate(values):
        found = columns.entry(row)
        if found is None:
            left += 1
            continue
        assert found == decode_entry(value, source="s", tensor="t")
        kind = columns.kinds[columns.kind_ids[row]]
        if kind.size_bytes == found.size_bytes:
            assert check_entry(found, source="s", tensor="t") is kind.dtype
        elif kind.dtype is not None:
            with pytest.raises(FormatError):
                check_entry(found, source="s", tensor="t")
    return left


@pytest.mark.parametrize("seed", range(20))
def test_damaged_and_unusual_entries_are_decoded_alike_or_left(seed):
    rng = random.Random(seed)
    values = []
    for _ in range(400):
        raw = bytearray(encode_entry(some_entry(rng)))
        for _ in range(rng.randrange(4)):
            raw[rng.randrange(len(raw))] = rng.choice([0, 1, 8, 0x12, 0x18, 0x20, 0x28, 0x35, 0x80, 0xFF])
        if rng.random() < 0.2:
            raw = raw[: rng.randrange(len(raw) + 1)]
        if rng.random() < 0.1:
            raw += bytes(rng.randrange(4))
        values.append(bytes(raw))
    left = assert_agrees_with_single_entries(values)
    assert 0 < left < 400
    # Few of them take the other way, and must come out the same.
    few = decoded(values[:40])
    many = decoded(values)
    assert [few.entry(row) for row in range(40)] == [many.entry(row) for row in range(40)]


@pytest.mark.parametrize(
    "tail",
    [
        b"\x20" + b"\xff" * 9 + b"\x01",  # an offset above 63 bits
        b"\x20" + b"\xff" * 8 + b"\x7f" + b"\x28\x01",  # offset + size above 63 bits
        b"\x20" + b"\x80" * 30,
        b"\x20",
        b"\x18\xff\xff\xff\xff\x0f",  # a shard above 31 bits
        b"\x35\x01\x02\x03",
        b"\x28\x04\x20\x01",  # fields in another order
        b"\x20\x01\x20\x02",
    ],
)
def test_what_only_a_single_entry_can_judge_is_left_to_it(tail):
    columns = decoded([b"\x08\x01\x12\x00" + tail] * 100)
    assert {columns.entry(row) for row in range(100)} == {None}


def test_more_kinds_than_are_remembered_are_left_to_single_entries():
    values = [encode_entry(BundleEntry(1, (size,), size_bytes=4 * size)) for size in range(6000)]
    columns = decoded(values)
    assert len(columns.kinds) == 4096
    assert columns.entry(4095) == BundleEntry(1, (4095,), size_bytes=4 * 4095)
    assert columns.entry(4096) is None


@pytest.mark.parametrize(("enum", "shape"), [(7, (2,)), (21, ()), (20, ()), (34, ()), (2, (1 << 61,))])
def test_kinds_without_a_fixed_size_are_left_to_the_check_of_each_entry(enum, shape):
    columns = decoded([encode_entry(BundleEntry(enum, shape, size_bytes=9))] * 100)
    (kind,) = columns.kinds
    assert (kind.dtype, kind.size_bytes) == (None, -1)
    if enum in (20, 34, 2):
        entry = columns.entry(0)
        assert entry is not None
        with pytest.raises((FormatError, UnsupportedError)):
            check_entry(entry, source="s", tensor="t")


def test_an_index_in_any_order_has_the_bytes_of_one_built_item_by_item():
    rng = random.Random(7)
    starts = ["a", "é", "x/y", "\U0001f600"]
    items = {f"{rng.choice(starts)}{i}".encode(): some_entry(rng) for i in range(5000)}
    builder = TableBuilder()
    builder.add(HEADER_KEY, encode_header(BundleHeader(3)))
    for key in sorted(items):
        builder.add(key, encode_entry(items[key]))
    expected = builder.finish()
    keys = list(items)
    assert encode_index(BundleHeader(3), keys, encode_entries(list(items.values()))) == expected
    keys.sort()
    assert encode_index(BundleHeader(3), keys, encode_entries([items[key] for key in keys])) == expected


@pytest.mark.parametrize("keys", [[b"a", b"b", b"a"], [b"b", b""]])
def test_a_key_twice_or_that_of_the_header_is_refused(keys):
    with pytest.raises(UsageError, match="must ascend"):
        encode_index(BundleHeader(1), keys, [b""] * len(keys))


@pytest.mark.parametrize("count", [3, 500])
def test_the_shards_of_an_index_are_those_with_bytes_of_some_entry(count):
    whole = [BundleEntry(1, (2,), row % 3 * 4, row * 8, 8) for row in range(count)]
    sliced = BundleEntry(1, (4,), 99, slices=(Slice(((0, 2),)),))
    keys = [b"%05d" % row for row in range(count + 1)]
    table = Table.from_bytes(
        encode_index(BundleHeader(9), keys, encode_entries([*whole, sliced])), source="s"
    )
    assert shards_of(table, source="s") == (9, [0, 4, 8])


def test_the_shards_of_an_index_with_a_malformed_entry_are_not_known():
    values = [*encode_entries([BundleEntry(1, (), 0, 4 * row, 4) for row in range(200)]), b"\x0f"]
    data = encode_index(BundleHeader(1), [b"%05d" % row for row in range(201)], values)
    with pytest.raises(FormatError):
        shards_of(Table.from_bytes(data, source="s"), source="s")
