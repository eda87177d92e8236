"""Tables, written: the bytes of TensorFlow 2.21."""

from __future__ import annotations

import hashlib
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.errors import UsageError
from ckptstore.format.block_builder import BlockBuilder, shared_prefix_length, shared_prefix_lengths
from ckptstore.format.crc32c import crc32c, mask
from ckptstore.format.entry import BundleEntry, BundleHeader, encode_entry, encode_header
from ckptstore.format.table import Table
from ckptstore.format.table_builder import TableBuilder
from tests.unit.format.tables import block_count, index_keys

WORKED_EXAMPLE = bytes.fromhex(
    "000006 08011a020801 00010f76 08011204120208022808 35593ce535".replace(" ", "")
    + "00000000 01000000 00 30559358".replace(" ", "")
    + "00000000 01000000 00 c0f2a1b0".replace(" ", "")
    + "00010277 0024 00000000 01000000 00 9460b2cd".replace(" ", "")
    + "2908360e".ljust(80, "0")
    + "57fb808b247547db"
)
"""One float32 tensor ``v`` = [1, 2]."""


def build(items) -> bytes:
    builder = TableBuilder()
    for key, value in items:
        builder.add(key, value)
    return builder.finish()


def bundle_index(names: list[bytes], data: bytes, dtype_enum: int, shape: tuple[int, ...]) -> bytes:
    """Return the index of a save that hands over the same small tensor under each name."""
    masked_crc32c = mask(crc32c(data))
    items = {b"": encode_header(BundleHeader(1))}
    for position, name in enumerate(names):
        entry = BundleEntry(dtype_enum, shape, 0, position * len(data), len(data), masked_crc32c)
        items[name] = encode_entry(entry)
    return build(sorted(items.items()))


def test_the_worked_example_of_121_bytes():
    data = bytes.fromhex("0000803f00000040")
    assert len(WORKED_EXAMPLE) == 121
    assert bundle_index([b"v"], data, 1, (2,)) == WORKED_EXAMPLE


