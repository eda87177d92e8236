"""Attacks by the table itself: blocks, handles, restarts, compression."""

from __future__ import annotations

import struct
from pathlib import Path

import ckptstore as ck
from ckptstore.format.coding import encode_varint
from tests.hostile import crafted_files as crafted
from tests.hostile.corpus import FLOAT, UNUSED, attack


def _two_blocks(first: bytes, second: bytes) -> bytes:
    return crafted.table([(b"m", first), (b"\xff", second)])


def _block_of(*items: tuple[bytes, bytes]) -> bytes:
    return crafted.block(b"".join(crafted.block_item(0, key, value) for key, value in items))


X = crafted.entry(FLOAT, [2], data=UNUSED)


@attack(None)
def the_same_key_twice(directory: Path) -> str:
    index = crafted.index_of_items(
        [(b"", crafted.HEADER), (b"x", X), (b"x", crafted.entry(FLOAT, [1], size=4))]
    )
    return crafted.write_bundle(directory, index, UNUSED)


@attack(None)
def keys_out_of_order(directory: Path) -> str:
    index = crafted.index_of_items([(b"", crafted.HEADER), (b"z", X), (b"x", X)])
    return crafted.write_bundle(directory, index, UNUSED)


@attack(None)
def blocks_out_of_order(directory: Path) -> str:
    first = _block_of((b"", crafted.HEADER), (b"x", X), (b"y", X))
    index = crafted.table([(b"y", first), (b"\xff", _block_of((b"c", X), (b"d", X)))])
    return crafted.write_bundle(directory, index, UNUSED)


@attack(None)
def keys_above_their_index_entry(directory: Path) -> str:
    index = crafted.table([(b"a", _block_of((b"", crafted.HEADER), (b"x", X))), (b"z", _block_of((b"y", X)))])
    return crafted.write_bundle(directory, index, UNUSED)


@attack(ck.FormatError, opens=False)
def one_block_named_a_hundred_thousand_times(directory: Path) -> str:
    contents = _block_of((b"", crafted.HEADER), (b"x", X))
    stored = crafted.stored(contents)
    where = crafted.handle(0, len(contents))
    items = [crafted.block_item(0, struct.pack(">I", number), where) for number in range(100_000)]
    index_block = crafted.block(b"".join(items))
    empty = crafted.block(b"")
    at = len(stored)
    metaindex, at = crafted.handle(at, len(empty)), at + len(empty) + 5
    data = [stored, crafted.stored(empty), crafted.stored(index_block)]
    data.append(crafted.footer(metaindex, crafted.handle(at, len(index_block))))
    return crafted.write_bundle(directory, b"".join(data), UNUSED)


@attack(ck.FormatError, opens=False)
def blocks_that_overlap(directory: Path) -> str:
    first, second = _block_of((b"", crafted.HEADER), (b"a", X)), _block_of((b"x", X))
    handles = [crafted.handle(0, len(first)), crafted.handle(10, len(second))]
    index = crafted.table([(b"m", first), (b"\xff", second)], handles=handles)
    return crafted.write_bundle(directory, index, UNUSED)


@attack(ck.FormatError, opens=False)
def block_behind_the_file(directory: Path) -> str:
    first = _block_of((b"", crafted.HEADER), (b"x", X))
    index = crafted.table([(b"\xff", first)], handles=[crafted.handle(1 << 40, len(first))])
    return crafted.write_bundle(directory, index, UNUSED)


@attack(ck.FormatError, opens=False)
def block_of_2_to_the_63_bytes(directory: Path) -> str:
    first = _block_of((b"", crafted.HEADER), (b"x", X))
    index = crafted.table([(b"\xff", first)], handles=[crafted.handle(0, 1 << 63)])
    return crafted.write_bundle(directory, index, UNUSED)


@attack(ck.FormatError, opens=False)
def index_block_behind_the_file(directory: Path) -> str:
    footer = crafted.footer(crafted.handle(0, 8), crafted.handle(1 << 62, 1 << 62))
    return crafted.write_bundle(directory, bytes(100) + footer)


@attack(ck.CorruptError, opens=False)
def the_index_block_names_itself(directory: Path) -> str:
    # At 0 the metaindex, at 13 the index block, whose one item points at 13.
    empty = crafted.stored(crafted.block(b""))
    size = 3 + 4 + 2 + 8
    index_block = crafted.block(crafted.block_item(0, b"\xff" * 4, crafted.handle(13, size)))
    assert len(index_block) == size
    table = (
        empty + crafted.stored(index_block) + crafted.footer(crafted.handle(0, 8), crafted.handle(13, size))
    )
    return crafted.write_bundle(directory, table)


