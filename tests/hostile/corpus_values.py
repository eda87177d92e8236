"""Attacks by the bytes of a tensor: strings, variants, the object graph."""

from __future__ import annotations

from pathlib import Path

import ckptstore as ck
from ckptstore.format.coding import encode_bytes_field, encode_varint, encode_varint_field
from ckptstore.format.crc32c import crc32c, mask
from ckptstore.format.strings import encode_strings, encode_variants
from tests.hostile import crafted_files as crafted
from tests.hostile.corpus import FLOAT, STRING, VARIANT, attack, one


def _strings(directory: Path, data: bytes, count: int, crc: int | None = None) -> str:
    masked = mask(crc32c(data)) if crc is None else mask(crc)
    return one(directory, crafted.entry(STRING, [count], size=len(data), crc=masked), data)


@attack(ck.FormatError)
def string_length_of_2_to_the_64_less_1(directory: Path) -> str:
    return _strings(directory, encode_varint((1 << 64) - 1) + bytes(20), 1)


@attack(ck.FormatError)
def string_lengths_that_wrap_around(directory: Path) -> str:
    data = encode_varint((1 << 64) - 1) + encode_varint(9) + bytes(12)
    return _strings(directory, data, 2)


@attack(ck.FormatError)
def string_length_that_never_ends(directory: Path) -> str:
    return _strings(directory, b"\x80" * 100, 1)


@attack(ck.ChecksumError)
def string_lengths_moved_between_neighbours(directory: Path) -> str:
    data, crc = encode_strings([b"ab", b"cd"])
    return _strings(directory, b"\x01\x03" + data[2:], 2, crc)


@attack(ck.FormatError)
def more_strings_than_bytes(directory: Path) -> str:
    data, crc = encode_strings([b"ab", b"cd"])
    return _strings(directory, data, 1000, crc)


@attack(ck.FormatError)
def fewer_strings_than_lengths(directory: Path) -> str:
    data, crc = encode_strings([b"ab", b"cd"])
    return _strings(directory, data, 1, crc)


def _variants(directory: Path, data: bytes, count: int) -> str:
    return one(directory, crafted.entry(VARIANT, [count], size=len(data), crc=mask(crc32c(data))), data)


@attack(ck.FormatError)
def variant_length_of_2_to_the_64_less_1(directory: Path) -> str:
    return _variants(directory, encode_varint((1 << 64) - 1) + bytes(20), 1)


@attack(ck.FormatError)
def bytes_behind_the_last_variant(directory: Path) -> str:
    data, _ = encode_variants([b"abc"])
    return _variants(directory, data + b"more", 1)


@attack(ck.ChecksumError)
def variant_with_another_length(directory: Path) -> str:
    data, _ = encode_variants([b"abc", b"defg"])
    return _variants(directory, b"\x02" + data[1:], 2)


def _object_graph(directory: Path, graph: bytes) -> str:
    data, crc = encode_strings([graph])
    value = crafted.entry(STRING, [], size=len(data), crc=mask(crc))
    wrong = crafted.entry(FLOAT, [1], size=8)
    index = crafted.index({"_CHECKPOINTABLE_OBJECT_GRAPH": value, "x": wrong})
    return crafted.write_bundle(directory, index, data)


def _node(*children: tuple[int, str], key: str = "") -> bytes:
    fields = b"".join(
        encode_bytes_field(1, encode_varint_field(1, number) + encode_bytes_field(2, name.encode()))
        for number, name in children
    )
    if key:
        attribute = encode_bytes_field(1, b"VARIABLE_VALUE") + encode_bytes_field(3, key.encode())
        fields += encode_bytes_field(2, attribute)
    return encode_bytes_field(1, fields)


@attack(ck.FormatError)
def object_graph_with_cycles(directory: Path) -> str:
    return _object_graph(directory, _node((0, "w"), (1, "net")) + _node((0, "up"), (1, "self"), key="x"))


@attack(ck.FormatError)
def object_graph_that_is_one_long_chain(directory: Path) -> str:
    return _object_graph(directory, b"".join(_node((number + 1, "w")) for number in range(50_000)) + _node())


@attack(ck.FormatError)
def object_graph_with_ids_out_of_range(directory: Path) -> str:
    return _object_graph(directory, _node((1 << 31, "w"), (-1, "v")))


@attack(ck.FormatError)
def object_graph_that_names_no_tensor(directory: Path) -> str:
    return _object_graph(directory, _node((1, "w")) + _node(key="absent"))


@attack(ck.FormatError)
def object_graph_whose_children_are_all_one_node(directory: Path) -> str:
    children = b"\x0a\x00" * 200_000
    return _object_graph(directory, encode_bytes_field(1, children) + _node(key="x"))


@attack(ck.FormatError)
def object_graph_of_garbage(directory: Path) -> str:
    return _object_graph(directory, b"\xff" * 1000)