# Size and SHA-256 of the index that TensorFlow 2.21's SaveV2 wrote for these names, in this order, each the
# int32 tensor [1] (the oversize one: float32 [1, 2]), and the number of its data blocks.
TENSORFLOW_TABLES = {
    "runs of ff, where no separator is shorter": (
        [b"\xff", b"\xff\xff", b"\xff\xff\x01", b"\xff" * 900]
        + [b"\xff" * 400 + bytes([i // 250 + 1, i % 250 + 1]) * 300 for i in range(900)],
        3,
    ),
    "keys that are prefixes of each other, of ff only": ([b"\xff" * (300 + i) for i in range(1200)], 1),
    "names of 750 bytes without common beginning": ([b"n%04d" % i * 150 for i in range(2500)], 8),
    "names of 896 bytes with a common beginning": ([b"p" * 890 + b"%06d" % (i * 37) for i in range(6000)], 2),
    "entries of more than 512 KiB": (
        [b"a", b"b" + b"x" * 600000, b"c", b"d" + b"y" * 524270, b"e", b"f" + b"z" * 524265, b"g"],
        6,
    ),
}
TENSORFLOW_HASHES = {
    "runs of ff, where no separator is shorter": (
        586834,
        "6b575ffe2832557c1eab21a022281a5f7602b6f8b172a0f71c5f71c176c3853a",
    ),
    "keys that are prefixes of each other, of ff only": (
        97718,
        "82f5c27e82dc204a806a9292caaa1a585e14b3bcc29d96fd155949125eca3af9",
    ),
    "names of 750 bytes without common beginning": (
        1927009,
        "aabcf0a63a28e00d123bafdf6069845b6fd625fd5362dfcdc359b5153024ef86",
    ),
    "names of 896 bytes with a common beginning": (
        486841,
        "5d501f0c29505c51f3d7228610f493cb8641990fdaa88fde1cb243f82e83928c",
    ),
    "entries of more than 512 KiB": (
        3297458,
        "a2a9db8873abcf27009d68526fb08698f2ba9cff63641c4b9b638ab337a8c2e6",
    ),
}


@pytest.mark.parametrize("case", TENSORFLOW_TABLES)
def test_tables_of_several_blocks_equal_tensorflows(case):
    names, blocks = TENSORFLOW_TABLES[case]
    if case.startswith("entries"):
        table = bundle_index(names, bytes.fromhex("0000803f00000040"), 1, (2,))
    else:
        table = bundle_index(names, bytes.fromhex("01000000"), 3, (1,))
    assert (len(table), hashlib.sha256(table).hexdigest()) == TENSORFLOW_HASHES[case]
    assert block_count(table) == blocks


def test_every_fixture_is_rebuilt_byte_for_byte_from_its_items(fixtures_dir):
    tables = sorted(fixtures_dir.rglob("*.index"))
    tables += [path for path in (fixtures_dir / "05_v1_format").iterdir() if path.name.startswith("v1")]
    assert len(tables) >= 32
    for path in tables:
        data = path.read_bytes()
        rebuilt = build(Table.from_bytes(data, source=str(path)).items())
        if path.name == "snappy.index":
            # Its blocks have 4 KiB and are compressed; the items are what has to survive.
            items = list(Table.from_bytes(data, source="a").items())
            assert list(Table.from_bytes(rebuilt, source="b").items()) == items
        else:
            assert rebuilt == data, path


def test_a_table_without_items_has_two_empty_blocks():
    table = build([])
    assert table[:13].hex() == "00000000" + "01000000" + "00" + "c0f2a1b0"
    assert len(table) == 2 * 13 + 48
    assert list(Table.from_bytes(table, source="s").items()) == []
    assert Table.from_bytes(table, source="s").get(b"a") is None


@pytest.mark.parametrize(
    ("last", "following", "index_key"),
    [
        (b"abc", b"abx", b"abd"),
        (b"abc", b"abd", b"abc"),
        (b"abc", b"abcd", b"abc"),
        (b"ab\xff", b"ac", b"ab\xff"),
        (b"a\xfe", b"a\xff", b"a\xfe"),
        (b"a\xfd", b"a\xff\x01", b"a\xfe"),
        (b"aa\xff\xff", b"c", b"b"),
    ],
)
def test_index_key_between_two_blocks_is_the_shortest_separator(last, following, index_key):
    # The value closes the block after the first item.
    data = build([(last, bytes(262_144)), (following, b"")])
    table = Table.from_bytes(data, source="s")
    assert index_keys(data)[0] == index_key
    assert table.get(last) == bytes(262_144)
    assert table.get(following) == b""


@pytest.mark.parametrize(
    ("last", "successor"),
    [
        (b"v", b"w"),
        (b"abc", b"b"),
        (b"\xff\xffa9", b"\xff\xffb"),
        (b"\xff\xff", b"\xff\xff"),
        (b"", b""),
        (b"\x00x", b"\x01"),
    ],
)
def test_last_index_key_is_the_short_successor(last, successor):
    assert index_keys(build([(last, b"")])) == [successor]


def test_a_block_closes_when_it_reaches_its_size_and_not_before():
    # One entry: 3 + 1 + n bytes with a three-byte value length adds 2; restart array 8.
    overhead = 1 + 1 + 3 + 1 + 8
    for value_size, blocks in ((262_144 - overhead - 1, 1), (262_144 - overhead, 2)):
        assert block_count(build([(b"a", bytes(value_size)), (b"b", b"")])) == blocks


@pytest.mark.parametrize(("size", "blocks"), [(524_287, 1), (524_288, 2)])
def test_an_oversize_entry_first_closes_the_block_before_it(size, blocks):
    assert block_count(build([(b"a", b""), (b"b", bytes(size - 1))])) == blocks


def test_every_sixteenth_entry_stores_its_key_in_full():
    builder = BlockBuilder(16)
    for n in range(33):
        builder.add(b"key%02d" % n, b"")
    block = builder.finish()
    assert int.from_bytes(block[-4:], "little") == 3
    for restart in (block[-16:-12], block[-12:-8], block[-8:-4]):
        assert block[int.from_bytes(restart, "little")] == 0
    assert builder.empty


@pytest.mark.parametrize("keys", [(b"b", b"a"), (b"a", b"a"), (b"a\x80", b"a\x7f"), (b"", b"")])
def test_keys_that_do_not_ascend_are_refused(keys):
    builder = TableBuilder()
    builder.add(keys[0], b"")
    with pytest.raises(UsageError, match="ascend"):
        builder.add(keys[1], b"")


def test_a_finished_table_takes_nothing_more():
    builder = TableBuilder()
    builder.finish()
    with pytest.raises(UsageError, match="finished"):
        builder.add(b"a", b"")
    with pytest.raises(UsageError, match="finished"):
        builder.finish()


@pytest.mark.parametrize(
    ("a", "b", "shared"),
    [
        (b"", b"", 0),
        (b"a", b"", 0),
        (b"abc", b"abd", 2),
        (b"ab", b"abc", 2),
        (b"\x00", b"\x00\x00", 1),
        (b"\x80", b"\x00", 0),
    ],
)
def test_shared_prefix_length(a, b, shared):
    assert shared_prefix_length(a, b) == shared == shared_prefix_length(b, a)


def extended(keys: list[bytes], values: list[bytes], cuts: list[int]) -> bytes:
    """Return the table of items that are handed over in several calls."""
    builder = TableBuilder()
    for start, stop in pairwise([0, *sorted(cuts), len(keys)]):
        builder.extend(keys[start:stop], values[start:stop])
    return builder.finish()


ALPHABETS = [b"\x00", b"\x00\xff", b"ab", bytes(range(256)), "aé/\U0001f600".encode()]


@pytest.mark.parametrize("seed", range(60))
def test_many_items_at_once_give_the_bytes_of_single_ones(seed):
    rng = random.Random(seed)
    alphabet = rng.choice(ALPHABETS)

    def text(longest: int) -> bytes:
        return bytes(rng.choices(alphabet, k=rng.randrange(longest)))

    prefixes = [text(rng.choice([2, 40, 300])) for _ in range(5)]
    longest = rng.choice([3, 12, 200])
    count = rng.choice([0, 1, 2, 16, 17, 31, 33, 100, 1000, 9000])
    keys = sorted({rng.choice(prefixes) + text(longest) for _ in range(count)})
    values = [bytes(rng.randrange(rng.choice([30, 200, 3000]))) for _ in keys]
    if keys and rng.random() < 0.3:
        for _ in range(3):
            values[rng.randrange(len(keys))] = bytes(rng.choice([524_288, 524_200, 262_144, 300_000]))
    cuts = [rng.randrange(len(keys) + 1) for _ in range(rng.randrange(4))]
    assert extended(keys, values, cuts) == build(zip(keys, values, strict=True))


@pytest.mark.parametrize("size", range(50, 62))
def test_many_items_at_once_close_blocks_where_single_ones_do(size):
    keys = [b"%07d" % number for number in range(20_000)]
    values = [bytes(size)] * len(keys)
    data = extended(keys, values, [1])
    assert data == build(zip(keys, values, strict=True))
    assert block_count(data) > 3


@pytest.mark.parametrize("wrong", [0, 1, 50, 4096, 4999])
def test_many_items_that_do_not_ascend_are_refused_like_single_ones(wrong):
    keys = [b"%05d" % number for number in range(1, 5001)]
    keys[wrong] = b"00000" if wrong else b""
    single, bulk = TableBuilder(), TableBuilder()
    for builder in (single, bulk):
        builder.add(b"", b"")
    with pytest.raises(UsageError) as found:
        bulk.extend(keys, [b""] * len(keys))
    for key in keys[:wrong]:
        single.add(key, b"")
    with pytest.raises(UsageError) as expected:
        single.add(keys[wrong], b"")
    assert str(found.value) == str(expected.value)


def test_nothing_can_be_extended_after_the_end():
    builder = TableBuilder()
    builder.finish()
    with pytest.raises(UsageError, match="finished"):
        builder.extend([b"%05d" % number for number in range(100)], [b""] * 100)


@given(st.lists(st.binary(max_size=6), max_size=12), st.binary(max_size=6))
def test_shared_prefixes_of_many_keys_are_those_of_each_pair(keys, last):
    expected = [shared_prefix_length(a, b) for a, b in pairwise([last, *keys])]
    assert shared_prefix_lengths(last, keys).tolist() == expected