@attack(ck.FormatError, opens=False)
def footer_with_a_varint_that_does_not_end(directory: Path) -> str:
    return crafted.write_bundle(directory, bytes(60) + crafted.footer(b"\x80" * 40, b""))


@attack(ck.FormatError, opens=False)
def data_file_in_the_place_of_the_index(directory: Path) -> str:
    return crafted.write_bundle(directory, bytes(1000))


@attack(ck.FormatError, opens=False)
def more_restarts_than_the_block_has_bytes(directory: Path) -> str:
    contents = crafted.block(crafted.block_item(0, b"", crafted.HEADER), count=0xFFFFFFFF)
    return crafted.write_bundle(directory, crafted.table([(b"\xff", contents)]))


@attack(ck.FormatError, opens=False)
def restart_outside_the_entries(directory: Path) -> str:
    contents = crafted.block(crafted.block_item(0, b"", crafted.HEADER), [0, 1 << 31])
    return crafted.write_bundle(directory, crafted.table([(b"\xff", contents)]))


@attack(ck.FormatError, opens=False)
def restarts_in_the_middle_of_entries(directory: Path) -> str:
    entries = crafted.block_item(0, b"", crafted.HEADER) + crafted.block_item(0, b"x", X)
    contents = crafted.block(entries, list(range(len(entries))))
    return crafted.write_bundle(directory, crafted.table([(b"\xff", contents)]), UNUSED)


@attack(ck.FormatError, opens=False)
def entry_longer_than_its_block(directory: Path) -> str:
    item = crafted.block_item(0, b"", crafted.HEADER, value_size=(1 << 64) - 1)
    return crafted.write_bundle(directory, crafted.table([(b"\xff", crafted.block(item))]))


@attack(ck.FormatError, opens=False)
def first_key_shares_with_nothing(directory: Path) -> str:
    item = crafted.block_item(5, b"x", crafted.HEADER)
    return crafted.write_bundle(directory, crafted.table([(b"\xff", crafted.block(item))]))


@attack(ck.FormatError)
def keys_that_expand_without_end(directory: Path) -> str:
    # One key of 100 KB, and 20 000 entries of a few bytes that repeat it: 2 GB of keys.
    first = b"y" * 100_000
    items = [
        crafted.block_item(0, b"", crafted.HEADER),
        crafted.block_item(0, b"x", crafted.entry(99, [2])),
    ]
    items.append(crafted.block_item(0, first, b""))
    items += [crafted.block_item(len(first), struct.pack(">I", number), b"") for number in range(20_000)]
    return crafted.write_bundle(directory, crafted.table([(b"\xff", crafted.block(b"".join(items)))]))


@attack(ck.FormatError, opens=False)
def unknown_compression(directory: Path) -> str:
    contents = _block_of((b"", crafted.HEADER), (b"x", X))
    return crafted.write_bundle(directory, crafted.table([(b"\xff", contents)], kind=7))


def _snappy_table(stream: bytes) -> bytes:
    return crafted.table([(b"\xff", stream)], kind=1)


@attack(ck.FormatError, opens=False)
def snappy_that_claims_four_gigabytes(directory: Path) -> str:
    return crafted.write_bundle(directory, _snappy_table(encode_varint(0xFFFFFFFF) + b"\x00a"))


@attack(ck.FormatError, opens=False)
def snappy_that_claims_2_to_the_63_bytes(directory: Path) -> str:
    return crafted.write_bundle(directory, _snappy_table(encode_varint(1 << 63) + b"\x00a"))


@attack(ck.FormatError, opens=False)
def snappy_that_copies_from_before_the_beginning(directory: Path) -> str:
    return crafted.write_bundle(directory, _snappy_table(encode_varint(64) + b"\x00a\xfe\xff\xff"))


@attack(ck.FormatError, opens=False)
def snappy_with_a_literal_of_four_gigabytes(directory: Path) -> str:
    return crafted.write_bundle(directory, _snappy_table(encode_varint(64) + b"\xfc\xff\xff\xff\xff"))


@attack(ck.FormatError, opens=False, memory_bytes=60 << 20, heavy=True)
def snappy_bomb_of_one_megabyte(directory: Path) -> str:
    # One literal, then copies of 64 bytes in 3 bytes each: 22 MB of zeros.
    copies = 350_000
    stream = encode_varint(64 * copies + 1) + b"\x00\x00" + b"\xfe\x01\x00" * copies
    return crafted.write_bundle(directory, _snappy_table(stream))
